"""Color maps, and meshes colored by lengths at their vertices or by body part."""

import numpy as np
from jaxtyping import Float, Int, UInt8
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
PART_COLORS = (
    (88, 178, 250),
    (242, 146, 122),
    (63, 212, 189),
    (253, 215, 136),
    (198, 156, 232),
    (143, 193, 119),
    (255, 205, 221),
    (172, 229, 247),
)
"""Of body parts: soft, and chosen by a random search so that all of them and their darker ones (`RIGHT_SHADE`) are far
apart in CIELAB."""
RIGHT_SHADE = 0.82  # of the right parts: left and right have the same hue and touch in the middle


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


def color_by_part(mesh: Trimesh, labels: Int[np.ndarray, "v"], of_parts: UInt8[np.ndarray, "k 3"]) -> Trimesh:
    """Copy of a mesh, colored by the part of each vertex; `of_parts`: see `part_colors`."""
    return Trimesh(mesh.vertices, mesh.faces, process=False, vertex_colors=of_parts[labels])


def part_colors(center: Float[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "k 3"]:
    """Color of each part, by the centers of the parts at rest (x points to the left of the body, y up).

    Colors are of `PART_COLORS`. A part and its mirror image have the same, the right one darker. From top to bottom,
    each part takes the color that is farthest away on the parts before it, so that neighbors differ.
    """
    middle = 0.5 * (center[:, 0].min() + center[:, 0].max())
    mirrored = center * (-1, 1, 1) + (2 * middle, 0, 0)
    image = np.linalg.norm(center[:, None] - mirrored, axis=2).argmin(axis=1)
    image = np.where(image[image] == np.arange(len(center)), image, np.arange(len(center)))
    distance = np.linalg.norm(center[:, None] - center, axis=2)
    index = np.full(len(center), -1)
    for part in np.argsort(-center[:, 1], kind="stable"):
        if index[part] < 0:
            nearest = distance[[part, image[part]]].min(axis=0)
            away = [nearest[index == color].min(initial=np.inf) for color in range(len(PART_COLORS))]
            index[[part, image[part]]] = np.argmax(away)
    shade = np.where((center[:, 0] < middle) & (image != np.arange(len(center))), RIGHT_SHADE, 1.0)
    return (np.array(PART_COLORS)[index] * shade[:, None] + 0.5).astype(np.uint8)


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
