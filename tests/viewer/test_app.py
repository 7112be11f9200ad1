"""Pages of the viewer, tested by a client that speaks viser's protocol without a browser."""

import dataclasses
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from shapespace import ShapeSpace
from shapespace.geometry.scan import Scan
from shapespace.models import igr
from shapespace.viewer.access import same_site
from shapespace.viewer.app import Viewer
from shapespace.viewer.body_parts import BodyParts
from shapespace.viewer.controls import escape_text
from shapespace.viewer.fitted_scans import FittedScan, ScanCollection
from shapespace.viewer.pose_controls import MAX_ANGLE
from shapespace.viewer.request import JointTurn
from shapespace.viewer.scene import MAX_UPLOAD

viser = pytest.importorskip("viser", reason="the extra `view` is not installed")
msgspec = pytest.importorskip("msgspec")
zstandard = pytest.importorskip("zstandard")
client = pytest.importorskip("websockets.sync.client")

PATIENCE = 60.0  # seconds; a busy machine


class Visitor:
    """A page without a window: what it was sent, by the names and labels of nodes and controls."""

    def __init__(self, port: int, origin: str | None = None) -> None:
        self.controls: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.downloads: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        self._socket = client.connect(
            f"ws://127.0.0.1:{port}", subprotocols=[f"viser-v{viser.__version__}"], origin=origin, max_size=None
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        camera = {"wxyz": (1, 0, 0, 0), "position": (0, 1, 4), "look_at": (0, 1, 0), "up_direction": (0, 1, 0)}
        self.send("ViewerCameraMessage", **camera, fov=1.0, near=0.1, far=9.0, image_height=600, image_width=800)

    def close(self) -> None:
        self._socket.close()
        self._thread.join(10)

    def send(self, kind: str, **fields: Any) -> None:
        self._socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def _listen(self) -> None:
        try:
            for data in self._socket:
                size = int.from_bytes(data[8:16], "little")
                heard = msgspec.msgpack.decode(zstandard.ZstdDecompressor().decompress(data[16 : 16 + size]))
                at, buffers = 16 + size, []
                for length in heard["binaryBufferLengths"]:
                    at += -at % 8
                    buffers.append(data[at : at + length])
                    at += length
                with self._changed:
                    for message in heard["messages"]:
                        self._hear(_filled(message, buffers))
                    self._changed.notify_all()
        except Exception as error:
            if "ConnectionClosed" not in type(error).__name__:
                raise

    def _hear(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "GuiUpdateMessage":
            control = self.controls[message["uuid"]]
            for key, value in message["updates"].items():
                (control if key == "value" else control["props"])[key] = value
        elif kind.startswith("Gui") and "uuid" in message and "props" in message:
            self.controls[message["uuid"]] = message
        elif kind == "RemoveSceneNodeMessage":
            self.nodes.pop(message["name"], None)
        elif kind == "SceneNodeUpdateMessage":
            self.nodes[message["name"]]["props"].update(message["updates"])
        elif kind == "SetSceneNodeVisibilityMessage" and message["name"] in self.nodes:
            self.nodes[message["name"]]["visible"] = message["visible"]
        elif "name" in message and "props" in message:
            self.nodes[message["name"]] = message
        elif kind in ("FileTransferStartDownload", "FileTransferPart"):
            self.downloads.append(message)

    def control(self, label: str, kind: str = "") -> dict[str, Any]:
        """The control of that label; Markdown has none, and is found by its kind."""
        (found, *_) = (
            it for it in self.controls.values() if it["props"].get("label") == label and it["type"].startswith(kind)
        )
        return found

    def set(self, label: str, value: Any) -> None:
        control = self.control(label)
        control["value"] = value
        self.send("GuiUpdateMessage", uuid=control["uuid"], updates={"value": value})

    def upload(self, name: str, data: bytes, *, announced: int | None = None) -> None:
        button, ticket = self.control("Fit a scan file")["uuid"], f"{name}-{time.time()}"
        self.send(
            "FileTransferStartUpload",
            source_component_uuid=button,
            transfer_uuid=ticket,
            filename=name,
            mime_type="",
            part_count=1 if data else 0,
            size_bytes=len(data) if announced is None else announced,
        )
        if data:
            part = {"source_component_uuid": button, "transfer_uuid": ticket, "part_index": 0, "content": data}
            self.send("FileTransferPart", **part)

    @property
    def legend(self) -> dict[str, Any]:
        """The only control that is HTML."""
        (found,) = (it for it in self.controls.values() if it["type"] == "GuiHtmlMessage")
        return found

    @property
    def words(self) -> str:
        """All that the page says."""
        return "\n".join(it["props"].get("_markdown") or "" for it in self.controls.values())

    def vertices(self) -> np.ndarray | None:
        """Of the mesh that is shown."""
        node = self.nodes.get("/prediction/mesh")
        return None if node is None else np.frombuffer(node["props"]["vertices"], np.float32).reshape(-1, 3)

    def wait(self, until: Callable[["Visitor"], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.controls) and until(self), PATIENCE), self.words

    def wait_words(self, words: str) -> None:
        self.wait(lambda page: words in page.words)


def _filled(value: Any, buffers: list[bytes]) -> Any:
    """A message with its arrays."""
    if isinstance(value, dict):
        if "__binary_index" in value:
            return buffers[value["__binary_index"]]
        return {key: _filled(item, buffers) for key, item in value.items()}
    return [_filled(item, buffers) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def space() -> ShapeSpace:
    """Its shapes are about balls of a meter; its code changes them by centimeters."""
    torch.manual_seed(0)
    sizes = igr.IGRConfig(code_dim=4, width=64, depth=3, skip=1, init_radius=0.5, encoder_points=128)
    model = igr.build_igr(sizes).eval()
    model.prior.covariance *= 100
    return ShapeSpace(model, sizes, scale=2.0, metadata={"weights": {}})


@pytest.fixture(scope="module")
def scan(space: ShapeSpace) -> Scan:
    return Scan(
        "a/b/0",
        space.mesh(space.from_principal_components([2.0]), resolution=32).sample(2000, seed=0).astype(np.float32),
    )


@pytest.fixture(scope="module")
def viewer(space: ShapeSpace, scan: Scan) -> Iterator[Viewer]:
    with Viewer(
        ScanCollection(space, [scan], lambda _: space.mesh(space.from_principal_components([2.0]), resolution=48)),
        port=0,
    ) as viewer:
        yield viewer


@pytest.fixture
def visit(viewer: Viewer) -> Iterator[Callable[..., Visitor]]:
    with ExitStack() as stack:

        def visited(**how: Any) -> Visitor:
            visitor = Visitor(viewer.port, **how)
            stack.callback(visitor.close)
            return visitor

        yield visited


# ------------------------------------------------------------------------------------------------------------- the page


def test_a_page_shows_the_first_scan_with_its_numbers(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait_words(escape_text("Metric surface_distance: completeness"))
    assert "128 cells" in page.words
    assert {"/scan/points", "/prediction/mesh", "/ground_truth/mesh"} <= page.nodes.keys()
    page.set("show ground truth", False)
    page.wait(lambda page: page.nodes["/ground_truth"].get("visible") is False)
    legend = page.legend["props"]
    assert not legend["visible"]
    page.set("color", "scan to mesh")
    page.wait_words("Distance from scan to mesh: median")
    assert legend["visible"]
    assert "20 mm or more" in legend["content"]


def test_five_visitors_do_not_mix(visit: Callable[..., Visitor], space: ShapeSpace) -> None:
    pages = [visit() for _ in range(5)]
    for page in pages:
        page.wait(lambda page: page.vertices() is not None)
    shares = (-3.0, -1.5, 0.0, 1.5, 3.0)
    for page, share in zip(pages, shares, strict=True):
        page.set("fine mesh", "64 cells")
        page.set("component 2", share + 0.1)  # a request that the next line replaces
        page.set("component 2", share)
        page.set("component 1", -share)
    for page, share in zip(pages, shares, strict=True):
        own = space.mesh(space.from_principal_components([-share, share, 0.0, 0.0]), resolution=64)

        def same(page: Visitor, own: Any = own) -> bool:
            shown = page.vertices()
            return shown is not None and shown.shape == own.vertices.shape and bool(np.allclose(shown, own.vertices))

        page.wait(same)
    for page, share in zip(pages, shares, strict=True):
        assert (page.control("component 1")["value"], page.control("component 2")["value"]) == (-share, share)
        assert page.control("component 3")["value"] == 0.0


def test_play_goes_there_and_back(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.set("fraction", 0.95)
    page.wait_words("cells")
    seen = list[float]()
    button = page.control("Play")
    page.send("GuiUpdateMessage", uuid=button["uuid"], updates={"value": True})

    def turned(page: Visitor) -> bool:
        seen.append(page.control("fraction")["value"])
        return max(seen) == 1.0 and seen[-1] < 0.9

    page.wait(turned)
    assert button["props"]["label"] == "Stop"
    page.send("GuiUpdateMessage", uuid=button["uuid"], updates={"value": True})
    page.wait(lambda page: button["props"]["label"] == "Play")


def test_a_slice_comes_and_goes(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.set("show slice", True)
    page.wait(lambda page: {"/prediction/slice", "/prediction/lines"} <= page.nodes.keys())
    page.set("show slice", False)
    page.wait(lambda page: not {"/prediction/slice", "/prediction/lines"} & page.nodes.keys())


def test_an_export_is_the_mesh_that_is_shown(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait_words("Metric surface")
    button = page.control("Export the shown mesh")
    page.send("GuiUpdateMessage", uuid=button["uuid"], updates={"value": True})
    page.wait(lambda page: any(it["type"] == "FileTransferPart" for it in page.downloads))
    start, part = page.downloads
    assert start["filename"] == "a_b_0.ply"
    assert start["size_bytes"] == len(part["content"])
    shown = page.vertices()
    assert shown is not None
    assert f"element vertex {len(shown)}".encode() in part["content"][:200]


# ---------------------------------------------------------------------------------------------------- bodies with parts

SLIDER = "about z (front)"
"""A slider of the page."""


@pytest.fixture(scope="module")
def bodies(chain_space: ShapeSpace) -> Iterator[Viewer]:
    with Viewer(ScanCollection(chain_space), port=0) as viewer:
        yield viewer


@pytest.fixture
def body_page(bodies: Viewer) -> Iterator[Visitor]:
    """A page with the surface of the mean body."""
    page = Visitor(bodies.port)
    page.wait(lambda page: page.vertices() is not None)
    page.set("fine mesh", "64 cells")
    page.wait_words("64 cells")
    yield page
    page.close()


def shows(page: Visitor, mesh: Any) -> bool:
    shown = page.vertices()
    return shown is not None and shown.shape == mesh.vertices.shape and bool(np.allclose(shown, mesh.vertices))


def test_joints_are_turned_and_reset(body_page: Visitor, chain_space: ShapeSpace) -> None:
    page, parts = body_page, BodyParts(chain_space.model)  # type: ignore[arg-type]
    still = chain_space.from_principal_components([0.0])
    first, second = page.control("joint")["props"]["options"][:2]
    page.set(SLIDER, 50.0)
    one = parts.turn(still, [JointTurn(first, (0.0, 0.0, 50.0))])
    page.wait(lambda page: shows(page, chain_space.mesh(one, resolution=64, surface="field")))
    page.wait_words(escape_text(f"Turned joints: {first}."))
    page.set("joint", second)
    page.wait(lambda page: page.control(SLIDER)["value"] == 0.0)
    page.set(SLIDER, -1e9)  # no slider gives it
    both = parts.turn(one, [JointTurn(second, (0.0, 0.0, -MAX_ANGLE))])
    page.wait(lambda page: shows(page, chain_space.mesh(both, resolution=64, surface="field")))
    page.set("joint", first)
    page.wait(lambda page: page.control(SLIDER)["value"] == 50.0)
    page.set("joint", "tail")  # there is none: the sliders remain those of the first joint
    page.set(SLIDER, 10.0)
    less = parts.turn(still, [JointTurn(first, (0.0, 0.0, 10.0)), JointTurn(second, (0.0, 0.0, -MAX_ANGLE))])
    page.wait(lambda page: shows(page, chain_space.mesh(less, resolution=64, surface="field")))
    page.send("GuiUpdateMessage", uuid=page.control("Reset the pose")["uuid"], updates={"value": True})
    page.wait(lambda page: shows(page, chain_space.mesh(still, resolution=64, surface="field")))
    assert page.control(SLIDER)["value"] == 0.0
    assert "Turned joints" not in page.words


def test_playing_shows_templates(body_page: Visitor) -> None:
    page, button = body_page, body_page.control("Play")
    page.send("GuiUpdateMessage", uuid=button["uuid"], updates={"value": True})
    page.wait_words("template, 136 vertices")
    page.send("GuiUpdateMessage", uuid=button["uuid"], updates={"value": True})
    page.wait_words("64 cells")


def test_parts_have_colors_where_there_are_parts(body_page: Visitor, visit: Callable[..., Visitor]) -> None:
    assert "part" in body_page.control("color")["props"]["options"]
    body_page.set("color", "part")
    body_page.wait(lambda page: page.nodes["/prediction/mesh"]["type"] == "GlbMessage")
    assert not body_page.legend["props"]["visible"]
    other = visit()
    other.wait(lambda page: page.vertices() is not None)
    assert "part" not in other.control("color")["props"]["options"]
    assert not any(it["props"].get("label") == "joint" for it in other.controls.values())


def test_a_scan_is_chosen_as_it_was_fitted(chain_space: ShapeSpace) -> None:
    shape = chain_space.from_principal_components([1.0])
    points = chain_space.mesh(shape, resolution=32).sample(2000, seed=0).astype(np.float32)
    collection = ScanCollection(chain_space, [Scan("a/b/0", points)])
    fit = dataclasses.replace(shape, residuals=np.zeros(3), name="a/b/0")
    collection._fitted["a/b/0"] = FittedScan(Scan("a/b/0", points), fit)
    with Viewer(collection, port=0) as viewer:
        page = Visitor(viewer.port)
        page.wait(lambda page: page.vertices() is not None)
        page.set("fine mesh", "64 cells")
        page.set(SLIDER, 40.0)
        page.wait_words("Turned joints")
        page.send("GuiUpdateMessage", uuid=page.control("Show the scan")["uuid"], updates={"value": True})
        page.wait(lambda page: shows(page, chain_space.mesh(fit, resolution=64, surface="field")))
        assert page.control(SLIDER)["value"] == 0.0
        page.close()


# ---------------------------------------------------------------------------------------------------------- its uploads


def test_an_upload_is_fitted_and_shown_with_its_uncertainty(
    visit: Callable[..., Visitor], scan: Scan, tmp_path: Any
) -> None:
    np.save(tmp_path / "me.npy", scan.points)
    page, other = visit(), visit()
    for each in (page, other):
        each.wait(lambda page: page.vertices() is not None)
    page.upload("me.npy", (tmp_path / "me.npy").read_bytes())
    page.wait_words("Uncertainty (standard deviation of the surface): median")
    page.wait_words("istribution: score")
    assert page.control("scan")["value"] == "me.npy"
    assert page.control("scan")["props"]["options"] == ["a/b/0", "me.npy"]
    assert page.control("color")["value"] == "uncertainty"
    assert page.nodes["/prediction/mesh"]["type"] == "GlbMessage"
    assert other.control("scan")["props"]["options"] == ["a/b/0"]
    assert "me.npy" not in other.words


def test_a_file_that_is_no_scan_gets_a_sentence_and_the_page_goes_on(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.upload("<b>x.ply", b"")
    page.wait_words(escape_text("<b>x.ply: empty (0 bytes). Copy it again."))
    page.upload("words.txt", b"these are words")
    page.wait_words("words.txt: truncated inside the header, or not a PLY file.")
    page.wait(lambda page: not page.control("Fit a scan file")["props"]["disabled"])
    page.set("component 1", 1.0)
    page.wait_words("after the request")


def test_more_than_is_taken_is_refused_before_it_is_held(visit: Callable[..., Visitor], viewer: Viewer) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.upload("huge.ply", b"ply", announced=MAX_UPLOAD + 1)
    page.wait_words(f"huge.ply: {MAX_UPLOAD + 1:,} bytes, the limit is {MAX_UPLOAD:,}.")
    page.upload("liar.ply", b"p" * 1000, announced=10)
    page.wait_words("liar.ply: more bytes than the page announced. The upload is refused.")
    held = [own.client.gui._current_file_upload_states for own in viewer._sessions.values()]
    assert held
    assert not any(held)


def test_controls_that_are_set_to_nonsense_harm_nobody(visit: Callable[..., Visitor]) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.set("fine mesh", "100000 cells")
    page.set("scan", "/etc/passwd")
    page.wait_words(escape_text("there is no scan '/etc/passwd'."))
    page.set("normal axis", "w")
    page.set("fine mesh", "64 cells")
    page.set("component 1", 2.0)
    page.wait_words("64 cells")


# ------------------------------------------------------------------------------------------------------ its outer walls


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/..%5c..%5cetc/passwd", "/etc/passwd"],
)
def test_no_file_of_the_machine_is_served(viewer: Viewer, path: str) -> None:
    def status(path: str) -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", viewer.port), timeout=10) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        return answer.split(b"\r\n")[0], answer

    assert b"200" in status("/")[0]
    line, answer = status(path)
    assert b"404" in line
    assert b"root:" not in answer


def test_only_this_machine_can_listen_in_unless_told_otherwise(viewer: Viewer) -> None:
    with pytest.raises(ConnectionError):  # another address of this machine, at which 0.0.0.0 would listen too
        socket.create_connection(("127.0.0.2", viewer.port), timeout=5)


def test_a_page_of_another_site_gets_nothing(visit: Callable[..., Visitor], viewer: Viewer) -> None:
    before = len(viewer._sessions)
    stranger = visit(origin="http://example.org")
    own = visit(origin=f"http://127.0.0.1:{viewer.port}")
    own.wait(lambda page: page.vertices() is not None)
    assert not stranger.controls
    assert not stranger.vertices()
    assert len(viewer._sessions) == before + 1


@pytest.mark.parametrize(
    ("origin", "host", "bound", "same"),
    [
        (None, "127.0.0.1:8080", "127.0.0.1", True),
        ("http://localhost:8080", "localhost:8080", "127.0.0.1", True),
        ("http://[::1]:8080", "[::1]:8080", "::1", True),
        ("http://example.org", "127.0.0.1:8080", "127.0.0.1", False),
        ("http://127.0.0.1:9000", "127.0.0.1:8080", "127.0.0.1", False),
        ("http://evil.example:8080", "evil.example:8080", "127.0.0.1", False),  # its name was made to point here
        ("http://lab.example:8080", "lab.example:8080", "0.0.0.0", True),
        ("null", "127.0.0.1:8080", "127.0.0.1", False),
    ],
)
def test_same_site(origin: str | None, host: str, bound: str, same: bool) -> None:
    assert same_site(origin, host, bound) is same


def test_no_visitor_opens_a_tunnel(visit: Callable[..., Visitor], viewer: Viewer) -> None:
    page = visit()
    page.wait(lambda page: page.vertices() is not None)
    page.send("ShareUrlRequest")
    page.set("component 1", 1.0)
    page.wait_words("after the request")
    assert viewer._server._share_tunnel is None


def test_an_address_that_cannot_be_had_gets_a_sentence(space: ShapeSpace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"--host 127\.0\.0\.1 --port {port}: cannot listen .*Pass another --port"):
            Viewer(ScanCollection(space), port=port)
    with pytest.raises(OSError, match=r"--host 192\.0\.2\.1 --port 0: cannot listen .*an address of this machine"):
        Viewer(ScanCollection(space), host="192.0.2.1", port=0)
    with pytest.raises(OSError, match=r"--host 127\.0\.0\.1 --port 70000: cannot listen"):
        Viewer(ScanCollection(space), port=70000)


def test_without_viser_it_says_what_to_install(space: ShapeSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'shapespace\[view\]'"):
        Viewer(ScanCollection(space), port=0)


def test_plain_words_are_neither_markdown_nor_html() -> None:
    assert escape_text("a_b *c* <script>\nd") == r"a\_b \*c\* &lt;script&gt;" + "  \nd"
