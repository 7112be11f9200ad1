"""Parts of registered templates: connected, in number as by their density, with the poses of known motions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation
from trimesh import Trimesh

from shapespace.data import registration
from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.registration import PartTemplate, make_template, part_poses, segment, vertex_areas
from shapespace.data.store import ScanStore
from shapespace.datasets import get_dataset


def num_pieces(labels: np.ndarray, faces: np.ndarray) -> int:
    """Number of connected pieces of all parts."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    inner = labels[edges[:, 0]] == labels[edges[:, 1]]
    graph = coo_matrix((np.ones(inner.sum()), edges[inner].T), shape=(len(labels), len(labels)))
    return int(connected_components(graph, directed=False)[0])


def arrays(mesh: Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)


def tensors(mesh: Trimesh) -> tuple[torch.Tensor, torch.Tensor]:
    vertices, faces = arrays(mesh)
    return torch.from_numpy(vertices).float(), torch.from_numpy(faces)


def folded(seed: int) -> Trimesh:
    """A ring that comes close to itself."""
    rng = np.random.default_rng(seed)
    mesh = trimesh.creation.torus(1, 0.2, major_sections=40, minor_sections=12)
    vertices = np.asarray(mesh.vertices) * rng.uniform(0.02, 1, 3)
    return Trimesh(vertices + 0.3 * np.sin(vertices[:, [1, 2, 0]] * rng.uniform(0, 12)), mesh.faces, process=False)


# -------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("seed", range(0, 20, 2))
def test_each_part_is_connected_and_all_parts_are_there(seed: int) -> None:
    vertices, faces = arrays(folded(seed))
    for num_parts in (1, 7, 20):
        labels = segment(vertices, faces, num_parts, vertex_areas(vertices, faces), seed=seed)
        assert set(labels) == set(range(num_parts))
        assert num_pieces(labels, faces) == num_parts


def hinged(angle: float) -> Trimesh:
    """A bar from x = -0.3 to 1 whose part beyond 0.42 turns by an angle (radians)."""
    bar = trimesh.creation.box([1.3, 0.2, 0.2]).subdivide_to_size(0.04)
    vertices = np.asarray(bar.vertices) + np.array([0.35, 0, 0])
    beyond, joint = vertices[:, 0] > 0.42, np.array([0.42, 0, 0])
    turned = (vertices - joint) @ Rotation.from_rotvec([0, 0, angle]).as_matrix().T + joint
    return Trimesh(np.where(beyond[:, None], turned, vertices), bar.faces, process=False)


def test_borders_of_parts_go_to_joints() -> None:
    vertices, faces = tensors(hinged(0))
    moved = [tensors(hinged(angle))[0] for angle in (-0.8, 0.5, 0.9)]
    beyond = vertices[:, 0] > 0.42

    def wrong(template: PartTemplate) -> float:
        """Share of the area that is in a part of the other side of the joint."""
        side = torch.stack([template.labels * 2, template.labels * 2 + 1]).gather(0, beyond.long()[None])[0]
        area = torch.zeros(2 * template.num_parts).index_add_(0, side, template.area).view(-1, 2)
        return float(area.amin(dim=1).sum() / area.sum())

    plain, by_motion = make_template(vertices, faces, 4), make_template(vertices, faces, 4, moved=moved)
    assert wrong(plain) > 0.05
    assert wrong(by_motion) < 0.3 * wrong(plain)
    assert num_pieces(by_motion.labels.numpy(), faces.numpy()) == by_motion.num_parts == 4


def test_small_pieces_that_touch_do_not_swap_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of vertices 0 to 6 with the parts 0 0 0 1 0 1 1: its two single vertices touch each other."""
    faces = np.array([[i, i + 1, i + 2] for i in range(5)])
    path = np.array([[i, i + 1, i + 1] for i in range(6)])
    labels = np.array([0, 0, 0, 1, 0, 1, 1])
    for mesh in (faces, path):
        joined = registration._connected(labels, mesh)
        assert num_pieces(joined, mesh) == 2
        assert (joined[[0, 1, 2, 5, 6]] == labels[[0, 1, 2, 5, 6]]).all()


def test_parts_that_the_mesh_does_not_connect_remain() -> None:
    """A piece without an edge to another part has nowhere to go."""
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    assert (registration._connected(np.zeros(6, np.int64), faces) == 0).all()


def test_two_fingers_side_by_side_do_not_share_a_part() -> None:
    """The prongs of a fork are closer together than they are long; they are connected at its foot only."""
    x, y = np.meshgrid(np.arange(5), np.arange(30), indexing="ij")
    index = np.arange(150).reshape(5, 30)
    prongs = [index[:2], index[3:]]
    quads = [(a[i, j], a[i + 1, j], a[i + 1, j + 1], a[i, j + 1]) for a in prongs for i in (0,) for j in range(29)]
    quads += [(index[i, 0], index[i + 1, 0], index[i + 1, 1], index[i, 1]) for i in (1, 2)]
    faces = np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    vertices = np.stack([0.3 * x.ravel(), y.ravel(), np.zeros(150)], axis=1)
    used = np.unique(faces)
    vertices, faces = vertices[used], np.searchsorted(used, faces)
    labels = segment(vertices, faces, 8, vertex_areas(vertices, faces))
    assert num_pieces(labels, faces) == 8
    tips = vertices[:, 1] > 5
    left, right = (set(labels[tips & side]) for side in (vertices[:, 0] < 0.5, vertices[:, 0] > 0.5))
    assert not left & right


def test_parts_are_smaller_in_proportion_to_their_density() -> None:
    """On a plate, the half with a density 25 times as high has 5 times as many parts.

    In two dimensions the best density of centers is the square root of that of the points (Zador 1982).
    """
    mesh = trimesh.creation.box((2, 1, 0.001))
    mesh = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, 0.05)
    vertices, faces = arrays(Trimesh(*mesh))
    area = vertex_areas(vertices, faces)
    dense = vertices[:, 0] > 0
    labels = segment(vertices, faces, 48, area * np.where(dense, 25.0, 1.0))
    main = np.array([dense[labels == part].mean() > 0.5 for part in range(48)])
    assert main.sum() / (~main).sum() == pytest.approx(5, rel=0.35)
    even = segment(vertices, faces, 48, area)
    main = np.array([dense[even == part].mean() > 0.5 for part in range(48)])
    assert main.sum() / 48 == pytest.approx(0.5, abs=0.1)


def test_the_same_seed_gives_the_same_parts() -> None:
    vertices, faces = arrays(folded(0))
    weight = vertex_areas(vertices, faces)
    first = segment(vertices, faces, 12, weight, seed=3)
    assert (segment(vertices.copy(), faces, 12, weight.copy(), seed=3) == first).all()
    assert (segment(vertices, faces, 12, weight, seed=4) != first).any()


def test_too_many_parts_are_refused(make_body: Callable[..., Trimesh]) -> None:
    vertices, faces = arrays(make_body())
    area = vertex_areas(vertices, faces)
    for count in (0, 973):
        with pytest.raises(ValueError, match=rf"--model\.num-parts {count}: must be from 1 to the 972 vertices"):
            segment(vertices, faces, count, area)
    with pytest.raises(ValueError, match=r"--model\.num-parts 7: must be from 1 to the 6 vertices"):
        segment(np.repeat(vertices[:6], 2, axis=0), np.arange(12).reshape(4, 3), 7, np.ones(12))
    with pytest.raises(
        ValueError, match=r"--model\.num-parts 500: the smallest part has 1 of the 972 vertices .* Lower it, or the"
    ):
        make_template(*tensors(make_body()), 500)


# -------------------------------------------------------------------------------------------------------------- poses


def test_center_and_radius_are_means_by_area() -> None:
    """Of a ball, the center is in the middle and the radius is 1.6 of its own, however its vertices are spread."""
    vertices, faces = tensors(trimesh.creation.uv_sphere(0.5, count=[48, 96]))  # dense at the poles
    template = make_template(vertices + torch.tensor([0.1, 0.2, 0.3]), faces, 1)
    assert template.num_parts == 1
    torch.testing.assert_close(template.center, torch.tensor([[0.1, 0.2, 0.3]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(template.radius, torch.tensor([1.6 * 0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(template.share.to_dense().sum(dim=1), torch.ones(1))


def test_known_motions_of_the_parts_are_recovered(make_body: Callable[..., Trimesh]) -> None:
    vertices, faces = tensors(make_body())
    template = make_template(vertices, faces, 14)
    rng = np.random.default_rng(0)
    rotation = torch.from_numpy(Rotation.random(14, random_state=0).as_matrix()).float()
    move = torch.from_numpy(rng.normal(size=(14, 3))).float()
    arm = vertices - template.center[template.labels]
    moved = (rotation[template.labels] @ arm[..., None])[..., 0] + (template.center + move)[template.labels]
    center, recovered = part_poses(template, moved)
    torch.testing.assert_close(center, template.center + move, atol=1e-5, rtol=0)
    torch.testing.assert_close(recovered, rotation, atol=1e-5, rtol=0)
    center, recovered = part_poses(template, vertices)
    torch.testing.assert_close(center, template.center)
    torch.testing.assert_close(recovered, torch.eye(3).expand(14, 3, 3), atol=1e-6, rtol=0)


def test_the_pose_of_a_mirrored_or_flat_part_is_a_rotation(make_body: Callable[..., Trimesh]) -> None:
    vertices, faces = tensors(make_body())
    template = make_template(vertices, faces, 9)
    for factors in ((-1.0, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 0)):
        _, rotation = part_poses(template, vertices * torch.tensor(factors))
        torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(9, 3, 3), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(9), atol=1e-5, rtol=0)


def test_a_body_that_grows_has_the_same_rotations(make_body: Callable[..., Trimesh]) -> None:
    vertices, faces = tensors(make_body())
    template = make_template(vertices, faces, 6)
    center, rotation = part_poses(template, 1.3 * vertices)
    torch.testing.assert_close(center, 1.3 * template.center, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotation, torch.eye(3).expand(6, 3, 3), atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------- readers


RAISED = {  # how far the arms are raised in the frames of each person of `conftest.py` (radians)
    "dfaust": (-0.6, 0.0, 0.6),
    "faust": (0.0, 0.6),
    "cape": (0.2, 0.4, 0.6),
    "synthetic": (-0.5, 0.0, 0.5),
}


def packed(name: str, root: Path, folder: Path) -> ScanStore:
    result = preprocess(get_dataset(name), root, folder / "store.h5", PreprocessOptions(points=300))
    return ScanStore(result.path)


@pytest.mark.parametrize("name", RAISED)
def test_every_dataset_with_registrations_gives_the_poses_of_its_parts(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Ellipsoids as parts: those of the arms turn as they were raised, the others do not, whatever the stature."""
    store = packed(name, request.getfixturevalue(f"{name}_root"), tmp_path)
    names = [scan for scan in store.names if store.has_ground_truth(scan)]
    rest, faces = next(registration.registrations(store, names[:1]))
    area = torch.from_numpy(vertex_areas(rest.double().numpy(), faces.numpy())).float()
    template = PartTemplate(rest, faces, torch.arange(len(rest)) // 162, area)
    raised = RAISED[name]
    for index, (vertices, own) in enumerate(registration.registrations(store, names, faces)):
        assert torch.equal(own, faces)
        center, rotation = part_poses(template, vertices)
        turn = raised[index % len(raised)] - raised[0]
        about_z = [0, 0, 0, 0, turn, -turn]
        expected = Rotation.from_rotvec([(0, 0, angle) for angle in about_z]).as_matrix().astype(np.float32)
        torch.testing.assert_close(rotation, torch.from_numpy(expected), atol=1e-4, rtol=0)
        torch.testing.assert_close(center, vertices.view(6, 162, 3).mean(dim=1), atol=1e-3, rtol=0)
        points = torch.from_numpy(store.sample(names[index], 300, np.random.default_rng(0)).points)
        assert torch.cdist(points, vertices).amin(dim=1).median() < 0.05  # the model frame is that of the scan


def test_scans_without_registrations_are_counted(faust_root: Path, tmp_path: Path) -> None:
    store = packed("faust", faust_root, tmp_path)
    expected = (
        r"store\.h5: 2 of 8 scans have no registration, for example unknown/test/000\. .* raw scans alone, start from "
        r"a space that has parts: --init-from SPACE\."
    )
    with pytest.raises(ValueError, match=expected):
        next(registration.registrations(store, store.names))


def test_another_template_is_refused(synthetic_root: Path, tmp_path: Path) -> None:
    store = packed("synthetic", synthetic_root, tmp_path)
    first, *others = (store.ground_truth(name) for name in store.names)
    assert first is not None
    odd = Trimesh(first.vertices, first.faces[:, [1, 2, 0]], process=False)  # the same surface with other faces
    fewer = Trimesh(first.vertices[:162], first.faces[:320], process=False)
    for other, count in ((odd, "972 vertices and 1,920 faces"), (fewer, "162 vertices and 320 faces")):
        meshes = dict(zip(store.names, [first, other, *others[1:]], strict=True))
        store.ground_truth = meshes.__getitem__  # type: ignore[method-assign]
        expected = rf"store\.h5: the registration of {store.names[1]} has {count} that are not those of the others"
        with pytest.raises(ValueError, match=expected):
            list(registration.registrations(store, store.names))
