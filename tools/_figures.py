"""Draw the figures of README and docs from synthetic scans and the packaged model (`make figures`).

python -m shapespace.tools._figures STORE OUT
"""

import configparser
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from PIL import Image
from tqdm import tqdm
from trimesh import Trimesh

from shapespace.data.store import ScanStore
from shapespace.evaluation.corruptions import CORRUPTIONS
from shapespace.evaluation.metrics import score
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.result import Fit
from shapespace.io.atomic import replacing
from shapespace.models.base import FieldModel
from shapespace.rendering.colors import color_by_distance, signed_colors
from shapespace.rendering.renderer import render, scan_to_mesh
from shapespace.space import ShapeSpace
from shapespace.synthetic.body import Body
from shapespace.synthetic.people import SynthesisConfig, list_captures, posed_body
from shapespace.synthetic.scanner import VirtualScanner

LIMIT = 20.0  # mm, end of the color scale of errors
CELLS = 160
CASES = (  # twelve that look different, in two rows
    "complete",
    "points",
    "sparse",
    "noise",
    "outliers",
    "single_view",
    "heading",
    "rotated",
    "floor",
    "cluttered",
    "cluttered_single_view",
    "unit",
)
FLOORS = Path(__file__).parents[1] / ".importlinter"

mpl.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans", "figure.facecolor": "white", "savefig.dpi": 150})


def main(store: Path, out: Path) -> None:
    """Draw every figure; scans are those of split `unseen_people` of a store with ground truth."""
    space, packed = ShapeSpace.load("humans"), ScanStore(store)
    names = packed.scan_names("unseen_people")
    architecture(out / "architecture.svg")
    wide_poses(out / "wide_poses.png")
    draw = {"overview": overview, "results": results, "interpolation": interpolation, "robustness": robustness}
    for name in tqdm(draw, desc="figures", unit="figure"):
        draw[name](space, packed, names, out / f"{name}.png")
    print(f"figures in {out}")


def wide_poses(path: Path) -> None:
    """Sixty varied people in wide poses, every second row from behind."""
    config = SynthesisConfig(
        people=60,
        poses=1,
        test_people=0,
        poses_per_test_person=1,
        test_poses=0,
        motion_fraction=0.25,
        seed=60,
        poses_from="wide",
        appearance="varied",
        scanners="varied",
    )
    faces = Body.load().faces
    bodies = [
        Trimesh(posed_body(config, capture)[1].vertices, faces, process=False)
        for capture in tqdm(list(list_captures(config)), desc="wide poses", unit="body")
    ]
    rows = [
        render(bodies[start : start + 12], size=230, azimuth=25.0 if row % 2 == 0 else 155.0)
        for row, start in enumerate(range(0, 60, 12))
    ]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), mode="edge") for row in rows]
    with replacing(path) as part:
        Image.fromarray(np.concatenate(padded)).save(part, format="png", optimize=True)


def overview(space: ShapeSpace, store: ScanStore, names: Sequence[str], path: Path) -> None:
    """From a scan with holes to its mesh, and five interpolated bodies."""
    body = _ground_truth(store, names[0])
    scan = VirtualScanner(azimuths=3).scan(
        np.asarray(body.vertices), np.asarray(body.faces), np.random.default_rng(0), name="scan"
    )
    fit = space.fit_scans([scan])[0]
    mesh = space.mesh(fit, resolution=CELLS)
    other = space.fit_scans([store.scan(names[-1])])[0]

    figure = Figure(figsize=(10, 7.2))
    grid = GridSpec(
        2, 7, figure, height_ratios=(1.5, 1), width_ratios=(1, 0.34, 0.42, 0.2, 1, 0.2, 1), wspace=0.05, hspace=0.12
    )
    _picture(figure, grid[0, 0], render([scan_to_mesh(scan)], size=560), "raw scan, with holes")
    _arrow(figure, grid[0, 1], "encoder,\nthen LM")
    _bars(figure, grid[0, 2], fit)
    _arrow(figure, grid[0, 3], "")
    _slice(figure, grid[0, 4], space, fit)
    _arrow(figure, grid[0, 5], "")
    _picture(figure, grid[0, 6], render([mesh], size=560), "mesh: registered template")
    between = space.interpolate(fit, other, 5, resolution=CELLS)
    _picture(figure, grid[1, :], render([_at_origin(one) for one in between], size=360), "interpolated codes")
    _save(figure, path)


def results(space: ShapeSpace, store: ScanStore, names: Sequence[str], path: Path) -> None:
    """Scan, prediction, its error and ground truth: three unseen people, and one seen by a single camera."""
    people = list({name.split("/")[0]: name for name in names}.values())[:3]
    scans = [store.scan(name) for name in people]
    bodies = [_ground_truth(store, name) for name in people]
    single = VirtualScanner(azimuths=1, elevations=(0.0,)).scan(
        np.asarray(bodies[0].vertices), np.asarray(bodies[0].faces), np.random.default_rng(0), name="single camera"
    )
    rows = [*zip(scans, bodies, strict=True), (single, bodies[0])]
    titles = ("scan", "prediction", f"error, 0 to {LIMIT:g} mm", "ground truth")

    figure = Figure(figsize=(8, 11))
    grid = GridSpec(len(rows), 4, figure, wspace=0.02, hspace=0.1)
    for row, (scan, body) in enumerate(rows):
        mesh = space.mesh(space.fit_scans([scan])[0], resolution=CELLS)
        figures = (scan_to_mesh(scan), mesh, color_by_distance(mesh, body, limit=LIMIT), body)
        for column, shown in enumerate(figures):
            title = titles[column] if row == 0 else ""
            below = _errors(mesh, body) if shown is figures[2] else ""
            _picture(figure, grid[row, column], render([shown], size=420), title, below)
    _save(figure, path)


def interpolation(space: ShapeSpace, store: ScanStore, names: Sequence[str], path: Path) -> None:
    """Nine bodies between two poses of one person, and between two people, with area and volume."""
    first = names[0].split("/")[0]
    same = [name for name in names if name.split("/")[0] == first][:2]
    other = next(name for name in names if name.split("/")[0] != first)
    figure = Figure(figsize=(12, 4.4))
    grid = GridSpec(2, 2, figure, width_ratios=(7, 1), wspace=0.1, hspace=0.35)
    for row, (pair, title) in enumerate(((same, "two poses of one person"), ((same[0], other), "two people"))):
        a, b = space.fit_scans([store.scan(name) for name in pair])
        meshes = [_at_origin(one) for one in space.interpolate(a, b, 9, resolution=CELLS)]
        _picture(figure, grid[row, 0], render(meshes, size=360), f"{title}: path along the joints")
        _relative(figure, grid[row, 1], meshes)
    _save(figure, path)


def robustness(space: ShapeSpace, store: ScanStore, names: Sequence[str], path: Path) -> None:
    """Twelve corruptions of one scan: what was fitted, and the prediction in the colors of its error."""
    scan, body = store.scan(names[0]), _ground_truth(store, names[0])
    figure = Figure(figsize=(11, 10))
    grid = GridSpec(4, 6, figure, wspace=0.03, hspace=0.12)
    for index, case in enumerate(CASES):
        corruption = CORRUPTIONS[case]
        corrupted, truth = corruption.apply(scan, body, np.random.default_rng(0))
        (alone,) = space.remove_clutter([corrupted])
        (fit,) = space.fit_scans([alone], lm=LMOptions(alignment=corruption.alignment))
        mesh = space.mesh(fit, resolution=96)
        row, column = 2 * (index // 6), index % 6
        _picture(figure, grid[row, column], _square(scan_to_mesh(corrupted)), case.replace("_", " "))
        _picture(
            figure, grid[row + 1, column], _square(color_by_distance(mesh, truth, limit=LIMIT)), _errors(mesh, truth)
        )
    _save(figure, path)


def architecture(path: Path) -> None:
    """The layers of `.importlinter` as boxes, from the highest to the lowest."""
    parser = configparser.ConfigParser()
    parser.read(FLOORS)
    layers = parser["importlinter:contract:floors"]["layers"].strip().splitlines()
    width, height, gap = 760, 34, 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(layers) * (height + gap)}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{width}" height="{len(layers) * (height + gap)}" fill="white"/>',
    ]
    for floor, layer in enumerate(layers):
        names = [name.strip().removeprefix("shapespace.") for name in layer.split("|")]
        each = (width - gap * (len(names) + 1)) / len(names)
        for place, name in enumerate(names):
            x, y = gap + place * (each + gap), floor * (height + gap) + gap / 2
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{each:.1f}" height="{height}" rx="4" fill="#e8e6e1"/>')
            parts.append(
                f'<text x="{x + each / 2:.1f}" y="{y + height / 2 + 5:.1f}" text-anchor="middle">{name}</text>'
            )
    with replacing(path) as part:
        part.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ parts


def _picture(figure: Figure, place: object, image: np.ndarray, title: str, below: str = "") -> None:
    axis = figure.add_subplot(place)  # type: ignore[call-overload]
    axis.imshow(image)
    axis.set_title(title, fontsize=9)
    axis.text(0.5, -0.01, below, ha="center", va="top", transform=axis.transAxes)
    axis.set_axis_off()


def _arrow(figure: Figure, place: object, words: str) -> None:
    axis = figure.add_subplot(place)  # type: ignore[call-overload]
    axis.set_axis_off()
    axis.annotate("", (1, 0.5), (0, 0.5), xycoords="axes fraction", arrowprops={"arrowstyle": "->", "lw": 1.5})
    axis.text(0.5, 0.56, words, ha="center", va="bottom", transform=axis.transAxes)


def _bars(figure: Figure, place: object, fit: Fit) -> None:
    """The first numbers of the code as bars."""
    axis = figure.add_subplot(place)  # type: ignore[call-overload]
    values = fit.code.flat[0, :32].numpy()
    axis.barh(np.arange(len(values)), values, color="#5a7d9a")
    axis.set_title("code", fontsize=9)
    axis.set_axis_off()


def _slice(figure: Figure, place: object, space: ShapeSpace, fit: Fit) -> None:
    """The field in the plane through the middle of the body, with its zero level."""
    u, v = np.meshgrid(np.linspace(-0.6, 0.6, 240), np.linspace(-0.85, 0.85, 340))
    points = torch.from_numpy(np.stack([u, v, np.zeros_like(u)], axis=-1).reshape(1, -1, 3)).float()
    assert isinstance(space.model, FieldModel)
    with torch.no_grad():
        values = space.model.field(points, fit.code)[0].numpy().reshape(u.shape)
    axis = figure.add_subplot(place)  # type: ignore[call-overload]
    axis.imshow(signed_colors(values, limit=0.4), origin="lower", extent=(-0.6, 0.6, -0.85, 0.85))
    axis.contour(u, v, values, levels=[0.0], colors="black", linewidths=1)
    axis.set_title("slice of the SDF", fontsize=9)
    axis.set_axis_off()


def _relative(figure: Figure, place: object, meshes: Sequence[Trimesh]) -> None:
    """Area and volume of meshes, relative to their means, on a fixed axis."""
    axis = figure.add_subplot(place)  # type: ignore[call-overload]
    for name, values in (("area", [mesh.area for mesh in meshes]), ("volume", [abs(mesh.volume) for mesh in meshes])):
        axis.plot(np.linspace(0, 1, len(values)), np.array(values) / np.mean(values), label=name)
    axis.set_ylim(0.9, 1.1)
    axis.set_xticks([0, 1], ["start", "end"], fontsize=7)
    axis.set_yticks([0.9, 1.0, 1.1], ["0.9", "1", "1.1"], fontsize=7)
    axis.set_title("relative to the mean", fontsize=8)
    axis.legend(fontsize=7, frameon=False)


def _square(mesh: Trimesh) -> np.ndarray:
    """A picture of fixed height, padded or cropped to a fixed width."""
    image = render([_at_origin(mesh)], size=300)
    wide = 230
    if image.shape[1] >= wide:
        start = (image.shape[1] - wide) // 2
        return image[:, start : start + wide]
    before = (wide - image.shape[1]) // 2
    return np.pad(image, ((0, 0), (before, wide - image.shape[1] - before), (0, 0)), mode="edge")


def _errors(mesh: Trimesh, body: Trimesh) -> str:
    row = score(["surface_distance"], mesh, body, None)["surface_distance"]
    return f"{row['completeness']:.1f} / {row['accuracy']:.1f} mm"


def _ground_truth(store: ScanStore, name: str) -> Trimesh:
    body = store.ground_truth(name)
    if body is None:
        raise ValueError(f"{store.path}: scan {name} has no ground truth. Preprocess a dataset that has it.")
    return body


def _at_origin(mesh: Trimesh) -> Trimesh:
    low, high = mesh.bounds
    middle = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
    moved = mesh.copy()
    moved.vertices = mesh.vertices - middle
    return moved


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", bbox_inches="tight", pad_inches=0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
