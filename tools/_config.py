"""Training configs: YAML files and names of packaged ones, as command-line arguments or as an object."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tyro

from shapespace.io.errors import did_you_mean
from shapespace.io.migration import upgrade_training
from shapespace.io.settings import parse_settings
from shapespace.models.registry import FAMILIES
from shapespace.training.config import TrainConfig


def load_config(name: str | None, *overrides: str) -> TrainConfig[Any]:
    """The config of that name (or file; None: the defaults) with overrides, such as `--optim.lr`, `1e-4`."""
    return parse_config([*([] if name is None else ["--config", name]), *overrides])


def config_of_settings(content: Mapping[str, Any]) -> TrainConfig[Any]:
    """The config that nested settings describe; other keys than those of a config are refused by the parser."""
    return parse_config(list(to_arguments(content)))


def parse_config(words: Sequence[str]) -> TrainConfig[Any]:
    """The config that command-line arguments describe."""
    arguments = expand_config_option(words)
    config: TrainConfig[Any] = tyro.cli(config_class(arguments), args=arguments)
    return config


def config_class(words: Sequence[str]) -> Any:
    """`TrainConfig` with the model config of the family that these arguments name (`igr` if none)."""
    name = "igr"
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if key == "--family":
            name = value if equals else "".join(words[index + 1 : index + 2])
    if name not in FAMILIES:
        raise ValueError(f"no family {name!r}. {did_you_mean(name, list(FAMILIES))}")
    model_config: Any = FAMILIES[name].config
    return TrainConfig[model_config]


def load_yaml(name: str) -> dict[str, Any]:
    """The content of a config, under its present names: a file's path, or the name of a packaged config.

    Raises `FileNotFoundError` for an unknown name, and `ValueError` for a file that is no valid YAML.
    """
    packaged = resources.files("shapespace.configs")
    known = sorted(entry.name.removesuffix(".yaml") for entry in packaged.iterdir() if entry.name.endswith(".yaml"))
    file = Path(name) if Path(name).is_file() else packaged / f"{name}.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"no config {name!r}. {did_you_mean(name, known)} Give the name of a packaged config, or a YAML file."
        )
    source = f"config {name}"
    return upgrade_training(parse_settings(file.read_bytes(), source), source)


def to_arguments(content: Mapping[str, Any], prefix: str = "--") -> Iterator[str]:
    """Nested settings as command-line arguments: one parser checks both."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from to_arguments(value, f"{prefix}{key}.")
        else:
            yield from (f"{prefix}{key}", str(value))


def expand_config_option(arguments: Sequence[str]) -> list[str]:
    """Arguments with `--config NAME` replaced by the content of NAME; other arguments come later and override it."""
    before: list[str] = []
    rest = list(arguments)
    while (
        place := next((i for i, word in enumerate(rest) if re.fullmatch(r"--config(=.*)?", word)), None)
    ) is not None:
        word = rest.pop(place)
        if "=" not in word and place >= len(rest):
            raise ValueError("--config needs a name. Example: --config igr.")
        before += to_arguments(load_yaml(word.partition("=")[2] or rest.pop(place)))
    return before + rest
