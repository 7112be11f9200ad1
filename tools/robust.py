"""How a space bears scans that are not as they should be, one thing at a time.

    shapespace robust humans data/people.h5 --split unseen_people
    shapespace robust runs/people data/people.h5 --split unseen_people --limit 4 --cases complete one_view turned

Scans of the store are spoilt (noise, outliers, few points, no normals, turned, in another unit, or seen anew by one
camera), fitted, and scored against the whole true surface by protocol `surface`. Writes `robust.json`, `robust.md`
and a picture of the first scan.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from scipy.spatial.transform import Rotation
from tqdm import tqdm
from trimesh import Trimesh

from shapespace import metrics, picture
from shapespace.atomic import replacing
from shapespace.data.files import UNITS
from shapespace.data.recipe import guess_unit
from shapespace.data.scan import Scan
from shapespace.data.scanner import Scanner
from shapespace.data.store import Store
from shapespace.fit import LMOptions, Pose
from shapespace.geometry.frame import Frame
from shapespace.report import pipes
from shapespace.space import Fit, ShapeSpace
from shapespace.tools._inputs import from_store
from shapespace.verdict import judge

COLUMNS = ("truth_to_found", "found_to_truth", "visible_truth_to_found")
COMPLETE = "complete"

Spoil = Callable[[Scan, Trimesh, np.random.Generator], tuple[Scan, Trimesh]]


@dataclass(frozen=True)
class Case:
    """A way to spoil a scan (and to move its truth along), and what is told of the pose when it is fitted."""

    about: str
    spoil: Spoil
    pose: Pose = "near"
    encode: bool = False
    """By the encoder alone."""


def main(
    run: Annotated[str, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    split: str | None = "unseen_people",
    limit: int | None = None,
    cases: tuple[str, ...] = (),
    resolution: int = 96,
    out: Path = Path("robust"),
    seed: int = 0,
) -> None:
    """Spoil, fit and score.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a space that comes with the package.
        store: A store with true surfaces.
        lm: Settings of the fits; the pose is each case's own.
        split: Scans of the store to take.
        limit: Only the first so many.
        cases: Which ways to spoil them; all by default.
        resolution: Cells of the mesh's grid along the model cube's edge.
        out: Folder for the table and the picture.
        seed: Of what is drawn.

    """
    if unknown := [name for name in cases if name not in CASES]:
        raise ValueError(f"no case {unknown[0]!r}: there are {', '.join(CASES)}.")
    space, packed = ShapeSpace.load(run), Store(store)
    names = packed.select(split)[:limit]
    rows: list[dict[str, Any]] = []
    seen: list[Trimesh] = []
    found: list[Trimesh] = []
    chosen = list(cases or CASES)
    for name in tqdm(chosen, desc="robust", unit="case"):
        spoilt = [_spoilt(CASES[name], packed, scan, [seed, index]) for index, scan in enumerate(names)]
        fits = _fitted(space, CASES[name], [scan for scan, _ in spoilt], lm, seed)
        for fit, (scan, truth) in zip(fits, spoilt, strict=True):
            rows.append({"case": name, "scan": fit.name, **_row(space, fit, scan, truth, resolution)})
        seen.append(picture.mesh_of_scan(spoilt[0][0]))
        found.append(space.mesh(fits[0], resolution=resolution))
    page = _page(rows, chosen, len(names))
    with replacing(out / "robust.json") as part:
        part.write_text(json.dumps({"settings": {"lm": asdict(lm), "store": packed.path.name}, "rows": rows}, indent=1))
    with replacing(out / "robust.md") as part:
        part.write_text(page)
    picture.contact_sheet([("scan", seen), ("fit", found)], out / "robust.png", titles=chosen)
    print(page)
    print(f"table in {out / 'robust.md'}, rows in {out / 'robust.json'}, picture in {out / 'robust.png'}")


def _spoilt(case: Case, store: Store, name: str, seed: list[int]) -> tuple[Scan, Trimesh]:
    truth = store.truth(name)
    if truth is None:
        raise ValueError(f"scan {name} has no true surface in {store.path}: choose another --split.")
    return case.spoil(from_store(store, name), truth, np.random.default_rng(seed))


def _fitted(space: ShapeSpace, case: Case, scans: list[Scan], lm: LMOptions, seed: int) -> list[Fit]:
    if case.encode:
        return space.encode_scans(scans, seed=seed)
    return space.fit_scans(scans, lm=replace(lm, pose=case.pose), seed=seed)


def _row(space: ShapeSpace, fit: Fit, scan: Scan, truth: Trimesh, resolution: int) -> dict[str, Any]:
    mesh = space.mesh(fit, resolution=resolution)
    scores = metrics.score(["surface"], mesh, truth, scan)["surface"]
    verdict = judge(fit.code, space.model.prior, fit.residuals, scan, mesh)
    return {**{column: scores[column] for column in COLUMNS}, "oddness": verdict.oddness, "seconds": fit.seconds}


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
    described = "\n".join(f"- `{case}`: {CASES[case].about}" for case in cases)
    return (
        f"{pipes(lines, 1)}\n\nMedians over {scans} scans against the whole true surface, protocol `surface`, mm; the "
        f"last column is the ratio of the first two to those of complete scans.\n\n{described}\n"
    )


def _bare(scan: Scan) -> Scan:
    return replace(scan, normals=None, sensors=None, lines=None, faces=None)


def _noisy(scan: Scan, rng: np.random.Generator, size: float = 0.005) -> Scan:
    moved = scan.points + rng.normal(scale=size, size=scan.points.shape)
    return replace(_bare(scan), points=moved.astype(np.float32))


def _with_outliers(scan: Scan, rng: np.random.Generator, share: float = 0.3) -> Scan:
    """A share of the points lies anywhere in a box half as large again as the scan."""
    low, high = scan.points.min(axis=0), scan.points.max(axis=0)
    margin = 0.25 * (high - low)
    points = scan.points.copy()
    wrong = rng.random(len(points)) < share
    points[wrong] = rng.uniform(low - margin, high + margin, (int(wrong.sum()), 3))
    return replace(_bare(scan), points=points)


def _one_view(scan: Scan, truth: Trimesh, rng: np.random.Generator) -> Scan:
    camera = Scanner(azimuths=1, elevations=(0.0,))
    return camera.scan(np.asarray(truth.vertices), np.asarray(truth.faces), rng, scan.name)


def _turned(scan: Scan, truth: Trimesh, rotation: Rotation) -> tuple[Scan, Trimesh]:
    frame = Frame(torch.zeros(3), torch.tensor(1.0), torch.from_numpy(rotation.as_matrix()).float())
    vertices = frame.to_model(torch.from_numpy(np.asarray(truth.vertices)).float()).numpy()
    return scan.to_model(frame), Trimesh(vertices, truth.faces, process=False)


def _in_a_unit(scan: Scan, rng: np.random.Generator) -> Scan:
    """In a unit that nobody tells, and back by the one that is guessed."""
    unit = float(rng.choice(list(UNITS.values())))
    there = scan.to_model(Frame(torch.zeros(3), torch.tensor(unit)))
    guessed = UNITS[guess_unit([there]).name]
    return there.to_world(Frame(torch.zeros(3), torch.tensor(guessed)))


CASES = {
    COMPLETE: Case("as the store has it", lambda scan, truth, rng: (scan, truth)),
    "encoded": Case("the same, by the encoder alone", lambda scan, truth, rng: (scan, truth), encode=True),
    "points": Case("points alone, without normals and sensors", lambda scan, truth, rng: (_bare(scan), truth)),
    "few": Case("500 points, alone", lambda scan, truth, rng: (_bare(scan).sample(500, rng), truth)),
    "noise": Case("points alone, 5 mm of noise along each axis", lambda scan, truth, rng: (_noisy(scan, rng), truth)),
    "outliers": Case(
        "points alone, 30 % of them anywhere in a box about the scan",
        lambda scan, truth, rng: (_with_outliers(scan, rng), truth),
    ),
    "one_view": Case("seen by one depth camera", lambda scan, truth, rng: (_one_view(scan, truth, rng), truth)),
    "one_view_encoded": Case(
        "the same, by the encoder alone",
        lambda scan, truth, rng: (_one_view(scan, truth, rng), truth),
        encode=True,
    ),
    "heading": Case(
        "facing anywhere",
        lambda scan, truth, rng: _turned(scan, truth, Rotation.from_rotvec([0, rng.uniform(-np.pi, np.pi), 0])),
        "heading",
    ),
    "turned": Case(
        "turned about all axes",
        lambda scan, truth, rng: _turned(scan, truth, Rotation.random(random_state=rng)),
        "rotation",
    ),
    "unit": Case("in mm, cm, m or inches, untold", lambda scan, truth, rng: (_in_a_unit(scan, rng), truth)),
}


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
