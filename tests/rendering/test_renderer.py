"""Renderer, contact sheets and animations: places and colors of pixels."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from trimesh import Trimesh

from shapespace.geometry.scan import Scan
from shapespace.rendering import animation, renderer
from shapespace.rendering.colors import ERROR_RAMP, color_by_distance, signed_colors
from shapespace.rendering.renderer import render, scan_to_mesh
from shapespace.rendering.sheet import chart, contact_sheet

PAPER = (255 * np.array(renderer.PAPER) + 0.5).astype(int)
RED, BLUE = (200, 20, 20), (20, 20, 200)


def sphere(radius: float = 0.5, center: tuple[float, float, float] = (0, 0, 0)) -> Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    mesh.apply_translation(center)
    return mesh


def box(sides: tuple[float, float, float], center: tuple[float, float, float], color: tuple[int, int, int]) -> Trimesh:
    mesh = trimesh.creation.box(sides)
    mesh.apply_translation(center)
    return Trimesh(mesh.vertices, mesh.faces, vertex_colors=np.tile(color, (8, 1)), process=False)


def drawn(image: np.ndarray) -> np.ndarray:
    """Where the picture is not paper."""
    return np.abs(image.astype(int) - PAPER).max(axis=-1) > 8


def middle_of(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Mean (row, column) of the pixels in which the color's main channel stands out."""
    main = int(np.argmax(color))
    rest = np.delete(image.astype(int), main, axis=-1).max(axis=-1)
    pixels = np.argwhere(image[..., main].astype(int) > rest + 60)
    assert len(pixels) > 50, "the color is not in the picture"
    return pixels.mean(axis=0)


# ------------------------------------------------------------------------------------------------------------- render


def test_a_sphere_covers_its_disc_in_the_middle_of_the_picture() -> None:
    image = render([sphere()], size=200, elevation=0.0)
    assert (image.shape[0], image.dtype) == (200, np.uint8)
    covered = drawn(image)
    radius = 0.5 * 200 / 1.08  # the picture is 1 m high and 4 % more at either end
    assert covered.sum() == pytest.approx(np.pi * radius**2, rel=0.02)
    assert np.argwhere(covered).mean(axis=0) == pytest.approx([(200 - 1) / 2, (image.shape[1] - 1) / 2], abs=0.5)


def test_left_right_up_and_front_are_not_mirrored() -> None:
    # The person faces +z: their left hand is at +x, and appears on the right of a picture taken from the front.
    body = box((0.3, 1.0, 0.2), (0, 0.5, 0), (128, 128, 128))
    hand = box((0.2, 0.2, 0.2), (0.4, 0.8, 0), RED)
    nose = box((0.1, 0.1, 0.2), (0, 0.9, 0.2), BLUE)
    person = trimesh.util.concatenate([body, hand, nose])
    front = render([person], size=200, azimuth=0.0, elevation=0.0)
    center = np.array(front.shape[:2]) / 2
    assert middle_of(front, RED)[1] > center[1] + 20
    assert middle_of(front, RED)[0] < center[0] - 20
    assert abs(middle_of(front, BLUE)[1] - np.argwhere(drawn(front)).mean(axis=0)[1]) < 25
    assert middle_of(render([person], size=200, azimuth=180.0, elevation=0.0), RED)[1] < center[1]
    side = render([person], size=200, azimuth=90.0, elevation=0.0)  # from the person's left
    assert middle_of(side, BLUE)[1] < side.shape[1] / 2
    above = render([person], size=200, azimuth=0.0, elevation=89.0)  # from above, the front is below
    assert middle_of(above, BLUE)[0] > above.shape[0] / 2


def test_the_nearer_hides_the_farther() -> None:
    pair = trimesh.util.concatenate([box((1, 1, 0.1), (0, 0, 0.5), RED), box((1, 1, 0.1), (0, 0, -0.5), BLUE)])
    for azimuth, seen in ((0.0, 0), (180.0, 2)):
        image = render([pair], size=64, azimuth=azimuth, elevation=0.0)
        assert (image[drawn(image)].argmax(axis=-1) == seen).mean() > 0.99


def test_meshes_side_by_side_share_scale_and_floor() -> None:
    image = render([sphere(0.5, (3, 0.5, 1)), sphere(0.25, (-2, 0.25, 0))], size=200, elevation=0.0)
    cells = np.split(drawn(image), 2, axis=1)
    rows = [np.flatnonzero(cell.any(axis=1)) for cell in cells]
    assert len(rows[0]) == pytest.approx(2 * len(rows[1]), abs=2)
    assert rows[0].max() == pytest.approx(rows[1].max(), abs=1)
    columns = [np.flatnonzero(cell.any(axis=0)).mean() for cell in cells]
    assert columns[0] == pytest.approx(columns[1], abs=0.6)  # each in the middle of its cell
    # One that jumps stays in the air: 1.5 m are 200 pixels with their margins, and it is 1 m higher.
    jump = render([sphere(0.25, (0, 1.25, 0)), sphere(0.25, (0, 0.25, 0))], size=200, elevation=0.0)
    tops = [np.flatnonzero(cell.any(axis=1)).min() for cell in np.split(drawn(jump), 2, axis=1)]
    assert tops[1] - tops[0] == pytest.approx(1.0 * 200 / (1.5 * 1.08), abs=1)


def test_soups_and_faces_turned_inside_out_are_lit_the_same() -> None:
    mesh = sphere()
    flipped = Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)
    soup = Trimesh(mesh.triangles.reshape(-1, 3), np.arange(3 * len(mesh.faces)).reshape(-1, 3), process=False)
    alternating = np.where(np.arange(len(soup.faces))[:, None] % 2, soup.faces, soup.faces[:, ::-1])
    mixed = Trimesh(soup.vertices, alternating, process=False)
    plain = render([mesh], size=100).astype(int)
    assert np.abs(render([flipped], size=100) - plain).max() <= 1
    for other in (soup, mixed):
        assert np.abs(render([other], size=100) - plain).mean() < 1.5  # flat faces instead of smooth ones
    level = render([mesh], size=100, elevation=0.0)
    darkest = level[drawn(level)].max(axis=-1).min()
    assert render([mixed], size=100, elevation=0.0)[drawn(level)].max(axis=-1).min() > darkest - 20  # no black faces


def test_light_comes_from_the_upper_left_and_the_shadow_lies_on_the_floor() -> None:
    image = render([sphere()], size=200, azimuth=0.0, elevation=0.0).astype(float).mean(axis=-1)
    rows, columns = image.shape[0] // 2, image.shape[1] // 2
    step = 45
    assert image[rows, columns - step] > image[rows, columns + step] + 20
    assert image[rows - step, columns] > image[rows + step, columns] + 30
    assert not drawn(render([sphere()], size=200, elevation=0.0))[:, :3].any()
    floating = render([sphere(0.2, (0, 1.0, 0)), box((0.2, 0.2, 0.2), (0, 0.1, 0), RED)], size=200, elevation=20.0)
    cell = np.split(floating, 2, axis=1)[0]
    shaded = (cell.max(axis=-1) < PAPER.min()) & (np.ptp(cell.astype(int), axis=-1) < 8)  # paper, but darker
    assert shaded[150:].sum() > 100


def test_a_mesh_without_faces_is_shown_as_text() -> None:
    image = render([sphere(), Trimesh()], size=120)
    empty = np.split(image, 2, axis=1)[1]
    assert 0 < drawn(empty).mean() < 0.05
    assert render([Trimesh()], size=120).shape[0] == 120
    with pytest.raises(ValueError, match="render: no meshes given"):
        render([])


def test_vertex_colors_are_drawn_and_clay_is_the_default() -> None:
    red = render([box((1, 1, 1), (0, 0, 0), RED)], size=64, elevation=0.0)
    assert np.median(red[drawn(red)], axis=0).argmax() == 0
    assert np.median(red[drawn(red)], axis=0)[1] < 60
    clay = np.median(render([sphere()], size=64)[20:44, 20:44].reshape(-1, 3), axis=0)
    assert clay[0] > clay[1] > clay[2] > 60


def test_colors_of_distances_are_those_of_the_legend() -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1]])
    plate = Trimesh(corners, [[0, 2, 1], [0, 3, 2]], process=False)
    heights = np.array([0.0, 0.010, 0.020, 0.5])  # meters; the limit is 20 mm
    painted = color_by_distance(Trimesh(corners + heights[:, None] * [0, 1, 0], plate.faces, process=False), plate)
    wanted = [ERROR_RAMP[0], ERROR_RAMP[2], ERROR_RAMP[4], ERROR_RAMP[4]]
    assert np.asarray(painted.visual.vertex_colors)[:, :3].tolist() == [list(color) for color in wanted]
    assert painted.vertex_attributes["quality"] == pytest.approx(heights)


def test_colors_of_a_field_are_pale_at_zero_and_differ_inside_and_outside() -> None:
    inside, zero, outside, far = signed_colors(np.array([-0.1, 0.0, 0.1, 5.0]), limit=0.1).astype(int)
    assert zero.min() > 230
    assert inside[2] > inside[0] > inside[1]  # purple
    assert outside[0] > outside[1] > outside[2]  # orange
    assert (far == outside).all()


def test_a_scan_is_drawn_by_its_faces_or_as_markers() -> None:
    mesh = sphere()
    points = np.asarray(mesh.vertices, dtype=np.float32)
    faces = scan_to_mesh(Scan("a/b/0", points, faces=np.asarray(mesh.faces)))
    assert faces.faces.tolist() == mesh.faces.tolist()
    markers = scan_to_mesh(Scan("a/b/0", points))
    assert len(markers.faces) == 20 * len(points)
    assert markers.bounds == pytest.approx(mesh.bounds, abs=0.05)
    whole, dotted = (drawn(render([each], size=120, elevation=0.0)).mean() for each in (mesh, markers))
    assert dotted == pytest.approx(whole, rel=0.1)
    many = scan_to_mesh(Scan("a/b/0", np.random.default_rng(0).random((50_000, 3), dtype=np.float32)))
    assert 10_000 < len(many.faces) / 20 <= 20_000


# ---------------------------------------------------------------------------------------------------- sheet and chart


def test_contact_sheet_holds_its_rows_labels_legend_and_chart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    rows = [("50026/walk/000394", [sphere(), sphere(0.3)]), ("another", [sphere()])]
    contact_sheet(rows, path, titles=["scan", "fit"], size=100, limit=20.0, curves={"area [m2]": np.array([1.0, 1.1])})
    image = np.asarray(Image.open(path))
    cells = render([sphere(), sphere(0.3)], size=100)
    assert image.shape == (2 * 20 + 24 + 2 * (28 + 100) + 46 + 170, 380 + 2 * 20, 3)
    top = 20 + 28 + 24
    assert (image[top : top + 100, 20 : 20 + cells.shape[1]] == cells).all()
    assert drawn(image[20:48]).any()  # the first label
    titled = drawn(image[48:72])
    middles = 20 + cells.shape[1] // 4 * np.array([1, 3])  # of the two columns
    assert all(titled[:, middle - 8 : middle + 8].any() for middle in middles)
    assert not titled[:, 20 + cells.shape[1] :].any()
    assert not drawn(image[:, :20]).any()
    assert tuple(image[top + 100 + 28 + 100 + 10, 30]) == pytest.approx(ERROR_RAMP[0], abs=6)
    assert os.listdir(path.parent) == ["sheet.png"]


def test_the_same_meshes_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [("row", [sphere(), scan_to_mesh(Scan("s", np.asarray(sphere().vertices, dtype=np.float32)))])]
    for name in ("a.png", "b.png"):
        contact_sheet(rows, tmp_path / name, size=90)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_sheet_of_nothing_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"empty\.png: no meshes in the 1 rows of a contact sheet"):
        contact_sheet([("row", [])], tmp_path / "empty.png")
    assert not os.listdir(tmp_path)


def test_chart_rises_with_its_values_and_shows_steadiness_as_flat() -> None:
    def heights(values: list[float]) -> np.ndarray:
        image = chart({"area [m2]": values}).astype(int)
        red = (image[..., 0] - image[..., 1] > 60) & (image[..., 0] > 150)
        return np.array([np.flatnonzero(column).mean() if column.any() else np.nan for column in red.T])

    rising = heights([1.0, 2.0, 3.0])
    known = rising[np.isfinite(rising)]
    assert known[0] > known[len(known) // 2] > known[-1]  # rows count downwards
    assert known[0] - known[-1] > 90
    steady = heights([80.0, 80.1, 80.0])
    assert np.nanmax(steady) - np.nanmin(steady) < 10
    gap = heights([1.0, np.nan, 1.5, 2.0])
    assert np.isnan(gap[len(gap) // 3])
    assert np.isfinite(heights([5.0])).any()
    assert not np.isfinite(heights([np.nan, np.nan])).any()
    assert chart({"a": [1.0, 2.0], "b": np.array([2.0, 1.0])}).shape == (170, 760, 3)


def test_characters_missing_in_the_font_are_replaced() -> None:
    assert (chart({"aire (m²), élevée": [1.0, 2.0]}) == chart({"aire (m2), elevee": [1.0, 2.0]})).all()


# ---------------------------------------------------------------------------------------------------------- animation


def test_a_thumbnail_is_square_and_whole() -> None:
    wide = renderer.thumbnail(box((2.0, 0.5, 0.5), (0, 0.25, 0), RED), 48)
    assert wide.shape == (48, 48, 3)
    red = wide[..., 0].astype(int) - wide[..., 2] > 60
    assert red.any(axis=0).mean() > 0.7
    assert not red[:, [0, -1]].any()


def test_a_turntable_goes_once_around_in_one_scale(tmp_path: Path) -> None:
    """A plate that is red in front and blue behind; from its side it is thin."""
    front, back = box((1.0, 1.0, 0.02), (0, 0, 0.02), RED), box((1.0, 1.0, 0.02), (0, 0, -0.02), BLUE)
    plate = trimesh.util.concatenate([front, back])
    animation.write_animation([[plate]] * 4, tmp_path / "a.gif", size=64, azimuth=0.0, elevation=0.0, seconds=2.0)
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.info["loop"], film.info["duration"]) == (4, 0, 500)
        seen = []
        for index in range(4):
            film.seek(index)
            image = np.asarray(film.convert("RGB")).astype(int)
            seen.append((drawn(image).sum(), image[32, image.shape[1] // 2]))
    assert seen[0][1][0] > seen[0][1][2] + 50
    assert seen[2][1][2] > seen[2][1][0] + 50
    assert abs(seen[0][0] / seen[2][0] - 1) < 0.05
    assert max(seen[1][0], seen[3][0]) < 0.2 * seen[0][0]


@pytest.mark.parametrize("suffix", [".webp", ".apng"])
def test_webp_and_apng_animations(suffix: str, tmp_path: Path) -> None:
    scenes = [[box((1, 1, 1), (0, 0.5, 0), color)] for color in (RED, BLUE)]
    animation.write_animation(scenes, tmp_path / f"a{suffix}", size=48, turn=0.0)
    with Image.open(tmp_path / f"a{suffix}") as film:
        assert film.n_frames == 2
        for index, color in enumerate((RED, BLUE)):
            film.seek(index)
            assert len(middle_of(np.asarray(film.convert("RGB")), color))


def test_mp4_has_all_frames(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    animation.write_animation([[sphere()]] * 6, tmp_path / "a.mp4", size=65, seconds=1.0)
    frames, seconds = ffmpeg.count_frames_and_secs(str(tmp_path / "a.mp4"))
    assert (frames, seconds) == (6, pytest.approx(1, abs=0.2))


def test_invalid_animations_are_refused_before_rendering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError,
        match=r"a\.avi: not an animation format\. Give a name that ends in one of \.gif, \.webp, \.apng, \.mp4",
    ):
        animation.write_animation([[sphere()]], tmp_path / "a.avi")
    with pytest.raises(ValueError, match=r"a\.gif: the scenes of an animation have \[1, 2\] meshes"):
        animation.write_animation([[sphere()], [sphere(), sphere()]], tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'shapespace\[video\]', or write \.gif"):
        animation.write_animation([[sphere()]], tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
