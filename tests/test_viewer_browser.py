"""The viewer in a real browser: what people see and do. Slow: a browser without a graphics card draws by itself."""

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trimesh import Trimesh

from shapespace import ShapeSpace, build
from shapespace.data import files
from shapespace.data.body import Body
from shapespace.data.scan import Scan
from shapespace.data.scanner import Scanner
from shapespace.stage import Gallery
from shapespace.viewer import Viewer

pytestmark = pytest.mark.slow
pytest.importorskip("viser", reason="the extra `view` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = "--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --disable-background-networking"
PATIENCE = 240_000  # milliseconds; a busy machine
SIZE = (1000, 680)
PANEL = 330  # pixels at the right that the controls cover


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def space() -> ShapeSpace:
    """Its shapes are about balls of a metre; its code changes them by centimetres."""
    torch.manual_seed(0)
    sizes = build.IGRSizes(code=4, width=64, depth=3, skip=1, radius=0.4, encoder_points=128)
    model = build.igr(sizes).eval()
    model.prior.covariance *= 100
    return ShapeSpace(model, sizes, scale=2.0, about={"weights": {}})


@pytest.fixture(scope="module")
def scan(space: ShapeSpace) -> Scan:
    return Scan("a/b/0", space.mesh(space.along([2.0]), resolution=32).sample(4000, seed=0).astype(np.float32))


@pytest.fixture(scope="module")
def viewer(space: ShapeSpace, scan: Scan) -> Iterator[Viewer]:
    with Viewer(Gallery(space, [scan], lambda _: space.mesh(space.along([2.0]), resolution=48)), port=0) as viewer:
        yield viewer


def opened(browser: Any, viewer: Viewer, size: tuple[int, int] = SIZE) -> Any:
    """A page of a visitor's own; anything that it asks of another machine is an error."""
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True).new_page()
    page.set_default_timeout(PATIENCE)

    def local(route: Any) -> None:
        assert route.request.url.startswith((viewer.address, "data:", "blob:")), route.request.url
        route.continue_()

    page.route("**/*", local)
    page.goto(viewer.address)
    wait(page, "after the wish")
    page.get_by_role("alert").get_by_role("button").click()  # that there is no graphics card
    return page


def wait(page: Any, words: str) -> None:
    page.wait_for_function("words => document.body.innerText.includes(words)", arg=words, timeout=PATIENCE)


def picture_of(page: Any) -> np.ndarray:
    """What is left of the controls, once it does not change any more."""
    before = np.zeros(0)
    for _ in range(40):
        page.wait_for_timeout(700)
        now = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)[:, : SIZE[0] - PANEL]
        if np.array_equal(before, now):
            return now
        before = now
    raise AssertionError("the picture does not come to rest")


def clay(image: np.ndarray) -> np.ndarray:
    """Pixels of the fit in its own colour: reddish, lit or shaded."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 25) & (red > green) & (green > blue)


def bluish(image: np.ndarray) -> np.ndarray:
    """Pixels of the truth."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (blue - red > 8) & (blue > green)


def dots(image: np.ndarray) -> np.ndarray:
    """Pixels of the scan: its grey, which no light changes."""
    return (np.abs(image - (120, 118, 115)) < 8).all(axis=-1)


def dark(image: np.ndarray) -> np.ndarray:
    """Pixels in the last colour of the legend, lit or shaded."""
    red, green, _ = np.moveaxis(image, -1, 0)
    return (red - green > 30) & (green < 100)


def orange(image: np.ndarray) -> np.ndarray:
    """Pixels of a slice outside, far from the surface."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 60) & (red > green)


def columns(mask: np.ndarray) -> float:
    """Where the pixels lie, from 0 at the left to 1 at the right."""
    return float(np.flatnonzero(mask.any(axis=0)).mean()) / mask.shape[1]


def test_scan_fit_and_truth_stand_side_by_side_and_can_be_hidden(browser: Any, viewer: Viewer) -> None:
    page = opened(browser, viewer)
    wait(page, "Protocol surface: truth to found")
    both = re.search(r"Half of the scan is within ([\d.]+) mm, 95 % within ([\d.]+) mm", page.inner_text("body"))
    assert both is not None
    assert 0 < float(both[1]) < float(both[2]) < 100
    shown = picture_of(page)
    assert min(mask(shown).sum() for mask in (clay, bluish, dots)) > 800
    assert columns(dots(shown)) < columns(clay(shown)) < columns(bluish(shown))
    page.get_by_label("show fit", exact=True).click()
    hidden = picture_of(page)
    assert clay(hidden).sum() < 0.02 * clay(shown).sum()
    assert bluish(hidden).sum() > 800
    page.get_by_label("show fit", exact=True).click()
    page.get_by_label("side by side", exact=True).click()
    overlaid = picture_of(page)
    assert abs(columns(dots(overlaid)) - columns(clay(overlaid))) < 0.1
    page.context.close()


def test_a_slider_is_dragged_and_the_shape_follows(browser: Any, viewer: Viewer, space: ShapeSpace) -> None:
    page = opened(browser, viewer)
    page.get_by_role("tab", name="Shapes").click()
    thumb = page.get_by_role("slider").first
    box = thumb.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for step in range(1, 8):
        page.mouse.move(box["x"] + box["width"] / 2 + 8 * step, box["y"] + box["height"] / 2)
    page.mouse.up()
    value = float(thumb.get_attribute("aria-valuenow"))
    assert value > 1
    assert float(thumb.get_attribute("aria-valuemax")) == 3
    expected = space.mesh(space.along([value]), resolution=128)
    wait(page, f"128 cells, {len(expected.vertices):,} vertices")
    shown = picture_of(page)
    assert clay(shown).sum() > 800
    assert bluish(shown).sum() < 100  # what is no fit has neither scan nor truth
    assert dots(shown).sum() < 100
    page.context.close()


def test_a_scan_is_dropped_and_a_file_that_is_none(browser: Any, viewer: Viewer, scan: Scan, tmp_path: Path) -> None:
    files.write_scan(tmp_path / "me.ply", scan)
    (tmp_path / "words.ply").write_text("these are words")
    page = opened(browser, viewer)
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(tmp_path / "words.ply")
    wait(page, "words.ply is cut off inside its header or is not a PLY file. Copy or download it again.")
    assert "Traceback" not in page.inner_text("body")
    chooser.set_input_files(tmp_path / "me.ply")
    wait(page, "Uncertainty, one standard deviation: median")
    wait(page, "the oddness of its code is")
    assert page.get_by_label("scan", exact=True).input_value() == "me.ply"
    assert "millimetres" in page.inner_text("body")
    assert page.locator("img:visible").last.bounding_box()["width"] > 100  # the legend
    # It is sure to within millimetres, so that the mesh is pale if the colours end at 30, and dark if they do at 1.
    assert dark(picture_of(page)).sum() < 100
    limit = page.get_by_label("colours end at (mm)", exact=True)
    limit.fill("1")
    limit.press("Enter")
    page.wait_for_timeout(3000)
    assert dark(picture_of(page)).sum() > 3000
    with page.expect_download() as download:
        page.get_by_role("tab", name="Export").click()
        page.get_by_role("button", name="Export the shown mesh").click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    mesh = files.read_mesh(tmp_path / "me.ply")
    assert mesh.is_watertight
    page.context.close()


def test_five_browsers_do_not_mix(browser: Any, viewer: Viewer, space: ShapeSpace) -> None:
    pages = [opened(browser, viewer, (560, 420)) for _ in range(5)]  # small: five are drawn without a graphics card
    presses = (0, 6, 12, 18, 24)
    for page, count in zip(pages, presses, strict=True):
        page.get_by_role("tab", name="Shapes").click()
        slider = page.get_by_role("slider").first
        slider.focus()
        for _ in range(count + 1):
            page.keyboard.press("ArrowRight")
    for page, count in zip(pages, presses, strict=True):
        value = (count + 1) / 10
        wait(page, f"128 cells, {len(space.mesh(space.along([value]), resolution=128).vertices):,} vertices")
        assert float(page.get_by_role("slider").first.get_attribute("aria-valuenow")) == pytest.approx(value)
    for page in pages:
        page.context.close()


def test_what_the_docs_show(browser: Any, tmp_path: Path) -> None:
    """A person whom `humans` has never seen: its scan, its fit in the colours of its distance to the truth, a slice.

    Leaves the pictures of docs/viewer.md in the folder of the test; `--basetemp` says where that is.
    """
    body, rng = Body.load(), np.random.default_rng(12)
    vertices = body.pose(body.draw(rng), np.tile(np.eye(3), (len(body.joints), 1, 1)))
    scan = Scanner().scan(vertices, body.faces, rng, "person")
    truth = Trimesh(vertices, body.faces, process=False)
    gallery = Gallery(ShapeSpace.load("humans"), [scan], lambda _: truth)
    with Viewer(gallery, title="humans", port=0) as viewer:
        page = opened(browser, viewer)
        wait(page, "Protocol surface")
        page.get_by_label("colour", exact=True).click()
        page.get_by_role("option", name="mesh to truth").click()
        shown = picture_of(page)
        page.screenshot(path=tmp_path / "viewer.png")
        assert min(mask(shown).sum() for mask in (bluish, dots)) > 800
        assert clay(shown).sum() < 1000
        page.get_by_role("tab", name="Slice").click()
        page.get_by_label("show a slice", exact=True).click()
        page.wait_for_timeout(2000)
        shown = picture_of(page)
        page.screenshot(path=tmp_path / "viewer_slice.png")
        assert orange(shown).sum() > 10_000  # outside, far from the surface
        page.context.close()
    for name in ("viewer.png", "viewer_slice.png"):
        Image.open(tmp_path / name).convert("RGB").save(tmp_path / name, optimize=True)
        assert (tmp_path / name).stat().st_size < 200_000
