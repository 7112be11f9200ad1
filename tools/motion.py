"""How well the ways between codes are motion: against the true bodies between two poses of one person.

    shapespace motion runs/people data/people --pairs 12
    shapespace motion runs/occupancy data/people --method encode --paths linear
    shapespace motion humans data/people --split unseen_people --paths linear geodesic
    shapespace motion humans data/people --frames 12 --people 2                      (sequences, alone and jointly)

DATA is a folder that `shapespace synthesize` made: it knows each pose, and so the poses between two of them, every
joint turning at an even speed. Both scans are fitted, the codes between are meshed, and each shape is scored against
the true one by protocol `surface`, both centred. Writes `motion.json` and a picture of the first pair. Every family has
linear paths.

With --frames, consecutive frames of a motion clip, as people of the split make them, are scanned, spoilt (as in verb
`robust`), and fitted alone and jointly; and once more with one frame of five missing. Scored in place, by the same
protocol and by how much the surface trembles. Writes `sequences.json` and `sequences.md`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.evaluation import metrics, sequences
from shapespace.evaluation import motion as evaluate
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.motion import choose_pairs, true_motion
from shapespace.evaluation.scores import to_json
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.fitting.sequence import SequenceOptions
from shapespace.interpolation import InterpolationPath as CodePath
from shapespace.io import scan_files
from shapespace.io.atomic import replacing
from shapespace.models import registry
from shapespace.models.base import SDFModel
from shapespace.rendering import sheet
from shapespace.space import ShapeSpace
from shapespace.synthetic.people import read_synthesis
from shapespace.tools._outputs import fit_provenance, model_provenance


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    method: Literal["auto", "encode"] = "auto",
    split: str = "unseen_people",
    pairs: int = 12,
    frames: int = 0,
    people: int = 2,
    cases: tuple[str, ...] = ("complete", "single_view"),
    joint: SequenceOptions,
    steps: int = 7,
    paths: tuple[CodePath, ...] = ("linear", "slerp", "geodesic"),
    resolution: int = 96,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Score paths.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a space that comes with the package.
        data: Folder that `shapespace synthesize` made.
        lm: Settings of the fits of both ends, where the family allows them.
        method: How both ends are fitted: as its family is (auto; see `evaluate`), or by encoding alone.
        split: Where the pairs are drawn from: poses of one person each.
        pairs: Number of pairs.
        frames: Consecutive frames of each motion; 0 scores paths.
        people: With --frames, people of the split, with one motion each.
        cases: With --frames, ways to spoil the scans.
        joint: With --frames, what ties them to each other.
        steps: Shapes on each path, both ends included.
        paths: Ways to compare; the shortest is left out for families that have none.
        resolution: Cells of the mesh's grid along the model cube's edge.
        out: Folder for motion.json and motion.png; `motion` beside the model by default.
        seed: Of the pairs, and of the points that are drawn.

    """
    if steps < 3:
        raise ValueError(f"--steps {steps} leaves no shape between both ends to be scored: give at least 3.")
    space, plan, where = ShapeSpace.load(run), read_synthesis(data), Path(run)
    folder = out or (where if where.is_dir() else where.parent if where.is_file() else Path()) / "motion"
    if frames:
        if unknown := [name for name in cases if name not in CORRUPTIONS]:
            raise ValueError(f"no case {unknown[0]!r}: there are {', '.join(CORRUPTIONS)}.")
        chosen_motions = list(sequences.sample_motions(plan, split, people, frames, seed))
        _write_sequences(
            [
                row
                for case in cases
                for motion in chosen_motions
                for row in sequences.score(space, motion, case, lm, joint, resolution, seed)
            ],
            {**model_provenance(where, space), "lm": asdict(lm), "joint": asdict(joint), "data": data.resolve().name}
            | {"split": split, "frames": frames, "resolution": resolution, "seed": seed},
            folder,
        )
        return
    ways = possible(paths, space)
    chosen = choose_pairs(plan, split, pairs, seed)
    scans = [scan_files.read_scan(data / end.path, name=str(end.path)) for pair in chosen for end in pair]
    encoded = fits = space.encode_scans(scans, seed=seed)
    if method == "auto":
        fits = space.fit_scans(scans, lm=lm, seed=seed)
    rows: list[dict[str, Any]] = []
    pictures = []
    for index, pair in enumerate(tqdm(chosen, desc="motion", unit="pair")):
        truth = true_motion(plan, pair, steps)
        if not index:
            pictures.append(("truth", truth))
        a, b = fits[2 * index : 2 * index + 2]
        for path in ways:
            found = _found(space, a, b, steps, path, resolution)
            rows.append({"a": a.name, "b": b.name, "path": path, **evaluate.score_path(found, truth, seed=seed)})
            if not index:
                pictures.append((path if found else f"{path}: no surface", found or []))
        rows.append({"a": a.name, "b": b.name, "path": "truth", "sa_sigma": metrics.sa_sigma(truth)})
    settings = {**model_provenance(where, space), **fit_provenance(method, encoded, fits), "data": data.resolve().name}
    settings |= {"split": split, "pairs": len(chosen), "steps": steps, "resolution": resolution, "seed": seed}
    medians = {name: _medians([row for row in rows if row["path"] == name]) for name in (*ways, "truth")}
    with replacing(folder / "motion.json") as part:
        part.write_text(json.dumps(to_json({"settings": settings, "medians": medians, "rows": rows}), indent=1))
    sheet.contact_sheet(pictures, folder / "motion.png")
    _show(medians, f"medians over {len(chosen)} pairs of {split}; mm, and square metres for sa_sigma")
    print(f"rows in {folder / 'motion.json'}, the first pair in {folder / 'motion.png'}")


def _write_sequences(rows: list[dict[str, Any]], settings: Mapping[str, Any], folder: Path) -> None:
    page = sequences.page(rows)
    with replacing(folder / "sequences.json") as part:
        part.write_text(json.dumps(to_json({"settings": settings, "rows": rows}), indent=1))
    with replacing(folder / "sequences.md") as part:
        part.write_text(page + "\n")
    print(f"{page}\ntable in {folder / 'sequences.md'}, rows in {folder / 'sequences.json'}")


def possible(paths: Sequence[CodePath], space: ShapeSpace) -> list[CodePath]:
    """The paths that the space's family knows; those that it does not are left out with a sentence.

    Raises `ValueError` if none is left.
    """
    if isinstance(space.model, SDFModel) or "geodesic" not in paths:
        return list(paths)
    family = registry.family_name(space.config)
    left: list[CodePath] = [path for path in paths if path != "geodesic"]
    why = f"family {family} has no shortest path: that needs signed distances and codes that are vectors"
    if not left:
        raise ValueError(f"{why}. Score --paths linear.")
    print(f"{why}. It is left out.")
    return left


def _found(space: ShapeSpace, a: Fit, b: Fit, steps: int, path: CodePath, resolution: int) -> list[Trimesh] | None:
    """The shapes of a path, or nothing where one of them has no surface."""
    try:
        return space.interpolate(a, b, steps, path=path, resolution=resolution)
    except ValueError:
        return None


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of every column over the pairs for which there is one, and for how many pairs nothing was found."""
    columns = [name for name in rows[0] if name not in ("a", "b", "path")]
    known = {column: [row[column] for row in rows if not math.isnan(row[column])] for column in columns}
    medians = {column: float(np.median(values)) if values else math.nan for column, values in known.items()}
    return {**medians, "failed": sum(math.isnan(row["sa_sigma"]) for row in rows)}


def _show(medians: Mapping[str, Mapping[str, float]], what: str) -> None:
    print(what)
    for name, columns in medians.items():
        print(f"  {name:<10}" + "  ".join(f"{column} {value:.4g}" for column, value in columns.items()))


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
