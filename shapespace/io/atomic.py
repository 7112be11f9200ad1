"""Files that appear complete or not at all, and one writer at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()  # descriptors of what this process has claimed


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield `path.part` to write to, and put it in the place of `path` if the block ends well; else remove it.

    Missing folders are made. What a killed process left in `path.part` is written over. Raises `BlockingIOError` if
    another process is writing the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with claimed(part):
        try:
            yield part
            os.replace(part, path)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = error.filename or str(path)  # a full disk does not say which file it was
            raise


@contextmanager
def claimed(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a folder, or a file that is made if there is none, against other processes; `shared`: against one alone.

    The claim ends with the process, however it ends. Raises `BlockingIOError` if it cannot be had. On file systems
    without locks nothing is held.
    """
    descriptor = _claim(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _claim(path: Path, kind: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            what = str(path).removesuffix(".part")
            raise BlockingIOError(
                f"another process is writing to {what}: wait until it has ended, or choose another place."
            ) from None
        except OSError:  # this file system has no locks
            return descriptor
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)  # its owner put it in its place, or removed it, in between


def _let_go() -> None:
    """A forked process claims nothing, or what its parent claimed would stay so as long as the child lives."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
