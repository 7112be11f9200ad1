"""Scans of a part of a person, and where the rest of the person is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from trimesh import Trimesh

from shapespace import ScanWarning, ShapeSpace, example_scan
from shapespace.fitting.checks import body_parts
from shapespace.fitting.fitter import ScanFitter
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan


def scan_of(mesh: Trimesh, low: float = -np.inf) -> Scan:
    points = Scan.from_mesh(mesh).sample(3000, np.random.default_rng(0)).points
    return Scan("anna", points[points[:, 1] > low].astype(np.float32))


@pytest.fixture
def body(make_body: Callable[..., Trimesh]) -> Trimesh:
    """A person of 1.7 m on the ground."""
    mesh = make_body(1.0, -0.8)
    mesh.apply_scale(1.7 / np.ptp(mesh.vertices[:, 1]))
    mesh.apply_translation([0, -mesh.vertices[:, 1].min(), 0])
    return mesh


def test_a_whole_person_is_no_part(body: Trimesh) -> None:
    assert not body_parts(scan_of(body))


def test_the_person_of_an_upper_half_is_below_it(body: Trimesh) -> None:
    upper = scan_of(body, 0.9)
    parts = body_parts(upper)
    assert [part.finding.values["part"] for part in parts] == ["upper", "lower"]
    assert parts[0].center[1] == pytest.approx(scan_of(body).points[:, 1].mean(), abs=0.15)
    assert upper.points[:, 1].mean() > parts[0].center[1] + 0.2
    assert "0.80 m high" in parts[0].finding.message("anna")


def test_a_fit_of_a_part_replaces_one_out_of_distribution(body: Trimesh, monkeypatch: pytest.MonkeyPatch) -> None:
    space = ShapeSpace.load("humans")
    prior = space.model.prior
    usual, unusual = (prior.mean + factor * prior.covariance.diagonal().sqrt() for factor in (0.1, 5.0))
    scan, centers = scan_of(body, 0.9), list[Any]()
    (encoded,) = space.encode_scans([scan])

    def fitted(code: Any, residual: float) -> Fit:
        return replace(encoded, code=encoded.code.unflatten(code[None]), residuals=np.full(10, residual), findings=())

    def fit_as_told(*_: Any, center: Any = None, **__: Any) -> list[Fit]:
        centers.append(center)
        return [fitted(usual if center is not None else unusual, 0.001)]

    monkeypatch.setattr(ScanFitter, "fit", fit_as_told)
    fitter = ScanFitter(space.model, space.config, space.scale, {})
    moved = fitter._placed_anew(fitted(unusual, 0.003), scan, None, 0, "remove")
    assert [found.code for found in moved.findings] == ["part-of-body"]
    assert len(centers) == 1
    whole = fitter._placed_anew(fitted(usual, 0.003), scan, None, 0, "remove")
    assert not whole.findings
    assert len(centers) == 1  # no second fit of what is in distribution
    closer = fitted(unusual, 0.0005)
    assert fitter._placed_anew(closer, scan, None, 0, "remove") is closer


def test_a_person_who_faces_elsewhere_is_turned_if_the_fit_is_out_of_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first fit is a stand-in, the one with another heading is real."""
    space, example, fit = ShapeSpace.load("humans"), example_scan(), ScanFitter.fit
    prior = space.model.prior
    rotation = Rotation.from_rotvec([0, np.deg2rad(120), 0]).as_matrix()
    scan = replace(example, points=(example.points @ rotation.T).astype(np.float32), normals=None)
    (encoded,) = space.encode_scans([scan])
    unusual = encoded.code.unflatten((prior.mean + 5.0 * prior.covariance.diagonal().sqrt())[None])
    asked = list[str]()

    def fit_turned(fitter: ScanFitter, scans: list[Scan], *, lm: LMOptions, **options: Any) -> list[Fit]:
        asked.append(lm.alignment)
        if lm.alignment == "yaw":
            return fit(fitter, scans, lm=lm, **options)
        return [replace(encoded, code=unusual, residuals=np.full(10, 0.05), findings=())]

    monkeypatch.setattr(ScanFitter, "fit", fit_turned)
    few = LMOptions(levels=1, num_points=256, free_space_points=128)
    with pytest.warns(ScanWarning, match=r"faces another way.*\[heading-found\]"):
        (turned,) = space.fit_scans([scan], lm=few)
    assert asked == ["local", "yaw"]
    (found,) = turned.findings
    assert found.values["degrees"] == pytest.approx(-120, abs=25)  # a twisted trunk has no one heading
    body = space.mesh(turned)
    distance, _, _ = proximity.closest_point(scan.points[:500].astype(np.float64), body)
    assert np.median(distance) < 0.01
