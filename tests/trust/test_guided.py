"""Coverage-guided fuzzing of the readers by libFuzzer: `make slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

from .test_fuzz import FORMATS

SECONDS = 20  # of fuzzing for each format; importing torch takes as long again


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_fuzzed_file_is_read_or_refused_with_a_message(tmp_path: Path, name: str) -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux alone")
    line = [sys.executable, "-m", "tests.trust.guided", name, str(SECONDS), str(tmp_path)]
    done = subprocess.run(line, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stderr[-3000:]
