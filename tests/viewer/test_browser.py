"""The viewer in a real browser. Slow: without a graphics card the browser draws on the CPU.

With SHAPESPACE_SCREENSHOTS=FOLDER the screenshots of docs/guide/viewer.md go to FOLDER/viewer (`make gallery`).
"""

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from trimesh import Trimesh

from shapespace import ShapeSpace
from shapespace.geometry.scan import Scan
from shapespace.io import scan_files
from shapespace.models import igr
from shapespace.synthetic.body import Body
from shapespace.synthetic.scanner import VirtualScanner
from shapespace.viewer.app import PANEL_WIDTH, Viewer
from shapespace.viewer.fitted_scans import ScanCollection

pytestmark = pytest.mark.slow
pytest.importorskip("viser", reason="the extra `view` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# The scene is drawn by SwiftShader, and the page around it without: two of them would wait for each other.
FLAGS = (
    "--no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --disable-gpu-compositing "
    "--disable-background-networking"
)
PATIENCE = 240  # seconds; a busy machine
SIZE = (940, 640)
SHADOW = 12  # pixels that the controls cast beside them


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def space() -> ShapeSpace:
    """Its shapes are about balls of a meter; its code changes them by centimeters."""
    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=64, depth=3, skip=1, init_radius=0.4, encoder_points=128)
    model = igr.build_igr(sizes).eval()
    model.prior.covariance *= 100
    return ShapeSpace(model, sizes, scale=2.0, metadata={"weights": {}})


@pytest.fixture(scope="module")
def scan(space: ShapeSpace) -> Scan:
    return Scan(
        "a/b/0",
        space.mesh(space.from_principal_components([2.0]), resolution=32).sample(4000, seed=0).astype(np.float32),
    )


@pytest.fixture(scope="module")
def viewer(space: ShapeSpace, scan: Scan) -> Iterator[Viewer]:
    with Viewer(
        ScanCollection(space, [scan], lambda _: space.mesh(space.from_principal_components([2.0]), resolution=48)),
        port=0,
    ) as viewer:
        yield viewer


def opened(browser: Any, viewer: Viewer, size: tuple[int, int] = SIZE, sharp: float = 0.5) -> Any:
    """A page of a visitor's own; anything that it asks of another machine is an error.

    `sharp` is the share of the scene's pixels, along each edge, that are drawn.
    """
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}, accept_downloads=True).new_page()
    page.set_default_timeout(1000 * PATIENCE)

    def local(route: Any) -> None:
        assert route.request.url.startswith((viewer.address, "data:", "blob:")), route.request.url
        route.continue_()

    page.route("**/*", local)
    page.goto(f"{viewer.address}/?fixedDpr={sharp}")
    wait(page, "after the request")
    page.get_by_role("alert").get_by_role("button").click()  # that there is no graphics card
    return page


def wait(page: Any, words: str) -> None:
    page.wait_for_function("words => document.body.innerText.includes(words)", arg=words, timeout=1000 * PATIENCE)


Look = Callable[[np.ndarray], Any]


def seen(page: Any, *looks: Look) -> np.ndarray:
    """What is left of the controls, once all of these are true of it."""
    end = time.monotonic() + PATIENCE
    while True:
        image = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)
        image = image[:, : image.shape[1] - PANEL_WIDTH - SHADOW]
        if all(look(image) for look in looks):
            return image
        assert time.monotonic() < end, f"not to be seen: {[bool(look(image)) for look in looks]}, {counts(image)}"
        page.wait_for_timeout(300)


def many(mask: Look, most: float = np.inf, *, least: int = 800) -> Look:
    """That the mask holds of so many pixels."""
    return lambda image: least < mask(image).sum() < most


def few(mask: Look) -> Look:
    return many(mask, 100, least=-1)


def inside(image: np.ndarray) -> bool:
    """That no shape reaches over the left or the right edge."""
    return not (clay(image) | bluish(image) | dots(image))[:, [0, -1]].any()


def counts(image: np.ndarray) -> dict[str, int]:
    return {mask.__name__: int(mask(image).sum()) for mask in (clay, bluish, dots, dark, orange)}


def clay(image: np.ndarray) -> np.ndarray:
    """Pixels of the fit in its own color: reddish, lit or shaded."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 25) & (red > green) & (green > blue)


def bluish(image: np.ndarray) -> np.ndarray:
    """Pixels of the truth."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (blue - red > 8) & (blue > green)


def dots(image: np.ndarray) -> np.ndarray:
    """Pixels of the scan: greys, lit or shaded, darker than the floor's lines."""
    return (np.ptp(image, axis=-1) < 10) & (image[..., 0] > 70) & (image[..., 0] < 180)


def dark(image: np.ndarray) -> np.ndarray:
    """Pixels in the last color of the legend, lit or shaded."""
    red, green, _ = np.moveaxis(image, -1, 0)
    return (red - green > 30) & (green < 100)


def orange(image: np.ndarray) -> np.ndarray:
    """Pixels of a slice outside, far from the surface."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red - blue > 60) & (red > green)


def purple(image: np.ndarray) -> np.ndarray:
    """Pixels of a slice inside."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (blue - green > 12) & (red - green > 2)


def columns(mask: np.ndarray) -> float:
    """Where the pixels lie, from 0 at the left to 1 at the right."""
    return float(np.flatnonzero(mask.any(axis=0)).mean()) / mask.shape[1]


def test_scan_fit_and_truth_stand_side_by_side_and_can_be_hidden(browser: Any, viewer: Viewer) -> None:
    page = opened(browser, viewer)
    wait(page, "Metric surface_distance: completeness")
    both = re.search(r"Half of the scan is within ([\d.]+) mm, 95 % within ([\d.]+) mm", page.inner_text("body"))
    assert both is not None
    assert 0 < float(both[1]) < float(both[2]) < 100
    shown = seen(page, many(clay), many(bluish), many(dots), inside)
    assert columns(dots(shown)) < columns(clay(shown)) < columns(bluish(shown))
    page.get_by_label("show prediction", exact=True).click()
    seen(page, few(clay), many(bluish), many(dots))
    page.get_by_label("show prediction", exact=True).click()
    page.get_by_label("show ground truth", exact=True).click()
    page.get_by_label("side by side", exact=True).click()
    seen(page, many(clay), many(dots, least=100), lambda image: abs(columns(dots(image)) - columns(clay(image))) < 0.1)
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
    expected = space.mesh(space.from_principal_components([value]), resolution=128)
    wait(page, f"128 cells, {len(expected.vertices):,} vertices")
    seen(page, many(clay), few(bluish), few(dots))  # what is no fit has neither scan nor truth
    page.context.close()


def test_a_slice_shows_the_field_and_what_is_behind(browser: Any, viewer: Viewer) -> None:
    page = opened(browser, viewer)
    whole = clay(seen(page, many(clay))).sum()
    page.get_by_role("tab", name="Slice").click()
    page.get_by_label("show slice", exact=True).click()
    seen(page, many(orange, least=3000), many(purple))
    page.get_by_label("normal axis", exact=True).click()
    page.get_by_role("option", name="y", exact=True).click()
    seen(page, many(orange), many(clay, 0.9 * whole))  # of what stands below the plane, some is seen
    page.get_by_label("show slice", exact=True).click()
    seen(page, few(orange), many(clay, least=int(0.9 * whole)))
    page.context.close()


def upload(page: Any, path: Path) -> None:
    """Choose a file as people do; the button is not to be had while another one is fitted."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Fit a scan file").click()
    chooser.value.set_files(path)


def test_scans_are_uploaded_and_files_that_are_none_or_huge(
    browser: Any, viewer: Viewer, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_files.write_scan(tmp_path / "me.ply", scan)
    (tmp_path / "words.ply").write_text("these are words")
    (tmp_path / "huge.ply").write_bytes(bytes(300_000))
    for module in ("scene", "access"):
        monkeypatch.setattr(f"shapespace.viewer.{module}.MAX_UPLOAD", 200_000)
    page = opened(browser, viewer)
    upload(page, tmp_path / "huge.ply")
    wait(page, "huge.ply: 300,000 bytes, the limit is 200,000.")
    upload(page, tmp_path / "words.ply")
    wait(page, "words.ply: truncated inside the header, or not a PLY file. Copy it again.")
    assert "Traceback" not in page.inner_text("body")
    chosen = page.get_by_label("scan", exact=True)
    for name in ("me.ply", "me.ply again"):  # one after the other
        upload(page, tmp_path / "me.ply")
        page.wait_for_function("([it, name]) => it.value === name", arg=[chosen.element_handle(), name])
        wait(page, "Uncertainty (standard deviation of the surface): median")
        wait(page, "istribution: score")
    wait(page, "30 mm or more")  # the legend
    # It is sure to within millimeters, so that the mesh is pale if the colors end at 30, and dark if they do at 1.
    seen(page, many(dots), few(dark))
    limit = page.get_by_label("end of the color scale (mm)", exact=True)
    limit.fill("1")
    limit.press("Enter")
    seen(page, many(dark))
    wait(page, "1 mm or more")
    with page.expect_download() as download:
        page.get_by_role("tab", name="Export").click()
        page.get_by_role("button", name="Export the shown mesh").click()
    assert download.value.suggested_filename == "me.ply"
    download.value.save_as(tmp_path / "mesh.ply")
    assert scan_files.read_mesh(tmp_path / "mesh.ply").is_watertight
    page.context.close()


def test_five_browsers_do_not_mix(browser: Any, viewer: Viewer, space: ShapeSpace) -> None:
    pages = [opened(browser, viewer, (720, 420), sharp=0.25) for _ in range(5)]  # small: all are drawn by one processor
    for number, page in enumerate(pages, 1):
        page.get_by_role("tab", name="Shapes").click()
        page.get_by_role("slider").nth(number % 4).focus()
        for _ in range(number):
            page.keyboard.press("ArrowRight")
    for number, page in enumerate(pages, 1):
        own = [0.0] * 4
        own[number % 4] = number / 10
        wait(
            page,
            f"128 cells, {len(space.mesh(space.from_principal_components(own), resolution=128).vertices):,} vertices",
        )
        values = [float(slider.get_attribute("aria-valuenow")) for slider in page.get_by_role("slider").all()]
        assert values[:4] == pytest.approx(own)
        seen(page, many(clay, least=100))
    for page in pages:
        page.context.close()


def test_what_the_docs_show(browser: Any, tmp_path: Path) -> None:
    """A person whom `humans` has never seen: the fit in the colors of its errors, a slice, and the same as upload."""
    body, rng = Body.load(), np.random.default_rng(12)
    vertices = body.skin(body.sample_shape(rng), np.tile(np.eye(3), (len(body.joints), 1, 1)))
    scan = VirtualScanner().scan(vertices, body.faces, rng, "person")
    ground_truth = Trimesh(vertices, body.faces, process=False)
    scan_files.write_scan(tmp_path / "me.ply", scan)
    folder = tmp_path
    if screenshots := os.environ.get("SHAPESPACE_SCREENSHOTS"):
        folder = Path(screenshots) / "viewer"
        folder.mkdir(exist_ok=True)

    def keep(page: Any, name: str) -> None:
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        image.save(folder / f"{name}.png", optimize=True)
        assert (folder / f"{name}.png").stat().st_size < 200_000

    with Viewer(
        ScanCollection(ShapeSpace.load("humans"), [scan], lambda _: ground_truth), title="humans", port=0
    ) as viewer:
        page = opened(browser, viewer, sharp=1.0)
        wait(page, "Metric surface_distance")
        page.get_by_role("tab", name="Shapes").click()
        page.get_by_role("slider").first.focus()
        page.keyboard.press("End")
        seen(page, many(clay), few(bluish), few(dots))
        wait(page, "Registered")
        keep(page, "shapes")
        page.get_by_role("tab", name="Scans").click()
        page.get_by_role("button", name="Show the scan").click()
        page.get_by_label("color", exact=True).click()
        page.get_by_role("option", name="mesh to ground truth").click()
        seen(page, many(bluish), many(dots), inside)
        wait(page, "Metric surface_distance")
        keep(page, "errors")
        limit = page.get_by_label("end of the color scale (mm)", exact=True)
        for end, dark_pixels in (("1", many(dark, least=100)), ("20", few(dark))):  # the errors are about 0.5 mm
            limit.fill(end)
            limit.press("Enter")
            seen(page, many(bluish), many(dots), dark_pixels, inside)
        page.get_by_role("tab", name="Slice").click()
        page.get_by_label("show slice", exact=True).click()
        seen(page, many(orange, least=5000))
        wait(page, "Metric surface_distance")
        keep(page, "slice")
        page.get_by_label("show slice", exact=True).click()
        page.get_by_role("tab", name="Scans").click()
        upload(page, tmp_path / "me.ply")
        wait(page, "Uncertainty (standard deviation of the surface): median")
        wait(page, "istribution: score")
        seen(page, many(dots), few(bluish))
        keep(page, "upload")
        page.context.close()
