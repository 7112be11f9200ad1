"""What is around a person is found without a shape space: planes, a platform, parts apart."""

from collections.abc import Callable

import numpy as np
import pytest
from trimesh import Trimesh, creation, transformations, util

from shapespace.geometry.scan import Scan
from shapespace.geometry.surroundings import check_surroundings, find_surroundings

LEVEL = transformations.rotation_matrix(np.pi / 2, (1, 0, 0))


def of(mesh: Trimesh, *, faces: bool) -> Scan:
    scan = Scan("anna", np.asarray(mesh.vertices, dtype=np.float32), faces=np.asarray(mesh.faces, dtype=np.int32))
    return scan if faces else scan.sample(6000, np.random.default_rng(0))


@pytest.fixture
def body(make_body: Callable[..., Trimesh]) -> Trimesh:
    return make_body(1.0, -0.8)


@pytest.mark.parametrize("faces", [False, True])
def test_a_person_alone_has_no_findings_and_is_returned(body: Trimesh, faces: bool) -> None:
    scan = of(body, faces=faces)
    assert check_surroundings(scan) is scan or check_surroundings(scan).findings == ()


@pytest.mark.parametrize("faces", [False, True])
@pytest.mark.parametrize(
    ("thing", "code", "values"),
    [
        (creation.box((2.4, 0.02, 2.4)).apply_translation((0, -0.011, 0)), "planes-found", {"count": 1}),
        (creation.cylinder(0.4, 0.04).apply_transform(LEVEL).apply_translation((0, -0.021, 0)), "platform-found", {}),
        (
            creation.icosphere(radius=0.15).apply_translation((1.0, 0.5, 0)),
            "parts-found",
            {"count": 1, "size": pytest.approx(0.3, abs=0.02)},
        ),
    ],
)
def test_what_is_no_person_is_a_finding_and_stays(
    body: Trimesh, faces: bool, thing: Trimesh, code: str, values: dict[str, object]
) -> None:
    scan = of(util.concatenate([body, thing]), faces=faces)
    checked = check_surroundings(scan)
    assert len(checked) == len(scan)
    (found,) = checked.findings
    assert found.code == code
    assert {key: found.values[key] for key in values} == values
    share = thing.area / (body.area + thing.area)
    if not faces or code == "parts-found":  # shares of planes are those of vertices where there are faces
        assert found.values["share"] == pytest.approx(share, rel=0.35)


def test_a_thing_of_two_pieces_is_found(body: Trimesh) -> None:
    """They are near each other, and far from the person."""
    rng = np.random.default_rng(1)
    ball = Scan.from_mesh(creation.icosphere(radius=0.04))
    pieces = [ball.sample(count, rng).points + np.array([1.0, y, 0.0]) for count, y in ((70, 0.5), (50, 0.64))]
    person = Scan.from_mesh(body).sample(3000, rng).points
    scan = Scan("anna", np.concatenate([person, *pieces]).astype(np.float32))
    around = find_surroundings(scan)
    assert around is not None
    assert np.bincount(around.parts).tolist() == [3000, 70, 50]
    (found,) = check_surroundings(scan).findings
    assert found.code == "parts-found"
    assert found.values["share"] == pytest.approx(70 / 3120, abs=1e-4)
    assert found.values["distance"] > 0.2


BESIDE = [(0.25, 0.3, 0.25), (0.35, 0.2, 0.35), (0.4, 0.33, 0.4)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gap", [0.04, 0.2])
@pytest.mark.parametrize("size", BESIDE, ids=str)
def test_the_top_of_a_box_beside_a_person_is_no_platform(
    body: Trimesh, size: tuple[float, ...], gap: float, seed: int
) -> None:
    """Nothing stands on it, and all below it, the feet, would be removed with it."""
    foot = np.asarray(body.vertices)[np.asarray(body.vertices)[:, 1] < size[1]]
    at = (foot[:, 0].max() + gap + size[0] / 2, size[1] / 2, 0.0)
    box = creation.box(size).apply_translation(at)
    scan = Scan.from_mesh(util.concatenate([body, box])).sample(9000, np.random.default_rng(seed))
    around = find_surroundings(scan, seed=seed)
    assert around is not None
    assert around.platform is None


def test_a_board_all_of_which_is_below_the_trunk_and_the_arms_is_a_platform(body: Trimesh) -> None:
    board = creation.box((0.55, 0.02, 0.3)).apply_translation((0, -0.011, 0))
    scan = Scan.from_mesh(util.concatenate([body, board])).sample(9000, np.random.default_rng(0))
    around = find_surroundings(scan)
    assert around is not None
    assert around.platform is not None
    assert abs(around.platform.plane.offset) < 0.02
