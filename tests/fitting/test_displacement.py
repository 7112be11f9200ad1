"""Displacements of a registered template: onto the points, and nowhere else."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from trimesh.creation import icosphere

from shapespace.fitting.displacement import displaced, fit_displacement, mix_displacements
from shapespace.fitting.levenberg_marquardt import DisplacementOptions
from shapespace.fitting.registration import Registration
from shapespace.geometry.proximity import barycentric, closest_point, vertex_normals
from shapespace.geometry.scan import Scan

RADIUS = 0.5
OPTIONS = DisplacementOptions()
BALL = icosphere(subdivisions=4, radius=RADIUS)
VERTICES, FACES = np.array(BALL.vertices), np.array(BALL.faces)
REGISTRATION = Registration(torch.from_numpy(VERTICES).float(), torch.from_numpy(FACES))


def height(directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Folds of 3 thousandths on the ball."""
    return np.asarray(0.003 * np.sin(9 * directions[:, 0]) * np.cos(7 * directions[:, 1]))


def folded(count: int = 6000, seed: int = 0, noise: float = 0.0) -> Scan:
    """Points on the ball with folds, with noise along the normals."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    radius = RADIUS + height(directions) + noise * rng.normal(size=count)
    return Scan("ball", (radius[:, None] * directions).astype(np.float32), directions.astype(np.float32))


def error(displacement: Float[np.ndarray, "v"]) -> float:
    """Root mean square distance of the displaced vertices from the folds."""
    truth = height(VERTICES / RADIUS)
    return float(np.sqrt(np.square(displacement - truth).mean()))


def test_folds_are_found() -> None:
    """To the height of the sphere above its triangles, 4e-4."""
    assert error(np.zeros(len(VERTICES))) > 1.5e-3
    assert error(fit_displacement(REGISTRATION, VERTICES, folded(), OPTIONS)[0]) < 4e-4


def test_one_round_is_a_dense_least_squares_solution() -> None:
    ball = icosphere(subdivisions=2, radius=RADIUS)
    vertices, faces = np.array(ball.vertices), np.array(ball.faces)
    registration = Registration(torch.from_numpy(vertices).float(), torch.from_numpy(faces))
    scan, normals = folded(200), vertex_normals(vertices, faces)
    found, unseen = fit_displacement(registration, vertices, scan, replace(OPTIONS, rounds=1))
    assert scan.normals is not None
    length, face, closest = closest_point(scan.points.astype(np.float64), ball)
    rows, right = np.zeros((200, len(vertices))), np.zeros(200)
    for row, (point, normal) in enumerate(zip(scan.points, scan.normals, strict=True)):
        corners = faces[face[row]]
        weights = barycentric(closest[row : row + 1], vertices[corners][None])[0]
        direction = weights @ normals[corners]
        direction /= np.linalg.norm(direction)
        root = 1 / (1 + (length[row] / OPTIONS.max_distance) ** 2) * max(0, direction @ normal) / OPTIONS.noise_std
        rows[row, corners] = root * weights * (normals[corners] @ direction)
        right[row] = root * (point - closest[row]) @ direction
    root = registration.precision_root_of(OPTIONS.std, OPTIONS.correlation_length).toarray()
    covariance = np.linalg.inv(root @ root.T + rows.T @ rows)
    np.testing.assert_allclose(found, covariance @ rows.T @ right, atol=1e-7)
    share = (covariance.diagonal() / OPTIONS.std**2).clip(max=1)
    assert 0.8 < (unseen / share).mean() < 1.2
    assert np.corrcoef(unseen, share)[0, 1] > 0.5


def test_where_the_scan_ends_the_template_stays() -> None:
    scan = folded()
    seen = scan.points[:, 0] > 0
    half = Scan("half", scan.points[seen], None if scan.normals is None else scan.normals[seen])
    found, unseen = fit_displacement(REGISTRATION, VERTICES, half, OPTIONS)
    x = VERTICES[:, 0]
    assert np.abs(found[x > 0]).max() > 2e-3
    assert np.abs(found[x < -0.3]).max() < 2e-4  # more than three correlation lengths away
    assert unseen[x > 0.05].mean() < 0.5
    assert unseen[x < -0.3].mean() > 0.8


@pytest.mark.parametrize("other", ["inward normals", "a far surface"])
def test_another_surface_does_not_pull(other: str) -> None:
    scan = folded()
    assert scan.normals is not None
    if other == "inward normals":
        scan = replace(scan, points=1.005 * scan.points, normals=-scan.normals)
    else:
        scan = replace(scan, points=1.2 * scan.points)
    found, unseen = fit_displacement(REGISTRATION, VERTICES, scan, OPTIONS)
    assert np.abs(found).max() < 5e-4
    assert unseen.min() > 0.3


def test_noise_is_estimated() -> None:
    """With 6 thousandths of noise, fewer of its blobs come into the surface than with the noise of the settings."""
    scan = folded(noise=6e-3)
    found, _ = fit_displacement(REGISTRATION, VERTICES, scan, OPTIONS)
    trusting, _ = fit_displacement(REGISTRATION, VERTICES, scan, replace(OPTIONS, rounds=1))
    assert error(found) < 0.8 * error(trusting)
    assert error(found) < error(np.zeros(len(VERTICES)))


def test_displaced_vertices_move_along_their_normals() -> None:
    moved = displaced(VERTICES, FACES, np.full(len(VERTICES), 0.01))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), RADIUS + 0.01, atol=1e-4)
    assert displaced(VERTICES, FACES, None) is VERTICES


def test_displacements_of_two_fits_are_mixed() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, -2.0])
    np.testing.assert_allclose(mix_displacements(a, b, 0.25), [1.5, 1.0])
    np.testing.assert_allclose(mix_displacements(a, None, 0.25), 0.75 * a)
    np.testing.assert_allclose(mix_displacements(None, b, 0.25), 0.25 * b)
    assert mix_displacements(None, None, 0.25) is None


@pytest.mark.parametrize("name", [option.name for option in fields(OPTIONS)])
def test_settings_that_are_not_positive_are_refused(name: str) -> None:
    kind = type(getattr(OPTIONS, name))
    for value in (kind(0), kind(-1)):
        option = f"--lm.displacement.{name.replace('_', '-')}"
        with pytest.raises(ValueError, match=f"{option} {value:g}: must be above 0"):
            replace(OPTIONS, **{name: value})
