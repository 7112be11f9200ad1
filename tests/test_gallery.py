"""The gallery shows pictures that are there and small, by lines that `make gallery` runs."""

import re
import subprocess
from pathlib import Path

from PIL import Image

HOUSE = Path(__file__).parents[1]
GUIDE = HOUSE / "docs" / "guide"
PAGE = (GUIDE / "pictures.md").read_text(encoding="utf-8")


def test_its_pictures_are_there_and_small() -> None:
    shown = {(GUIDE / name).resolve() for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)}
    assert shown == set((HOUSE / "docs" / "images" / "pictures").iterdir())
    sizes = [file.stat().st_size for file in shown]
    assert max(sizes) < 300_000
    assert sum(sizes) < 1_500_000
    films = {file.name for file in shown if getattr(Image.open(file), "n_frames", 1) > 1}
    assert films == {"turntable.gif", "interpolation.gif"}


def test_its_lines_are_those_of_the_makefile() -> None:
    told = subprocess.run(["make", "-n", "gallery"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout
    blocks = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    run = {line.removeprefix(".venv/bin/") for line in told.splitlines()}
    assert len(lines) == 5
    assert set(lines) <= run
