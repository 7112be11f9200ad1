"""Settings as YAML, read without running code."""

import re
from typing import Any

import yaml


class SettingsLoader(yaml.SafeLoader):
    """YAML of settings: values, and nothing that runs code or, by naming itself again, unfolds to any size.

    YAML 1.1 reads 1e-3 as text; we read it as a number.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("settings have no anchors and aliases: write the value out")
        return super().compose_node(parent, index)


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_settings(text: bytes, source: object) -> dict[str, Any]:
    """Settings from YAML; `source` is how the file is called in the sentence of the `ValueError` for bad ones."""
    try:
        content = yaml.load(text, Loader=SettingsLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}. Mend the file.") from None
    if not isinstance(content or {}, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}, not settings: write `group: {{name: value}}`.")
    if wrong := [name for name in content or {} if not isinstance(name, str)]:
        raise ValueError(f"{source} has a setting called {wrong[0]!r}, which is no name: write words.")
    return content or {}
