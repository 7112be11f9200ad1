"""Write the results of a packaged model into its page, from evaluations of several test draws (`make humans`).

python -m shapespace.tools._model_card PAGE PICTURE SCORES:CAPTURES:STORE ...

SCORES is a folder of `shapespace evaluate --metrics surface_distance part_distance vertex_distance` (its subfolder
`encode`, if there is one, has the scores of the encoder alone), CAPTURES the `captures.json` of the draw, STORE its
store. The text between the two markers of the page is replaced; the picture shows the ten worst scans of all draws.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shapespace.data.store import ScanStore
from shapespace.evaluation.correspondence import RegisteredScan, make_correspondence_report
from shapespace.evaluation.groups import group_lines, read_labels, summarize_groups
from shapespace.evaluation.scores import markdown_table, mesh_file
from shapespace.evaluation.stored_scores import ScoredRun, load_scores
from shapespace.io.atomic import replacing
from shapespace.io.scan_files import read_mesh
from shapespace.rendering import colors, renderer, sheet
from shapespace.synthetic.body import Body

BEGIN, END = "<!-- results: make humans -->", "<!-- end of results -->"
SPLIT = "unseen_people"
PAIRS = 100
WORST = 10
LIMIT = 20.0  # mm: end of the color scale of errors
COLUMNS = (
    ("surface_distance", "completeness"),
    ("surface_distance", "accuracy"),
    ("part_distance", "hands"),
    ("part_distance", "feet"),
    ("part_distance", "face"),
    ("part_distance", "rest"),
    ("vertex_distance", "mean"),
)


@dataclass(frozen=True)
class Draw:
    """Scores of the test scans of one seed, with their labels and their store."""

    scores: ScoredRun
    encoded: ScoredRun | None
    folder: Path
    captures: Path
    store: ScanStore


def main(page: Path, picture: Path, draws: Sequence[str]) -> None:
    """Replace the results of a page, and draw the worst scans."""
    read = [_read(draw) for draw in draws]
    parts = [_by_draw(read), _by_group(read), _correspondence(read)]
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"{page}: it needs one line {BEGIN!r} and one line {END!r}, between which results are written."
        )
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with replacing(page) as part:
        part.write_text(before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after, encoding="utf-8")
    _draw_worst(read, picture)
    print(f"results in {page}, the worst scans in {picture}")


def _read(draw: str) -> Draw:
    scores, captures, store = (Path(path) for path in draw.split(":"))
    own = load_scores([scores])[0]
    fitted = [one for one in own if one.path.parent == scores]
    encoded = [one for one in own if one.method == "encode"]
    return Draw(fitted[0], encoded[0] if encoded else None, scores, captures, ScanStore(store))


def _values(scored: ScoredRun, metric: str, column: str) -> list[float]:
    """Errors of all scans; infinite where no surface was predicted."""
    listed = [row.get(metric, {}).get(column) for row in scored.rows if row["split"] == SPLIT]
    return [np.inf if value is None else float(value) for value in listed]


def _by_draw(draws: Sequence[Draw]) -> str:
    """Medians, means and maxima of each draw; the encoder alone."""
    lines = [["scans", "", *(column for _, column in COLUMNS[:-1]), "largest"]]
    for number, draw in enumerate(draws, start=1):
        for name, statistic in (("median", np.median), ("mean", np.mean)):
            cells = [f"{statistic(_values(draw.scores, *column)):.2f}" for column in COLUMNS[:-1]]
            largest = max(max(_values(draw.scores, *column)) for column in COLUMNS[:2])
            count = len(_values(draw.scores, *COLUMNS[0]))
            lines.append([f"{count} of draw {number}", name, *cells, f"{largest:.1f}"])
        if draw.encoded is not None:
            cells = [f"{np.median(_values(draw.encoded, *column)):.2f}" for column in COLUMNS[:2]]
            lines.append([f"{count} of draw {number}", "encoder alone, median", *cells, *[""] * (len(COLUMNS) - 3), ""])
    together = [[value for draw in draws for value in _values(draw.scores, *column)] for column in COLUMNS[:-1]]
    cells = [f"{np.median(values):.2f}" for values in together]
    lines.append([f"all {len(together[0])}", "median", *cells, f"{max(map(max, together[:2])):.1f}"])
    return markdown_table(lines, 2)


def _by_group(draws: Sequence[Draw]) -> str:
    """Medians by label, over all draws."""
    rows: list[dict[str, Any]] = []
    labels: dict[str, dict[str, str | float]] = {}
    for number, draw in enumerate(draws):
        for name, its in read_labels(draw.captures).items():
            labels[f"{number}/{name}"] = {label: value for label, value in its.items() if label != "split"}
        for row in draw.scores.rows:
            kept: dict[str, dict[str, float]] = {}
            for metric, column in COLUMNS:
                value = row[metric][column]
                kept.setdefault(metric, {})[column] = np.nan if value is None else float(value)
            rows.append({"name": f"{number}/{row['name']}", "split": row["split"], **kept})
    lines = group_lines(summarize_groups(rows, labels))
    lines[0][-2] = "vertices"
    return "By group, all draws, medians; `vertices` is the mean of `vertex_distance`.\n\n" + markdown_table(lines, 2)


def _correspondence(draws: Sequence[Draw]) -> str:
    """Points carried between random pairs of two people of a draw by the registered template."""
    body, errors = Body.load(), list[dict[str, float]]()
    for draw in draws:
        scans = []
        for row in draw.scores.rows:
            mesh, truth = (
                read_mesh(mesh_file(draw.folder, row["split"], row["name"])),
                draw.store.ground_truth(row["name"]),
            )
            assert truth is not None  # it was scored
            scans.append(
                RegisteredScan(row["name"], row["split"], np.asarray(mesh.vertices), np.asarray(truth.vertices))
            )
        report = make_correspondence_report(scans, body.faces, regions=body.parts(), pairs=PAIRS)
        errors += [row["carried_error"] for row in report.rows if "carried_error" in row]
    columns = ("median", "mean", "p95", *body.parts())
    cells = [f"{np.mean([error[column] for error in errors]):.1f}" for column in columns]
    lines = [["pairs", "median", "mean", "95 %", *body.parts()], [str(len(errors)), *cells]]
    return (
        "A point of one person, carried by the registered template to another one in another pose, against its true "
        "place (mm): statistics over the area, and means in regions; means over the pairs.\n\n"
        + markdown_table(lines, 1)
    )


def _draw_worst(draws: Sequence[Draw], path: Path) -> None:
    """Picture of the worst scans of all draws: scan, fit, error in color, ground truth."""
    ranked = sorted(
        (
            (row["surface_distance"]["completeness"] + row["surface_distance"]["accuracy"], draw, row)
            for draw in draws
            for row in draw.scores.rows
        ),
        key=lambda one: -one[0],
    )
    sheet_rows = []
    for _, draw, row in tqdm(ranked[:WORST], desc="worst", unit="scan"):
        name, truth = row["name"], draw.store.ground_truth(row["name"])
        assert truth is not None  # it was scored
        mesh = read_mesh(mesh_file(draw.folder, row["split"], name))
        errors = row["surface_distance"]
        shows = read_labels(draw.captures)[name]
        label = f"{shows['pose']}, {shows['scanner']}: {errors['completeness']:.1f} / {errors['accuracy']:.1f} mm"
        scan = renderer.scan_to_mesh(draw.store.scan(name))
        sheet_rows.append((label, [scan, mesh, colors.color_by_distance(mesh, truth, limit=LIMIT), truth]))
    titles = ("scan", "fit", "distance to the ground truth", "ground truth")
    sheet.contact_sheet(sheet_rows, path, titles=titles, limit=LIMIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
