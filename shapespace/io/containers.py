"""Files inside of gzip, bzip2, xz and zip: unpacked to a temporary folder, up to a limit."""

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from shapespace.io import raw_scan
from shapespace.io.errors import BadFileError

_CHUNK = 1 << 20
_STREAMS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
CONTAINERS = frozenset({*_STREAMS, ".zip"})
_MAX_MEMBERS = 10_000
_COMPANIONS = (".png", ".json", ".exr", ".bin", ".mtl")  # of a mesh in an archive: its textures, settings and buffers
_NOTES = (".txt", ".csv", ".dat")  # about a mesh, or a table of points if there is no other scan


@contextmanager
def unpacked(path: Path, readable: frozenset[str], sniff: Callable[[bytes], str]) -> Iterator[Path]:
    """The file inside of a container, as long as the context lasts.

    `readable` are the suffixes that a member of an archive may have; `sniff` gives the suffix of a file without one.

    Raises:
        ValueError: It is damaged, unpacks to too much, or does not contain exactly one scan.

    """
    with TemporaryDirectory() as folder:
        if path.suffix.lower() == ".zip":
            yield _unpack_archive(path, Path(folder), readable)
        else:
            yield _unpack_stream(path, Path(folder), readable, sniff)


def _unpack_stream(path: Path, folder: Path, readable: frozenset[str], sniff: Callable[[bytes], str]) -> Path:
    inner = Path(path.stem)
    with _STREAMS[path.suffix.lower()](path, "rb") as source:
        if inner.suffix.lower() == ".tar":
            raise BadFileError(f"{path}: an archive of several files. Unpack it, and pass the scan in it.")
        start = source.read(4096)
        suffix = inner.suffix if inner.suffix.lower() in readable else sniff(start)
        target = folder / f"{inner.stem if inner.suffix.lower() in readable else inner.name}{suffix}"
        with target.open("wb") as file:
            file.write(start)
            _copy(path, source, file, len(start))
    return target


def _unpack_archive(path: Path, folder: Path, readable: frozenset[str]) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if not info.is_dir() and not _is_hidden(info.filename)]
        scans = [info for info in members if PurePosixPath(info.filename).suffix.lower() in readable]
        others = [info for info in scans if PurePosixPath(info.filename).suffix.lower() not in _COMPANIONS] or scans
        shapes = [info for info in others if PurePosixPath(info.filename).suffix.lower() not in _NOTES] or others
        if len(members) > _MAX_MEMBERS or len(shapes) != 1:
            names = ", ".join(info.filename for info in shapes[:4]) + (", ..." if len(shapes) > 4 else "")
            listed = f" ({names[:120]})" if names else ""
            raise BadFileError(
                f"{path}: an archive with {len(shapes)} scans{listed}; exactly one can be read. Unpack it, and pass "
                "one of them."
            )
        total, target = 0, folder
        for number, info in enumerate(members):
            parts = [part for part in PurePosixPath(info.filename.replace("\\", "/")).parts if part not in ("/", "..")]
            place = folder.joinpath(*[part.replace("\0", "").replace(":", "")[:100] for part in parts] or [str(number)])
            if info is not shapes[0] and place.suffix.lower() not in _COMPANIONS:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, place.open("wb") as file:
                total = _copy(path, source, file, total)
            target = place if info is shapes[0] else target
    return target


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _copy(path: Path, source: Any, target: IO[bytes], total: int) -> int:
    """Copy the rest of a stream, and count its bytes together with those before."""
    while chunk := source.read(_CHUNK):
        total += len(chunk)
        if total > raw_scan.MAX_UNPACKED:
            raise BadFileError(
                f"{path}: unpacks to more than {raw_scan.MAX_UNPACKED:,} bytes. Unpack it, and pass the scan in it."
            )
        target.write(chunk)
    return total
