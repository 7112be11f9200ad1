"""`shapespace VERB ...`: every verb is a file of this folder, and its own help is `shapespace VERB --help`."""

import errno
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import wraps
from typing import Annotated, Any

import tyro

VERBS = {
    "synthesize": "people, posed and scanned virtually, in the layout of D-FAUST",
    "simulate": "raw scans of given meshes, seen by virtual cameras",
    "preprocess": "a folder of scans into one store",
    "train": "a shape space from a store",
    "encode": "codes of scans, by one pass of the encoder",
    "fit": "codes and meshes of scans, by optimising the codes",
    "mesh": "meshes of codes",
    "render": "pictures and films of meshes and scans, without a display",
    "interpolate": "the way from one shape to another, as meshes, animation and pictures",
    "evaluate": "scores of unseen scans against the truth",
    "reconstruct": "the surface of one scan, or a curve in the plane, without a shape space",
    "motion": "paths between codes against true motion",
    "view": "scans, fits, slices and shapes along sliders, in the browser",
    "robustness": "scores of scans that are spoilt, one thing at a time",
    "report": "runs of any family side by side, from what they left: tables, curves, one page",
    "reproduce": "the experiments of IGR's paper, each by one line",
    "ablate": "variants of a recipe, trained for the same time and scored, in one table",
    "benchmark": "times and memory, against the plain way",
}


def main() -> None:
    """Run the verb that the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: shapespace VERB ...\n\nLearned shape spaces of human bodies from raw 3-D scans.\n")
        print("\n".join(f"  {verb:<12} {about}" for verb, about in VERBS.items()))
        print("\nshapespace VERB --help tells more.")
        sys.exit(0 if arguments else 2)
    verb = arguments[0]
    if verb not in VERBS:
        close = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(VERBS)}."
        _fail("", f"no verb {verb!r}: {hint}")
    cli(importlib.import_module(f"shapespace.tools.{verb}").main, arguments[1:], verb)


def cli(tool: Callable[..., Any], arguments: Sequence[str] | None = None, verb: str | None = None) -> None:
    """Call a tool's `main` with the command line; an error that can be mended becomes a sentence and exit code 2."""
    verb = verb or tool.__module__.rpartition(".")[2]
    if verb == "__main__":  # python tools/fit.py
        verb = sys.argv[0].rpartition("/")[2].removesuffix(".py")
    try:
        from shapespace.tools._config import expand_config_option

        words = expand_config_option(_with_config(tool, list(sys.argv[1:] if arguments is None else arguments)))
        tyro.cli(_settled(tool, words), prog=f"shapespace {verb}", args=words, description=_page(tool))
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        _fail(verb, _sentence(error))
    except KeyboardInterrupt as stop:
        _fail(verb, str(stop) or "stopped; what was finished stays", status=130)


def _with_config(tool: Callable[..., Any], words: list[str]) -> list[str]:
    """The words; a tool that has a `CONFIG` of its own takes that one if they name none."""
    usual = getattr(sys.modules[tool.__module__], "CONFIG", None)
    named = any(word.partition("=")[0] == "--config" for word in words)
    return words if usual is None or named else ["--config", usual, *words]


def _settled(tool: Callable[..., Any], words: Sequence[str]) -> Callable[..., Any]:
    """The tool; one that takes the settings of a training takes those of the family that the words name."""
    if "config" not in inspect.signature(tool).parameters:
        return tool
    from shapespace.tools._config import config_class

    @wraps(tool)
    def settled(*arguments: Any, **named: Any) -> Any:
        return tool(*arguments, **named)

    settings: Any = config_class(words)
    settled.__annotations__ = {**tool.__annotations__, "config": Annotated[settings, tyro.conf.arg(name="")]}
    settled.__signature__ = inspect.signature(tool)  # type: ignore[attr-defined]
    del settled.__wrapped__  # or the annotations would be looked for there
    return settled


def _page(tool: Callable[..., Any]) -> str | None:
    return sys.modules[tool.__module__].__doc__


_FULL = "the disk is full. Make room and give the same line again: what was finished stays."
_BARRED = "it may not be written or read. Mend its permissions, or choose another place."
_MENDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _BARRED,
    errno.EPERM: _BARRED,
    errno.EROFS: _BARRED,
    errno.ENOENT: "it is not there, or no longer. Look at its path, or make it again.",
    errno.ENOTDIR: "a folder is needed, and there is a file in its way. Choose another place.",
}


def _sentence(error: Exception) -> str:
    """What is wrong; in our words where the system has only its own."""
    if isinstance(error, OSError) and error.errno in _MENDS:
        return f"{error.filename or error.strerror}: {_MENDS[error.errno]}"
    return str(error)


def _fail(verb: str, sentence: str, status: int = 2) -> None:
    print(f"shapespace {verb}".strip() + f": {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
