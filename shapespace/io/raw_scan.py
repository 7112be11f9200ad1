"""Contents of a scan file before they are checked and converted, and what all readers share."""

import re
from dataclasses import dataclass
from typing import Any

from shapespace.geometry.findings import Finding

COPY_AGAIN = "Copy it again, or export it as binary PLY with triangles."
# NaN and infinity as programs for Windows print them
NOT_A_NUMBER = re.compile(r"[+-]?(?:nan\([^)\s]*\)|\d+\.#\w+)", re.IGNORECASE)
NOT_A_NUMBER_BYTES = re.compile(NOT_A_NUMBER.pattern.encode(), re.IGNORECASE)
MAX_UNPACKED = 1_000_000_000  # bytes: a small compressed file can declare any size


@dataclass
class RawScan:
    """Contents of a file, in its own unit and axes."""

    points: Any
    faces: Any = None
    normals: Any = None
    sensors: Any = None
    quality: Any = None
    """A length for each vertex (PLY property `quality`)."""
    confidence: Any = None
    """How far each point is to be trusted, by the program that wrote the file."""
    findings: tuple[Finding, ...] = ()
    """What the reader noticed."""
