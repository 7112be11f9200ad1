"""Arrays of a caller: every sensible form comes in, everything else is one clear sentence."""

from typing import Any

import numpy as np
import pytest
import torch

from shapespace.io.scan_arrays import check_arrays, scan_of_arrays

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(200, 3)).astype(np.float32)
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        lambda array: array.astype(np.float64),
        lambda array: array.astype(">f4"),
        lambda array: array.tolist(),
        torch.from_numpy,
        lambda array: torch.from_numpy(array).double().requires_grad_(),
    ],
)
def test_arrays_of_any_kind_are_the_same_scan(convert: Any) -> None:
    scan = scan_of_arrays(convert(POINTS), convert(5 * NORMALS))
    np.testing.assert_allclose(scan.points, POINTS, rtol=1e-6)
    np.testing.assert_allclose(scan.normals, NORMALS, atol=1e-6)
    assert scan.findings == ()


def test_half_precision_is_widened() -> None:
    assert scan_of_arrays(torch.from_numpy(POINTS).bfloat16()).points.dtype == np.float32


def test_six_columns_are_points_and_normals() -> None:
    scan = scan_of_arrays(np.hstack([POINTS, NORMALS]))
    np.testing.assert_allclose(scan.normals, NORMALS, atol=1e-6)


def test_columns_are_rows_with_a_finding() -> None:
    scan = scan_of_arrays(POINTS.T)
    np.testing.assert_array_equal(scan.points, POINTS)
    assert [found.code for found in scan.findings] == ["array-transposed"]


def test_one_sensor_is_that_of_all_points() -> None:
    scan = scan_of_arrays(POINTS, sensors=[0.0, 1.0, 3.0])
    assert scan.sensors is not None
    assert scan.sensors.shape == POINTS.shape
    assert (scan.sensors == [0.0, 1.0, 3.0]).all()


def test_points_far_from_the_origin_keep_their_place() -> None:
    place = np.array([4_500_000.0, 120.0, 5_300_000.0])
    scan = scan_of_arrays(POINTS.astype(np.float64) + place)
    assert scan.origin is not None
    np.testing.assert_allclose(scan.points + scan.origin - place, POINTS, atol=1e-5)
    assert [found.code for found in scan.findings] == ["origin-moved"]


def test_what_a_camera_did_not_measure_is_dropped() -> None:
    points, normals = POINTS.copy(), NORMALS.copy()
    points[:20], points[20:30], normals[20:30], normals[30:33] = 0, np.nan, np.nan, np.nan
    scan = scan_of_arrays(points, normals, [0.0, 1.0, 3.0])
    np.testing.assert_array_equal(scan.points, POINTS[33:])
    assert scan.sensors is not None
    assert [found.code for found in scan.findings] == [
        "unmeasured-points-dropped",
        "zero-points-dropped",
        "points-without-normals-dropped",
    ]


def test_points_without_normals_are_dropped_if_they_are_few() -> None:
    normals = NORMALS.copy()
    normals[:4] = 0
    few = scan_of_arrays(POINTS, normals)
    assert len(few) == 196
    assert [found.code for found in few.findings] == ["points-without-normals-dropped"]
    normals[:100] = 0
    many = scan_of_arrays(POINTS, normals)
    assert len(many) == 200
    assert many.normals is None
    assert [found.code for found in many.findings] == ["normals-dropped"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((POINTS, NORMALS[:-3]), r"normals of shape \(197, 3\) for 200 points. Pass \(200, 3\)"),
        ((POINTS, None, np.zeros((5, 3))), r"sensors of shape \(5, 3\) for 200 points.*\(3,\) for one sensor"),
        ((POINTS[:, :2],), r"shape \(200, 2\). Pass \(n, 3\)"),
        ((POINTS.astype(str),), "Pass an array of numbers"),
        (([[0.0, 1.0], [2.0]],), "rows of different lengths"),
        ((3.0,), "Pass an array of numbers"),
        ((POINTS, None, np.full_like(POINTS, np.nan)), "200 of 200 sensors are not finite"),
    ],
)
def test_everything_else_is_one_sentence(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        scan_of_arrays(*arguments)
    assert "\n" not in str(error.value)


def test_a_scan_of_good_arrays_is_returned_as_it_is() -> None:
    scan = scan_of_arrays(POINTS, NORMALS)
    assert check_arrays(scan) is scan
