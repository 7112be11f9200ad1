"""Learned shape spaces of human bodies from raw 3-D scans."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shapespace.data.store import ScanStore
    from shapespace.fitting.result import Fit
    from shapespace.geometry.frame import Frame
    from shapespace.geometry.scan import Scan
    from shapespace.models.code import Code
    from shapespace.space import ShapeSpace

__all__ = ["Code", "Fit", "Frame", "Scan", "ScanStore", "ShapeSpace"]

_HOMES = {
    "Code": "models.code",
    "Fit": "fitting.result",
    "Frame": "geometry.frame",
    "Scan": "geometry.scan",
    "ShapeSpace": "space",
    "ScanStore": "data.store",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: torch takes seconds, and a reader of scans needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shapespace' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"shapespace.{_HOMES[name]}"), name)
