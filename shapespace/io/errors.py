"""Errors of bad files, and suggestions for mistyped names."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class BadFileError(ValueError):
    """A complete sentence about a bad file, to be passed on as it is."""


@contextmanager
def damage_as_error(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on a damaged file into one sentence that names the file."""
    try:
        yield
    except (BadFileError, PermissionError):
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadFileError(
            f"{path} cannot be read as {path.suffix.lower()[1:].upper()} ({what}): it is damaged or of another kind. "
            "Copy or download it again, or save it anew as triangles in binary PLY."
        ) from error


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Word the second half of an error about an unknown name: the nearest known one, or some of what there is."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    shown = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
    return f"There are {len(known):,}: {shown}." if known else "There are none."
