"""Meshes of a page are restored to within the quantization; captions are escaped."""

import base64
import hashlib
import html as entities
import io
import re

import igl
import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh import Trimesh

from shapespace.rendering import colors
from shapespace.report import page
from shapespace.report.mesh_view import STEPS, MeshFigure, MeshViews, pack, unpack
from shapespace.report.page import Section

RUDE = "<b> & \"x\" 'y' </script><script>alert(1)</script>"


def ball(subdivisions: int = 3, *, colored: bool = True) -> Trimesh:
    """Not round, off center, and as large as a person; red where x is large, else blue."""
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    positions = np.asarray(mesh.vertices) * [0.3, 0.9, 0.2] + [5.0, 0.9, -2.0]
    painted = np.where(positions[:, :1] > 5.0, [[200, 20, 20]], [[20, 20, 200]]).astype(np.uint8)
    return Trimesh(positions, mesh.faces, vertex_colors=painted if colored else None, process=False)


def rgb(mesh: Trimesh) -> np.ndarray:
    return np.asarray(mesh.visual.vertex_colors)[:, :3]


@pytest.mark.parametrize("colored", [True, False])
def test_a_mesh_comes_back_to_within_half_a_step(colored: bool) -> None:
    mesh = ball(colored=colored)
    back = unpack(pack(mesh))
    step = np.ptp(mesh.vertices, axis=0).max() / STEPS
    assert np.abs(back.vertices - mesh.vertices).max() <= 0.5 * step + 1e-6  # and float32 of meters
    assert (back.faces == mesh.faces).all()
    assert (colors.vertex_colors(back) is not None) == colored
    if colored:
        assert (rgb(back) == rgb(mesh)).all()


def test_what_no_face_uses_is_left_out() -> None:
    mesh = ball()
    loose = Trimesh(
        np.vstack([[[99.0, 99, 99]], mesh.vertices]),
        mesh.faces + 1,
        vertex_colors=np.vstack([[[0, 255, 0]], rgb(mesh)]),
        process=False,
    )
    assert pack(loose) == pack(mesh)


def test_more_faces_than_may_be_are_merged_and_keep_place_and_color() -> None:
    mesh = ball(5)
    packed = pack(mesh, faces=2000)
    back = unpack(packed)
    assert 1900 <= len(back.faces) <= 2000 < len(mesh.faces) == 20_480
    squared, _, _ = igl.point_mesh_squared_distance(
        np.asarray(back.vertices), np.asarray(mesh.vertices), np.asarray(mesh.faces, dtype=np.int64)
    )
    assert np.sqrt(squared.max()) < 0.003
    assert abs(back.volume / mesh.volume - 1) < 0.01
    far = np.abs(back.vertices[:, 0] - 5.0) > 0.03
    assert (rgb(back)[far, 0] == np.where(back.vertices[far, 0] > 5.0, 200, 20)).all()
    assert len(packed) < 2000 * 15


def test_a_mesh_of_a_page_is_small() -> None:
    assert len(pack(ball(6), faces=12_000)) < 200_000


@pytest.mark.parametrize("kind", ["fin", "soup"])
def test_what_is_no_manifold_is_merged_too(kind: str) -> None:
    mesh = ball(5)
    positions, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    if kind == "fin":  # three faces at one edge
        faces = np.vstack([faces, [[faces[0, 0], faces[0, 1], 1000]], [[faces[0, 0], faces[0, 1], 2000]]])
    else:  # each face by itself
        positions, faces = positions[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)
    back = unpack(pack(Trimesh(positions, faces, process=False), faces=2000))
    assert 200 < len(back.faces) <= 2000
    assert np.ptp(back.vertices, axis=0) == pytest.approx(np.ptp(positions, axis=0), abs=0.06)


def test_a_mesh_without_extent_is_packed() -> None:
    assert np.allclose(unpack(pack(Trimesh(np.ones((3, 3)), [[0, 1, 2]], process=False))).vertices, 1)


@pytest.mark.parametrize(
    ("mesh", "sentence"),
    [
        (Trimesh(), r"it has no faces\. Leave it out"),
        (Trimesh([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False), "vertices that are not finite"),
    ],
)
def test_what_cannot_be_shown_is_refused(mesh: Trimesh, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pack(mesh)


def test_the_page_holds_the_meshes_a_picture_of_each_and_one_script() -> None:
    film = MeshFigure([ball(2), ball(1)], RUDE)
    text = page.html(
        "t", [Section("a", [MeshViews([film], 20.0)]), Section("b", [MeshViews([MeshFigure([ball()], "one")])])]
    )
    frames = [found.split() for found in re.findall(r'data-frames="([^"]*)"', text)]
    assert [[len(unpack(frame).faces) for frame in figure] for figure in frames] == [[320, 80], [1280]]
    assert text.count("<script>") == text.count("</script>") == 1
    assert text.count('type="range"') == text.count("Play</button>") == 1  # one mesh is no film
    assert text.count('class="legend"') == 1
    assert "20 mm or more" in text
    assert f"<figcaption>{entities.escape(RUDE)}</figcaption>" in text
    assert not re.search(r"https?:|url\(|@import|<b>", text)
    assert text.index("<figure") < text.index("<script>")
    stills = [
        Image.open(io.BytesIO(base64.b64decode(png))) for png in re.findall(r"data:image/png;base64,([^\"]*)", text)
    ]
    red = np.asarray(stills[0]).astype(int)
    assert len(stills) == 2
    assert (red[..., 0] - red[..., 2] > 60).mean() > 0.05


def test_the_page_allows_its_own_script_alone() -> None:
    text = page.html("t", [Section("a", [MeshViews([MeshFigure([ball(1)], RUDE)])])])
    (allowed,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert allowed == (f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'")
    assert "script-src 'none'" in page.html("t", [])


def test_markdown_has_the_captions() -> None:
    assert (
        MeshViews([MeshFigure([ball(1)], "best: a"), MeshFigure([ball(1)], "<i>")]).markdown() == "- best: a\n- \\<i>"
    )
