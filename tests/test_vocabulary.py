"""Names that were given up stay away: `tests/data/old_names.tsv` lists where each stood and what it is called now.

Where is `*` (an identifier, anywhere), `module PATH` (a top-level name), a class (a member), `function()` or
`Class.method()` (a parameter), `option` (on a command line), `config` (a key, with its group), `value KEY` (of a
config), `text` (in code, docs and what is written), or `file`.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import yaml

HOUSE = Path(__file__).parents[1]
TABLE = HOUSE / "tests" / "data" / "old_names.tsv"
ROWS = [tuple(line.split("\t")) for line in TABLE.read_text(encoding="utf-8").splitlines()]
KEEP = (  # these know old names, to read old files and to name the new ones
    "shapespace/io/migration.py",
    "tests/io/test_migration.py",
    "tests/tools/test_command_line.py",
    "tests/report/test_comparison.py",
    "tests/data/format1/",
    "tests/data/old_names.tsv",
    "tests/test_vocabulary.py",
    "CHANGELOG.md",
)


def rows(*kinds: str) -> list[tuple[str, str, str]]:
    """The rows of some kinds; the kind of a row is the first word of where it stood."""
    known = ("*", "module", "option", "config", "value", "text", "file")
    chosen = []
    for where, old, new in ROWS:
        word = where.split(" ")[0]
        kind = word if word in known else "parameter" if word.endswith("()") else "member"
        if kind in kinds:
            chosen.append((where, old, new))
    assert chosen
    return chosen


@cache
def texts(*suffixes: str) -> dict[str, str]:
    """Every file of the repository with one of these suffixes (or names), as text."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [name for name in listed.splitlines() if name.endswith(suffixes) and not name.startswith(KEEP)]
    return {name: (HOUSE / name).read_text(encoding="utf-8") for name in names if (HOUSE / name).is_file()}


@cache
def code() -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in texts(".py").items() if not name.startswith("tests/")}


@cache
def identifiers() -> dict[str, set[str]]:
    """Every identifier of the Python code, with the files that have it."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, text in texts(".py").items():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                found[token.string].add(name)
    return found


def bound(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind."""
    found = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {part.id for it in targets if it for part in ast.walk(it) if isinstance(part, ast.Name)}
    return found


@cache
def members() -> dict[str, set[str]]:
    """Members of every class: what its body binds, and attributes that its methods set on `self`."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in code().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] |= bound(node.body)
                found[node.name] |= {
                    part.attr
                    for part in ast.walk(node)
                    if isinstance(part, ast.Attribute)
                    and isinstance(part.ctx, ast.Store)
                    and isinstance(part.value, ast.Name)
                    and part.value.id == "self"
                }
    return found


@cache
def parameters() -> dict[str, set[str]]:
    """Parameters of every function and method, the latter as `Class.method`."""
    found: dict[str, set[str]] = defaultdict(set)
    for tree in code().values():
        methods = {
            id(node): f"{owner.name}.{node.name}"
            for owner in ast.walk(tree)
            if isinstance(owner, ast.ClassDef)
            for node in owner.body
            if isinstance(node, ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found[methods.get(id(node), node.name)] |= {argument.arg for argument in every}
    return found


def test_identifiers() -> None:
    left = {f"{old} is {new} now: {sorted(identifiers()[old])}" for _, old, new in rows("*") if old in identifiers()}
    assert not left


def test_top_level_names() -> None:
    left = []
    for where, old, new in rows("module"):
        name = where.removeprefix("module ")
        assert name in code(), f"{where}: this module is not there"
        if old in bound(code()[name].body):
            left.append(f"{where}: {old} is {new} now")
    assert not left


def test_members() -> None:
    left = []
    for where, old, new in rows("member"):
        assert where in members(), f"{where}: this class is not there"
        if old in members()[where]:
            left.append(f"{where}.{old} is {new} now")
    assert not left


def test_parameters() -> None:
    left = []
    for where, old, new in rows("parameter"):
        name = where.removesuffix("()")
        assert name in parameters(), f"{where}: this function is not there"
        if old in parameters()[name]:
            left.append(f"{where}: {old} is {new} now")
    assert not left


def test_options() -> None:
    everywhere = texts(".py", ".md", ".yaml", "Makefile")
    left = []
    for _, old, new in rows("option"):
        spelled = re.compile(rf"(?<![\w-]){re.escape(old).replace('_', '[_-]')}(?![\w.-])")
        left += [f"{name}: {old} is {new} now" for name, text in everywhere.items() if spelled.search(text)]
    assert not left


def test_configs() -> None:
    left = []
    for name, text in texts(".yaml").items():
        content = yaml.safe_load(text)
        flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
        groups = {key: value for key, value in content.items() if isinstance(value, dict)}
        flat |= {f"{group}.{key}": value for group, inner in groups.items() for key, value in inner.items()}
        left += [f"{name}: {old} is {new} now" for _, old, new in rows("config") if old in flat]
        left += [
            f"{name}: {where} {old} is {new} now"
            for where, old, new in rows("value")
            if str(flat.get(where.removeprefix("value "))) == old
        ]
    assert not left


@pytest.mark.parametrize(("old", "new"), [row[1:] for row in rows("text")])
def test_texts(old: str, new: str) -> None:
    spelled = re.compile(rf"(?<![A-Za-z0-9]){re.escape(old)}(?![A-Za-z0-9])")
    left = [name for name, text in texts(".py", ".md", ".yaml", ".js", "Makefile").items() if spelled.search(text)]
    assert not left, f"{old} is {new} now"


def test_files() -> None:
    assert not [f"{old} is {new} now" for _, old, new in rows("file") if (HOUSE / old).exists()]
