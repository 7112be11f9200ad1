"""Write the reference pages that are made from the code: options of every command, keys of every config.

python -m shapespace.tools._reference docs/reference
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from shapespace.io.atomic import replacing
from shapespace.models.registry import FAMILIES
from shapespace.tools.__main__ import VERBS
from shapespace.training.config import TrainConfig

NOTE = "<!-- Made by `make docs` from the code; edit the docstrings instead. -->"


class Option(NamedTuple):
    """One row of a table: name as it is typed, its values, its default and its meaning."""

    name: str
    values: str
    default: str
    meaning: str


def main(folder: Path) -> None:
    """Write `cli.md` and `config.md` into a folder."""
    for name, text in pages().items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
        print(folder / name)


def pages() -> dict[str, str]:
    """Text of each page, by file name."""
    return {"cli.md": _cli(), "config.md": _config()}


def _cli() -> str:
    parts = [
        "# Commands and options",
        NOTE,
        "Every command is `shapespace COMMAND`, and `shapespace COMMAND --help` prints the same options. Names may be "
        "written with `-` or `_`.",
    ]
    for verb, about in VERBS.items():
        module = importlib.import_module(f"shapespace.tools.{verb.replace('-', '_')}")
        parts += [f"## {verb}", f"{about[0].upper()}{about[1:]}.", *_usage(module.__doc__ or "")]
        for title, options in _sections(module.main):
            parts += [f"### {title}" if title else "", _table(options, ("option", "values", "default", "meaning"))]
    return _joined(parts)


def _config() -> str:
    parts = [
        "# Configs",
        NOTE,
        "A config is a YAML file with the groups and keys below. Every key is also an option of `shapespace train`, "
        "such as `--optim.lr 1e-3`. Defaults are those of IGR's paper; the packaged configs in `configs/` say where "
        "they differ.",
    ]
    parts += ["## Training", _table(list(_fields(TrainConfig)), _KEYS)]
    for group, kind, prefix in _nested(TrainConfig):
        parts += [f"## {group}", _summary(kind), _table(list(_fields(kind, prefix)), _KEYS)]
    for name, family in FAMILIES.items():
        options = list(_fields(family.config, "model."))
        parts += [f"## model, family {name}", _summary(family.config), _table(options, _KEYS)]
    return _joined(parts)


_KEYS = ("key", "values", "default", "meaning")


def _usage(doc: str) -> list[str]:
    """The docstring of a command without its first line; indented lines become blocks."""
    body = textwrap.dedent(doc.partition("\n")[2]).strip("\n")
    blocks = re.split(r"\n\s*\n", body) if body else []
    return [
        f"```console\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else block.replace("\n", " ")
        for block in blocks
    ]


def _sections(command: Any) -> Iterator[tuple[str, list[Option]]]:
    """Tables of a command: its own options first, then those of each group."""
    documented = _arguments(inspect.getdoc(command) or "")
    own, groups = [], list[tuple[str, list[Option]]]()
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, positional, prefix = _unwrapped(hints[name], name)
        choices = [one for one in _alternatives(kind) if is_dataclass(one)]
        if kind is TrainConfig or get_origin(kind) is TrainConfig:
            groups.append(("Training", [Option("`--config`, ...", "", "", "All keys of [configs](config.md).")]))
        elif len(choices) > 1:
            groups += [section for one in choices for section in _groups(one, "", _subcommand(one))]
        elif choices:
            groups += list(_groups(choices[0], prefix, documented.get(name, "")))
        else:
            shown = name.upper() if positional else f"--{name.replace('_', '-')}"
            own.append(Option(f"`{shown}`", _values(kind), _default(parameter.default), documented.get(name, "")))
    yield "", own
    yield from groups


def _groups(kind: Any, prefix: str, title: str) -> Iterator[tuple[str, list[Option]]]:
    """The options of a dataclass, and those of the dataclasses in it, as tables."""
    options = [
        option._replace(name=f"`--{option.name.strip('`').replace('_', '-')}`") for option in _fields(kind, prefix)
    ]
    yield title.rstrip("."), options
    documented = _field_docs(kind)
    for name, inner, within in _nested(kind):
        yield from _groups(inner, f"{prefix}{within}", documented.get(name, ""))


def _nested(kind: Any) -> Iterator[tuple[str, Any, str]]:
    """Fields of a dataclass that are dataclasses: name, class, prefix of their options."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        inner, _, prefix = _unwrapped(hints[field.name], field.name)
        if is_dataclass(inner):
            yield field.name, inner, prefix


def _fields(kind: Any, prefix: str = "") -> Iterator[Option]:
    """The fields of a dataclass as rows, without those that are dataclasses."""
    hints, documented = get_type_hints(kind, include_extras=True), _field_docs(kind)
    for field in fields(kind):
        inner, _, _ = _unwrapped(hints[field.name], field.name)
        if is_dataclass(inner) or isinstance(inner, TypeVar):
            continue
        default = field.default if field.default is not MISSING else inspect.Parameter.empty
        yield Option(f"`{prefix}{field.name}`", _values(inner), _default(default), documented.get(field.name, ""))


def _field_docs(kind: Any) -> dict[str, str]:
    """The docstring below each field of a dataclass, base classes included."""
    found: dict[str, str] = {}
    bases: list[Any] = [base for base in reversed(kind.__mro__) if is_dataclass(base)]
    for base in bases:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _arguments(doc: str) -> dict[str, str]:
    """Names and meanings of the `Args:` of a docstring in Google's style."""
    _, _, listed = doc.partition("Args:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _unwrapped(kind: Any, name: str) -> tuple[Any, bool, str]:
    """A type without its annotations; whether it is positional; the prefix of its options."""
    positional, prefix = False, f"{name}."
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        positional = tyro.conf.Positional in marks or any("Positional" in repr(mark) for mark in marks)
        prefix = "" if any(getattr(mark, "name", None) == "" for mark in marks) else prefix
    return kind, positional, prefix


def _alternatives(kind: Any) -> list[Any]:
    """The members of a union, without their annotations."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else [kind]
    return [get_args(one)[0] if get_origin(one) is Annotated else one for one in members]


def _values(kind: Any) -> str:
    """What may be given, in words or as the choices that there are."""
    if kind is type(None):
        return "none"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _values(inner[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_values(one) for one in inner))
    if origin in (tuple, list):
        return f"{_values(inner[0])}, several"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{choice.name}`" for choice in kind)
    return {int: "integer", float: "number", str: "text", bool: "flag", Path: "path"}.get(kind, "text")


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, tuple):
        return " ".join(f"`{one}`" for one in value) or "none"
    return "none" if value is None else f"`{value}`"


def _subcommand(kind: Any) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()


def _summary(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _table(options: list[Option], head: tuple[str, ...]) -> str:
    rows = [head, ("---",) * len(head), *options]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
