"""Colors of parts: neighbors differ, and left and right have the same hue."""

import colorsys
from itertools import combinations

import numpy as np
import pytest
import trimesh
from trimesh import Trimesh

from shapespace.data.registration import segment, vertex_areas
from shapespace.rendering.colors import PART_COLORS, RIGHT_SHADE, color_by_part, part_colors
from shapespace.synthetic.body import Body


def lab_of(colors: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of sRGB bytes."""
    linear = np.where(colors <= 10, colors / 3294.6, ((colors / 255 + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(linear @ to_xyz.T / (0.9505, 1.0, 1.089)).T  # all are above the linear piece near black
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_all_pairs_of_the_palette_are_apart() -> None:
    """2.3 is a just noticeable difference (Mahy et al. 1994)."""
    light = np.array(PART_COLORS)
    lab = lab_of(np.concatenate([light, (light * RIGHT_SHADE + 0.5).astype(np.uint8)]).astype(float))
    count = len(PART_COLORS)
    apart = {(a, b): np.linalg.norm(lab[a] - lab[b]) for a, b in combinations(range(2 * count), 2)}
    assert min(away for (a, b), away in apart.items() if b - a != count) > 25
    assert min(apart[a, a + count] for a in range(count)) > 12


@pytest.mark.parametrize("num_parts", [40, 76])
def test_neighbors_on_the_body_differ_and_sides_are_alike(num_parts: int) -> None:
    body = Body.load()
    vertices, faces = body.mean[: -len(body.joints)], body.faces.astype(np.int64)
    area = vertex_areas(vertices, faces)
    labels = segment(vertices, faces, num_parts, area)
    center = np.stack([np.average(vertices[labels == part], axis=0) for part in range(num_parts)])
    chosen = part_colors(center)
    lab = lab_of(chosen.astype(float))
    edges = labels[np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])]
    for a, b in np.unique(edges[edges[:, 0] < edges[:, 1]], axis=0):
        assert np.linalg.norm(lab[a] - lab[b]) > 12, (a, b)
    assert len(np.unique(chosen, axis=0)) > len(PART_COLORS)


def test_mirror_images_have_one_hue_and_the_middle_its_own() -> None:
    left = np.array([[0.5, 1.0, 0.1], [0.3, 0.5, 0.0], [0.2, -0.5, 0.0]])
    center = np.concatenate([left, left * (-1, 1, 1), [[0.0, 1.5, 0.0]]])
    chosen = part_colors(center + np.array([0.07, 0.0, 0.0]))
    for one, other in zip(chosen[:3], chosen[3:6], strict=True):
        np.testing.assert_array_equal(other, (one * RIGHT_SHADE + 0.5).astype(np.uint8))
        hues = [colorsys.rgb_to_hsv(*(color / 255))[0] for color in (one, other)]
        assert hues[0] == pytest.approx(hues[1], abs=0.01)
    assert tuple(chosen[6]) in PART_COLORS
    assert len(np.unique(chosen, axis=0)) == 7


def test_a_mesh_has_the_colors_of_its_labels() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=1)
    labels = np.arange(len(mesh.vertices)) % 3
    of_parts = np.array([[1, 2, 3], [40, 50, 60], [200, 100, 0]], dtype=np.uint8)
    painted = color_by_part(mesh, labels, of_parts)
    assert isinstance(painted, Trimesh)
    np.testing.assert_array_equal(painted.visual.vertex_colors[:, :3], of_parts[labels])
    np.testing.assert_array_equal(painted.vertices, mesh.vertices)
    assert mesh.visual.kind is None
