"""The report in a browser without network: it shows the values of the files, and its meshes rotate.

With SHAPESPACE_SCREENSHOTS=FOLDER the images of the docs are written to FOLDER/pictures (`make gallery`).
"""

import base64
import importlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shapespace.evaluation.scores import best_median_worst, mesh_file
from shapespace.io import scan_files
from shapespace.rendering import colors, renderer
from shapespace.tools.__main__ import cli

api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Meshes are drawn by SwiftShader, and the page around them without: two of them would wait for each other.
FLAGS = "--no-sandbox --disable-gpu --use-angle=swiftshader --enable-unsafe-swiftshader --disable-background-networking"
MOST = 15e6  # bytes of a page
SIZE = {"width": 1200, "height": 900}


def shapespace(line: str) -> None:
    verb, *words = line.split()
    cli(importlib.import_module(f"shapespace.tools.{verb}").main, words, verb)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, too small to be good, scored together with `humans` on people whom neither knows; and their page."""
    home = tmp_path_factory.mktemp("page")
    folder = home / "runs"
    shapespace(f"synthesize {home}/people --people 2 --poses 3 --test-people 3 --poses-per-test-person 1 --seed 1")
    shapespace(f"preprocess synthetic {home}/people {home}/people.h5 --points 20000")
    shapespace(f"train {home}/people.h5 --split train --config tiny --optim.max-steps 150 --out {folder}/<small>&")
    splits = "--splits unseen_people --method encode --resolution 64"
    shapespace(f"evaluate {folder}/<small>& {home}/people.h5 {splits}")
    splits = "--splits unseen_people --resolution 96"
    shapespace(f"evaluate humans {home}/people.h5 {splits} --out {folder}/<small>&/humans")
    shapespace(f"report {folder}/<small>&")
    return folder / "<small>&"


Launch = Callable[[str], Any]


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    """Start a browser with these flags; one playwright drives them all."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with api.sync_playwright() as play:
        yield lambda flags: play.chromium.launch(executable_path=CHROMIUM, args=flags.split())


@pytest.fixture(scope="module")
def browser(launch: Launch) -> Iterator[Any]:
    chromium = launch(FLAGS)
    yield chromium
    chromium.close()


class Opened:
    """A page in a browser without a network, and what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, scheme: str = "light") -> None:
        self.context = browser.new_context(offline=True, color_scheme=scheme, viewport=SIZE)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url.partition(":")[0]))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.page.goto(file.resolve().as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until what has changed is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.wait_for_timeout(50)

    def canvas(self, caption: str) -> Any:
        """The canvas of the figure whose caption begins so."""
        figure = self.page.locator("figure.mesh-view", has=self.page.locator("figcaption", has_text=caption)).first
        return figure.locator("canvas")

    def drawn(self, caption: str) -> np.ndarray:
        """Red, green, blue, cover of the canvas itself; nothing of the page behind it."""
        self.canvas(caption).scroll_into_view_if_needed()
        self.settle()
        url = self.canvas(caption).evaluate("(canvas) => canvas.toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")).astype(int)

    def drag(self, caption: str, dx: int, dy: int = 0) -> None:
        box = self.canvas(caption).bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + dx, y + dy, steps=4)
        self.page.mouse.up()


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    it = Opened(browser, run / "report.html")
    yield it
    assert it.asked == ["file"] or set(it.asked) == {"file", "data"}
    assert it.asked.count("file") == 1
    assert not it.complaints
    it.context.close()


def cropped(image: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is covered, on 128 x 128 pixels."""
    rows, columns = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shown = Image.fromarray(np.dstack([image[..., :3], 255 * cover])[window].astype(np.uint8)).resize((128, 128))
    both = np.asarray(shown).astype(int)
    return both[..., :3], both[..., 3] > 127


def test_the_page_is_small_and_says_what_the_scores_say(opened: Opened, run: Path) -> None:
    assert (run / "report.html").stat().st_size < MOST
    assert opened.page.title() == "Run <small>&"
    rows = opened.page.locator("section", has_text="Percentiles: unseen_people").locator("tbody tr").all_inner_texts()
    cells = {tuple(line[:3]): line[4:] for line in (row.split("\t") for row in rows)}
    for file, label in ((run, "<small>& by encode"), (run / "humans", "humans by lm")):
        scores = json.loads((file / "scores.json").read_text())
        for column, statistics in scores["summary"]["unseen_people"]["surface_distance"].items():
            shown = [float(cell) for cell in cells[label, "surface_distance", column][:4]]
            wanted = [statistics[key] for key in ("median", "mean", "p5", "p95")]
            assert shown == pytest.approx(wanted, rel=0.006), (label, column)
        for word, row in best_median_worst(scores["rows"], "unseen_people").items():
            caption = (
                f"{word}: {row['name']}, completeness {row['surface_distance']['completeness']:.2f} mm, "
                f"accuracy {row['surface_distance']['accuracy']:.2f} mm"
            )
            assert opened.page.get_by_text(caption, exact=True).count() == 1
    for title in ("Training", "Settings", "Data", "Hardware", "Interpolation", "Errors of all scans"):
        assert opened.page.get_by_role("heading", name=title, exact=True).count() == 1


def test_a_mesh_is_drawn_as_the_renderer_draws_it(opened: Opened, run: Path) -> None:
    row = best_median_worst(json.loads((run / "humans" / "scores.json").read_text())["rows"], "unseen_people")["best"]
    seen = opened.drawn(f"best: {row['name']}, completeness {row['surface_distance']['completeness']:.2f}")
    assert 0.05 < (seen[..., 3] > 127).mean() < 0.6
    assert not seen[[0, -1], :, 3].any()
    mesh = colors.color_by_quality(scan_files.read_mesh(mesh_file(run / "humans", "unseen_people", row["name"])))
    wanted = renderer.render([mesh], size=512).astype(int)
    bare = wanted.copy()
    paper = 255 * np.array(renderer.PAPER)
    ours, cover = cropped(seen, seen[..., 3] > 127)
    theirs, solid = cropped(bare, (np.abs(bare - paper).max(axis=-1) > 8) & ~shadowed(bare))
    assert (cover & solid).sum() / (cover | solid).sum() > 0.9
    inside = cover & solid
    assert np.abs(ours - theirs)[inside].mean() < 20
    assert np.median(np.abs(ours - theirs)[inside]) < 8


def shadowed(image: np.ndarray) -> np.ndarray:
    """Grey of the paper, darker: the shadow on the floor."""
    shades = image / np.array(renderer.PAPER)
    return np.ptp(shades, axis=-1) < 4


def test_a_drag_turns_its_group_and_a_double_click_turns_it_back(opened: Opened, run: Path) -> None:
    scores = json.loads((run / "humans" / "scores.json").read_text())["rows"]
    best, worst = (
        f"{word}: {row['name']}, completeness {row['surface_distance']['completeness']:.2f}"
        for word, row in best_median_worst(scores, "unseen_people").items()
        if word != "median"
    )
    before, beside = opened.drawn(best), opened.drawn(worst)
    way = opened.page.locator("section", has_text="Interpolation").last.locator("canvas")
    other = way.evaluate("(canvas) => canvas.toDataURL()")
    opened.drag(best, 120, 20)
    after = opened.drawn(best)
    assert (np.abs(after - before).max(axis=-1) > 20).mean() > 0.03
    assert (np.abs(opened.drawn(worst) - beside).max(axis=-1) > 20).mean() > 0.03
    assert way.evaluate("(canvas) => canvas.toDataURL()") == other
    opened.canvas(best).dblclick()
    assert (opened.drawn(best) == before).all()
    opened.page.keyboard.press("ArrowLeft")
    assert (opened.drawn(best) != before).any()
    opened.page.keyboard.press("0")
    assert (opened.drawn(best) == before).all()


def test_the_wheel_comes_nearer_only_to_what_was_clicked(opened: Opened) -> None:
    first = opened.page.locator("figcaption").filter(has_text="best:").first.inner_text()
    before = opened.drawn(first)
    box = opened.canvas(first).bounding_box()
    opened.page.mouse.move(box["x"] + 50, box["y"] + 50)
    opened.page.mouse.wheel(0, -100)
    opened.settle()
    assert (opened.drawn(first) == before).all()
    opened.canvas(first).click()
    opened.page.mouse.wheel(0, -400)
    opened.settle()
    assert (opened.drawn(first)[..., 3] > 127).sum() > 1.5 * (before[..., 3] > 127).sum()


def test_a_path_is_played_and_stopped(opened: Opened) -> None:
    section = opened.page.locator("section", has_text="Interpolation").last
    slider, button = section.locator("input"), section.locator("button")
    caption = section.locator("figcaption").inner_text()
    first = opened.drawn(caption)
    slider.focus()
    opened.page.keyboard.press("End")
    assert slider.input_value() == slider.get_attribute("max") == "8"
    last = opened.drawn(caption)
    assert (last != first).any()
    opened.page.keyboard.press("Home")
    assert (opened.drawn(caption) == first).all()
    button.click()
    assert button.inner_text() == "Pause"
    opened.page.wait_for_function("(slider) => slider.value >= 2", arg=slider.element_handle(), timeout=20_000)
    button.click()
    held = slider.input_value()
    opened.page.wait_for_timeout(900)
    assert (button.inner_text(), slider.input_value()) == ("Play", held)


def test_without_webgl_there_are_pictures(launch: Launch, run: Path) -> None:
    chromium = launch("--no-sandbox --disable-gpu --disable-3d-apis --disable-background-networking")
    opened = Opened(chromium, run / "report.html")
    images, canvases = (opened.page.locator(f".mesh-view {tag}") for tag in ("img", "canvas"))
    assert images.count() == canvases.count() == 7
    assert all(image.is_visible() for image in images.all())
    assert not any(canvas.is_visible() for canvas in canvases.all())
    assert images.first.evaluate("(image) => image.naturalWidth") > 50
    assert opened.page.locator(".play:visible").count() == 0
    assert not opened.complaints
    chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, run: Path, scheme: str) -> None:
    opened = Opened(browser, run / "report.html", scheme)
    section = opened.page.locator("section", has_text="Fits: unseen_people, humans by lm").last
    section.scroll_into_view_if_needed()
    opened.settle()
    shot = section.screenshot()
    image = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
    paper = image[2, 2]
    assert (paper.min() > 230) if scheme == "light" else (paper.max() < 60)
    shown = image[: image.shape[0] // 2]
    body = np.abs(shown - paper).max(axis=-1) > 40
    assert 0.03 < body.mean() < 0.5
    if folder := os.environ.get("SHAPESPACE_SCREENSHOTS"):
        Image.fromarray(image.astype(np.uint8)).save(Path(folder) / "pictures" / f"report_{scheme}.png", optimize=True)
    opened.context.close()
