"""Render meshes and scans without a display: contact sheets and animations.

    shapespace render fitted/*.ply --out fits.png                    (a contact sheet)
    shapespace render fitted/a.ply fitted/b.ply --out both.gif       (a turntable; also .webp, .apng or .mp4)
    shapespace render path/*.obj --play --turn 90 --out path.webp    (one mesh after the other, forward and back)

The suffix of --out selects the kind of picture. PLY files with lengths as vertex `quality` (written by `evaluate`:
distance to the ground truth, and by `fit --uncertainty`) are colored by them. MP4 needs the extra `video`.
"""

from pathlib import Path
from typing import Annotated

import tyro
from trimesh import Trimesh

from shapespace.io import scan_files, units
from shapespace.io.units import UnitName
from shapespace.rendering import animation, colors, renderer, sheet


def main(
    meshes: Annotated[tuple[Path, ...], tyro.conf.Positional],
    *,
    out: Path = Path("picture.png"),
    size: int = 320,
    azimuth: float = 25.0,
    elevation: float = 10.0,
    limit: float = 20.0,
    columns: int = 6,
    turn: float = 360.0,
    frames: int = 36,
    seconds: float = 4.0,
    play: bool = False,
    unit: UnitName = "m",
    up: units.Up = "y",
) -> None:
    """Render meshes and scans without a display.

    Args:
        meshes: Files of meshes or scans.
        out: Picture (.png) or animation (.gif, .webp, .apng, .mp4).
        size: Height of a row (pixels).
        azimuth: Camera angle from the front towards the person's left side (degrees).
        elevation: Camera angle above the horizon (degrees).
        limit: End of the color map of lengths (mm).
        columns: Number of meshes in a row of a contact sheet.
        turn: Rotation of the camera over an animation (degrees).
        frames: Number of frames of an animation without --play.
        seconds: Duration of an animation (seconds).
        play: Animate one mesh after the other, forward and back, instead of side by side.
        unit: Unit of the files.
        up: Axis of the files that points up.

    """
    if not meshes:
        raise ValueError("no meshes given. Name files, for example shapespace render fitted/*.ply --out fits.png")
    if frames < 1 or columns < 1 or size < 16 or seconds <= 0:
        raise ValueError(
            f"--frames {frames}, --columns {columns}, --size {size}, --seconds {seconds:g}: out of range. Give at "
            "least 1 frame, 1 column, 16 pixels, and a duration above 0."
        )
    shapes = [_shape(file, limit, units.UNITS[unit], up) for file in meshes]
    if out.suffix.lower() == ".png":
        if play:
            raise ValueError(f"{out}: PNG cannot hold the animation of --play. Give --out a name that ends in .gif.")
        sheet.contact_sheet(
            [
                (", ".join(file.stem for file in meshes[k : k + columns]), shapes[k : k + columns])
                for k in range(0, len(shapes), columns)
            ],
            out,
            size=size,
            azimuth=azimuth,
            elevation=elevation,
            limit=limit if any("quality" in shape.vertex_attributes for shape in shapes) else None,
        )
    else:
        scenes = [[shape] for shape in (*shapes, *shapes[-2:0:-1])] if play else [shapes] * frames
        animation.write_animation(
            scenes, out, seconds=seconds, turn=turn, size=size, azimuth=azimuth, elevation=elevation
        )
    print(f"{len(shapes)} meshes in {out}")


def _shape(file: Path, limit: float, unit: float, up: units.Up) -> Trimesh:
    """Mesh of a file, colored by its lengths if it has any; for points without faces, one marker for each."""
    scan = scan_files.read_scan(file, unit=unit, up=up)
    if scan.faces is None:
        return renderer.scan_to_mesh(scan)
    return colors.color_by_quality(scan_files.read_mesh(file, unit=unit, up=up), limit=limit)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
