"""How well the ways between codes are motion: against the true bodies between two poses of one person.

    shapespace motion runs/people data/people --pairs 12
    shapespace motion humans data/people --split unseen_people --paths linear shortest

DATA is a folder that `shapespace synthesize` made: it knows each pose, and so the poses between two of them, every
joint turning at an even speed. Both scans are fitted, the codes between are meshed, and each shape is scored against
the true one by protocol `surface`, both centred. Writes `motion.json` and a picture of the first pair.
"""

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm
from trimesh import Trimesh

from shapespace import evaluate, metrics, picture
from shapespace.atomic import replacing
from shapespace.data import files
from shapespace.data.body import Body, blend
from shapespace.fit import LMOptions
from shapespace.paths import Path as CodePath
from shapespace.space import ShapeSpace
from shapespace.tools.synthesize import Capture, Plan, read_plan, schedule, stage

Pair = tuple[Capture, Capture]


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    split: str = "unseen_people",
    pairs: int = 12,
    steps: int = 7,
    paths: tuple[CodePath, ...] = ("linear", "spherical", "shortest"),
    resolution: int = 96,
    out: Path = Path("motion"),
    seed: int = 0,
) -> None:
    """Score paths.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a space that comes with the package.
        data: Folder that `shapespace synthesize` made.
        lm: Settings of the fits of both ends.
        split: Where the pairs are drawn from: poses of one person each.
        pairs: Number of pairs.
        steps: Shapes on each path, both ends included.
        paths: Ways to compare.
        resolution: Cells of the mesh's grid along the model cube's edge.
        out: Folder for motion.json and motion.png.
        seed: Of the pairs, and of the points that are drawn.

    """
    space, plan = ShapeSpace.load(run), read_plan(data)
    chosen = choose(plan, split, pairs, seed)
    scans = [files.read_scan(data / end.path, name=str(end.path)) for pair in chosen for end in pair]
    fits = space.fit_scans(scans, lm=lm, seed=seed)
    rows: list[dict[str, Any]] = []
    pictures = []
    for index, pair in enumerate(tqdm(chosen, desc="motion", unit="pair")):
        truth = true_motion(plan, pair, steps)
        if not index:
            pictures.append(("truth", truth))
        for path in paths:
            a, b = fits[2 * index : 2 * index + 2]
            found = space.interpolate(a, b, steps, path=path, resolution=resolution)
            rows.append({"a": a.name, "b": b.name, "path": path, **evaluate.motion(found, truth, seed=seed)})
            if not index:
                pictures.append((path, found))
        rows.append({"a": rows[-1]["a"], "b": rows[-1]["b"], "path": "truth", "sa_sigma": metrics.sa_sigma(truth)})
    out.mkdir(parents=True, exist_ok=True)
    medians = {name: _medians([row for row in rows if row["path"] == name]) for name in (*paths, "truth")}
    with replacing(out / "motion.json") as part:
        part.write_text(json.dumps({"medians": medians, "rows": rows}, indent=1))
    picture.contact_sheet(pictures, out / "motion.png")
    print(f"medians over {len(chosen)} pairs of {split}; mm, and square metres for sa_sigma")
    for name, columns in medians.items():
        print(f"  {name:<10}" + "  ".join(f"{column} {value:.4g}" for column, value in columns.items()))
    print(f"rows in {out / 'motion.json'}, the first pair in {out / 'motion.png'}")


def choose(plan: Plan, split: str, pairs: int, seed: int) -> list[Pair]:
    """Two captures of one person each, of the split, at random; person after person, and again from the first."""
    rng = np.random.default_rng(seed)
    there = [capture for capture in schedule(plan) if capture.split == split]
    people = [list(group) for _, group in groupby(there, key=lambda capture: capture.subject)]
    people = [captures for captures in people if len(captures) > 1]
    if not people:
        raise ValueError(
            f"nobody has two poses in split {split!r} of this data set: choose another --split, or synthesize with "
            "--test-people-poses 2."
        )
    found = []
    for index in range(pairs):
        captures = people[index % len(people)]
        a, b = rng.permutation(len(captures))[:2]
        found.append((captures[a], captures[b]))
    return found


def true_motion(plan: Plan, pair: Pair, steps: int) -> list[Trimesh]:
    """Bodies between the two captures of a person, both ends included."""
    body = Body.load()
    (coefficients, start, _), (_, end, _) = (stage(plan.seed, capture) for capture in pair)
    return [
        Trimesh(body.pose(coefficients, blend(start.rotations, end.rotations, share)), body.faces, process=False)
        for share in np.linspace(0, 1, steps)
    ]


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    columns = [name for name in rows[0] if name not in ("a", "b", "path")]
    return {column: float(np.median([row[column] for row in rows])) for column in columns}


if __name__ == "__main__":
    from shapespace.tools.__main__ import run as run_tool

    run_tool(main)
