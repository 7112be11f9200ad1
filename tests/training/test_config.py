"""Configs: each packaged one parses, and mistakes are reported."""

from dataclasses import asdict
from importlib import resources
from pathlib import Path

import pytest
import yaml

from shapespace.tools import train
from shapespace.tools.__main__ import cli
from shapespace.tools._config import config_of_settings, expand_config_option, load_yaml, parse_config

NAMES = sorted(
    p.name.removesuffix(".yaml") for p in resources.files("shapespace.configs").iterdir() if p.name.endswith("yaml")
)


def flat(settings: object, prefix: str = "") -> dict[str, object]:
    assert isinstance(settings, dict)
    values: dict[str, object] = {}
    for key, value in settings.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def test_the_main_configs_exist() -> None:
    assert {"igr", "igr_autodecoder", "igr_paper", "tiny"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_has_its_values_and_a_comment(name: str) -> None:
    given, got = flat(load_yaml(name)), flat(asdict(parse_config(["--config", name])))
    assert {key: got[key] for key in given} == {key: value and type(got[key])(value) for key, value in given.items()}
    text = (resources.files("shapespace.configs") / f"{name}.yaml").read_text()
    assert text.startswith("#")


def test_the_command_line_wins_over_the_config() -> None:
    assert parse_config(["--optim.max-steps", "7", "--config", "tiny"]).optim.max_steps == 7
    assert parse_config(["--config=tiny"]).model.width == load_yaml("tiny")["model"]["width"]


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 1e-3, max_steps: 12}\nweights: {eikonal: .5}")
    assert load_yaml(str(file)) == {"optim": {"lr": 1e-3, "max_steps": 12}, "weights": {"eikonal": 0.5}}
    assert parse_config(["--config", str(file)]).optim.lr == 1e-3


def test_settings_of_a_run_are_restored() -> None:
    config = parse_config(["--config", "igr", "--optim.max-minutes", "3.5"])
    assert config_of_settings(yaml.safe_load(yaml.safe_dump(asdict(config)))) == config


def test_unknown_names_and_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config 'igr_papr'.*Did you mean igr_paper"):
        load_yaml("igr_papr")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds a list, not settings"):
        load_yaml(str(tmp_path / "list.yaml"))
    (tmp_path / "nameless.yaml").write_text("1: 2")
    with pytest.raises(ValueError, match="has a setting called 1, which is no name"):
        load_yaml(str(tmp_path / "nameless.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        load_yaml(str(tmp_path / "bad.yaml"))
    with pytest.raises(ValueError, match="--config needs a name"):
        expand_config_option(["--config"])


def test_a_wrong_key_and_a_wrong_type_are_refused_by_the_parser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    for text, message in (("model: {hiden: 3}", "model.hiden"), ("optim: {max_steps: 1.5}", "steps")):
        file.write_text(text)
        with pytest.raises(SystemExit) as stop:
            cli(train.main, ["store.h5", "--config", str(file)], "train")
        printed = capsys.readouterr()
        assert stop.value.code != 0
        assert message in printed.err + printed.out
