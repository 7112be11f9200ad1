"""Errors about bad files, and suggestions for misspelled names."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class BadFileError(ValueError):
    """A complete message about a bad file; `damage_as_error` passes it on unchanged."""


@contextmanager
def damage_as_error(path: Path, remedy: str, *, kind: str = "") -> Iterator[None]:
    """Turn exceptions of a parser into a `BadFileError` with the file and the remedy.

    `kind` names what the file should be; by default its suffix. `PermissionError` passes unchanged.
    """
    try:
        yield
    except (BadFileError, PermissionError):
        raise
    except Exception as error:
        first = str(error).strip().partition("\n\n")[0]  # libraries in C++ add where in their source it was
        reason = " ".join(first.strip("\"'").split())[:200] or type(error).__name__
        kind = kind or f"{path.suffix.lower()[1:].upper()} file"
        raise BadFileError(f"{path}: not a valid {kind} ({reason}). {remedy}") from error


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """End of an error about an unknown name: the nearest known name, or a list of them."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    shown = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "")
    return f"There are {len(known):,}: {shown}." if known else "There are none."
