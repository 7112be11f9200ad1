"""The example scan of the package: one synthetic person, scanned by virtual cameras."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_scan
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import LIMITS, Capture, posed_body
from shapespace.synthetic.scanner import VirtualScanner

SEED = 101
"""Of the person, the pose and the scan; no data set of the documentation or of the tests has it."""
POINTS = 10_000
NAME = "example"


def make_example() -> Scan:
    """Make the scan of `datasets/assets/example.ply`: points with normals, meters, y up."""
    body = Body.load()
    _, posed, rng = posed_body(SEED, Capture(subject=0, index=0, sequence=LIMITS, frame=0, split=NAME))
    scan = VirtualScanner().scan(posed.vertices, body.faces, rng, NAME).sample(POINTS, rng)
    return replace(scan, sensors=None)


def example_scan() -> Scan:
    """Read the example scan: 10,000 points of a synthetic person with normals, meters, y up."""
    return read_scan(example_file(), name=NAME)


def example_file() -> Path:
    """Path of the example scan."""
    return Path(str(resources.files("shapespace.datasets") / "assets" / f"{NAME}.ply"))
