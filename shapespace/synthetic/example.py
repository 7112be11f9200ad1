"""The example scan of the package: one synthetic person, scanned by virtual cameras."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import read_scan
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import LIMITS, Capture, SynthesisConfig, posed_body
from shapespace.synthetic.scanner import VirtualScanner

SYNTHESIS = SynthesisConfig(
    people=1, poses=1, test_people=0, poses_per_test_person=1, test_poses=0, motion_fraction=0.0, seed=101
)
"""Of the person, the pose and the scan; no dataset of the documentation or of the tests has its seed."""
POINTS = 10_000
NAME = "example"


def make_example() -> Scan:
    """Make the scan of `datasets/assets/example.ply`: points with normals, meters, y up."""
    body = Body.load()
    _, posed, rng = posed_body(SYNTHESIS, Capture(subject=0, index=0, sequence=LIMITS, frame=0, split=NAME))
    scan = VirtualScanner().scan(posed.vertices, body.faces, rng, NAME).sample(POINTS, rng)
    return replace(scan, sensors=None)


def example_scan() -> Scan:
    """Read the example scan: 10,000 points of a synthetic person with normals, meters, y up."""
    return read_scan(example_file(), name=NAME)


def example_file() -> Path:
    """Path of the example scan."""
    return Path(str(resources.files("shapespace.datasets") / "assets" / f"{NAME}.ply"))
