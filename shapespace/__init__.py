"""Shape spaces of human bodies, learned from raw 3-D scans."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shapespace.data.store import ScanStore
    from shapespace.fitting.result import Fit
    from shapespace.geometry.findings import Finding, ScanWarning
    from shapespace.geometry.frame import Frame
    from shapespace.geometry.scan import Scan
    from shapespace.models.code import Code
    from shapespace.space import ShapeSpace
    from shapespace.synthetic.example import example_scan

__all__ = [
    "Code",
    "Finding",
    "Fit",
    "Frame",
    "Scan",
    "ScanStore",
    "ScanWarning",
    "ShapeSpace",
    "example_scan",
]

_MODULES = {
    "Code": "models.code",
    "Finding": "geometry.findings",
    "Fit": "fitting.result",
    "Frame": "geometry.frame",
    "Scan": "geometry.scan",
    "ScanStore": "data.store",
    "ScanWarning": "geometry.findings",
    "ShapeSpace": "space",
    "example_scan": "synthetic.example",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing torch takes seconds, and reading a scan does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shapespace' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"shapespace.{_MODULES[name]}"), name)
