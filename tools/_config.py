"""YAML configurations as command-line arguments."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from shapespace.io.errors import did_you_mean
from shapespace.io.settings import parse_settings
from shapespace.models.registry import FAMILIES
from shapespace.training.config import TrainConfig


def config_class(words: Sequence[str]) -> Any:
    """`TrainConfig` with the sizes of the family that these arguments name (`igr` if none)."""
    name = "igr"
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key == "--family":
            name = value if equals else "".join(words[index + 1 : index + 2])
    if name not in FAMILIES:
        raise ValueError(f"no family {name!r}. {did_you_mean(name, list(FAMILIES))}")
    sizes: Any = FAMILIES[name].config
    return TrainConfig[sizes]


def load_yaml(name: str) -> dict[str, Any]:
    """A config's content: a file's path, or the name of one that comes with the package.

    Raises `FileNotFoundError` for an unknown name, listing those there are, and `ValueError` for bad YAML.
    """
    packaged = resources.files("shapespace.configs")
    known = sorted(entry.name.removesuffix(".yaml") for entry in packaged.iterdir() if entry.name.endswith(".yaml"))
    source = Path(name) if Path(name).is_file() else packaged / f"{name}.yaml"
    if not source.is_file():
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "give one of these, or the path of a YAML file."
        raise FileNotFoundError(f"no config {name!r}; there are {', '.join(known)}: {hint}")
    return parse_settings(source.read_bytes(), f"config {name}")


def to_arguments(content: Mapping[str, Any], prefix: str = "--") -> Iterator[str]:
    """Nested settings as command-line arguments, so that both are checked by the same parser."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from to_arguments(value, f"{prefix}{key}.")
        else:
            yield from (f"{prefix}{key}", str(value))


def expand_config_option(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--config NAME` replaced by what NAME says; whatever else is given comes later and wins."""
    before: list[str] = []
    rest = list(arguments)
    while (
        place := next((i for i, word in enumerate(rest) if re.fullmatch(r"--config(=.*)?", word)), None)
    ) is not None:
        word = rest.pop(place)
        if "=" not in word and place >= len(rest):
            raise ValueError("--config needs a name: for example --config igr.")
        before += to_arguments(load_yaml(word.partition("=")[2] or rest.pop(place)))
    return before + rest
