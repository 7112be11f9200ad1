import importlib.util
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import h5py
import numpy as np
import pytest

from shapespace import datasets
from shapespace.data.scan_dataset import ScanEntry, check_entries, frame_number, read_split
from shapespace.datasets import DATASETS, get_dataset
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.io.errors import did_you_mean
from shapespace.io.units import UNITS, UnitName, guess_unit, to_meters


def check_layout(dataset_name: str, root: Path, closed: bool) -> dict[str, ScanEntry]:
    """Every scan is found once, reads in meters with y up, has the size of a person, and lies on its true surface."""
    dataset = get_dataset(dataset_name)
    entries = {entry.name: entry for entry in dataset.list_scans(root)}
    assert list(entries) == sorted(entries)
    for name, entry in entries.items():
        scan = dataset.read_scan(entry)
        dataset.check_size(scan)
        extents = np.ptp(scan.points, axis=0)
        assert scan.name == name
        assert scan.faces is not None
        assert 1.4 < extents[1] < 2.0
        assert extents[1] > extents[2]
        truth = dataset.ground_truth(root, name)
        if truth is None:
            assert name.startswith("unknown/")
            continue
        assert truth.is_watertight
        assert truth.volume > 0.05
        away, _, _ = proximity.closest_point(scan.points.astype(np.float64), truth)
        assert away.max() < (1e-5 if closed else 0.006)
    return entries


def test_dfaust_scans(dfaust_root):
    entries = check_layout("dfaust", dfaust_root, closed=False)
    assert len(entries) == 12
    assert entries["50004/light_hopping_loose/003987"].path.name == "light_hopping_loose.003987.ply"
    splits = get_dataset("dfaust").splits(dfaust_root)
    assert splits["train_all"] == [name for name in entries if "/hips/" in name]
    assert sorted(splits["train_all"] + splits["test_all"]) == list(entries)


def test_dfaust_scans_without_the_folder_scans(dfaust_root):
    (dfaust_root / "scans" / "50002").rename(dfaust_root / "50002")
    (dfaust_root / "scans" / "50004").rename(dfaust_root / "50004")
    (dfaust_root / "scans").rmdir()
    assert len(check_layout("dfaust", dfaust_root, closed=False)) == 12


def test_dfaust_registrations_belong_to_scans_by_order_or_else_by_number(dfaust_root):
    dataset = get_dataset("dfaust")
    third = dataset.ground_truth(dfaust_root, "50002/hips/000112")
    assert third is not None  # frame 112 is the third scan of 105, 106, 112, so it has the third registration
    (dfaust_root / "scans/50002/hips/hips.000112.ply").unlink()
    second = dataset.ground_truth(
        dfaust_root, "50002/hips/000106"
    )  # two scans, three registrations: 106 is one after 105
    np.testing.assert_array_equal(
        second.vertices, get_dataset("dfaust-registrations").ground_truth(dfaust_root, "50002/hips/000001").vertices
    )
    (dfaust_root / "registrations_m.hdf5").unlink()
    assert dataset.ground_truth(dfaust_root, "50002/hips/000106") is None


def test_dfaust_registrations(dfaust_root):
    entries = check_layout("dfaust-registrations", dfaust_root, closed=True)
    assert len(entries) == 12
    assert "50004/light_hopping_loose/000002" in entries


def test_a_file_without_a_frame_number_is_named(dfaust_root):
    (dfaust_root / "scans/50002/hips/template.ply").touch()
    with pytest.raises(ValueError, match=r"scans/50002/hips/template: no frame number at the end\. Name the files"):
        get_dataset("dfaust").list_scans(dfaust_root)


def test_a_damaged_registration_file_is_named(dfaust_root):
    path = dfaust_root / "registrations_f.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"registrations_f\.hdf5: not a valid HDF5 file .*download it again"):
        get_dataset("dfaust").ground_truth(dfaust_root, "50004/hips/000105")
    with h5py.File(path, "w") as file:
        file["50004_hips"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"registrations_f\.hdf5: no `faces`, or sequences that are not of shape"):
        get_dataset("dfaust-registrations").list_scans(dfaust_root)


def test_a_frame_that_went_away_is_named(dfaust_root):
    dataset = get_dataset("dfaust-registrations")
    entry = replace(dataset.list_scans(dfaust_root)[0], name="50002/hips/000099")
    with pytest.raises(ValueError, match=r"registrations_m\.hdf5: frame 50002/hips/000099 is missing\. Run the same"):
        dataset.read_scan(entry)


def test_faust(faust_root):
    entries = check_layout("faust", faust_root, closed=False)
    assert entries["08/pose_3/083"].path.name == "tr_scan_083.ply"
    assert entries["unknown/test/199"].path.name == "test_scan_199.ply"
    splits = get_dataset("faust").splits(faust_root.parent)
    assert splits == {
        "train": ["00/pose_0/000", "00/pose_3/003", "01/pose_0/010", "01/pose_3/013"],
        "unseen_people": ["08/pose_0/080", "08/pose_3/083"],
        "test": ["unknown/test/000", "unknown/test/199"],
    }
    registered = check_layout("faust-registrations", faust_root.parent, closed=True)
    assert list(registered) == [name for name in entries if not name.startswith("unknown")]


def test_cape(cape_root):
    entries = check_layout("cape", cape_root.parent, closed=True)
    assert entries["00096/longshort_hips/000003"].path.name == "longshort_hips.000003.npz"
    assert list(check_layout("cape-raw", cape_root, closed=False)) == list(entries)


def test_cape_takes_the_faces_of_another_template_and_says_if_there_is_none(cape_root, make_body):
    dataset = get_dataset("cape")
    entry = dataset.list_scans(cape_root)[0]
    (cape_root / "misc" / "smpl_tris.npy").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"misc/smpl_tris\.npy: no such files\. Download the sequences of CAPE from",
    ):
        dataset.read_scan(entry)
    make_body().export(cape_root / "misc" / "template.obj")
    np.testing.assert_array_equal(dataset.read_scan(entry).faces, make_body().faces)
    np.save(cape_root / "misc" / "smpl_tris.npy", make_body().faces + 7)
    with pytest.raises(ValueError, match=r"refers to vertex 978; .*\.npz has 972 vertices\. Use the faces of SMPL"):
        dataset.read_scan(entry)


def test_synthetic(synthetic_root):
    entries = check_layout("synthetic", synthetic_root, closed=False)
    dataset = get_dataset("synthetic")
    assert sorted(chain(*dataset.splits(synthetic_root).values())) == list(entries)
    scan = dataset.read_scan(entries["p001/poses/000002"])
    np.testing.assert_allclose(np.unique(scan.sensors, axis=0), [[0, 1, -3], [0, 1, 3]])
    np.testing.assert_array_equal(scan.sensors[:, 2] > 0, scan.points[:, 2] > 0)


# -------------------------------------------------------------------------------------------------------------- folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for path in (
        "anna/walk/walk.0007.npy",
        "anna/walk/day2/1.npy",
        "ben/3.npy",
        "9.npy",
        ".hidden/1.npy",
        "ben/x.part",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / path).open("wb") as file:
            np.save(file, np.random.default_rng(0).normal(size=(200, 3)))
    (tmp_path / "README.txt").write_text("my notes")
    return tmp_path


def test_a_folder_names_scans_by_their_paths(files):
    entries = DATASETS["folder"].list_scans(files)
    assert [entry.name for entry in entries] == ["all/scans/9", "anna/walk/0007", "anna/walk_day2/1", "ben/scans/3"]
    assert len(DATASETS["folder"].read_scan(entries[0])) == 200
    assert DATASETS["folder"].ground_truth(files, "all/scans/9") is None


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{subject}/{sequence}/{sequence}.{frame}.npy", ["anna/walk/0007"]),
        ("{subject}/*/{frame}.npy", ["anna/scans/walk.0007"]),
        ("{sequence}/{frame}.npy", ["all/ben/3"]),
        ("*{frame}.txt", ["all/scans/README"]),
    ],
)
def test_a_pattern_names_and_selects(files, pattern, names):
    assert [entry.name for entry in replace(DATASETS["folder"], pattern=pattern).list_scans(files)] == names


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("{who}/{frame}.npy", ValueError, r": unknown field \{who\}\. Use \{subject\}, \{sequence\}, \{frame\} and \*"),
        ("{subject}.npy", ValueError, r": no frame\. Add the field \{frame\}"),
        (
            "{subject}/{frame}.ply",
            FileNotFoundError,
            r"\{frame\}\.ply: no such files\. The first file is 9\.npy\.",
        ),
    ],
)
def test_a_pattern_that_does_not_fit_is_explained(files, pattern, error, message):
    with pytest.raises(error, match=message):
        replace(DATASETS["folder"], pattern=pattern).list_scans(files)


def test_two_files_of_one_name_are_refused(files):
    (files / "ben" / "3.xyz").write_text("0 0 0")
    with pytest.raises(ValueError, match=r"ben/3\.npy and .*ben/3\.xyz: both have the name ben/scans/3"):
        DATASETS["folder"].list_scans(files)


# ---------------------------------------------------------------------------------------------------------------- size


def body_of(size: float) -> Scan:
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (1000, 3))
    points[:, 1] *= 5 * size / 0.98
    points[0] = 500  # a stray point does not count
    return Scan("a/b/1", points.astype(np.float32))


@pytest.mark.parametrize("size", [0.31, 1.7, 2.9])
def test_a_person_is_of_plausible_size(size):
    DATASETS["folder"].check_size(body_of(size))


@pytest.mark.parametrize(
    ("unit", "size", "message"),
    [
        (
            1.0,
            1700,
            r"scan a/b/1: size 1,6\d\d m, expected 0\.3 to 3 m\. If the files are in mm, pass --unit mm, or multiply "
            r"the coordinates by 0\.001\.",
        ),
        (1.0, 170, r"If the files are in cm, pass --unit cm"),
        (1.0, 67, r"If the files are in in, pass --unit in"),
        (0.001, 0.0017, r"If the files are in m, pass --unit m, or multiply the coordinates by 1000\."),
        (1.0, 1e-5, r"If it is no person, pass --scale"),
    ],
)
def test_a_wrong_unit_is_named(unit, size, message):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (1000, 3)) * size
    with pytest.raises(ValueError, match=message):
        replace(DATASETS["folder"], unit=unit).check_size(Scan("a/b/1", points.astype(np.float32)))


def test_the_expected_size_goes_with_the_scale():
    replace(DATASETS["folder"], scale=0.1).check_size(body_of(0.2))
    with pytest.raises(ValueError, match=r"expected 0\.024 to 0\.24 m"):
        replace(DATASETS["folder"], scale=0.1).check_size(body_of(1.7))


# ----------------------------------------------------------------------------------------------------- names and splits


def test_the_splits_of_igr_and_sal_are_read_as_they_are(tmp_path):
    stems = {"50026": {"hips": ["hips.001352"], "knees": ["knees.000010", "knees.000011"]}, "50002": {"hips": []}}
    (tmp_path / "s.json").write_text(json.dumps({"scans": stems}))
    assert read_split(tmp_path / "s.json") == ["50026/hips/001352", "50026/knees/000010", "50026/knees/000011"]
    (tmp_path / "n.json").write_text(json.dumps(["07/pose_3/073", "07/pose_4/074", "07/pose_3/073"]))
    assert read_split(tmp_path / "n.json") == ["07/pose_3/073", "07/pose_4/074"]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "[1]", '["a/b"]', '{"a": 1}', '{"scans": []}', '{"scans": {"a": {"b": ["c"]}}}', '{"scans": {"a": 3}}'],
)
def test_another_json_is_no_split(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ValueError, match=r"s\.json: not a split file\. Write a JSON list"):
        read_split(tmp_path / "s.json")


def test_a_missing_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s\.json: no such split file\. Pass a JSON"):
        read_split(tmp_path / "s.json")


def test_frames_keep_their_digits():
    assert frame_number("light_hopping_stiff.000394") == "000394"
    assert frame_number("tr_scan_007") == "007"
    with pytest.raises(ValueError, match=r"hips: no frame number at the end\. Name the files <sequence>"):
        frame_number("hips")


def test_names_are_whole_and_differ():
    with pytest.raises(ValueError, match=r"a\.ply and .*b\.ply: both have the name s/q/1\. Rename one"):
        check_entries([ScanEntry("s/q/1", Path("a.ply")), ScanEntry("s/q/1", Path("b.ply"))])
    for name in ("s/1", "s//1", "s/../1", "_s/q/1", "s/q/1/2"):
        with pytest.raises(ValueError, match=r"a\.ply: the name .* is not subject/sequence/frame\. Rename the file"):
            check_entries([ScanEntry(name, Path("a.ply"))])


def test_suggestions():
    assert did_you_mean("trian", ["train", "test"]) == "Did you mean train?"
    assert did_you_mean("zzz", ["train", "test"]) == "There are 2: train, test."
    assert did_you_mean("zzz", []) == "There are none."


# ---------------------------------------------------------------------------------------------------------- data cards


@pytest.mark.parametrize("name", DATASETS)
def test_missing_data_say_what_to_get_and_where_to_put_it(tmp_path, name):
    dataset = DATASETS[name]
    with pytest.raises(FileNotFoundError, match=r": no such files\. ") as error:
        dataset.list_scans(tmp_path)
    assert str(error.value).endswith(dataset.instructions)
    if name not in ("synthetic", "folder"):
        assert ".is.tue.mpg.de" in dataset.instructions
        assert "ROOT/" in dataset.instructions


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_has_a_complete_card(name):
    dataset, card = DATASETS[name], importlib.import_module(type(DATASETS[name]).__module__).__doc__
    assert dataset.source
    assert dataset.license
    for word in ("ROOT", "License: ", "y up" if name in ("synthetic", "folder") else "y axis up"):
        assert word in card


def test_an_unknown_dataset_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no dataset 'dfuast'\. Did you mean dfaust\?"):
        get_dataset("dfuast")


def test_the_bare_name_datasets_is_refused():
    spec = importlib.util.spec_from_file_location("datasets", datasets.__file__)
    with pytest.raises(ImportError, match=r"import shapespace\.datasets instead"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("unit", ["m", "cm", "mm", "in"])
@pytest.mark.parametrize("height", [1.1, 1.5, 1.9])
def test_the_unit_is_guessed_by_the_size_of_people(unit: UnitName, height: float) -> None:
    points = height / UNITS[unit] * np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(np.float32)
    guess = guess_unit([Scan("", points)])
    assert guess.name == unit
    assert 0.8 < guess.confidence <= 1


def test_many_scans_say_their_unit_together_and_something_between_is_unsure() -> None:
    def cube(size: float) -> Scan:
        return Scan("", size * np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(np.float32))

    assert guess_unit([cube(90.0)]).confidence < 0.8  # a large person in inches, or a child in centimeters
    assert guess_unit([cube(90.0), cube(170.0), cube(180.0)]).name == "cm"
    assert guess_unit([cube(1e6)]) == ("m", 0)


def test_scans_of_one_unit_come_to_meters_together() -> None:
    def person(size: float) -> Scan:
        return Scan("", size * np.random.default_rng(0).uniform(-0.5, 0.5, (500, 3)).astype(np.float32))

    empty = Scan("", np.empty((0, 3), np.float32))
    scans, unit = to_meters([person(170.0), empty, person(180.0)])
    assert unit.name == "cm"
    np.testing.assert_allclose(scans[2].points, person(1.8).points, atol=1e-6)
    assert len(scans[1]) == 0
    assert to_meters([empty])[1] == ("m", 0)
    depth = replace(person(90.0), is_metric=True)  # a room in a depth image
    (same, converted), unit = to_meters([depth, person(170.0)])
    assert (same, unit.name, to_meters([depth])[1]) == (depth, "cm", ("m", 1.0))
    np.testing.assert_allclose(converted.points, person(1.7).points, atol=1e-6)
    with pytest.raises(ValueError, match=r"size 89 m.* or multiply depth_unit_scale_factor there by about 0\.019"):
        DATASETS["folder"].check_size(depth)
