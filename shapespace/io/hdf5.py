"""HDF5 files of strangers: only what a file itself holds is read, and no more than can be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

MAX_READ = 1_000_000_000  # bytes of one array: a few bytes of a packed or an unwritten one may unfold to anything


def get_member(group: h5py.Group, path: str) -> Any:
    """The group or data set at `path` below `group`; in it and on the way to it, nothing leads out of the file.

    Soft and external links, virtual data sets and raw data in other files would have other files read in the place of
    this one.

    Raises:
        KeyError: There is nothing.
        ValueError: What is there leads elsewhere.

    """
    place: Any = group
    for part in path.split("/"):
        if not isinstance(place, h5py.Group) or not has_member(place, part):
            raise KeyError(f"it has no {path}")
        if place.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"its {path} is a link to another place, and only what the file itself holds is read")
        place = place[part]
    if isinstance(place, h5py.Dataset) and (place.is_virtual or place.external):
        raise ValueError(f"its {path} lies in another file, and only what the file itself holds is read")
    return place


def has_member(group: h5py.Group, name: str) -> bool:
    """Whether the group has a member of that name; h5py's `in` would follow a link to find out."""
    return bool(group.id.links.exists(name.encode()))


def get_attribute(group: h5py.Group | h5py.Dataset, name: str) -> Any:
    """An attribute: numbers or a text. HDF5 itself may crash on what a damaged file makes of them.

    Raises:
        KeyError: There is none of that name.
        ValueError: It is neither.

    """
    _check_kind(group.attrs.get_id(name).get_type(), name)
    return group.attrs[name]


def _check_kind(kind: h5py.h5t.TypeID, name: str) -> None:
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM):
        raise ValueError(f"its {name} is neither numbers nor text")


def check_stored(data: h5py.Dataset) -> h5py.Dataset:
    """The data set, if it takes as much room in the file as in memory: plain, and written to its end.

    Raises:
        ValueError: It is packed, was not written whole, or is neither numbers nor text.

    """
    _check_kind(data.id.get_type(), data.name)
    size, room = data.size * data.dtype.itemsize, min(data.id.get_storage_size(), os.path.getsize(data.file.filename))
    if data.chunks is not None or room < size:
        raise ValueError(f"its {data.name} declares {size:,} bytes and takes {room:,} in the file")
    return data


@contextmanager
def damage_as_error(path: Path, remedy: str) -> Iterator[None]:
    """Turn whatever h5py raises on a damaged file into one sentence that names the file and ends with the remedy."""
    try:
        yield
    except _BadFileError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OSError, RuntimeError, MemoryError) as error:
        what = " ".join(str(error).strip("\"'").split())[:200] or type(error).__name__
        raise _BadFileError(f"{path} is damaged, or no file of ours ({what}). {remedy}") from error


class _BadFileError(ValueError):
    """A complete sentence, to be passed on as it is."""
