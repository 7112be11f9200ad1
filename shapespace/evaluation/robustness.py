"""Accuracy of a space on corrupted scans."""

import io
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation import corruptions, metrics
from shapespace.evaluation.corruptions import COMPLETE, CORRUPTIONS, CorruptedScan, Corruption
from shapespace.evaluation.scores import markdown_table
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import FitQuality, assess
from shapespace.fitting.result import Fit
from shapespace.geometry import proximity
from shapespace.geometry.scan import Scan
from shapespace.io.scan_files import write_scan
from shapespace.rendering import renderer, sheet
from shapespace.space import ShapeSpace
from shapespace.tools._inputs import ScanInput, from_store, read_scans, remove_clutter

COLUMNS = ("completeness", "accuracy", "visible_completeness")


WELL = 20.0  # mm, mean of both directions: a drawn case is fitted well below this


BAND = 1.645  # deviations to either side hold 90 % of a Gaussian


_ASKED = 5000  # points of the true surface that are asked whether the band holds them


WELL_FITTED, UNNAMED, REFUSED, BROKEN = "well", "badly, and nothing said", "refused", "broken off"


ODD, UNSURE = "well, but called odd", "well, but called unsure"


POOR_AND_ODD, POOR_AND_UNSURE = "badly, and called odd", "badly, and called unsure"


_ENDS = (WELL_FITTED, ODD, UNSURE, POOR_AND_ODD, POOR_AND_UNSURE, REFUSED, UNNAMED, BROKEN)


def _cases(
    space: ShapeSpace,
    store: ScanStore,
    names: list[str],
    chosen: list[str],
    lm: LMOptions,
    resolution: int,
    seed: int,
    out: Path,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: list[Trimesh] = []
    found: list[Trimesh] = []
    for name in tqdm(chosen, desc="robust", unit="case"):
        spoilt = [_spoilt(CORRUPTIONS[name], store, scan, [seed, index]) for index, scan in enumerate(names)]
        fits, alone = _fitted(space, CORRUPTIONS[name], [scan for scan, _ in spoilt], lm, seed)
        for fit, fitted, (scan, truth) in zip(fits, alone, spoilt, strict=True):
            row = _row(space, fit, scan, fitted, truth, resolution, band=CORRUPTIONS[name].band)
            rows.append({"case": name, "scan": fit.name, **row})
        seen.append(renderer.scan_to_mesh(spoilt[0][0]))
        found.append(space.mesh(fits[0], resolution=resolution))
    sheet.contact_sheet([("scan", seen), ("fit", found)], out / "robust.png", titles=chosen)
    return rows


def _spoilt(case: Corruption, store: ScanStore, name: str, seed: list[int]) -> tuple[Scan, Trimesh]:
    return case.apply(from_store(store, name), _truth(store, name), np.random.default_rng(seed))


def _truth(store: ScanStore, name: str) -> Trimesh:
    truth = store.ground_truth(name)
    if truth is None:
        raise ValueError(f"scan {name} has no true surface in {store.path}: choose another --split.")
    return truth


def _fitted(
    space: ShapeSpace, case: Corruption, scans: list[Scan], lm: LMOptions, seed: int
) -> tuple[list[Fit], list[Scan]]:
    """The fits, and what of the scans was fitted."""
    options = replace(lm, alignment=case.alignment)
    alone = scans if case.clutter == "keep" else space.remove_clutter(scans, lm=options, seed=seed)
    if case.encode:
        return space.encode_scans(alone, seed=seed), alone
    return space.fit_scans(alone, lm=options, seed=seed), alone


def _row(
    space: ShapeSpace, fit: Fit, scan: Scan, fitted: Scan, truth: Trimesh, resolution: int, *, band: bool = False
) -> dict[str, Any]:
    """Scores against the truth, where the scan saw it; the verdict is on what of the scan was fitted."""
    mesh = space.mesh(fit, resolution=resolution)
    scores = metrics.score(["surface"], mesh, truth, scan)["surface"]
    verdict = assess(fit.code, space.model.prior, fit.residuals, fitted, mesh)
    row = {**{column: scores[column] for column in COLUMNS}, "oddness": verdict.ood_score, "seconds": fit.seconds}
    return {**row, "in_band": _in_band(space, fit, mesh, truth)} if band else row


def _in_band(space: ShapeSpace, fit: Fit, mesh: Trimesh, truth: Trimesh) -> float:
    """Share of the true surface that lies within the 90 % band about the found one."""
    deviation = space.uncertainty(fit, mesh)
    whole = Scan("", np.asarray(truth.vertices), faces=np.asarray(truth.faces))
    points = whole.sample(_ASKED, np.random.default_rng(0)).points.astype(np.float64)
    distance, face, _ = proximity.closest_point(points, mesh)
    return float((distance <= BAND * deviation[np.asarray(mesh.faces)[face]].mean(axis=1)).mean())


def _page(rows: list[dict[str, Any]], cases: list[str], scans: int) -> str:
    def median(case: str, column: str) -> float:
        return float(np.median([row[column] for row in rows if row["case"] == case]))

    columns = (*COLUMNS, "oddness", "seconds")
    lines = [["case", *columns, "to complete"]]
    for case in cases:
        there = COMPLETE in cases
        ratios = [median(case, column) / median(COMPLETE, column) if there else np.nan for column in COLUMNS[:2]]
        ratio = " / ".join(f"{value:.2f}" for value in ratios) if there else "-"
        lines.append([case, *(f"{median(case, column):.2f}" for column in columns), ratio])
    described = "\n".join(f"- `{case}`: {CORRUPTIONS[case].description}" for case in cases)
    held = ""
    for case in cases:
        shares = [row["in_band"] for row in rows if row["case"] == case and "in_band" in row]
        if shares:
            held += (
                f"- `{case}`: {np.mean(shares):.1%} of the true surface within {BAND} deviations of the found one "
                f"(by scan {min(shares):.1%} to {max(shares):.1%})\n"
            )
    return (
        f"{markdown_table(lines, 1)}\n\nMedians over {scans} scans against the whole true surface, protocol `surface`, mm; the "
        f"last column is the ratio of the first two to those of complete scans.\n\n{described}\n"
        + (f"\nThe 90 % band of the uncertainty:\n\n{held}" if held else "")
    )


def _things(
    space: ShapeSpace, store: ScanStore, names: list[str], lm: LMOptions, resolution: int, seed: int
) -> list[dict[str, Any]]:
    """People, and what is none, as they are: fitted by the pose of `lm`."""
    people = [from_store(store, name) for name in names]
    others = [*corruptions.non_people(), *(corruptions.upside_down(scan) for scan in people[:1])]
    rows = []
    for kind, scans in (("people", people), ("others", others)):
        for fit, scan in zip(space.fit_scans(scans, lm=lm, seed=seed), scans, strict=True):
            verdict = assess(fit.code, space.model.prior, fit.residuals, scan, space.mesh(fit, resolution=resolution))
            rows.append(
                {"kind": kind, "name": fit.name, "residual_mm": 1000 * verdict.median, "oddness": verdict.ood_score}
            )
    return rows


def _page_of_things(rows: list[dict[str, Any]]) -> str:
    def between(column: str) -> str:
        values = [row[column] for row in rows if row["kind"] == "people"]
        return f"{min(values):.1f} to {max(values):.1f}"

    count = sum(row["kind"] == "people" for row in rows)
    lines = [["scan", "median residual", "oddness"], [f"{count} people", between("residual_mm"), between("oddness")]]
    others = sorted((row for row in rows if row["kind"] == "others"), key=lambda row: float(row["oddness"]))
    lines += [[row["name"], f"{row['residual_mm']:.1f}", f"{row['oddness']:.1f}"] for row in others]
    return f"{markdown_table(lines, 1)}\n\nHow odd the codes of people are, and those of what is no person; residuals in mm.\n"


def _tried(
    space: ShapeSpace, store: ScanStore, names: list[str], lm: LMOptions, resolution: int, seed: list[int], folder: Path
) -> dict[str, Any]:
    """One drawn case, from a file, as `shapespace fit` does it; how it ended, and what was said."""
    rng = np.random.default_rng(seed)
    name = names[int(rng.integers(len(names)))]
    case = corruptions.random_corruption(from_store(store, name), _truth(store, name), rng)
    row = {"scan": name, "how": list(case.how)}
    try:
        with redirect_stderr(io.StringIO()):  # notes
            error, verdict = _as_a_file(space, case, lm, resolution, folder)
    except (ValueError, OSError) as refusal:
        return {**row, "end": REFUSED, "said": str(refusal)}
    except Exception as mistake:
        return {**row, "end": BROKEN, "said": f"{type(mistake).__name__}: {mistake}"}
    well = error < WELL
    end = WELL_FITTED if well else UNNAMED
    if not verdict.in_distribution:
        end = ODD if well else POOR_AND_ODD
    elif verdict.low_confidence:
        end = UNSURE if well else POOR_AND_UNSURE
    return {**row, "end": end, "error": error, "oddness": verdict.ood_score, "coverage": verdict.coverage}


def _as_a_file(
    space: ShapeSpace, case: CorruptedScan, lm: LMOptions, resolution: int, folder: Path
) -> tuple[float, FitQuality]:
    """The error of the fit (mm, mean of both directions), and what is said of it."""
    path = folder / "scan.ply"
    if np.isfinite(case.scan.points).all():
        write_scan(path, case.scan, unit=case.unit)
    else:  # no PLY of ours has such points
        path = folder / "scan.npy"
        np.save(path, case.scan.points / np.float32(case.unit))
    scans, _ = read_scans([str(path)], ScanInput())
    (alone,) = remove_clutter(space, scans, "remove", lm, 0)
    (fit,) = space.fit_scans([alone], lm=lm)
    mesh = space.mesh(fit, resolution=resolution)
    scores = metrics.score(["surface"], mesh, case.ground_truth, None)["surface"]
    verdict = assess(fit.code, space.model.prior, fit.residuals, alone, mesh)
    return float(np.mean([scores[column] for column in COLUMNS[:2]])), verdict


def _page_of_drawn(rows: list[dict[str, Any]]) -> str:
    ends = Counter(row["end"] for row in rows)
    lines = [["how it ended", "cases"]]
    lines += [[end, str(ends[end])] for end in _ENDS]
    told = [
        f"- {row['end']}: {', '.join(row['how']) or 'as it is'}"
        + (f" ({row['error']:.0f} mm)" if "error" in row else f": {row['said']}")
        for row in rows
        if row["end"] in (UNNAMED, BROKEN)
    ]
    return (
        f"{markdown_table(lines, 1)}\n\n{len(rows)} cases drawn: a scan, and ways to spoil it. Fitted well is below {WELL:g} mm "
        "(mean of both directions against the whole true surface).\n" + "".join(f"{line}\n" for line in told)
    )
