"""Color maps, and meshes colored by values at their vertices."""

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from trimesh import Trimesh
from trimesh.visual import ColorVisuals

from shapespace.geometry.proximity import closest_point

ERROR_RAMP = ((232, 230, 225), (246, 217, 139), (240, 152, 63), (207, 59, 46), (94, 15, 43))  # zero to limit and beyond


def color_by_distance(mesh: Trimesh, other: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by the exact distance of its vertices to another: pale at 0, dark from `limit` mm on."""
    distance, _, _ = closest_point(np.asarray(mesh.vertices, dtype=np.float64), other)
    return color_by_value(mesh, distance, limit=limit)


def color_by_value(mesh: Trimesh, lengths: Float[np.ndarray, "v"], *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by a length in metres at each vertex: pale at 0, dark from `limit` mm on.

    The copy also holds the lengths, as its vertex attribute `quality`.
    """
    painted = Trimesh(mesh.vertices, mesh.faces, process=False, vertex_colors=colors_of(lengths, limit=limit))
    painted.vertex_attributes["quality"] = lengths
    return painted


def color_by_quality(mesh: Trimesh, *, limit: float = 20.0) -> Trimesh:
    """Copy a mesh, coloured by the lengths that it holds as its vertex attribute `quality`; itself if it holds none."""
    held = mesh.vertex_attributes.get("quality")
    return mesh if held is None else color_by_value(mesh, np.asarray(held, dtype=np.float64).reshape(-1), limit=limit)


def colors_of(lengths: Float[np.ndarray, "n"], *, limit: float = 20.0) -> UInt8[np.ndarray, "n 3"]:
    """Colours of lengths in metres: pale at 0, dark from `limit` mm on."""
    return ramp(1e3 * lengths / limit)


def signed_colors(values: Float[np.ndarray, "*n"], *, limit: float) -> UInt8[np.ndarray, "*n 3"]:
    """Colours of a field: purple inside, orange outside, pale at 0, and full from `limit` (of the field) on."""
    mapped = colormaps["PuOr_r"](0.5 + 0.5 * np.clip(values / limit, -1, 1))
    return (255 * mapped[..., :3] + 0.5).astype(np.uint8)


def vertex_colors(mesh: Trimesh) -> UInt8[np.ndarray, "n 4"] | None:
    """The colours of a mesh that has any."""
    visual = mesh.visual
    if not isinstance(visual, ColorVisuals) or visual.kind is None:
        return None
    return np.asarray(visual.vertex_colors)


def ramp(share: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    """Colours of `ERROR_RAMP` for values from 0 to 1 and beyond."""
    stops = np.linspace(0, 1, len(ERROR_RAMP))
    channels = [np.interp(share, stops, channel) for channel in np.array(ERROR_RAMP).T]
    return (np.stack(channels, axis=1) + 0.5).astype(np.uint8)
