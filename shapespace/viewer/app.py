"""The viewer: a viser server with one session for each visitor (extra `view`).

    with Viewer(ScanCollection(space, scans), host="127.0.0.1", port=8080) as viewer:
        viewer.wait()

`Controls` turns the state of the page into a `ViewRequest`, `SceneBuilder` answers it, `SceneView` draws the answer.
Only viser's own page is served, no control takes a path of this machine, uploads are limited in size before they are
stored, and pages of other sites are refused.
"""

import re
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from threading import Event, Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shapespace.io import scan_files
from shapespace.models.registry import family_name
from shapespace.rendering import renderer
from shapespace.viewer.access import check_address, limit_uploads, same_site
from shapespace.viewer.background import LatestRequest
from shapespace.viewer.controls import Controls, Upload
from shapespace.viewer.fitted_scans import ScanCollection
from shapespace.viewer.request import InterpolatedShape, ViewRequest
from shapespace.viewer.scene import Scene, SceneBuilder
from shapespace.viewer.scene_view import VIEW_DIRECTION, SceneView

if TYPE_CHECKING:
    import viser

HOST, PORT = "127.0.0.1", 8080
FLOOR_COLOR, FLOOR_CELL_COLOR = (215, 212, 208), (238, 236, 233)
PANEL_WIDTH = 340  # pixels
PLAY_PERIOD = 0.08  # seconds for which each shape is shown at least while playing
JOIN_SECONDS = 10.0  # maximum wait for a session's thread; a fit of another visitor may take longer


class Viewer:
    """A server of pages; it runs in the background until it is closed."""

    def __init__(self, collection: ScanCollection, *, title: str = "", host: str = HOST, port: int = PORT) -> None:
        """Start to listen; port 0 takes a free one.

        Raises:
            ModuleNotFoundError: The extra `view` is not installed.
            OSError: The address is not of this machine, or the port is taken.

        """
        viser = _import_viser()
        check_address(host, port)
        self.host, self.collection, self.title = host, collection, title
        with redirect_stdout(StringIO()):  # viser prints a table with the address; the command prints its own line
            self._server: Any = viser.ViserServer(host=host, port=port, verbose=False)
        # Any page can request a tunnel that opens this server to the internet. It is switched off.
        self._server.request_share_url = lambda verbose=True: None
        self._set_up_page()
        self._fitting = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fitting")
        self._sessions: dict[int, Session] = {}
        self._server.on_client_connect(self._connect)
        self._server.on_client_disconnect(self._disconnect)

    def _set_up_page(self) -> None:
        """Set what all pages share: panel, light, floor and the initial camera."""
        gui, scene, camera = self._server.gui, self._server.scene, self._server.initial_camera
        gui.configure_theme(show_logo=False, show_share_button=False)
        gui.set_panel_label(f"{self.title or 'Shape space'}, family {family_name(self.collection.space.config)}")
        gui.main_panel.dock_right()  # beside the scene, not over it
        gui.main_panel.set_width(PANEL_WIDTH)
        scene.set_up_direction("+y")
        # viser's default lights reflect an environment map and cast three cascades of shadows: without a graphics card
        # they double the drawing time, and the colors differ from those of the legend.
        scene.configure_default_lights(enabled=False)
        scene.configure_environment_map(None)
        scene.add_light_hemisphere("/sky", sky_color=(255, 255, 255), ground_color=(214, 204, 196), intensity=1.6)
        scene.add_light_directional(
            "/key", intensity=2.2, position=tuple(10 * renderer.LIGHT_DIRECTION), cast_shadow=False
        )
        scene.add_grid(
            "/floor", width=6.0, height=6.0, plane="xz", cell_color=FLOOR_CELL_COLOR, section_color=FLOOR_COLOR
        )
        camera.up, camera.position, camera.look_at = (0.0, 1.0, 0.0), tuple(4.5 * VIEW_DIRECTION), (0.0, 0.85, 0.0)
        camera.fov = 0.75  # radians, vertical

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.get_port())

    @property
    def address(self) -> str:
        """The address to open in a browser on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"

    def wait(self) -> None:
        """Serve until interrupted."""
        Event().wait()

    def close(self) -> None:
        """End all sessions and the server."""
        sessions = list(self._sessions.values())
        for session in sessions:
            session.close()
        for session in sessions:  # a program that ends while its threads compute is aborted
            session.join()
        self._fitting.shutdown(wait=False, cancel_futures=True)
        with redirect_stdout(StringIO()):
            self._server.stop()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self, client: "viser.ClientHandle") -> None:
        headers = self._server._websock_server._live_connections[client.client_id].request.headers
        if not same_site(headers.get("Origin"), headers.get("Host"), self.host):
            print(f"note: connection from a page of {headers.get('Origin')} refused", file=sys.stderr)
            return
        session = self._sessions[client.client_id] = Session(client, SceneBuilder(self.collection), self._fitting)
        session.update()

    def _disconnect(self, client: "viser.ClientHandle") -> None:
        session = self._sessions.get(client.client_id)
        if session is not None:
            session.close()
            session.join()
            self._sessions.pop(client.client_id, None)


class Session:
    """One visitor: controls, view, and the thread that computes scenes."""

    def __init__(self, client: "viser.ClientHandle", builder: SceneBuilder, fitting: ThreadPoolExecutor) -> None:
        self.client, self.builder, self._fitting = client, builder, fitting
        self.scene: Scene | None = None
        self._waits_for_fit = False
        self._updating = Lock()  # callbacks run in several threads, and the newest state must be the last request
        self._latest: LatestRequest[ViewRequest, Scene] = LatestRequest(builder.build, self._draw, self._fail)
        self.view = SceneView(client)
        self.controls = Controls(client.gui, builder, self)  # last: from here on the visitor can call the actions
        client.camera.on_update(lambda _: self._camera_updated())
        limit_uploads(client, self.controls.notify)

    def close(self) -> None:
        """End playback and the thread of this session."""
        self.controls.playing = False
        self._latest.stop()

    def join(self) -> None:
        """Wait until the thread has ended, at most `JOIN_SECONDS`."""
        self._latest.join(JOIN_SECONDS)

    # ---------------------------------------------------------------- actions of the controls

    def update(self) -> None:
        """Request the scene that the controls describe."""
        with self._updating:
            request = self.controls.request()
            if request is None:
                self.controls.notify("There is neither a scan nor a mean shape. Fit a scan file.")
                return
            unfitted = self.builder.unfitted(request.subject)
            self._waits_for_fit = bool(unfitted)
            self.controls.notify(f"Fitting {', '.join(unfitted)} (some seconds)." if unfitted else "")
            self._latest.submit(request)

    def arrange(self) -> None:
        """Show or hide the parts of the scene, side by side or at one place."""
        if self.scene is not None:
            self.view.arrange(self.scene, self.controls.shown, self.controls.side_by_side)

    def upload(self, upload: Upload) -> None:
        """Fit an uploaded scan in the background and show it."""
        self.controls.lock_upload(True)
        self.controls.notify(f"Fitting {upload.name} (some seconds).")
        self._fitting.submit(self._fit_upload, upload)

    def export(self, suffix: str) -> None:
        """Send the mesh that is shown."""
        if self.scene is None:
            self.controls.notify("There is no mesh to export.")
            return
        stem = re.sub(r"[^\w.-]+", "_", self.scene.name) or "mesh"
        name = f"{Path(stem).stem}.{suffix}"
        self.client.send_file_download(name, scan_files.mesh_bytes(self.scene.mesh, Path(name)), save_immediately=True)

    # ---------------------------------------------------------------- background

    def _fail(self, message: str) -> None:
        self.controls.notify(message)

    def _fit_upload(self, upload: Upload) -> None:
        try:
            name = self.builder.add_upload(upload.name, upload.data, unit=upload.unit, up=upload.up)
        except Exception as error:  # any file may be uploaded: the page shows the message and the server continues
            if not isinstance(error, ValueError | OSError):
                traceback.print_exc(file=sys.stderr)
            self.controls.notify(str(error) or type(error).__name__)
            return
        finally:
            self.controls.lock_upload(False)
        self.controls.choose_upload(name)

    def _draw(self, scene: Scene) -> None:
        """Show a scene; while playing, continue with the next one."""
        began, is_first, self.scene = time.perf_counter(), self.scene is None, scene
        with self.client.atomic():
            self.view.draw(scene)
            self.arrange()
            if is_first:
                self._fit_camera()
        self.controls.describe(scene)
        if self._waits_for_fit:
            self._waits_for_fit = False
            self.controls.notify("")
        self.client.flush()
        if self.controls.playing and isinstance(self.controls.subject, InterpolatedShape):
            time.sleep(max(0.0, PLAY_PERIOD - (time.perf_counter() - began)))
            self.controls.advance()

    def _fit_camera(self) -> None:
        if self.scene is not None:
            self.view.fit_camera(self.scene, self.controls.shown, self.controls.side_by_side)

    def _camera_updated(self) -> None:
        if self.view.window_changed():
            self._fit_camera()


def _import_viser() -> ModuleType:
    try:
        import viser
    except ModuleNotFoundError:
        raise ModuleNotFoundError("viser is not installed. Run pip install 'shapespace[view]'.") from None
    return viser
