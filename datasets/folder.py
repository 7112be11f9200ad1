"""Folder of scans in any format that `read_scan` reads.

Names: without --pattern, the first folder below ROOT is the subject, the file is the frame, and the folders between are
the sequence; a missing subject is `all`, a missing sequence `scans`:

    ROOT/anna/walk/walk.0007.ply    anna/walk/0007
    ROOT/anna/7.obj                 anna/scans/7
    ROOT/7.npy                      all/scans/7

With --pattern "{subject}/{sequence}/{frame}.ply", {subject}, {sequence} and {frame} match text without a slash, and *
matches any text without a slash; other files are ignored.
Files: without a pattern, TXT, CSV, TSV, BIN and JSON are ignored, since they can be notes or the cameras of depth
images, and PNG are read if they are 16-bit grayscale, as depth images are.
Unit and axes: meters and y up by default; pass --unit and --up for other files.
License: your own.
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
from shapespace.io.formats import is_scan_file
from shapespace.io.scan_files import read_scan, stem

_DEFAULTS = {"subject": "all", "sequence": "scans"}
_FIELDS = ("{subject}", "{sequence}", "{frame}")
_IGNORED_SUFFIXES = (".txt", ".csv", ".tsv", ".json", ".bin")


@dataclass(frozen=True)
class Folder(ScanDataset):
    """Files under a folder, named by their paths, without ground truth."""

    name: str = "folder"
    source: str = "your own"
    license: str = "your own"
    instructions: str = "Pass the folder that contains the scans, and --pattern if their paths have another form."
    pattern: str = ""

    def list_scans(self, root: Path) -> list[ScanEntry]:
        """List the readable files, or those that match the pattern."""
        files = sorted(path for path in root.rglob("*") if path.is_file() and is_scan_file(path))
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        name = _pattern_name(self.pattern) if self.pattern else _plain_name
        if not self.pattern:
            files = [path for path in files if path.suffix.lower() != ".png" or is_depth_image(path)]
        named = [(path, name(path.relative_to(root))) for path in files]
        entries = check_entries(ScanEntry(name, path) for path, name in named if name)
        if not entries:
            hint = f"The first file is {files[0].relative_to(root)}." if files else "No file has a readable format."
            raise self.missing(root / (self.pattern or "*.ply"), hint)
        return entries

    def read_scan(self, entry: ScanEntry, normals: Normals = "auto") -> Scan:
        """Read the file."""
        return read_scan(entry.path, name=entry.name, unit=self.unit, up=self.up, normals=normals)

    def ground_truth(self, root: Path, name: str) -> Trimesh | None:
        """Return None: a folder has no ground truth."""
        return None


def _plain_name(path: Path) -> str | None:
    """Name of a scan from its folders; None for files that are ignored."""
    if path.suffix.lower() in _IGNORED_SUFFIXES:
        return None
    *folders, frame = path.with_name(stem(path)).parts
    subject = folders[0] if folders else _DEFAULTS["subject"]
    sequence = "_".join(folders[1:]) or _DEFAULTS["sequence"]
    return f"{subject}/{sequence}/{frame.removeprefix(folders[-1] + '.') if folders else frame}"


def _pattern_name(pattern: str) -> Callable[[Path], str | None]:
    """Compile the pattern to a function from a path to the name of the scan, None for no match."""
    seen: set[str] = set()
    expression = ""
    for piece in re.split(r"(\{.*?\}|\*)", pattern):
        if piece == "*":
            expression += "[^/]*?"
        elif piece in _FIELDS:
            key = piece.strip("{}")
            expression += f"(?P={key})" if key in seen else f"(?P<{key}>[^/]+)"
            seen.add(key)
        elif piece.startswith("{"):
            raise ValueError(f"--pattern {pattern}: unknown field {piece}. Use {', '.join(_FIELDS)} and *.")
        else:
            expression += re.escape(piece)
    if "frame" not in seen:
        raise ValueError(f"--pattern {pattern}: no frame. Add the field {{frame}}.")
    compiled = re.compile(expression)

    def name(path: Path) -> str | None:
        match = compiled.fullmatch(path.as_posix())
        return "{subject}/{sequence}/{frame}".format(**_DEFAULTS | match.groupdict()) if match else None

    return name
