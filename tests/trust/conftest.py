"""Reliability tests: few rounds in `make test`, all rounds and the table of results in `make trust`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shapespace.tools import preprocess, train
from shapespace.tools.__main__ import cli

_ROWS = pytest.StashKey[list[tuple[str, int, int, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full`."""
    parser.addoption("--full", action="store_true", help="all rounds of the reliability tests, and the table")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Number of rounds: `rounds(few, all)`."""
    full: bool = request.config.getoption("--full", default=False)
    return lambda few, every: every if full else few


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Add a row to the table, and fail unless all rounds passed: `tried(test, rounds, passed, measured)`."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def add(test: str, many: int, passed: int, measured: str = "") -> None:
        rows.append((test, many, passed, measured))
        assert passed == many, f"{test}: {many - passed} of {many} failed"

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, as Markdown, after a full run."""
    if config.getoption("--full", default=False):
        terminalreporter.write_line("\n| test | rounds | passed | measured |\n|---|---:|---:|---|")
        for test, many, passed, measured in config.stash.get(_ROWS, []):
            terminalreporter.write_line(f"| {test} | {many:,} | {passed:,} | {measured} |")


@pytest.fixture(scope="session")
def people(make_synthetic: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of nine raw scans with ground truth; read only."""
    return make_synthetic(tmp_path_factory.mktemp("people") / "synthetic")


@pytest.fixture(scope="session")
def store(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of these scans; read only."""
    made = tmp_path_factory.mktemp("store") / "people.h5"
    cli(preprocess.main, ["synthetic", str(people), str(made), "--points", "600"])
    return made


@pytest.fixture(scope="session")
def learned(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of a training of seconds; read only."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    words = [str(store), "--config", "tiny", "--split", "train", "--out", str(folder), "--device", "cpu"]
    cli(train.main, [*words, "--optim.max-steps", "40", "--projector-codes", "0"])
    return folder
