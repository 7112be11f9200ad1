"""Imports go down only."""

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1]


def test_the_floors_hold() -> None:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOUSE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout
