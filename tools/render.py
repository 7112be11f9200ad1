"""Pictures of meshes and scans, without a display: side by side, turning, or one after the other.

    shapespace render fitted/*.ply --out fits.png                   (a contact sheet)
    shapespace render fitted/a.ply fitted/b.ply --out both.gif      (a turntable; .webp, .apng or .mp4 as well)
    shapespace render between/*.obj --play --turn 90 --out way.webp (one after the other, there and back)

The end of --out says what it becomes. PLY that holds lengths as its vertex `quality`, as `evaluate` leaves its meshes
with the distance to the truth and `fit --uncertainty` those of fits, is drawn in their colours. MP4 needs the extra
`video`.
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
    """Draw.

    Args:
        meshes: Files of meshes or scans.
        out: The picture: .png, or as a film .gif, .webp, .apng, .mp4.
        size: Height of a row in pixels.
        azimuth: Degrees from the front towards the person's left side.
        elevation: Degrees above the horizon.
        limit: Where the colours of lengths end, mm.
        columns: Meshes in a row of a contact sheet.
        turn: Degrees by which the camera goes around in a film.
        frames: Pictures of a film in which all are seen at once.
        seconds: How long the film takes.
        play: Show one after the other, there and back, instead of side by side.
        unit: Unit of the files.
        up: Axis of the files that points up.

    """
    if not meshes:
        raise ValueError("no meshes given: name files, for example shapespace render fitted/*.ply --out fits.png")
    if frames < 1 or columns < 1 or size < 16 or seconds <= 0:
        raise ValueError(
            f"--frames {frames}, --columns {columns}, --size {size}, --seconds {seconds:g} make no picture: give at "
            "least 1 frame, 1 column, 16 pixels, and a time above 0."
        )
    shapes = [_shape(file, limit, units.UNITS[unit], up) for file in meshes]
    if out.suffix.lower() == ".png":
        if play:
            raise ValueError(f"{out} does not move, and --play wants a film: give --out a name that ends in .gif.")
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
    """What is to be drawn: a mesh, in the colours of its lengths if it has any, or the points of a scan."""
    scan = scan_files.read_scan(file, unit=unit, up=up)
    if scan.faces is None:
        return renderer.scan_to_mesh(scan)
    return colors.color_by_quality(scan_files.read_mesh(file, unit=unit, up=up), limit=limit)


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
