"""Every option that an error or a note names exists in the help of the command that prints it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*(?:\.[a-z][\w-]*)*")
HELP = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")  # made from --help, which a test compares
CONFIG = (ROOT / "docs" / "reference" / "config.md").read_text(encoding="utf-8")  # the options of `train`
READERS = ("fit", "encode", "register", "view", "preprocess")  # the commands that read scans of people

# Modules whose messages more than one command prints: each of these must have the options.
SHARED = {
    "shapespace/geometry/findings.py": ("fit", "encode", "register"),
    "shapespace/io/units.py": READERS,
    "shapespace/io/checks.py": READERS,
    "shapespace/io/scan_files.py": READERS,
    "shapespace/io/depth_images.py": READERS,
    "shapespace/space.py": ("fit", "register"),
    "shapespace/fitting/fit.py": ("fit", "register"),
    "shapespace/fitting/fitter.py": ("fit", "register"),
    "tools/_inputs.py": ("fit", "encode", "register", "view"),
    "tools/_outputs.py": ("fit", "encode", "register"),
}
# Options of one of these commands that another does not need, since it never comes to the message.
ELSEWHERE = {
    ("shapespace/io/units.py", "--up"),  # the value that is refused
    ("shapespace/geometry/findings.py", "--strict"),  # findings of `preprocess` alone
    ("tools/_outputs.py", "--method"),  # surfaces of refined and reconstructed shapes
    ("tools/_outputs.py", "--lm.alignment"),  # notes about fits
    ("tools/_outputs.py", "--posterior-samples"),  # of `fit` and `encode` alone
    ("tools/_outputs.py", "--resolution"),  # the same
}
OF_OTHERS = ("--logdir", "--standalone", "--nproc-per-node")  # options of TensorBoard and torchrun
OF_NO_COMMAND = ("--version",)  # `shapespace --version`
RUN_OTHERS = ("ablate", "benchmark", "reproduce", "train")  # they run or name other commands


@cache
def options() -> dict[str, set[str]]:
    """Options of each command."""
    sections = re.split(r"^## ", HELP, flags=re.MULTILINE)[1:]
    found = {
        section.split("\n")[0].strip(): {"--help", *re.findall(r"^\| `(?:-\w, )?(--[\w.-]+)", section, re.MULTILINE)}
        for section in sections
    }
    for key in re.findall(r"^\| `([a-z][\w.]*)`", CONFIG, re.MULTILINE):
        found["train"] |= {f"--{key}".replace("_", "-")}
    return found


def named(path: Path) -> set[str]:
    """Options in the strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef)
        for node in parent.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    strings = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
    ]
    return {option for text in strings for option in OPTION.findall(text)}


MODULES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("shapespace", "tools", "datasets")
    for path in (ROOT / folder).rglob("*.py")
    if path.name not in ("migration.py", "page.py")  # old names of options; CSS variables
)


@pytest.mark.parametrize("module", MODULES)
def test_an_option_that_is_named_exists(module: str) -> None:
    verb = Path(module).stem.replace("_", "-")
    everywhere = set().union(*options().values())
    for option in named(ROOT / module):
        if module in SHARED and (module, option) not in ELSEWHERE:
            assert [verb for verb in SHARED[module] if option not in options()[verb]] == [], option
        elif module.startswith("tools/") and verb in options() and verb not in RUN_OTHERS:
            assert option in options()[verb], option
        elif option not in OF_OTHERS + OF_NO_COMMAND:
            assert option in everywhere or any(known.startswith(f"{option}.") for known in everywhere), option


def test_the_help_is_read() -> None:
    assert {"--unit", "--clutter", "--lm.alignment", "--normals"} <= options()["fit"]
    assert "--scale" in options()["preprocess"]
    assert "--scale" not in options()["fit"]
    assert "--unit" in named(ROOT / "shapespace" / "geometry" / "findings.py")
