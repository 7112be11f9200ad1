"""Safe reading of HDF5: only data inside the file, and no array larger than the file."""

import os
from typing import Any

import h5py

MAX_READ = 1_000_000_000  # bytes of one array: a compressed or unwritten array of a few bytes can declare any size


def get_member(group: h5py.Group, path: str) -> Any:
    """Group or dataset at `path` below `group`, if the whole path is inside the file.

    Soft links, external links, virtual datasets and external raw data are refused: they make the reader open other
    files.

    Raises:
        KeyError: The path does not exist.
        ValueError: The path leads out of the file.

    """
    member: Any = group
    for part in path.split("/"):
        if not isinstance(member, h5py.Group) or not has_member(member, part):
            raise KeyError(f"no {path}")
        if member.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{path} is a link, and links are not followed")
        member = member[part]
    if isinstance(member, h5py.Dataset) and (member.is_virtual or member.external):
        raise ValueError(f"{path} is stored in another file, and only data inside the file is read")
    return member


def has_member(group: h5py.Group, name: str) -> bool:
    """Whether the group has a member of that name; unlike `in` of h5py, this follows no link."""
    return bool(group.id.links.exists(name.encode()))


def get_attribute(group: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Attribute of a numeric or text type; HDF5 can crash on other types in damaged files.

    Raises:
        KeyError: There is no attribute of that name.
        ValueError: The attribute has another type.

    """
    _check_type(group.attrs.get_id(name).get_type(), name)
    return group.attrs[name]


def _check_type(kind: h5py.h5t.TypeID, name: str) -> None:
    if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM):
        raise ValueError(f"{name} is neither numeric nor text")


def check_stored(data: h5py.Dataset) -> h5py.Dataset:
    """Return the dataset if it is contiguous and all its bytes are in the file.

    Raises:
        ValueError: It is chunked, was not written completely, or is neither numeric nor text.

    """
    _check_type(data.id.get_type(), data.name)
    size = data.size * data.dtype.itemsize
    stored = min(data.id.get_storage_size(), os.path.getsize(data.file.filename))
    if data.chunks is not None or stored < size:
        raise ValueError(f"{data.name} declares {size:,} bytes, and {stored:,} are stored")
    return data
