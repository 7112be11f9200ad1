"""Atomic writing of files, and locks that allow one writer at a time."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "this system has no file locks (fcntl): shapespace runs on Linux and macOS. On Windows, install it in WSL."
    ) from error

_locks: set[int] = set()  # file descriptors of the locks of this process


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `path.part` for writing, and rename it to `path` if the block succeeds (`replace_flushed`).

    If the block raises, `path.part` is removed. Missing folders are created. A `path.part` of a killed process is
    overwritten.

    Raises:
        BlockingIOError: Another process is writing the same file.

    """
    path = Path(path)
    make_folder(path.parent)
    part = path.with_name(path.name + ".part")
    with claimed(part):
        try:
            yield part
            replace_flushed(part, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = error.filename or str(path)  # the error of a full disk has no file name
            raise


def replace_flushed(part: Path, path: Path) -> None:
    """Rename `part` to `path`. After a power failure, `path` is the old file or all of the new one.

    A disk may write a name before the content: the content is flushed before the rename, the folder after it.
    """
    flush_to_disk(part)
    os.replace(part, path)
    flush_to_disk(path.parent)


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents, and flush their names to the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_to_disk(made.parent)


def flush_to_disk(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk.

    What another program or library has written counts, if it has left that program's own buffers.
    """
    folder = path.is_dir()
    if folder and os.name == "nt":  # Windows does not open folders
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot flush, as some networks'
            raise
    finally:
        os.close(descriptor)


@contextmanager
def claimed(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Lock a folder, or a file that is created if missing, against other processes.

    `shared` locks can be taken by several processes at once, but not beside an exclusive one. The lock ends with the
    process. File systems without locks are not protected.

    Raises:
        BlockingIOError: Another process has the lock.

    """
    descriptor = _claim(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    _locks.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


def _claim(path: Path, kind: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            name = str(path).removesuffix(".part")
            raise BlockingIOError(
                f"{name}: another process is writing it. Wait until it ends, or choose another path."
            ) from None
        except OSError:  # this file system has no locks
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # renamed or removed between open and lock


def _release_after_fork() -> None:
    """Close inherited locks in a forked child: they would outlive the parent."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_release_after_fork)
