"""Imports go down only, and `import shapespace.space` does not import the large optional packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "shapespace").rglob("*.py")) + sorted((ROOT / "datasets").rglob("*.py"))


def imported_names(module: Path) -> set[str]:
    """Full names of all imports of a module, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], package: str) -> list[str]:
    return sorted(name for name in names if f"{name}.".startswith(f"{package}."))


def test_the_layers_are_kept() -> None:
    code = "from importlinter.cli import lint_imports_command as c; c()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("package", ["shapespace.tools", "tools", "tyro"])
def test_nothing_below_the_commands_imports(package: str) -> None:
    """The contract does not see `shapespace.tools`, the installed name of the folder `tools`."""
    found = {str(module.relative_to(ROOT)): within(imported_names(module), package) for module in MODULES}
    assert {module: names for module, names in found.items() if names} == {}


def test_datasets_are_imported_by_their_installed_name() -> None:
    found = {str(module.relative_to(ROOT)): within(imported_names(module), "datasets") for module in MODULES}
    assert {module: names for module, names in found.items() if names} == {}


@pytest.fixture(scope="module")
def modules_of_the_api() -> set[str]:
    """Names of all modules that `import shapespace.space` imports."""
    code = "import sys, shapespace.space; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["matplotlib", "tensorboard", "torch_geometric", "viser", "tyro"])
def test_the_public_api_does_not_import(package: str, modules_of_the_api: set[str]) -> None:
    assert "shapespace.space" in modules_of_the_api
    assert within(modules_of_the_api, package) == []
