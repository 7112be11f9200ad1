"""Color maps, and meshes colored by lengths at their vertices."""

import numpy as np
from jaxtyping import Float, UInt8
from trimesh import Trimesh
from trimesh.visual import ColorVisuals

from shapespace.geometry.proximity import closest_point

ERROR_RAMP = (
    (232, 230, 225),
    (246, 217, 139),
    (240, 152, 63),
    (207, 59, 46),
    (94, 15, 43),
)  # from 0 to the limit and beyond


def color_by_distance(mesh: Trimesh, other: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy of a mesh, colored by the exact distance of its vertices to another; see `colors_of`."""
    distance, _, _ = closest_point(np.asarray(mesh.vertices, dtype=np.float64), other)
    return color_by_value(mesh, distance, limit=limit)


def color_by_value(mesh: Trimesh, lengths: Float[np.ndarray, "v"], *, limit: float = 20.0) -> Trimesh:
    """Copy of a mesh, colored by a length (meters) at each vertex; see `colors_of`.

    The copy stores the lengths as its vertex attribute `quality`.
    """
    colored = Trimesh(mesh.vertices, mesh.faces, process=False, vertex_colors=colors_of(lengths, limit=limit))
    colored.vertex_attributes["quality"] = lengths
    return colored


def color_by_quality(mesh: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy of a mesh, colored by its vertex attribute `quality` (meters); the mesh itself if it has none."""
    lengths = mesh.vertex_attributes.get("quality")
    if lengths is None:
        return mesh
    return color_by_value(mesh, np.asarray(lengths, dtype=np.float64).reshape(-1), limit=limit)


def colors_of(lengths: Float[np.ndarray, "n"], *, limit: float = 20.0) -> UInt8[np.ndarray, "n 3"]:
    """Colors of lengths (meters): pale at 0, dark from `limit` (mm) on."""
    return ramp(1e3 * lengths / limit)


def signed_colors(values: Float[np.ndarray, "*n"], *, limit: float) -> UInt8[np.ndarray, "*n 3"]:
    """Colors of field values: purple inside, orange outside, pale at 0, saturated from `limit` on."""
    from matplotlib import colormaps  # takes a second to import

    mapped = colormaps["PuOr_r"](0.5 + 0.5 * np.clip(values / limit, -1, 1))
    return (255 * mapped[..., :3] + 0.5).astype(np.uint8)


def vertex_colors(mesh: Trimesh) -> UInt8[np.ndarray, "n 4"] | None:
    """RGBA colors of the vertices of a mesh, if it has any."""
    visual = mesh.visual
    if not isinstance(visual, ColorVisuals) or visual.kind is None:
        return None
    return np.asarray(visual.vertex_colors)


def css_ramp() -> str:
    """`ERROR_RAMP` as a CSS gradient, from left to right."""
    return f"linear-gradient(to right, {', '.join('#' + bytes(color).hex() for color in ERROR_RAMP)})"


def ramp(fractions: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    """Colors of `ERROR_RAMP` for values from 0 to 1 and beyond."""
    stops = np.linspace(0, 1, len(ERROR_RAMP))
    channels = [np.interp(fractions, stops, channel) for channel in np.array(ERROR_RAMP).T]
    return (np.stack(channels, axis=1) + 0.5).astype(np.uint8)
