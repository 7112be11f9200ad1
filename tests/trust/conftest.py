"""Trust, short and full: the same tests with few rounds in `make test` and with all of them in `make trust`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shapespace.tools import preprocess, train

_ROWS = pytest.StashKey[list[tuple[str, int, int, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full`."""
    parser.addoption("--full", action="store_true", help="all rounds of every test of trust, and the table")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How many rounds: `rounds(few, all)`."""
    full: bool = request.config.getoption("--full", default=False)
    return lambda few, every: every if full else few


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Put a line into the table, and fail unless all survived: `tried(what, many, survived, how_it_was_measured)`."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def tell(what: str, many: int, survived: int, measured: str = "") -> None:
        rows.append((what, many, survived, measured))
        assert survived == many, f"{what}: {many - survived} of {many} did not survive"

    return tell


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, as Markdown, after a full run."""
    if config.getoption("--full", default=False):
        terminalreporter.write_line("\n| what was tried | how many | survived | measured |\n|---|---:|---:|---|")
        for what, many, survived, measured in config.stash.get(_ROWS, []):
            terminalreporter.write_line(f"| {what} | {many:,} | {survived:,} | {measured} |")


@pytest.fixture(scope="session")
def people(make_synthetic: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine raw scans with their true surfaces; nobody writes into it."""
    return make_synthetic(tmp_path_factory.mktemp("people") / "synthetic")


@pytest.fixture(scope="session")
def store(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their store; nobody writes into it."""
    made = tmp_path_factory.mktemp("store") / "people.h5"
    run(preprocess.main, ["synthetic", str(people), str(made), "--points", "600"])
    return made


@pytest.fixture(scope="session")
def learned(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a training of seconds; nobody writes into it."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    words = [str(store), "--config", "tiny", "--split", "train", "--out", str(folder), "--device", "cpu"]
    run(train.main, [*words, "--optim.max-steps", "40", "--projector-codes", "0"])
    return folder
