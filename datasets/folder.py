"""Any folder of scans: everything that trimesh reads, NPY, NPZ, XYZ, depth images.

Names come from the path. Without --pattern, of the folders and the file below ROOT the first is the subject, the last
the frame, and those between are the sequence; what is missing becomes `all` and `scans`:

    ROOT/anna/walk/walk.0007.ply    anna/walk/0007
    ROOT/anna/7.obj                 anna/scans/7
    ROOT/7.npy                      all/scans/7

With --pattern "{subject}/{sequence}/{frame}.ply" the path says it: {subject}, {sequence} and {frame} stand for text
without a slash, * for anything without a slash, and files that do not fit are left out. Text files (TXT, CSV) are read
only if a pattern names them, since a folder may hold notes; JSON too, which may be the cameras of the depth images
beside them. PNG count as scans if they are 16-bit grey, as depth images are. Unit and up axis are yours to say
(--unit mm, --up z); metres and y up are assumed. Paper, counts, licence: your own. Put the files where you like; ROOT
is that folder.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trimesh import Trimesh

from shapespace.data.scan_dataset import ScanDataset, ScanEntry, check_entries
from shapespace.geometry.scan import Scan
from shapespace.io.checks import Normals
from shapespace.io.depth_images import is_depth_image
from shapespace.io.formats import readable_suffixes
from shapespace.io.scan_files import read_scan

DEFAULTS = {"subject": "all", "sequence": "scans"}
PLACES = ("{subject}", "{sequence}", "{frame}")
NOTES = (".txt", ".csv", ".json")


@dataclass(frozen=True)
class Folder(ScanDataset):
    """Files under a folder, named by their paths; no true surfaces."""

    name: str = "folder"
    source: str = "your own"
    license: str = "your own"
    instructions: str = (
        "Give the folder that holds your scans, and --pattern if their names say who and what they show."
    )
    pattern: str = ""

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the files that can be read, or that fit the pattern."""
        files = sorted(
            path for path in root.rglob("*") if path.is_file() and path.suffix.lower() in readable_suffixes()
        )
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        name = _pattern_name(self.pattern) if self.pattern else _plain_name
        if not self.pattern:
            files = [path for path in files if path.suffix.lower() != ".png" or is_depth_image(path)]
        named = [(path, name(path.relative_to(root))) for path in files]
        found = check_entries(ScanEntry(name, path) for path, name in named if name)
        if not found:
            seen = (
                f"The first file there is {files[0].relative_to(root)}." if files else "It has no file of a known kind."
            )
            raise self.missing(root / (self.pattern or "*.ply"), seen)
        return found

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the file."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Give none: the scans are all there is."""
        return None


def _plain_name(path: Path) -> str | None:
    """Name a scan by the folders it lies in."""
    if path.suffix.lower() in NOTES:
        return None
    *folders, frame = path.with_suffix("").parts
    subject = folders[0] if folders else DEFAULTS["subject"]
    sequence = "_".join(folders[1:]) or DEFAULTS["sequence"]
    return f"{subject}/{sequence}/{frame.removeprefix(folders[-1] + '.') if folders else frame}"


def _pattern_name(pattern: str) -> Callable[[Path], str | None]:
    """Make the function that names a scan by the pattern, or gives None for a path that does not fit."""
    seen: set[str] = set()
    expression = ""
    for piece in re.split(r"(\{.*?\}|\*)", pattern):
        if piece == "*":
            expression += "[^/]*?"
        elif piece in PLACES:
            key = piece.strip("{}")
            expression += f"(?P={key})" if key in seen else f"(?P<{key}>[^/]+)"
            seen.add(key)
        elif piece.startswith("{"):
            raise ValueError(f"--pattern {pattern} has {piece}; it may hold {', '.join(PLACES)} and *. Use these.")
        else:
            expression += re.escape(piece)
    if "frame" not in seen:
        raise ValueError(f"--pattern {pattern} does not say where the frame is. Put {{frame}} into it.")
    compiled = re.compile(expression)

    def name(path: Path) -> str | None:
        match = compiled.fullmatch(path.as_posix())
        return "{subject}/{sequence}/{frame}".format(**DEFAULTS | match.groupdict()) if match else None

    return name
