"""The command `preprocess`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shapespace.data.store import ScanStore
from shapespace.tools.__main__ import cli
from shapespace.tools.preprocess import main


def shapespace(*words: object) -> None:
    cli(main, [str(word) for word in words], "preprocess")


@pytest.fixture
def fails(capsys):
    """Call the command with words that make it fail; return its error."""

    def call(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            shapespace(*words)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return call


def test_a_store_is_written_and_its_path_printed(synthetic_root, tmp_path, capsys):
    shapespace("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 300, "--jobs", 1)
    out, progress = capsys.readouterr()
    size = (tmp_path / "s.h5").stat().st_size
    assert out.splitlines() == [
        "9 of 9 scans have ground truth.",
        f"store: {tmp_path / 's.h5'} (9 scans, 2,700 points, {size:,} bytes)",
    ]
    assert "9/9" in progress
    shapespace("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 300)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"store, complete already: {tmp_path / 's.h5'}")
    shapespace("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 200, "--overwrite")
    assert "9 scans, 1,800 points" in capsys.readouterr().out


def test_units_axes_scale_and_patterns_go_into_the_store(tmp_path, make_body):
    body = make_body()
    folder = tmp_path / "scans" / "anna"
    folder.mkdir(parents=True)
    rows = (
        np.stack([body.vertices[:, 0], -body.vertices[:, 2], body.vertices[:, 1]], axis=1) * 1000
    )  # z up, millimeters
    np.savetxt(folder / "walk-0001.txt", rows)
    options = ("--unit", "mm", "--up", "z", "--scale", 1.5, "--pattern", "{subject}/{sequence}-{frame}.txt")
    shapespace("folder", tmp_path / "scans", tmp_path / "s.h5", "--points", 972, *options)
    store = ScanStore(tmp_path / "s.h5")
    assert store.names == ["anna/walk/0001"]
    assert store.scale == 1.5
    scan = store.sample("anna/walk/0001", 972, np.random.default_rng(0)).to_world(store.frame("anna/walk/0001"))
    np.testing.assert_allclose(np.sort(scan.points, axis=0), np.sort(body.vertices, axis=0), atol=1e-5)


def test_an_axis_may_point_down(tmp_path, make_body, capsys):
    body = make_body()
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans" / "1.npy", body.vertices * [1, -1, -1])
    shapespace("folder", tmp_path / "scans", tmp_path / "s.h5", "--points", 972, "--up", "-y")
    store = ScanStore(tmp_path / "s.h5")
    scan = store.sample(store.names[0], 972, np.random.default_rng(0)).to_world(store.frame(store.names[0]))
    np.testing.assert_allclose(np.sort(scan.points, axis=0), np.sort(body.vertices, axis=0), atol=1e-5)


def test_bad_scans_are_named_as_they_come_and_at_the_end(synthetic_root, tmp_path, capsys, fails):
    bad = synthetic_root / "scans/p001/poses/poses.000001.ply"
    bad.write_bytes(bad.read_bytes()[:2000])
    error = fails("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 300)
    assert f"rejected p001/poses/000001: {bad}: truncated" in error
    assert "1 of 9 scans were rejected (--max-rejected 0)." in error
    assert not (tmp_path / "s.h5").exists()
    shapespace("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 300, "--max-rejected", 1)
    assert "rejected 1 scans: p001/poses/000001" in capsys.readouterr().out
    assert len(ScanStore(tmp_path / "s.h5")) == 8


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("synthetik", "{root}", "{out}"), "no dataset 'synthetik'. Did you mean synthetic?"),
        (("synthetic", "{root}/nowhere", "{out}"), "nowhere: no such folder"),
        (
            ("dfaust-registrations", "{root}/splits", "{out}"),
            "registrations_m.hdf5 of D-FAUST from dfaust.is.tue.mpg.de",
        ),
        (("synthetic", "{root}", "{out}", "--unit", "mm"), "If the files are in m, pass --unit m, or multiply"),
        (("synthetic", "{root}", "{out}", "--scale", "-1"), "--scale -1.0: must be a positive number of meters."),
        (
            ("synthetic", "{root}", "{out}", "--pattern", "{{frame}}"),
            "--pattern {frame}: not for the dataset synthetic.",
        ),
        (("synthetic", "{root}", "{out}", "--split", "{root}/no.json"), "no.json: no such split file."),
        (("synthetic", "{root}", "{out}", "--points", "3"), "--points 3: must be at least 100."),
    ],
)
def test_a_mistake_gives_a_sentence_and_leaves_nothing(synthetic_root, tmp_path, fails, words, sentence):
    error = fails(*(word.format(root=synthetic_root, out=tmp_path / "s.h5") for word in words))
    assert error.splitlines()[0].startswith("shapespace preprocess: ") or "rejected" in error
    assert sentence in error
    assert not list(tmp_path.glob("s.h5*"))


def test_it_runs_as_a_script_and_several_processes_give_the_same_bytes(synthetic_root, tmp_path):
    script = Path(__file__).parents[2] / "tools" / "preprocess.py"
    words = [sys.executable, script, "synthetic", synthetic_root, tmp_path / "s.h5", "--points", "300", "--jobs", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith(f"store: {tmp_path / 's.h5'} (9 scans")
    shapespace("synthetic", synthetic_root, tmp_path / "one.h5", "--points", 300, "--jobs", 1)
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_a_shard_prints_its_path_and_the_last_one_makes_the_store(synthetic_root, tmp_path, capsys, monkeypatch, fails):
    line = ("synthetic", synthetic_root, tmp_path / "s.h5", "--points", 300)
    shapespace(*line, "--shard", "2/2")
    assert f"shard 2/2 in {tmp_path / 's.h5.2of2'}. The last shard makes the store" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")  # as torchrun sets it
    monkeypatch.setenv("WORLD_SIZE", "2")
    shapespace(*line)
    assert f"store: {tmp_path / 's.h5'} (9 scans, 2,700 points" in capsys.readouterr().out
    assert "--shard 3/2: not a valid shard." in fails(*line, "--shard", "3/2")
