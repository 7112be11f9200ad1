"""`shapespace render`: pictures and animations from files."""

from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from shapespace.geometry.scan import Scan
from shapespace.io import scan_files
from shapespace.rendering import colors
from shapespace.tools.render import main


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, ...]:
    """A ball without colors, one colored by 20 mm everywhere, and the points of one."""
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    scan_files.write_mesh(tmp_path / "clay.obj", ball)
    scan_files.write_mesh(tmp_path / "off.ply", colors.color_by_value(ball, np.full(len(ball.vertices), 0.020)))
    scan_files.write_scan(tmp_path / "scan.ply", Scan("s", np.asarray(ball.vertices, dtype=np.float32)))
    return tuple(tmp_path / name for name in ("clay.obj", "off.ply", "scan.ply"))


def test_a_sheet_has_rows_and_the_colors_of_lengths(inputs: tuple[Path, ...], tmp_path: Path) -> None:
    main(inputs, out=tmp_path / "a.png", size=64, columns=2)
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    dark = np.abs(image - colors.ERROR_RAMP[-1]).max(axis=-1) < 40
    assert dark[:, image.shape[1] // 4 :].sum() > 400  # the second ball, and the end of the legend
    assert image.shape[0] > 2 * 64 + 2 * 28
    main(inputs[:1], out=tmp_path / "b.png", size=64)
    assert image.shape[0] - Image.open(tmp_path / "b.png").height == 64 + 28 + 46  # a row, its label, the legend


def test_an_animation_turns_or_plays(inputs: tuple[Path, ...], tmp_path: Path) -> None:
    main(inputs[:2], out=tmp_path / "a.gif", size=48, frames=3)
    assert Image.open(tmp_path / "a.gif").n_frames == 3  # type: ignore[attr-defined]
    main(inputs, out=tmp_path / "b.gif", size=48, play=True)
    assert Image.open(tmp_path / "b.gif").n_frames == 4  # type: ignore[attr-defined]
    assert Image.open(tmp_path / "a.gif").width > 1.7 * Image.open(tmp_path / "b.gif").width  # side by side


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"frames": 0}, "--frames 0, .*: out of range"),
        ({"size": 2}, "--size 2, .*: out of range"),
        ({"play": True, "out": Path("a.png")}, r"a\.png: PNG cannot hold the animation of --play\. Give --out"),
        ({"out": Path("a.mov")}, r"a\.mov: not an animation format"),
        ({"meshes": ()}, "no meshes given"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(
    wrong: dict[str, object], sentence: str, inputs: tuple[Path, ...]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        main(**{"meshes": inputs, "out": Path("a.gif"), **wrong})  # type: ignore[arg-type]
