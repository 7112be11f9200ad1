"""The viewer: a page for each visitor, served by viser (extra `view`).

    with Viewer(Gallery(space, scans), host="127.0.0.1", port=8080) as viewer:
        viewer.wait()

A page has a scene, controls and a state of its own. What is to be seen and what is said about it comes from
`shapespace.viewer.scene`; here are the controls, and what keeps strangers out: nothing but viser's own page is served,
no control names a path of the machine, uploads are limited before they are held, and pages of other sites get nothing.
"""

import re
import socket
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from html import escape
from io import StringIO
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import numpy as np
from trimesh import Trimesh
from trimesh.visual import ColorVisuals

from shapespace.io import scan_files, units
from shapespace.io.units import UnitName
from shapespace.models.registry import family_name
from shapespace.rendering import animation, renderer
from shapespace.report import mesh_view
from shapespace.viewer.scene import (
    COARSE,
    DEVIATION_LIMIT,
    ERROR_LIMIT,
    FINE,
    LEVELS,
    MAX_UPLOAD,
    REACH,
    STEPS,
    Axis,
    ColorBy,
    InterpolatedShape,
    LatestRequest,
    PrincipalShape,
    ScanCollection,
    ScanShape,
    Scene,
    SceneBuilder,
    Slice,
    SlicePlane,
    Subject,
    ViewRequest,
    too_large,
)

if TYPE_CHECKING:
    import viser

HOST, PORT = "127.0.0.1", 8080
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ACCEPTED = ".ply,.obj,.npy,.npz,.xyz,.glb,.off,.stl"  # what the page's file chooser offers; the bytes decide
RESOLUTIONS = ("64", "96", str(FINE), "192", "256")
FORMATS = ("ply", "obj", "glb")
CLAY = tuple(round(255 * channel) for channel in renderer.CLAY)
GROUND_TRUTH_COLOR = (178, 190, 204)
FLOOR = (215, 212, 208)
VIEW = np.array([0.2, 0.16, 0.967])  # unit vector to where one stands: before the shapes, a little aside and above
GAP = 0.25  # metres between what stands side by side
PANEL = 340  # pixels of the controls' column
PLAY_PERIOD = 0.08  # seconds that a shape is shown at the least when the way is played


class Viewer:
    """A server of pages; it runs in the background until it is closed."""

    def __init__(self, gallery: ScanCollection, *, title: str = "", host: str = HOST, port: int = PORT) -> None:
        """Begin to listen; port 0 takes any that is free.

        Raises:
            ModuleNotFoundError: The extra `view` is not installed.
            OSError: The address is not of this machine, or the port is taken.

        """
        viser = _library()
        _check_address(host, port)
        self.host, self.gallery, self.title = host, gallery, title
        with redirect_stdout(StringIO()):  # viser prints a table with the address; the verb has a line of its own
            self._server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        # Any visitor's page can ask viser for a tunnel that opens this server to the internet. Not here.
        self._server.request_share_url = lambda verbose=True: None
        self._furnish()
        self._fitting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fitting")
        self._pages: dict[int, Session] = {}
        self._server.on_client_connect(self._welcome)
        self._server.on_client_disconnect(self._farewell)

    def _furnish(self) -> None:
        """What all pages have: a column for the controls, light, a floor, and where one stands at first."""
        gui, scene, camera = self._server.gui, self._server.scene, self._server.initial_camera
        gui.configure_theme(show_logo=False, show_share_button=False)
        gui.set_panel_label(f"{self.title or 'A shape space'}, family {family_name(self.gallery.space.config)}")
        gui.main_panel.dock_right()  # beside the scene, not upon it
        gui.main_panel.set_width(PANEL)
        scene.set_up_direction("+y")
        # Not viser's own lights: they mirror a city and cast three cascades of shadows, which takes a browser without a
        # graphics card twice as long to draw and leaves colours that are not those of the legend.
        scene.configure_default_lights(enabled=False)
        scene.configure_environment_map(None)
        scene.add_light_hemisphere("/sky", sky_color=(255, 255, 255), ground_color=(214, 204, 196), intensity=1.6)
        scene.add_light_directional(
            "/key", intensity=2.2, position=tuple(10 * renderer.LIGHT_DIRECTION), cast_shadow=False
        )
        scene.add_grid("/floor", width=6.0, height=6.0, plane="xz", cell_color=(238, 236, 233), section_color=FLOOR)
        camera.up, camera.position, camera.look_at = (0.0, 1.0, 0.0), tuple(4.5 * VIEW), (0.0, 0.85, 0.0)
        camera.fov = 0.75  # radians, from the lowest to the highest

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.get_port())

    @property
    def address(self) -> str:
        """What to open in a browser on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"

    def wait(self) -> None:
        """Serve until interrupted."""
        Event().wait()

    def close(self) -> None:
        """End all pages and the server."""
        pages = list(self._pages.values())
        for page in pages:
            page.close()
        for page in pages:  # a program that ends while they compute is aborted
            page.join()
        self._fitting.shutdown(wait=False, cancel_futures=True)
        with redirect_stdout(StringIO()):
            self._server.stop()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _welcome(self, client: "viser.ClientHandle") -> None:
        headers = self._server._websock_server._live_connections[client.client_id].request.headers
        if not same_site(headers.get("Origin"), headers.get("Host"), self.host):
            print(f"note: a page of {headers.get('Origin')} asked for the viewer, and got nothing.", file=sys.stderr)
            return
        page = self._pages[client.client_id] = Session(client, SceneBuilder(self.gallery), self._fitting)
        page.begin()

    def _farewell(self, client: "viser.ClientHandle") -> None:
        page = self._pages.get(client.client_id)
        if page is not None:
            page.close()
            page.join()
            self._pages.pop(client.client_id, None)


class Session:
    """What one visitor sees and does."""

    def __init__(self, client: "viser.ClientHandle", stage: SceneBuilder, fitting: ThreadPoolExecutor) -> None:
        self.client, self.stage, self._fitting = client, stage, fitting
        self.subject: Subject | None = stage.first()
        self.scene: Scene | None = None
        self._playing, self._forward, self._waits = False, True, False
        self._nodes: dict[str, Any] = {}
        self._stood = 0.0, np.zeros(3)  # the window's width by its height when it was fitted, and from where
        # Controls that the page sets too are Any: viser declares their values as read-only, and they are not.
        self._deviations: list[Any] = []
        self._latest: LatestRequest[ViewRequest, Scene] = LatestRequest(stage.show, self._draw, self._say)
        self._set_scene()
        self._set_controls()
        client.camera.on_update(lambda _: self._reshaped())
        limit_uploads(client, self._say)

    def begin(self) -> None:
        """Show what there is before anybody chose."""
        self.ask()

    def close(self) -> None:
        """End what runs for this page."""
        self._playing = False
        self._latest.stop()

    def join(self) -> None:
        """Wait until it has ended; somebody's fit may take longer than that."""
        self._latest.join(10.0)

    # ---------------------------------------------------------------- controls

    def _set_controls(self) -> None:
        gui = self.client.gui
        self._notice = gui.add_markdown(
            "", visible=False
        )  # what went wrong, or is under way: numbers that come later leave it alone
        self._words = gui.add_markdown("")
        self._legend = gui.add_html(legend(ERROR_LIMIT), visible=False)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Scans"):
            self._set_scans()
        with tabs.add_tab("Shapes"):
            self._set_shapes()
        with tabs.add_tab("Slice"):
            self._set_slice()
        with tabs.add_tab("Export"):
            self._format = gui.add_dropdown("format", FORMATS)
            gui.add_button("Export the shown mesh").on_click(lambda _: self._export())

    def _set_scans(self) -> None:
        gui, stage = self.client.gui, self.stage
        self._scan: Any = gui.add_dropdown("scan", tuple(stage.names) or ("none yet",))
        self._scan.on_update(lambda _: self._choose(ScanShape(self._scan.value)))
        self._back = gui.add_button("Show the scan", visible=bool(stage.names))
        self._back.on_click(lambda _: self._choose(ScanShape(self._scan.value)))  # the dropdown tells of changes alone
        self._shown = {what: gui.add_checkbox(f"show {what}", True) for what in ("scan", "fit", "truth")}
        self._aside = gui.add_checkbox("side by side", True)
        for box in (*self._shown.values(), self._aside):
            box.on_update(lambda _: self._arrange())
        self._colour: Any = gui.add_dropdown("colour", get_args(ColorBy))
        self._colour.on_update(lambda _: self._recolour())
        self._limit: Any = gui.add_number("colours end at (mm)", ERROR_LIMIT, min=1.0, max=500.0, step=1.0)
        self._limit.on_update(lambda _: self._relimit())
        self._resolution = gui.add_dropdown("fine mesh, cells", RESOLUTIONS, initial_value=str(FINE))
        self._resolution.on_update(lambda _: self.ask())
        with gui.add_folder("A scan of yours"):
            self._unit = gui.add_dropdown("unit", ("auto", *get_args(UnitName)))
            self._up = gui.add_dropdown("up axis", get_args(units.Up), initial_value="y")
            self._upload = gui.add_upload_button("Fit a scan file", mime_type=ACCEPTED)
            self._upload.on_upload(lambda _: self._uploaded())

    def _set_shapes(self) -> None:
        gui, stage = self.client.gui, self.stage
        if stage.no_directions is not None:
            gui.add_markdown(escape_text(stage.no_directions))
        else:
            gui.add_markdown("Standard deviations along the principal directions of the training codes:")
            for number in range(1, stage.directions + 1):
                slider = gui.add_slider(f"direction {number}", -REACH, REACH, 0.1, 0.0)
                slider.on_update(lambda _: self._choose(self._along()))
                self._deviations.append(slider)
            gui.add_button("Mean").on_click(lambda _: self._to_mean())
        with gui.add_folder("Between two shapes"):
            ends = tuple(stage.ends) or ("none yet",)
            if not stage.ends:
                gui.add_markdown("There is no shape yet: fit a scan file first.")
            self._from = gui.add_dropdown("from", ends)
            self._to = gui.add_dropdown("to", ends, initial_value=ends[-1])
            self._share: Any = gui.add_slider("share", 0.0, 1.0, 1 / (STEPS - 1), 0.0)
            for control in (self._from, self._to, self._share):
                control.on_update(lambda _: self._go())
            self._play = gui.add_button("Play")
            self._play.on_click(lambda _: self._toggle())

    def _set_slice(self) -> None:
        gui, stage = self.client.gui, self.stage
        if stage.no_slice is not None:
            gui.add_markdown(escape_text(stage.no_slice))
        self._cut = gui.add_checkbox("show a slice", False, disabled=stage.no_slice is not None)
        self._axis = gui.add_dropdown("across", get_args(Axis), initial_value="z")
        self._at = gui.add_slider("metres from the middle", -1.0, 1.0, 0.01, 0.0)
        for control in (self._cut, self._axis, self._at):
            control.on_update(lambda _: self.ask())
        if getattr(stage.space.model, "is_sdf", False):
            lines = ", ".join(f"{level:+d}" if level else "0" for level in LEVELS)
            gui.add_markdown(f"Lines at {lines} mm of the signed distance; 0 is black, inside is purple.")
        elif stage.no_slice is None:
            gui.add_markdown("This field is no distance: the black line is the surface, inside is purple.")

    # ---------------------------------------------------------------- what the visitor does

    def ask(self) -> None:
        """Ask for what the controls say."""
        if self.subject is None:
            self._say("There is no scan yet, and no mean shape: fit a scan file.")
            return
        waiting = self.stage.waiting(self.subject)
        self._waits = bool(waiting)
        self._say(f"Fitting {', '.join(waiting)}: some seconds." if waiting else "")
        self._latest.ask(
            ViewRequest(
                self.subject,
                self._colour.value,
                self._limit.value,
                SlicePlane(self._axis.value, self._at.value) if self._cut.value else None,
                COARSE if self._playing else self._cells(),
            )
        )

    def _cells(self) -> int:
        chosen = self._resolution.value  # a page may send anything, and a million cells would be computed
        return int(chosen) if chosen in RESOLUTIONS else FINE

    def _choose(self, subject: Subject) -> None:
        self.subject = subject
        self.ask()

    def _along(self) -> PrincipalShape:
        return PrincipalShape(tuple(slider.value for slider in self._deviations))

    def _to_mean(self) -> None:
        for slider in self._deviations:
            slider.value = 0.0
        self._choose(self._along())

    def _between(self) -> InterpolatedShape:
        return InterpolatedShape(self._from.value, self._to.value, self._share.value)

    def _go(self) -> None:
        if self._from.value in self.stage.ends:
            self._choose(self._between())

    def _toggle(self) -> None:
        self._playing = not self._playing and bool(self.stage.ends)
        self._play.label = "Stop" if self._playing else "Play"
        self._go()

    def _recolour(self) -> None:
        self._limit.value = DEVIATION_LIMIT if self._colour.value == "uncertainty" else ERROR_LIMIT
        self._relimit()

    def _relimit(self) -> None:
        self._legend.content = legend(self._limit.value)
        self.ask()

    def _uploaded(self) -> None:
        file, unit, up = self._upload.value, self._unit.value, self._up.value
        self._upload.disabled = True
        self._say(f"Fitting {file.name}: some seconds.")
        self._fitting.submit(self._take, file.name, file.content, unit, up)

    def _take(self, name: str, data: bytes, unit: Any, up: units.Up) -> None:
        """Fit what was uploaded, and show it in the colours of its uncertainty, or of its error."""
        try:
            name = self.stage.take(name, data, unit=unit, up=up)
        except Exception as error:  # whatever a file holds, the page says so and the server goes on
            if not isinstance(error, ValueError | OSError):
                traceback.print_exc(file=sys.stderr)
            self._say(str(error) or type(error).__name__)
            return
        finally:
            self._upload.disabled = False
        self.subject, self._back.visible = ScanShape(name), True
        self._scan.options, self._from.options, self._to.options = self.stage.names, self.stage.ends, self.stage.ends
        self._scan.value = name
        self._colour.value = "uncertainty" if self.stage.knows_uncertainty(name) else "scan to mesh"

    def _export(self) -> None:
        if self.scene is None:
            self._say("There is no mesh to export.")
            return
        stem = re.sub(r"[^\w.-]+", "_", self.scene.name) or "mesh"
        name = f"{Path(stem).stem}.{self._format.value}"
        self.client.send_file_download(name, scan_files.mesh_bytes(self.scene.mesh, Path(name)), save_immediately=True)

    # ---------------------------------------------------------------- what is drawn

    def _say(self, words: str) -> None:
        self._notice.content, self._notice.visible = escape_text(words), bool(words)

    def _set_scene(self) -> None:
        scene = self.client.scene
        for what in ("scan", "fit", "truth"):
            self._nodes[what] = scene.add_frame(f"/{what}", show_axes=False)
            self._nodes[f"{what}/label"] = scene.add_label(f"/{what}/label", what, anchor="bottom-center")

    def _draw(self, scene: Scene) -> None:
        """Show an answer; and while the way is played, go on to the next."""
        began, first, self.scene = time.perf_counter(), self.scene is None, scene
        with self.client.atomic():
            self._draw_mesh("fit", scene.mesh if scene.slice is None else scene.slice.behind, CLAY)
            self._draw_mesh("truth", scene.ground_truth, GROUND_TRUTH_COLOR)
            self._draw_scan(scene)
            self._draw_slice(scene.slice)
            self._arrange()
            if first:
                self._stand_back()
        self._legend.visible = scene.request.color_by != "none" and scene.scan is not None
        figures = f"{scene.resolution} cells, {len(scene.mesh.vertices):,} vertices"
        figures = f"{figures}, {1e3 * scene.seconds:.0f} ms after the wish."
        self._words.content = escape_text("\n".join([*scene.summary, figures]))
        if self._waits:
            self._waits = False
            self._say("")
        self.client.flush()
        if self._playing and isinstance(self.subject, InterpolatedShape):
            time.sleep(max(0.0, PLAY_PERIOD - (time.perf_counter() - began)))
            self._advance()

    def _advance(self) -> None:
        step = 1 / (STEPS - 1)
        if self._share.value > 1 - step / 2:
            self._forward = False
        elif self._share.value < step / 2:
            self._forward = True
        self._share.value = min(1.0, max(0.0, self._share.value + (step if self._forward else -step)))

    def _draw_mesh(self, what: str, mesh: Trimesh | None, colour: tuple[int, ...]) -> None:
        """One colour is changed in place, without a flicker; of meshes with colours viser only knows whole files."""
        key, scene = f"{what}/mesh", self.client.scene
        old = self._nodes.pop(key, None)
        if mesh is None or not len(mesh.faces):
            if old is not None:
                old.remove()
            return
        painted = isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex"
        if not painted and old is not None and hasattr(old, "vertices"):
            old.vertices, old.faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)
            self._nodes[key] = old
            return
        if old is not None:
            old.remove()
        if painted:
            self._nodes[key] = scene.add_glb(f"/{key}", animation.colored_glb(mesh))
        else:
            self._nodes[key] = scene.add_mesh_simple(
                f"/{key}", mesh.vertices, mesh.faces, color=np.array(colour), side="double"
            )

    def _draw_scan(self, scene: Scene) -> None:
        old = self._nodes.pop("scan/points", None)
        if old is not None and scene.scan is None:
            old.remove()
        if scene.scan is not None and scene.dots is not None:
            points = scene.scan.points - scene.floor  # near the origin: they are sent in half precision
            self._nodes["scan/points"] = self.client.scene.add_point_cloud(
                "/scan/points", points, scene.dots, point_size=0.006, point_shape="circle", position=scene.floor
            )

    def _draw_slice(self, cut: Slice | None) -> None:
        for key in ("fit/slice", "fit/lines"):
            old = self._nodes.pop(key, None)
            if old is not None:
                old.remove()
        if cut is None:
            return
        from viser.transforms import SO3

        scene = self.client.scene
        turn = SO3.from_matrix(np.stack([cut.right, -cut.up, -np.cross(cut.right, cut.up)], axis=1))
        self._nodes["fit/slice"] = scene.add_image(
            "/fit/slice", cut.image, cut.side, cut.side, format="png", wxyz=turn.wxyz, position=cut.centre
        )
        if len(cut.lines):
            self._nodes["fit/lines"] = scene.add_line_segments(
                "/fit/lines", cut.lines.astype(np.float32), cut.line_colors, thickness=2.0, thickness_units="screen"
            )

    def _arrange(self) -> None:
        """Show or hide, side by side or in one place."""
        if self.scene is None:
            return
        there, aside = self._there(self.scene), self._aside.value
        low, high = self.scene.mesh.bounds if len(self.scene.mesh.faces) else np.zeros((2, 3))
        for what in self._shown:
            self._nodes[what].visible = what in there
            place = -self.scene.floor
            if what in there and aside:
                place[0] += (GAP + high[0] - low[0]) * (there.index(what) - 0.5 * (len(there) - 1))
            self._nodes[what].position = place
            self._nodes[f"{what}/label"].visible = what in there and aside and len(there) > 1
            self._nodes[f"{what}/label"].position = (0.5 * (low[0] + high[0]), high[1] + 0.06, 0.5 * (low[2] + high[2]))

    def _there(self, scene: Scene) -> list[str]:
        """What is seen, from the left to the right."""
        has = {"scan": scene.scan is not None, "fit": True, "truth": scene.ground_truth is not None}
        return [what for what in has if has[what] and self._shown[what].value]

    def _stand_back(self) -> None:
        """Look from where all that is shown is in the window. Later it is the visitor who moves."""
        if self.scene is None or not len(self.scene.mesh.faces):
            return
        camera, (wide, high, deep) = self.client.camera, np.ptp(self.scene.mesh.bounds, axis=0)
        wide = wide + (len(self._there(self.scene)) - 1) * (wide + GAP) if self._aside.value else wide
        away = 0.5 * deep + max(0.6 * high, 0.68 * wide / camera.aspect) / np.tan(0.5 * camera.fov)
        middle = np.array([0.0, 0.5 * high, 0.0])
        self._stood = camera.aspect, middle + away * VIEW
        camera.position = self._stood[1]
        camera.look_at = middle

    def _reshaped(self) -> None:
        """The camera has changed: if that was the window, and the visitor has not moved, fit it anew."""
        aspect, place = self._stood
        camera = self.client.camera
        if aspect and camera.aspect != aspect and np.allclose(camera.position, place, atol=1e-3):
            self._stand_back()


# --------------------------------------------------------------------------------------------------- against strangers


def same_site(origin: str | None, host: str | None, bound: str) -> bool:
    """Whether a page that opens a connection is one of ours, so that no other site can look in through the browser.

    `origin` and `host` are the headers of its request; programs send no origin. A server bound to the loopback address
    `bound` is asked for by that name alone, or another site's name could be made to point here.
    """
    if origin is None:
        return True
    asked = urlsplit(f"//{host}")
    return urlsplit(origin).netloc == host and (bound not in LOOPBACK or asked.hostname in LOOPBACK)


def limit_uploads(client: "viser.ClientHandle", refuse: Callable[[str], None]) -> None:
    """Let a page send one file at a time, of `MAX_UPLOAD` bytes at most, and hold no more than it announced.

    viser holds what is sent, however much, and has no setting for it: so its two handlers get a guard before them.
    """
    from viser._messages import FileTransferPart, FileTransferPartAck, FileTransferStartUpload

    gui: Any = client.gui
    interface, begun = gui._websock_interface, gui._current_file_upload_states

    def turn_away(message: FileTransferStartUpload | FileTransferPart, words: str) -> None:
        # The page's button waits until all bytes are acknowledged: none of none, or it would wait for ever.
        interface.queue_message(FileTransferPartAck(message.source_component_uuid, message.transfer_uuid, 0, 0))
        refuse(words)

    def start(client_id: Any, message: FileTransferStartUpload) -> None:
        begun.clear()  # a file that was begun before is given up
        if message.size_bytes > MAX_UPLOAD:
            turn_away(message, str(too_large(message.filename, message.size_bytes)))
        else:
            gui._handle_file_transfer_start(client_id, message)

    def part(client_id: Any, message: FileTransferPart) -> None:
        state = begun.get(message.transfer_uuid)
        if state is None:
            return
        if state["transferred_bytes"] + len(message.content) > state["total_bytes"]:
            del begun[message.transfer_uuid]
            turn_away(message, f"{state['filename']} is larger than was announced: it is refused.")
        else:
            gui._handle_file_transfer_part(client_id, message)

    for kind, own, guarded in (
        (FileTransferStartUpload, gui._handle_file_transfer_start, start),
        (FileTransferPart, gui._handle_file_transfer_part, part),
    ):
        interface.unregister_handler(kind, own)
        interface.register_handler(kind, guarded)


def legend(limit: float) -> str:
    """The colours of errors from 0 to `limit` mm, as HTML."""
    words = "".join(f"<span>{word}</span>" for word in ("0", f"{limit / 2:g}", f"{limit:g} mm and more"))
    return (
        '<div style="padding: 0.4em 0.8em; font-size: 0.85em">'
        f'<div style="height: 0.8em; border-radius: 2px; background: {mesh_view.ramp()}"></div>'
        f'<div style="display: flex; justify-content: space-between">{words}</div></div>'
    )


def escape_text(words: str) -> str:
    """Words as Markdown and HTML that say just these: names of files and scans are anybody's."""
    lines = (re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", escape(line, quote=False)) for line in words.splitlines())
    return "  \n".join(lines)


def _check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on; viser would try a thousand ports, and wait for ever."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=kind).close()
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"cannot listen on {host}, port {port} ({what}): say another --port (0 takes one that is free), and for "
            "--host an address of this machine."
        ) from None


def _library() -> ModuleType:
    try:
        import viser
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the viewer comes with the extra `view`: pip install 'shapespace[view]'.") from None
    return viser
