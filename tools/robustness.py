"""How a space bears scans that are not as they should be.

    shapespace robustness humans data/people.h5 --split unseen_people                       (one thing at a time)
    shapespace robustness runs/people data/people.h5 --limit 4 --cases complete single_view rotated
    shapespace robustness humans data/people.h5 --non-people                                    (what is no person)
    shapespace robustness humans data/people.h5 --random-cases 200                                 (several things at once)

Scans of the store are spoilt (noise, outliers, few points, no normals, turned, in another unit, among furniture, or
seen anew by one camera), fitted, and scored against the whole true surface by protocol `surface`. Writes `robust.json`,
`robust.md` and a picture of the first scan.
"""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from shapespace.data.store import ScanStore
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.robustness import _cases, _page, _page_of_drawn, _page_of_things, _things, _tried
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.io.atomic import replacing
from shapespace.space import ShapeSpace


def main(
    run: Annotated[str, tyro.conf.Positional],
    store: Annotated[Path, tyro.conf.Positional],
    *,
    lm: LMOptions,
    split: str | None = "unseen_people",
    limit: int | None = None,
    cases: tuple[str, ...] = (),
    non_people: bool = False,
    random_cases: int = 0,
    resolution: int = 96,
    out: Path = Path("robust"),
    seed: int = 0,
) -> None:
    """Spoil, fit and score.

    Args:
        run: Folder of a run, a model's .safetensors file, or the name of a space that comes with the package.
        store: A store with true surfaces.
        lm: Settings of the fits; the pose is each case's own, and that of all drawn ones.
        split: Scans of the store to take.
        limit: Only the first so many.
        cases: Which ways to spoil them; all by default, and none if only --non-people or --random-cases are asked for.
        things: Fit what is no person, too.
        drawn: So many cases, of a scan and of ways to spoil it at once, are drawn, written to a file, and fitted as
            `shapespace fit` does it.
        resolution: Cells of the mesh's grid along the model cube's edge.
        out: Folder for the tables and the picture.
        seed: Of what is drawn.

    """
    if unknown := [name for name in cases if name not in CORRUPTIONS]:
        raise ValueError(f"no case {unknown[0]!r}: there are {', '.join(CORRUPTIONS)}.")
    space, packed = ShapeSpace.load(run), ScanStore(store)
    names = packed.scan_names(split)[:limit]
    chosen = list(cases or (() if non_people or random_cases else CORRUPTIONS))
    pages: list[str] = []
    left: dict[str, Any] = {"settings": {"lm": asdict(lm), "store": packed.path.name, "seed": seed}}
    if chosen:
        left["rows"] = _cases(space, packed, names, chosen, lm, resolution, seed, out)
        pages.append(_page(left["rows"], chosen, len(names)))
    if non_people:
        left["things"] = _things(space, packed, names, lm, resolution, seed)
        pages.append(_page_of_things(left["things"]))
    if random_cases:
        with TemporaryDirectory() as folder:
            left["drawn"] = [
                _tried(space, packed, names, lm, resolution, [seed, index], Path(folder))
                for index in tqdm(range(random_cases), desc="drawn", unit="case")
            ]
        pages.append(_page_of_drawn(left["drawn"]))
    page = "\n".join(pages)
    with replacing(out / "robust.json") as part:
        part.write_text(json.dumps(left, indent=1))
    with replacing(out / "robust.md") as part:
        part.write_text(page)
    print(page)
    print(f"tables in {out / 'robust.md'}, rows in {out / 'robust.json'}", end="")
    print(f", picture in {out / 'robust.png'}" if chosen else "")


# ---------------------------------------------------------------------------------------------- one thing at a time


# ------------------------------------------------------------------------------------------------- what is no person


# --------------------------------------------------------------------------------------------- several things at once


if __name__ == "__main__":
    from shapespace.tools.__main__ import cli

    cli(main)
