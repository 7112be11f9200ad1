import json
import multiprocessing
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from shapespace.data.preprocess import PreprocessOptions, preprocess
from shapespace.data.store import ScanStore
from shapespace.datasets import DATASETS, get_dataset
from shapespace.geometry import proximity

NAME = "p001/poses/000002"


@pytest.fixture
def store(synthetic_root, tmp_path) -> ScanStore:
    return ScanStore(
        preprocess(get_dataset("synthetic"), synthetic_root, tmp_path / "s.h5", PreprocessOptions(points=400)).path
    )


@pytest.fixture
def cloud(tmp_path) -> ScanStore:
    """One scan of 100,000 points without faces, each of which tells its place: x grows along the file."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (100_000, 3))
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans" / "1.npy", points)
    return ScanStore(
        preprocess(DATASETS["folder"], tmp_path / "scans", tmp_path / "c.h5", PreprocessOptions(points=100_000)).path
    )


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_store_names_its_scans_and_where_they_come_from(store):
    assert store.names == [f"p{person:03d}/poses/{frame:06d}" for person in range(3) for frame in range(3)]
    assert len(store) == 9
    assert store.splits["unseen_poses"] == ["p000/poses/000002", "p001/poses/000002"]
    assert store.scale == 1.25
    assert store.rejected == {}
    metadata = {
        "recipe": "synthetic",
        "unit": 1.0,
        "up": "y",
        "scale": 1.25,
        "seed": 0,
        "points": 400,
        "normals": "auto",
    }
    assert metadata.items() <= store.metadata.items()
    assert {"source", "licence", "version"} <= set(store.metadata)
    assert store.provenance(NAME)["file"] == "scans/p001/poses/poses.000002.ply"


def test_a_sample_lies_on_the_true_surface_with_outward_normals_and_its_sensors(store, synthetic_root):
    for name in store.names:
        model = store.sample(name, 300, rng())
        assert model.points.dtype == np.float32
        assert np.abs(model.points).max() <= 1
        world = model.to_world(store.frame(name))
        truth = store.ground_truth(name)
        away, face, _ = proximity.closest_point(world.points.astype(np.float64), truth)
        assert away.max() < 0.006
        assert np.mean(np.sum(world.normals * truth.face_normals[face], axis=1) > 0.5) > 0.9
        np.testing.assert_allclose(np.linalg.norm(world.normals, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(np.unique(world.sensors.round(4), axis=0), [[0, 1, -3], [0, 1, 3]])


def test_the_frame_is_centered_on_the_surface_and_scaled_once(store, synthetic_root):
    dataset = get_dataset("synthetic")
    for entry in dataset.list_scans(synthetic_root):
        whole = dataset.read_scan(entry)
        np.testing.assert_allclose(store.frame(entry.name).center, whole.frame(1.25).center)
        assert store.frame(entry.name).scale == 1.25
        mean = store.sample(entry.name, 400, rng()).points.mean(axis=0)
        assert np.linalg.norm(mean) < 0.06  # 400 samples of a body one and a half units large


def test_a_draw_is_one_block_from_a_random_place_that_wraps_around(store):
    with h5py.File(store.path) as file:
        group = {key: file[NAME][key][:] for key in ("points", "normals", "sensors")}
    starts, wrapped = set(), 0
    for seed in range(60):
        drawn = store.sample(NAME, 150, rng(seed))
        start = int(np.flatnonzero((group["points"] == drawn.points[0]).all(axis=1))[0])
        rows = (start + np.arange(150)) % 400
        for key, values in group.items():
            np.testing.assert_array_equal(getattr(drawn, key), values[rows])
        starts.add(start)
        wrapped += start > 250
    assert len(starts) > 40
    assert 5 < wrapped < 55


@pytest.mark.parametrize("count", [400, 401, 1000])
def test_a_scan_of_too_few_points_gives_all_of_them_evenly(store, count):
    assert store.count(NAME) == 400
    drawn = store.sample(NAME, count, rng())
    assert drawn.points.shape == drawn.normals.shape == drawn.sensors.shape == (count, 3)
    _, times = np.unique(np.hstack([drawn.points, drawn.normals]), axis=0, return_counts=True)
    assert len(times) == 400
    assert set(times) <= {count // 400, -(-count // 400)}


def test_points_without_faces_are_shuffled_and_not_repeated(cloud, tmp_path):
    with h5py.File(cloud.path) as file:
        stored = file["all/scans/1/points"][:] * 1.25 + file["all/scans/1"].attrs["centre"]
    points = np.load(tmp_path / "scans" / "1.npy")
    np.testing.assert_allclose(np.sort(stored, axis=0), np.sort(points, axis=0), atol=1e-6)
    assert (
        abs(np.corrcoef(np.arange(100_000), np.argsort(points[:, 0])[np.argsort(np.argsort(stored[:, 0]))])[0, 1])
        < 0.02
    )
    assert not cloud.has_normals("all/scans/1")
    assert not cloud.has_ground_truth("all/scans/1")
    assert cloud.ground_truth("all/scans/1") is None
    assert cloud.sample("all/scans/1", 5, rng()).normals is None


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that the kernel read")
def test_a_draw_reads_its_block_and_no_more(cloud):
    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    cloud.sample("all/scans/1", 10, rng())  # opens the file
    before = read()
    for seed in range(10):
        cloud.sample("all/scans/1", 8000, rng(seed))
    assert 10 * 192_000 <= read() - before < 10 * 240_000  # points and lines; the whole scan has 2,400,000 bytes


def test_a_store_travels_to_other_processes(store):
    expected = store.sample(NAME, 50, rng()).points
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.sample(NAME, 50, rng()).points, expected)

    def child(queue: multiprocessing.Queue) -> None:
        queue.put(store.sample(NAME, 50, rng()).points)

    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    children = [fork.Process(target=child, args=(queue,)) for _ in range(2)]
    for process in children:
        process.start()
    for _ in children:
        np.testing.assert_array_equal(queue.get(timeout=20), expected)
    for process in children:
        process.join()
    np.testing.assert_array_equal(store.sample(NAME, 50, rng()).points, expected)


def test_a_closed_store_opens_again(store):
    with store:
        expected = store.sample(NAME, 50, rng()).points
    np.testing.assert_array_equal(store.sample(NAME, 50, rng()).points, expected)


def test_true_surfaces_come_back_and_their_faces_are_kept_once(store, synthetic_root):
    dataset = get_dataset("synthetic")
    for name in store.names:
        truth = dataset.ground_truth(synthetic_root, name)
        assert store.has_ground_truth(name)
        np.testing.assert_array_equal(store.ground_truth(name).vertices, truth.vertices)
        np.testing.assert_array_equal(store.ground_truth(name).faces, truth.faces)
    with h5py.File(store.path) as file:
        assert len(file["_topologies"]) == 1


def test_scan_names(store, tmp_path):
    assert store.scan_names(None) == store.names
    assert store.scan_names("unseen_people") == store.names[6:]
    (tmp_path / "mine.json").write_text(json.dumps([NAME]))
    assert store.scan_names(str(tmp_path / "mine.json")) == [NAME]


def test_what_is_not_there_is_answered_with_what_is(store, tmp_path):
    with pytest.raises(ValueError, match=r"s\.h5: no split 'unseen_pose'\. Did you mean unseen_poses\?"):
        store.scan_names("unseen_pose")
    with pytest.raises(
        ValueError, match=r"There are 3: train, unseen_people, unseen_poses\. A path that ends in \.json"
    ):
        store.scan_names("zzz")
    (tmp_path / "more.json").write_text(json.dumps([NAME, "p007/poses/000000"]))
    with pytest.raises(
        ValueError, match=r"more\.json: 1 of 2 scans are not in .*s\.h5, for example p007/poses/000000\. Preprocess"
    ):
        store.scan_names(str(tmp_path / "more.json"))
    for name in ("p001/poses/00002", "p001/poses", "_names", "p001/poses/000002/points"):
        with pytest.raises(ValueError, match=r"s\.h5: no scan '.*'\. (Did you mean p\d|There are 9: p000)"):
            store.sample(name, 5, rng())


def test_a_damaged_store_says_how_to_rebuild_it(store, tmp_path):
    rebuild = r"Rebuild it: shapespace preprocess DATASET ROOT .*\.h5 --overwrite"
    data = store.path.read_bytes()
    for name, content in (("cut.h5", data[: len(data) // 2]), ("other.h5", b"no HDF5 at all"), ("empty.h5", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: not a valid HDF5 file .*{rebuild}"):
            ScanStore(tmp_path / name)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ValueError, match=rf"HDF5 file, but not a store; format 1 is required\. {rebuild}"):
        ScanStore(tmp_path / "foreign.h5")
    (tmp_path / "new.h5").write_bytes(data)
    with h5py.File(tmp_path / "new.h5", "r+") as file:
        file.attrs["format"] = 2
    with pytest.raises(ValueError, match=rf"store of format 2; format 1 is required\. {rebuild}"):
        ScanStore(tmp_path / "new.h5")


def test_vectors_that_are_not_where_the_file_says_are_not_made_up(store):
    store.sample(NAME, 50, rng())
    with open(store.path, "r+b") as file:
        file.truncate(4096)  # while it is open
    with pytest.raises(ValueError, match=r"s\.h5: not a valid store.*the file ends before its arrays.*Rebuild it"):
        store.sample(NAME, 350, rng())


def test_a_store_behind_a_user_block_is_read_at_the_right_place(store, tmp_path):
    with h5py.File(tmp_path / "b.h5", "w", userblock_size=4096) as file, h5py.File(store.path) as plain:
        for key in plain:
            plain.copy(key, file)
        file.attrs.update(dict(plain.attrs))
    behind = ScanStore(tmp_path / "b.h5")
    np.testing.assert_array_equal(behind.sample(NAME, 50, rng()).points, store.sample(NAME, 50, rng()).points)


def test_a_missing_store_says_how_to_make_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"x\.h5: no such store\. Create it: shapespace preprocess DATASET ROOT .*x\.h5"
    ):
        ScanStore(tmp_path / "x.h5")
    (tmp_path / "x.h5.part").touch()
    with pytest.raises(
        FileNotFoundError, match=r"Preprocessing was interrupted \(.*x\.h5\.part exists\): run the same"
    ):
        ScanStore(tmp_path / "x.h5")


def test_a_scan_comes_back_in_meters_with_the_mean_that_its_frame_has(store):
    for name in store.names:
        scan = store.scan(name)
        assert len(scan) == store.count(name)
        expected = store.sample(name, 400, rng()).to_world(store.frame(name))
        np.testing.assert_array_equal(scan.points, expected.points)
        assert 1.4 < np.ptp(scan.points[:, 1]) < 2.0
