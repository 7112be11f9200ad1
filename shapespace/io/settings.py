"""Settings as YAML, read without running code."""

import re
from typing import Any

import yaml


class SettingsLoader(yaml.SafeLoader):
    """Safe YAML without anchors and aliases, which can expand to any size.

    Numbers such as 1e-3 are numbers; YAML 1.1 reads them as text.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node; raise `yaml.YAMLError` for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("settings have no anchors and aliases: write the value out")
        return super().compose_node(parent, index)


SettingsLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_settings(text: bytes, source: object) -> dict[str, Any]:
    """Parse settings in YAML; `source` names the file in the `ValueError` for settings that are not valid."""
    try:
        content = yaml.load(text, Loader=SettingsLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}. Fix the file.") from None
    if not isinstance(content or {}, dict):
        raise ValueError(f"{source} holds a {type(content).__name__}, not settings. Write `group: {{name: value}}`.")
    if wrong := [name for name in content or {} if not isinstance(name, str)]:
        raise ValueError(f"{source} has a setting called {wrong[0]!r}, which is no name. Write a word.")
    return content or {}
