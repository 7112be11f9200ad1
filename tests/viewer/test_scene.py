"""Scenes of the viewer, without a window."""

import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.geometry.proximity import closest_point
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files
from shapespace.models import atlas, convolutional, igr, occupancy, registry, voxel
from shapespace.rendering import colors, renderer
from shapespace.viewer.background import Cancelled, LatestRequest, StillWanted
from shapespace.viewer.fitted_scans import ScanCollection
from shapespace.viewer.request import COARSE, MEAN, InterpolatedShape, PrincipalShape, ScanShape, ViewRequest
from shapespace.viewer.scene import STEPS, Scene, SceneBuilder
from shapespace.viewer.slices import LEVELS, SlicePlane


def untrained(sizes: object) -> ShapeSpace:
    torch.manual_seed(0)
    return ShapeSpace(registry.build_model(sizes, num_scans=0).eval(), sizes, scale=2.0, metadata={"weights": {}})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def space() -> ShapeSpace:
    """Its shapes are about balls of a meter; its code changes them by centimeters."""
    space = untrained(igr.IGRConfig(code_dim=4, width=64, depth=3, skip=1, init_radius=0.5, encoder_points=128))
    assert space.model.prior is not None
    space.model.prior.covariance *= 100
    return space


@pytest.fixture(scope="module")
def scan(space: ShapeSpace) -> Scan:
    """Of the shape two standard deviations away, moved."""
    mesh = space.mesh(space.from_principal_components([2.0, 0.0]), resolution=48)
    points = mesh.sample(3000, seed=0) + np.array([5.0, 2.0, -3.0])
    return Scan("a/b/0", points.astype(np.float32))


@pytest.fixture(scope="module")
def collection(space: ShapeSpace, scan: Scan) -> ScanCollection:
    ground_truth = space.mesh(space.from_principal_components([2.0, 0.0]), resolution=64)
    ground_truth = Trimesh(
        np.asarray(ground_truth.vertices) + np.array([5.0, 2.0, -3.0]), ground_truth.faces, process=False
    )
    return ScanCollection(space, [scan], lambda name: ground_truth if name == "a/b/0" else None)


def test_coarse_then_fine_then_numbers(collection: ScanCollection) -> None:
    coarse, fine, numbers = SceneBuilder(collection).build(ViewRequest(ScanShape("a/b/0"), detail=48))
    assert (coarse.detail, fine.detail, numbers.detail) == (COARSE, 48, 48)
    assert len(coarse.mesh.vertices) < len(fine.mesh.vertices)
    assert coarse.summary == fine.summary == ()
    median, p95 = 1e3 * np.percentile(collection.fitted_scan("a/b/0").fit.residuals, [50, 95])
    verdict, score, stature = numbers.summary
    assert f"within {median:.1f} mm, 95 % within {p95:.1f} mm" in verdict
    assert re.fullmatch(r"Metric surface_distance: completeness \d+\.\d\d mm, accuracy \d+\.\d\d mm\.", score)
    assert re.fullmatch(r"Note: the body of a/b/0 is \d\.\d\d m tall, which is unlikely .*", stature)
    assert 0 < coarse.seconds <= fine.seconds <= numbers.seconds
    low = np.percentile(numbers.scan.points[:, 1], 0.5)  # type: ignore[union-attr]
    assert numbers.floor[1] == pytest.approx(low)


def test_another_color_needs_no_other_mesh(collection: ScanCollection, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = SceneBuilder(collection)
    list(builder.build(ViewRequest(ScanShape("a/b/0"), detail=40)))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("meshed again")

    monkeypatch.setattr(ShapeSpace, "mesh", refuse)
    scenes = list(builder.build(ViewRequest(ScanShape("a/b/0"), "scan to mesh", detail=40)))
    assert [scene.detail for scene in scenes] == [40, 40]


def test_colors_are_the_errors_in_the_colors_of_the_legend(collection: ScanCollection) -> None:
    builder, fitted = SceneBuilder(collection), collection.fitted_scan("a/b/0")
    *_, scene = builder.build(ViewRequest(ScanShape("a/b/0"), "scan to mesh", 12.0, detail=40))
    away, _, _ = closest_point(scene.scan.points.astype(np.float64), scene.mesh)  # type: ignore[union-attr]
    np.testing.assert_array_equal(scene.point_colors, colors.colors_of(away, limit=12.0))
    assert scene.summary[0].startswith(f"Distance from scan to mesh: median {1e3 * np.median(away):.1f} mm")
    plain = scene.mesh

    *_, scene = builder.build(ViewRequest(ScanShape("a/b/0"), "mesh to ground truth", 12.0, detail=40))
    away, _, _ = closest_point(np.asarray(plain.vertices), fitted.ground_truth)  # type: ignore[arg-type]
    np.testing.assert_array_equal(scene.mesh.visual.vertex_colors[:, :3], colors.colors_of(away, limit=12.0))

    *_, scene = builder.build(ViewRequest(ScanShape("a/b/0"), "uncertainty", 12.0, detail=40))
    deviation = collection.space.uncertainty(fitted.fit, plain)
    np.testing.assert_array_equal(scene.mesh.visual.vertex_colors[:, :3], colors.colors_of(deviation, limit=12.0))
    np.testing.assert_array_equal(scene.mesh.vertex_attributes["quality"], deviation)


def test_points_are_lit_by_their_normals(collection: ScanCollection) -> None:
    scene = next(SceneBuilder(collection).build(ViewRequest(ScanShape("a/b/0"), detail=COARSE)))
    outward = scene.scan.points - scene.mesh.bounds.mean(axis=0)  # type: ignore[union-attr]  # it is about a ball
    facing = outward @ renderer.LIGHT_DIRECTION / np.linalg.norm(outward, axis=1)
    shade = scene.point_colors[:, 0].astype(int)  # type: ignore[index]
    assert shade[facing > 0.9].min() > 140
    assert shade[facing < -0.5].max() < 90


def test_what_has_no_colors_says_why(space: ShapeSpace, collection: ScanCollection, scan: Scan) -> None:
    (scene,) = SceneBuilder(collection).build(
        ViewRequest(PrincipalShape((0.0,)), "mesh to ground truth", detail=COARSE)
    )
    assert scene.summary == ("No error to color: this shape has no scan.",)
    assert scene.scan is None
    assert scene.mesh.visual.kind is None
    builder = SceneBuilder(ScanCollection(space, [scan]))
    scene = next(builder.build(ViewRequest(ScanShape("a/b/0"), "mesh to ground truth", detail=COARSE)))
    assert scene.summary == ("There is no ground truth for a/b/0.",)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_the_lines_of_a_slice_lie_where_the_field_has_their_level(collection: ScanCollection, axis: str) -> None:
    builder, normal = SceneBuilder(collection), "xyz".index(axis)
    (scene,) = builder.build(ViewRequest(PrincipalShape((1.0, -1.0)), slice_plane=SlicePlane(axis, 0.3), detail=COARSE))  # type: ignore[arg-type]
    cut = scene.slice
    assert cut is not None
    center = scene.mesh.bounds.mean(axis=0)
    np.testing.assert_allclose(cut.lines[..., normal], center[normal] + 0.3, atol=1e-6)
    shape = collection.space.from_principal_components([1.0, -1.0])
    at = shape.frame.to_model(torch.from_numpy(cut.lines.reshape(-1, 3)).float())
    with torch.no_grad():
        field = collection.space.model.field(at[None], shape.code)[0].numpy() * 1e3 * collection.space.scale  # type: ignore[operator]
    nearest = np.array(LEVELS)[np.abs(field[:, None] - LEVELS).argmin(axis=1)]
    np.testing.assert_allclose(field, nearest, atol=1.0)  # millimeters
    black = (cut.line_colors.reshape(-1, 3) == 0).all(axis=1)
    assert black.any()
    np.testing.assert_array_equal(black, nearest == 0)
    assert set(nearest) >= {-100, 0, 100}

    # The picture: each pixel has the color of the field where it lies, the first row on top.
    rows, columns = cut.image.shape[:2]
    assert rows == columns
    steps = cut.side * (np.arange(rows) / (rows - 1) - 0.5)
    for row, column in ((0, 0), (3, 70), (60, 20)):
        place = cut.center + steps[column] * cut.right + steps[rows - 1 - row] * cut.up
        with torch.no_grad():
            x = shape.frame.to_model(torch.from_numpy(place[None]).float())
            value = collection.space.model.field(x[None], shape.code)[0, 0].numpy() * 1e3 * collection.space.scale  # type: ignore[operator]
        cover = 255 * np.clip((300.0 - value) / 150.0, 0, 1)
        expected = [*colors.signed_colors(np.array([value]), limit=300.0)[0], cover]
        np.testing.assert_allclose(cut.image[row, column].astype(int), expected, atol=2)
    assert {0, 255} <= set(cut.image[..., 3].flat)

    # Behind it is the mesh up to the plane, and nothing of it before.
    assert 0 < len(cut.behind.faces) < len(scene.mesh.faces)
    seen = cut.behind.vertices[cut.behind.faces, normal]
    assert seen.max() <= center[normal] + 0.3 < seen.max() + 2 * collection.space.scale * 2 / COARSE


def test_there_are_no_more_directions_than_numbers_in_a_code(collection: ScanCollection) -> None:
    assert SceneBuilder(collection).num_components == 4
    with pytest.raises(ValueError, match="5 coefficients: the codes have 4 numbers"):
        collection.space.from_principal_components([1.0] * 5)


def test_between_two_shapes(collection: ScanCollection) -> None:
    builder, fit = SceneBuilder(collection), collection.fitted_scan("a/b/0").fit
    assert builder.ends == [MEAN, "a/b/0"]
    (start,) = builder.build(ViewRequest(InterpolatedShape(MEAN, "a/b/0", 0.0), detail=COARSE))
    (end,) = builder.build(ViewRequest(InterpolatedShape(MEAN, "a/b/0", 1.0), detail=COARSE))
    mean = collection.space.mesh(collection.space.from_principal_components([0.0]), resolution=COARSE)
    np.testing.assert_allclose(start.mesh.vertices, mean.vertices, atol=1e-6)
    np.testing.assert_allclose(end.mesh.vertices, collection.space.mesh(fit, resolution=COARSE).vertices, atol=1e-6)
    (middle,) = builder.build(ViewRequest(InterpolatedShape(MEAN, "a/b/0", 0.5), detail=COARSE))
    halfway = collection.space.interpolate_codes(collection.space.from_principal_components([0.0]), fit, STEPS)[
        STEPS // 2
    ]
    torch.testing.assert_close(
        halfway.code.flat, 0.5 * (collection.space.from_principal_components([0.0]).code.flat + fit.code.flat)
    )
    np.testing.assert_allclose(
        middle.mesh.vertices, collection.space.mesh(halfway, resolution=COARSE).vertices, atol=1e-6
    )


def test_scans_are_fitted_when_they_are_first_asked_for(space: ShapeSpace, scan: Scan) -> None:
    collection = ScanCollection(space, [scan])
    builder = SceneBuilder(collection)
    assert builder.unfitted(ScanShape("a/b/0")) == builder.unfitted(InterpolatedShape(MEAN, "a/b/0", 0.0)) == ["a/b/0"]
    assert collection.fitted_scan("a/b/0") is collection.fitted_scan("a/b/0")
    assert builder.unfitted(ScanShape("a/b/0")) == []
    with pytest.raises(ValueError, match="there is no scan 'a/b/1'"):
        collection.fitted_scan("a/b/1")


@pytest.mark.parametrize(
    ("sizes", "family"),
    [
        (
            convolutional.ConvolutionalConfig(features=4, plane=8, depth=2, width=8, blocks=1, encoder_points=128),
            "convolutional",
        ),
        (voxel.VoxelConfig(grid=16), "voxel"),
        (atlas.AtlasConfig(code_dim=8, patches=2, width=16, encoder_width=16, encoder_features=16), "atlas"),
        (occupancy.OccupancyConfig(code_dim=8, width=16, blocks=1, encoder_width=16), "occupancy"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_every_family_says_what_it_has_not(sizes: object, family: str) -> None:
    space = untrained(sizes)
    builder = SceneBuilder(ScanCollection(space))
    if space.model.prior is None:
        assert builder.no_components_reason == (
            f"The codes of family {family} are grids: they have no principal components."
        )
        assert (builder.initial_subject(), builder.ends) == (None, [])
        with pytest.raises(ValueError, match=f"the codes of family {family} are grids"):
            space.from_principal_components([1.0])
    else:
        assert builder.no_components_reason is None
        assert builder.ends == [MEAN]
    if family == "atlas":
        assert builder.no_slice_reason == "Family atlas has patches and no field: slices are not available."
        (scene,) = builder.build(ViewRequest(PrincipalShape((1.0,)), slice_plane=SlicePlane("x", 0.0), detail=16))
        assert scene.slice is None
        assert len(scene.mesh.vertices) > 0
    else:
        assert builder.no_slice_reason is None


# ------------------------------------------------------------------------------------------------- a visitor's own scan


def test_a_file_is_read_fitted_and_shown_to_its_visitor_alone(
    collection: ScanCollection, scan: Scan, tmp_path: Path
) -> None:
    scan_files.write_scan(tmp_path / "me.ply", Scan("", scan.points), unit=0.001)
    data = (tmp_path / "me.ply").read_bytes()
    mine, theirs = SceneBuilder(collection), SceneBuilder(collection)
    assert mine.add_upload("C:\\scans/me.ply", data) == "me.ply"  # millimeters, by the size
    assert mine.add_upload("me.ply", data, unit="mm") == "me.ply again"
    assert mine.names == ["a/b/0", "me.ply", "me.ply again"]
    assert theirs.names == collection.names == ["a/b/0"]
    assert mine.has_uncertainty("me.ply")
    *_, scene = mine.build(ViewRequest(ScanShape("me.ply"), "uncertainty", detail=COARSE))
    np.testing.assert_allclose(scene.scan.points, scan.points, atol=1e-5)  # type: ignore[union-attr]
    assert "istribution: score" in scene.summary[1]
    with pytest.raises(ValueError, match=r"there is no scan 'me\.ply'"):
        next(theirs.build(ViewRequest(ScanShape("me.ply"))))


def test_findings_are_shown_and_clutter_is_removed(space: ShapeSpace, scan: Scan) -> None:
    ball = np.random.default_rng(0).normal(size=(300, 3))
    ball = 0.1 * ball / np.linalg.norm(ball, axis=1, keepdims=True) + np.array([7.5, 2.0, -3.0])
    zeros = np.zeros((90, 3))
    builder = SceneBuilder(ScanCollection(space))
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([scan.points, ball, zeros]).astype(np.float32))
    builder.add_upload("me.npy", buffer.getvalue(), unit="m")
    *_, scene = builder.build(ViewRequest(ScanShape("me.npy"), detail=COARSE))
    assert scene.scan is not None
    assert len(scene.scan.points) == len(scan.points)
    notes = [line for line in scene.summary if line.startswith("Note: ")]
    assert any(line.startswith("Note: dropped 90 of 3,390 points") for line in notes)
    assert any("removed" in line for line in notes)


BAD = {
    "empty.ply": b"",
    "words.ply": b"these are words, and no scan\n" * 40,
    "cut.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 9000000\nproperty float x\nend_header\n12",
    "few.npy": None,
    "picture.png": b"\x89PNG\r\n\x1a\n" + b"0" * 100,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_scan_gets_the_sentence_of_the_command_line(
    collection: ScanCollection, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    data = BAD[name]
    if data is None:
        np.save(path, np.zeros((3, 3)))
        data = path.read_bytes()
    path.write_bytes(data)
    builder = SceneBuilder(collection)
    with pytest.raises(ValueError) as said:  # noqa: PT011 -- compared below
        scan_files.read_scan(path)
    with pytest.raises(ValueError) as heard:  # noqa: PT011
        builder.add_upload(name, data)
    # A depth image is told which file its camera would be in; what has no path has none beside it.
    assert str(heard.value).replace("stdin.json", "picture.json") == str(said.value).replace(str(path), name)
    assert str(tmp_path) not in str(heard.value)
    assert builder.names == collection.names


def test_what_is_no_person_and_what_is_too_large_are_refused(
    collection: ScanCollection, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_files.write_scan(tmp_path / "far.ply", Scan("", scan.points), unit=0.001)
    data = (tmp_path / "far.ply").read_bytes()
    with pytest.raises(ValueError, match=r"scan far\.ply: size .* m, .* pass --unit mm"):
        SceneBuilder(collection).add_upload("far.ply", data, unit="m")
    monkeypatch.setattr("shapespace.viewer.scene.MAX_UPLOAD", 10_000)
    with pytest.raises(ValueError, match=r"far\.ply: \d\d,\d{3} bytes, the limit is 10,000"):
        SceneBuilder(collection).add_upload("far.ply", data)


def test_a_file_cannot_name_another_one(collection: ScanCollection, tmp_path: Path) -> None:
    """A GLB may name files that hold its arrays; those of this machine are none of its business."""
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.random.default_rng(0).normal(0, 0.5, (500, 3)).astype("<f4").tobytes())
    tree = (
        '{"asset":{"version":"2.0"},"scene":0,"scenes":[{"nodes":[0]}],"nodes":[{"mesh":0}],'
        '"meshes":[{"primitives":[{"attributes":{"POSITION":0},"mode":0}]}],'
        '"accessors":[{"bufferView":0,"componentType":5126,"count":500,"type":"VEC3"}],'
        f'"bufferViews":[{{"buffer":0,"byteLength":6000}}],"buffers":[{{"uri":"{secret}","byteLength":6000}}]}}'
    ).encode()
    tree += b" " * (-len(tree) % 4)
    whole = len(tree) + 20
    data = b"glTF" + b"".join(n.to_bytes(4, "little") for n in (2, whole, len(tree))) + b"JSON" + tree
    builder = SceneBuilder(collection)
    with pytest.raises(ValueError, match=r"^secret\.glb: "):
        builder.add_upload("secret.glb", data)


# ------------------------------------------------------------------------------------------------------- the background


class Desk:
    """A worker whose questions are answered twice, the second time when `go` is set; what it did is kept."""

    def __init__(self) -> None:
        self.begun, self.delivered, self.failed = list[int](), list[tuple[int, int]](), list[str]()
        self.begins, self.go = threading.Semaphore(0), threading.Event()
        self.idle, self.first = threading.Semaphore(0), threading.Event()
        self.first.set()
        self.latest: LatestRequest[int, tuple[int, int]] = LatestRequest(
            self.work, self.delivered.append, self.failed.append
        )

    def work(self, question: int, wanted: StillWanted) -> Iterator[tuple[int, int]]:
        self.begun.append(question)
        if question < 0:
            raise ValueError(f"{question} is negative")
        self.begins.release()
        assert self.first.wait(10)
        yield question, 1
        assert self.go.wait(10)
        yield question, 2
        self.idle.release()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.go.set()
    desk.latest.stop()
    desk.latest.join(10.0)
    assert not desk.latest._thread.is_alive()


def test_the_newest_question_wins_and_stale_ones_are_dropped(desk: Desk) -> None:
    desk.latest.submit(1)
    assert desk.begins.acquire(timeout=10)
    for question in (2, 3, 4):  # while 1 is under way
        desk.latest.submit(question)
    desk.go.set()
    assert desk.idle.acquire(timeout=10)
    assert desk.begun == [1, 4]
    assert [answer for answer in desk.delivered if answer != (1, 2)] == [(1, 1), (4, 1), (4, 2)]


def test_what_moves_without_rest_is_followed(desk: Desk) -> None:
    """Each first answer comes, however stale: else a slider would show nothing until it rests."""
    desk.first.clear()
    desk.go.set()
    desk.latest.submit(1)
    assert desk.begins.acquire(timeout=10)
    desk.latest.submit(2)
    desk.first.set()
    assert desk.idle.acquire(timeout=10)
    assert desk.delivered == [(1, 1), (2, 1), (2, 2)]


def test_a_question_without_an_answer_is_said_and_the_next_one_is_answered(desk: Desk) -> None:
    desk.go.set()
    desk.latest.submit(-5)
    while not desk.failed:
        pass
    desk.latest.submit(6)
    assert desk.idle.acquire(timeout=10)
    assert desk.failed == ["-5 is negative"]
    assert desk.delivered[-1] == (6, 2)


def test_a_mesh_that_nobody_waits_for_is_not_finished(collection: ScanCollection) -> None:
    asked = 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    with pytest.raises(Cancelled):
        list(SceneBuilder(collection).build(ViewRequest(PrincipalShape((0.0,)), detail=64), wanted))
    assert asked == 3


@pytest.mark.slow
def test_a_slider_of_humans_is_answered_in_time() -> None:
    """Coarse meshes, from the wish to the scene, with one thread of torch as the verb has it; prints what it took."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    builder = SceneBuilder(ScanCollection(ShapeSpace.load("humans")))
    scenes, failed = list[Scene](), list[str]()
    latest = LatestRequest(builder.build, scenes.append, failed.append)
    try:
        for pause, words in ((0.05, "dragged without rest"), (0.5, "a move each half second")):
            scenes.clear()
            for value in np.random.default_rng(0).uniform(-3, 3, 30):
                latest.submit(ViewRequest(PrincipalShape((float(value),))))
                time.sleep(pause)
            time.sleep(1.0)
            coarse = [1e3 * scene.seconds for scene in scenes if scene.detail == COARSE]
            median, p95 = np.percentile(coarse, [50, 95])
            print(f"{words}: {len(coarse)} of 30 shown, median {median:.0f} ms, 95 % {p95:.0f}, most {max(coarse):.0f}")
            assert len(coarse) >= 5
            assert p95 < 300
        assert not failed
    finally:
        latest.stop()
        latest.join(10.0)
        torch.set_num_threads(threads)
