"""Score interpolation paths against the true motion between two poses of one person, and exchanged poses.

    shapespace evaluate-paths runs/people data/people --pairs 12
    shapespace evaluate-paths runs/occupancy data/people --method encode --paths linear
    shapespace evaluate-paths humans data/people --split unseen_people --paths linear geodesic

DATA is a folder that `shapespace synthesize` wrote, so the poses are known: every joint rotates at constant speed. The
scans of both poses are fitted, the codes between them are meshed, and each shape, translated to the true body, is
scored with `surface_distance`. All families support linear paths. If the model has parts, the last pose of each pair is
put on the person of the next pair, and this body is scored too. Writes `motion.json` and `motion.png`, a picture of the
first pair.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from shapespace.evaluation.motion import (
    Pair,
    choose_pairs,
    choose_transfers,
    column_medians,
    path_medians,
    score_paths,
    score_transfers,
    supported_paths,
    true_motion,
    true_transfer,
)
from shapespace.evaluation.scores import write_results
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.interpolation import InterpolationPath, has_parts
from shapespace.io import scan_files
from shapespace.rendering import sheet
from shapespace.space import ShapeSpace
from shapespace.synthetic.people import SynthesisConfig, read_synthesis
from shapespace.tools._outputs import fit_provenance, model_folder, model_provenance


def main(
    run: Annotated[str, tyro.conf.Positional],
    data: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    method: Literal["auto", "encode"] = "auto",
    split: str = "unseen_people",
    pairs: int = 12,
    steps: int = 7,
    paths: tuple[InterpolationPath, ...] = ("auto", "linear", "slerp", "geodesic"),
    resolution: int = 96,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Score paths.

    Args:
        run: Folder of a run, model file (.safetensors), or name of a packaged model.
        data: Folder that `shapespace synthesize` wrote.
        lm: Settings of the fits of both ends.
        method: Fit both ends with the default of the family (auto), or encode them only.
        split: Split with the poses.
        pairs: Number of pairs.
        steps: Shapes on each path, both ends included.
        paths: Kinds of paths; auto is parts for a model with parts, otherwise linear. Those that the model does not
            support are left out.
        resolution: Grid cells along an edge of the model cube.
        out: Folder for motion.json and motion.png; `motion` in the folder of the model by default.
        seed: Seed of the pairs and of sampled points.

    """
    if steps < 3:
        raise ValueError(f"--steps {steps}: no shape between the ends. Use at least 3.")
    space, synthesis = ShapeSpace.load(run), read_synthesis(data)
    folder, supported = out or model_folder(Path(run), Path()) / "motion", supported_paths(paths, space)
    chosen = choose_pairs(synthesis, split, pairs, seed)
    scans = [scan_files.read_scan(data / end.path, name=str(end.path)) for pair in chosen for end in pair]
    encoded = fits = space.encode_scans(scans, seed=seed)
    if method == "auto":
        fits = space.fit_scans(scans, lm=lm, seed=seed)
    ends = list(zip(fits[::2], fits[1::2], strict=True))
    motions = [true_motion(synthesis, pair, steps) for pair in chosen]
    scores = score_paths(space, ends, motions, supported, resolution=resolution, seed=seed)
    settings = {**model_provenance(Path(run), space), **fit_provenance(method, encoded, fits)}
    settings |= {"data": data.resolve().name, "split": split, "pairs": len(chosen), "steps": steps}
    settings |= {"resolution": resolution, "seed": seed}
    medians = path_medians(scores.rows)
    transfers = _transfers(space, chosen, fits, synthesis, seed)
    write_results(folder, "motion", {"settings": settings, "medians": medians, **transfers, "rows": scores.rows})
    sheet.contact_sheet(scores.first_pair, folder / "motion.png")
    _print_medians(medians, f"medians over {len(chosen)} pairs of {split}; mm, and square meters for sa_sigma")
    if transfers:
        _print_medians({"transfer": transfers["transfer_medians"]}, "medians of poses on other people; mm")
    print(f"rows in {folder / 'motion.json'}, first pair in {folder / 'motion.png'}")


def _transfers(
    space: ShapeSpace,
    pairs: Sequence[Pair],
    fits: Sequence[Fit],
    synthesis: SynthesisConfig,
    seed: int,
) -> dict[str, Any]:
    """Medians and rows of poses on other people, from the fits of both ends of each pair; empty without parts."""
    chosen = choose_transfers(pairs) if has_parts(space.model) else []
    if not chosen:
        return {}
    by_capture = dict(zip((end for pair in pairs for end in pair), fits, strict=True))
    ends = [(by_capture[pose], by_capture[person]) for pose, person in chosen]
    truths = [true_transfer(synthesis, *pair) for pair in chosen]
    rows = score_transfers(space, ends, truths, seed=seed)
    return {"transfer_medians": column_medians(rows), "transfers": rows}


def _print_medians(medians: Mapping[str, Mapping[str, float]], title: str) -> None:
    print(title)
    for path, columns in medians.items():
        print(f"  {path:<10}" + "  ".join(f"{column} {value:.4g}" for column, value in columns.items()))


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
