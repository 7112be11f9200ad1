"""Accuracy of a shape space on corrupted scans, and quality scores of objects that are not people."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import corruptions, metrics
from shapespace.evaluation.corruptions import COMPLETE, CORRUPTIONS, CorruptedScan, Corruption
from shapespace.evaluation.scores import require_ground_truth
from shapespace.fitting.checks import assess_fit
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import FitQuality
from shapespace.fitting.result import Fit
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files
from shapespace.rendering import renderer
from shapespace.space import ShapeSpace

COLUMNS = ("completeness", "accuracy", "visible_completeness")
MAX_GOOD_ERROR = 20.0  # mm, mean of completeness and accuracy; arbitrary: a limb beside its place has more
INTERVAL_STD = 1.645  # standard deviations on either side that contain 90 % of a Gaussian
CALIBRATION_POINTS = 5000  # of the ground truth

GOOD, GOOD_OOD, GOOD_LOW_CONFIDENCE = "good fit", "good fit, out of distribution", "good fit, low confidence"
BAD_OOD, BAD_LOW_CONFIDENCE = "bad fit, out of distribution", "bad fit, low confidence"
BAD_NO_WARNING, REFUSED, CRASHED = "bad fit, no warning", "refused with a message", "crashed"
OUTCOMES = (GOOD, GOOD_OOD, GOOD_LOW_CONFIDENCE, BAD_OOD, BAD_LOW_CONFIDENCE, BAD_NO_WARNING, REFUSED, CRASHED)

Row = dict[str, Any]


@dataclass(frozen=True)
class RobustnessOptions:
    """How corrupted scans are fitted and meshed."""

    lm: LMOptions
    resolution: int = 96
    """Grid cells along an edge of the model cube."""
    seed: int = 0


class Table(NamedTuple):
    """Lines of a table, the first one with the headers, and the text below it."""

    lines: list[list[str]]
    note: str


# ------------------------------------------------------------------------------------------- one corruption at a time


class CorruptionResult(NamedTuple):
    """Rows of all cases; of each case the first corrupted scan (as a mesh) and its prediction."""

    rows: list[Row]
    scans: list[Trimesh]
    predictions: list[Trimesh]


def run_corruptions(
    space: ShapeSpace, store: ScanStore, names: Sequence[str], cases: Sequence[str], options: RobustnessOptions
) -> CorruptionResult:
    """Corrupt, fit and score scans of a store, case by case.

    Raises:
        ValueError: A case is unknown, or a scan has no ground truth.

    """
    check_cases(cases)
    result = CorruptionResult([], [], [])
    for name in tqdm(cases, desc="robustness", unit="case"):
        case = CORRUPTIONS[name]
        corrupted = [
            case.apply(
                store.scan(scan), require_ground_truth(store, scan), np.random.default_rng([options.seed, index])
            )
            for index, scan in enumerate(names)
        ]
        fits, fitted_scans = _fit(space, case, [scan for scan, _ in corrupted], options)
        for fit, fitted, (scan, ground_truth) in zip(fits, fitted_scans, corrupted, strict=True):
            row = _score(space, fit, scan, fitted, ground_truth, options, calibration=case.calibration)
            result.rows.append({"case": name, "scan": fit.name, **row})
        result.scans.append(renderer.scan_to_mesh(corrupted[0][0]))
        result.predictions.append(space.mesh(fits[0], resolution=options.resolution))
    return result


def check_cases(cases: Sequence[str]) -> None:
    """Raise `ValueError` for the name of an unknown case."""
    if unknown := [name for name in cases if name not in CORRUPTIONS]:
        raise ValueError(f"--cases {unknown[0]}: unknown. Choose from {', '.join(CORRUPTIONS)}.")


def _fit(
    space: ShapeSpace, case: Corruption, scans: list[Scan], options: RobustnessOptions
) -> tuple[list[Fit], list[Scan]]:
    """The fits, and the scans that were fitted (without clutter)."""
    lm = replace(options.lm, alignment=case.alignment)
    fitted = scans if case.clutter == "keep" else space.remove_clutter(scans, lm=lm, seed=options.seed)
    if case.encode:
        return space.encode_scans(fitted, seed=options.seed), fitted
    return space.fit_scans(fitted, lm=lm, seed=options.seed), fitted


def _score(
    space: ShapeSpace,
    fit: Fit,
    scan: Scan,
    fitted: Scan,
    ground_truth: Trimesh,
    options: RobustnessOptions,
    *,
    calibration: bool,
) -> Row:
    """Scores against the complete ground truth; the quality is that of the fit to the scan without clutter."""
    mesh = space.mesh(fit, resolution=options.resolution)
    scores = metrics.score(["surface_distance"], mesh, ground_truth, scan)["surface_distance"]
    quality = assess_fit(space.model, fit, fitted)
    row = {**{column: scores[column] for column in COLUMNS}, "ood_score": quality.ood_score, "seconds": fit.seconds}
    return {**row, "in_interval": _in_interval(space, fit, mesh, ground_truth)} if calibration else row


def _in_interval(space: ShapeSpace, fit: Fit, mesh: Trimesh, ground_truth: Trimesh) -> float:
    """Share of the ground-truth surface within the 90 % interval of the prediction."""
    deviation = space.uncertainty(fit, mesh)
    surface = Scan.from_mesh(ground_truth)
    points = surface.sample(CALIBRATION_POINTS, np.random.default_rng(0)).points.astype(np.float64)
    distance, face, _ = proximity.closest_point(points, mesh)
    return float((distance <= INTERVAL_STD * deviation[np.asarray(mesh.faces)[face]].mean(axis=1)).mean())


def corruption_table(rows: Sequence[Row]) -> Table:
    """Medians over the scans, case by case, with the ratio to complete scans."""
    cases = list(dict.fromkeys(row["case"] for row in rows))

    def median(case: str, column: str) -> float:
        return float(np.median([row[column] for row in rows if row["case"] == case]))

    columns = (*COLUMNS, "ood_score", "seconds")
    lines = [["case", *(column.replace("_", " ") for column in columns), "ratio to complete"]]
    for case in cases:
        ratio = "-"
        if COMPLETE in cases:
            ratios = (median(case, column) / median(COMPLETE, column) for column in COLUMNS[:2])
            ratio = " / ".join(f"{value:.2f}" for value in ratios)
        lines.append([case, *(f"{median(case, column):.2f}" for column in columns), ratio])
    scans = len({row["scan"] for row in rows})
    note = (
        f"Medians over {scans} scans, metric `surface_distance` in mm against the complete ground truth. The last "
        "column is completeness / accuracy relative to complete scans.\n\n"
        + "\n".join(f"- `{case}`: {CORRUPTIONS[case].description}" for case in cases)
    )
    calibrated = [_calibration_line(case, rows) for case in cases if CORRUPTIONS[case].calibration]
    if calibrated:
        note += "\n\nCalibration of the uncertainty (90 % interval of a Gaussian):\n\n" + "\n".join(calibrated)
    return Table(lines, note)


def _calibration_line(case: str, rows: Sequence[Row]) -> str:
    shares = [row["in_interval"] for row in rows if row["case"] == case]
    return (
        f"- `{case}`: {np.mean(shares):.1%} of the ground truth within {INTERVAL_STD} standard deviations "
        f"(by scan {min(shares):.1%} to {max(shares):.1%})"
    )


# ------------------------------------------------------------------------------------------ objects that are no people


def run_non_people(space: ShapeSpace, store: ScanStore, names: Sequence[str], options: RobustnessOptions) -> list[Row]:
    """Fit people, objects, and a person upside down; the alignment is that of the options."""
    people = [store.scan(name) for name in names]
    others = [*corruptions.non_people(), *(corruptions.upside_down(scan) for scan in people[:1])]
    rows = []
    for kind, scans in (("people", people), ("others", others)):
        for fit, scan in zip(space.fit_scans(scans, lm=options.lm, seed=options.seed), scans, strict=True):
            quality = assess_fit(space.model, fit, scan)
            rows.append(
                {"kind": kind, "name": fit.name, "residual_mm": 1000 * quality.median, "ood_score": quality.ood_score}
            )
    return rows


def non_people_table(rows: Sequence[Row]) -> Table:
    """Residuals and out-of-distribution scores: the range over people, and every object by its score."""
    people = [row for row in rows if row["kind"] == "people"]

    def interval(column: str) -> str:
        values = [row[column] for row in people]
        return f"{min(values):.1f} to {max(values):.1f}"

    lines = [["scan", "median residual, mm", "ood score"]]
    lines.append([f"{len(people)} people", interval("residual_mm"), interval("ood_score")])
    others = sorted((row for row in rows if row["kind"] == "others"), key=lambda row: float(row["ood_score"]))
    lines += [[row["name"], f"{row['residual_mm']:.1f}", f"{row['ood_score']:.1f}"] for row in others]
    return Table(lines, "Out-of-distribution scores of people and of objects.")


# ---------------------------------------------------------------------------------------- several corruptions at once


def run_random_cases(
    space: ShapeSpace, store: ScanStore, names: Sequence[str], count: int, options: RobustnessOptions
) -> list[Row]:
    """Draw random combinations of corruptions, write each to a file and fit it as `shapespace fit` does."""
    with TemporaryDirectory() as folder:
        return [
            run_random_case(space, store, names, index, options, Path(folder))
            for index in tqdm(range(count), desc="random cases", unit="case")
        ]


def run_random_case(
    space: ShapeSpace, store: ScanStore, names: Sequence[str], index: int, options: RobustnessOptions, folder: Path
) -> Row:
    """One random case and its outcome; `folder` receives the file."""
    rng = np.random.default_rng([options.seed, index])
    name = names[int(rng.integers(len(names)))]
    case = corruptions.random_corruption(store.scan(name), require_ground_truth(store, name), rng)
    row = {"scan": name, "corruptions": list(case.corruptions)}
    try:
        error, quality = fit_as_file(space, case, options, folder)
    except (ValueError, OSError) as refusal:
        return {**row, "outcome": REFUSED, "message": str(refusal)}
    except Exception as crash:
        return {**row, "outcome": CRASHED, "message": f"{type(crash).__name__}: {crash}"}
    outcome = _outcome(error, quality)
    return {**row, "outcome": outcome, "error": error, "ood_score": quality.ood_score, "coverage": quality.coverage}


def _outcome(error: float, quality: FitQuality) -> str:
    is_good = error < MAX_GOOD_ERROR
    if not quality.in_distribution:
        return GOOD_OOD if is_good else BAD_OOD
    if quality.low_confidence:
        return GOOD_LOW_CONFIDENCE if is_good else BAD_LOW_CONFIDENCE
    return GOOD if is_good else BAD_NO_WARNING


def fit_as_file(
    space: ShapeSpace, case: CorruptedScan, options: RobustnessOptions, folder: Path
) -> tuple[float, FitQuality]:
    """Write a scan, read it with a guessed unit, fit it; the mean of completeness and accuracy (mm) and the quality."""
    path = folder / "scan.ply"
    if np.isfinite(case.scan.points).all():
        scan_files.write_scan(path, case.scan, unit=case.unit)
    else:  # write_scan refuses points that are not finite
        path = folder / "scan.npy"
        np.save(path, case.scan.points / np.float32(case.unit))
    scan = scan_files.read_scan(path, name="scan", unit="auto")
    (scan,) = space.remove_clutter([scan], lm=options.lm)
    (fit,) = space.fit_scans([scan], lm=options.lm)
    mesh = space.mesh(fit, resolution=options.resolution)
    scores = metrics.score(["surface_distance"], mesh, case.ground_truth, None)["surface_distance"]
    quality = assess_fit(space.model, fit, scan)
    return float(np.mean([scores["completeness"], scores["accuracy"]])), quality


def random_case_table(rows: Sequence[Row]) -> Table:
    """Number of cases by outcome; crashes and bad fits without a warning are listed."""
    counts = Counter(row["outcome"] for row in rows)
    lines = [["outcome", "cases"], *([outcome, str(counts[outcome])] for outcome in OUTCOMES)]
    listed = [
        f"- {row['outcome']}: {', '.join(row['corruptions']) or 'no corruption'}"
        + (f" ({row['error']:.0f} mm)" if "error" in row else f": {row['message']}")
        for row in rows
        if row["outcome"] in (BAD_NO_WARNING, CRASHED)
    ]
    note = (
        f"{len(rows)} random cases: a scan with several corruptions. A fit is good if the mean of completeness and "
        f"accuracy against the complete ground truth is below {MAX_GOOD_ERROR:g} mm."
    )
    return Table(lines, "\n\n".join([note, "\n".join(listed)]) if listed else note)
