"""`shapespace COMMAND ...`: every command is a module of this folder; `shapespace COMMAND --help` lists its options."""

import errno
import importlib
import inspect
import os
import platform
import select
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any

import tyro

from shapespace.geometry.findings import ScanWarning
from shapespace.io import migration
from shapespace.io.errors import did_you_mean

VERBS = {
    "synthesize": "synthetic people, scanned by virtual cameras, in the layout of D-FAUST",
    "simulate": "raw scans of given meshes, taken by virtual cameras",
    "preprocess": "one store from a folder of scans",
    "train": "a shape space from a store",
    "encode": "codes of scans, by one pass of the encoder",
    "fit": "codes and meshes of scans, by optimizing the codes",
    "mesh": "meshes of codes",
    "register": "the template of an articulated model on scans: vertices that correspond, and joint centers",
    "render": "images and animations of meshes and scans, without a display",
    "interpolate": "meshes, animation and images between two shapes",
    "evaluate": "scores of unseen scans against the ground truth",
    "reconstruct": "the surface of one scan, or a curve in the plane, without a shape space",
    "evaluate-paths": "scores of interpolated poses against true motion",
    "evaluate-sequences": "scores of fitted sequences against true motion",
    "view": "scans, fits, slices and shapes with sliders, in the browser",
    "robustness": "accuracy on corrupted scans",
    "report": "tables, curves and one page that compare runs",
    "reproduce": "the experiments of the IGR paper, one command each",
    "ablate": "variants of a config, trained for the same time and scored, in one table",
    "benchmark": "time and memory against the reference implementation",
}


def main() -> None:
    """Run the command that the command line names."""
    with _silent_on_closed_pipe():
        arguments = sys.argv[1:]
        if not arguments or arguments[0] in ("-h", "--help"):
            print("usage: shapespace COMMAND ...\n\nLearned shape spaces of human bodies from raw 3-D scans.\n")
            print("\n".join(f"  {verb:<18} {result}" for verb, result in VERBS.items()))
            print("\nshapespace COMMAND --help lists the options of a command, shapespace --version the versions.")
            sys.exit(0 if arguments else 2)
        if arguments[0] == "--version":
            versions = (f"{name} {version(name)}" for name in ("shapespace", "torch", "numpy"))
            print(*versions, f"Python {platform.python_version()}", sep=", ")
            sys.exit()
        verb = arguments[0]
        if verb not in VERBS:
            if verb in migration.VERBS:
                _fail("", f"{verb} was renamed: use {migration.VERBS[verb]}.")
            _fail("", f"no command {verb!r}. {did_you_mean(verb, list(VERBS))} shapespace --help lists all.")
        cli(importlib.import_module(f"shapespace.tools.{verb.replace('-', '_')}").main, arguments[1:], verb)


def cli(tool: Callable[..., Any], arguments: Sequence[str] | None = None, verb: str | None = None) -> None:
    """Call a tool's `main` with the command line; an expected error becomes one sentence and exit code 2."""
    warnings.simplefilter("ignore", ScanWarning)  # the commands print findings themselves
    with _silent_on_closed_pipe():
        verb = verb or tool.__module__.rpartition(".")[2]
        if verb == "__main__":  # python tools/fit.py
            verb = sys.argv[0].rpartition("/")[2].removesuffix(".py")
        verb = verb.replace("_", "-")
        words = list(sys.argv[1:] if arguments is None else arguments)
        if renames := migration.renamed_options(verb, words):
            _fail(verb, migration.sentence_of(renames))
        try:
            if "config" in inspect.signature(tool).parameters:
                tool, words = _with_settings(tool, words)
            tyro.cli(tool, prog=f"shapespace {verb}", args=words, description=sys.modules[tool.__module__].__doc__)
        except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
            if isinstance(error, BrokenPipeError) and _reader_has_gone():
                raise
            _fail(verb, _sentence(error))
        except KeyboardInterrupt as stop:
            _fail(verb, str(stop) or "interrupted. What was finished is kept.", status=130)


def _with_settings(tool: Callable[..., Any], words: list[str]) -> tuple[Callable[..., Any], list[str]]:
    """A tool that takes the settings of a training, and its words.

    `--config NAME` is replaced by the settings of NAME (the tool's own `CONFIG` where none is named). The tool takes
    the model settings of the family that the words name.
    """
    from shapespace.tools._config import config_class, expand_config_option

    default = getattr(sys.modules[tool.__module__], "CONFIG", None)
    if default is not None and all(word.partition("=")[0] != "--config" for word in words):
        words = ["--config", default, *words]
    words = expand_config_option(words)

    @wraps(tool)
    def call(*arguments: Any, **named: Any) -> Any:
        return tool(*arguments, **named)

    settings: Any = config_class(words)
    call.__annotations__ = {**tool.__annotations__, "config": Annotated[settings, tyro.conf.arg(name="")]}
    call.__signature__ = inspect.signature(tool)  # type: ignore[attr-defined]
    del call.__wrapped__  # otherwise tyro reads the annotations of the wrapped function
    return call, words


CLOSED_PIPE = 141
"""128 + SIGPIPE: the exit code of a program whose output is no longer read."""


@contextmanager
def _silent_on_closed_pipe() -> Iterator[None]:
    """Exit without a message when the reader of stdout or stderr has gone, as `head` does.

    SIGPIPE keeps Python's handling: with the default one, a browser that leaves would end `shapespace view`.
    """
    try:
        try:
            yield
        finally:  # tyro's --help leaves by SystemExit, and what it printed may still be in the buffer
            for stream in _streams():
                stream.flush()
    except OSError as error:
        status = CLOSED_PIPE
        if not isinstance(error, BrokenPipeError) or not _reader_has_gone():
            status = 2
            print(f"shapespace: standard output: {_sentence(error)}", file=sys.stderr)
        for stream in _streams():  # or the interpreter fails to flush them on its way out
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(status)


def _reader_has_gone() -> bool:
    """Whether nothing reads stdout or stderr any more."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in _streams():
        with suppress(OSError, ValueError):
            poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


def _streams() -> list[Any]:
    """Standard output and error; either is None where it was closed at the start."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


_FULL = "the disk is full. Make room and run the same command again: what was finished is kept."
_DENIED = "no permission to read or write it. Change its permissions, or choose another place."
_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
    errno.ENOENT: "no such file or folder. Check its path, or make it again.",
    errno.ENOTDIR: "a file is where a folder is needed. Choose another place.",
}


def _sentence(error: Exception) -> str:
    """What is wrong and what to do; the system's own words get a remedy."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        return f"{error.filename or error.strerror}: {_REMEDIES[error.errno]}"
    return str(error)


def _fail(verb: str, sentence: str, status: int = 2) -> None:
    print(f"shapespace {verb}".strip() + f": {sentence}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
