"""The command line itself: renamed options and commands, and output that nobody reads any more."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from shapespace.io import migration
from shapespace.io.migration import OPTION_VALUES, OPTIONS
from shapespace.tools.__main__ import CLOSED_PIPE, VERBS, main

RENAMES = [(verb, old, new) for verb, options in OPTIONS.items() for old, new in options.items()]
RENAMED_VALUES = [
    (verb, option, old, new)
    for verb, option in (
        ("fit", "--lm.alignment"),
        ("evaluate-sequences", "--lm.alignment"),
        ("train", "--model.encoder"),
        ("train", "--model.supervision"),
        ("reconstruct", "--execution"),
        ("interpolate", "--path"),
        ("evaluate-paths", "--paths"),
        ("robustness", "--cases"),
        ("evaluate", "--metrics"),
        ("train", "--config"),
        ("reproduce", "--config"),
    )
    for old, new in OPTION_VALUES[option].items()
]

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in this process: exit code and errors."""
    monkeypatch.chdir(tmp_path)

    def called(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["shapespace", *words])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), capsys.readouterr().err

    return called


def test_every_old_option_is_an_error_that_names_the_new_one(call: Call) -> None:
    for verb, old, new in RENAMES:
        for spelling in (old, "--" + old[2:].replace("-", "_")):
            assert call(verb, spelling, "1") == (2, f"shapespace {verb}: {spelling} was renamed: use {new}.\n")
            assert call(verb, f"{spelling}=1") == (2, f"shapespace {verb}: {spelling} was renamed: use {new}.\n")


def test_every_old_value_is_an_error_that_names_the_new_one(call: Call) -> None:
    for verb, option, old, new in RENAMED_VALUES:
        expected = f"shapespace {verb}: {option} {old} was renamed: use {option} {new}.\n"
        assert call(verb, option, old) == (2, expected)
        assert call(verb, f"{option}={old}") == (2, expected)


def test_every_old_command_is_an_error_that_names_the_new_one(call: Call) -> None:
    for old, new in migration.VERBS.items():
        assert old not in VERBS
        assert set(new.replace(",", "").split()) & VERBS.keys()
        assert call(old, "--help") == (2, f"shapespace: {old} was renamed: use {new}.\n")


def test_several_old_names_are_one_error(call: Call) -> None:
    code, err = call("fit", "humans", "a.ply", "--lm.pose", "near", "--samples", "3", "--out", "b")
    assert code == 2
    assert err == (
        "shapespace fit: --lm.pose near, --samples were renamed: use --lm.alignment local, --posterior-samples.\n"
    )


def test_old_names_are_no_options_and_new_names_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the help of every command; `--model.supervision` is of families other than igr."""
    for verb, options in OPTIONS.items():
        words = [verb, "known-surfaces", "--help"] if verb == "reproduce" else [verb, "--help"]
        if verb == "train":
            words[1:1] = ["--family", "convolutional"]
        monkeypatch.setattr(sys, "argv", ["shapespace", *words])
        with warnings.catch_warnings(), pytest.raises(SystemExit):
            main()
        told = set(capsys.readouterr().out.replace(",", " ").replace("[", " ").replace("]", " ").split())
        if verb == "train":
            options = {old: new for old, new in options.items() if not old.startswith("--model.") or "learn" in old}
        assert {new.replace("--no-", "--") for new in options.values()} <= told, verb
        assert not set(options) & told, verb


def test_new_names_and_other_words_are_not_taken_for_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for verb, options in OPTIONS.items():
        assert migration.renamed_options(verb, [word for new in options.values() for word in (new, "1")]) == []
    for verb, option, _, new in RENAMED_VALUES:
        assert migration.renamed_options(verb, [option, new]) == []
    assert migration.renamed_options("fit", ["humans", "near", "--out", "given", "--lm.max-steps", "3"]) == []
    Path("teach").write_text("")
    assert migration.renamed_options("train", ["--config", "teach"]) == []  # a file of the user's


# ---------------------------------------------------------------------------------------------------------------- pipes


def closed(*words: str, tool: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run a command whose output goes to a pipe that is closed after its first line."""
    line = [sys.executable, "-m", f"shapespace.tools{tool}", *words]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        return subprocess.CompletedProcess(line, process.wait(), b"", err)


@pytest.mark.parametrize(
    ("words", "tool"), [(["--help"], ""), (["render", "--help"], ""), (["--help"], ".render"), ([], "")]
)
def test_a_closed_output_ends_a_command_silently(words: list[str], tool: str) -> None:
    done = closed(*words, tool=tool)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, b"")


def test_a_closed_output_ends_a_running_command_silently(tmp_path: Path) -> None:
    words = "synthesize . --people 1 --poses 1 --test-people 0 --test-poses 0 --seed 5 --jobs 1"
    script = f"{sys.executable} -m shapespace.tools {words} 2> ../errors | true; echo ${{PIPESTATUS[0]}}"
    (tmp_path / "data").mkdir()
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path / "data", capture_output=True, text=True, check=True)
    assert done.stdout == f"{CLOSED_PIPE}\n"
    err = (tmp_path / "errors").read_text()
    assert "Traceback" not in err
    assert "ipe" not in err


@pytest.mark.parametrize("line", ["{tool} --help | head -1", "{tool} render --help | head -1"])
def test_head_takes_a_line_and_the_rest_is_silent(line: str) -> None:
    script = line.format(tool=f"{sys.executable} -m shapespace.tools") + "; echo ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    first, status = done.stdout.splitlines()
    assert first.startswith("usage: shapespace")
    assert int(status) in (0, CLOSED_PIPE)
    assert done.stderr == ""


def test_a_full_disk_behind_the_output_gets_a_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shapespace.tools", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("shapespace: standard output: No space left on device: the disk is full. Make room")
