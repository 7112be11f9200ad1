"""Draw scenes in the browser: meshes, points, slices, labels and camera, as nodes of viser."""

from typing import TYPE_CHECKING, Any

import numpy as np
from trimesh import Trimesh
from trimesh.visual import ColorVisuals

from shapespace.rendering import animation, renderer
from shapespace.viewer.controls import PARTS, part_label
from shapespace.viewer.scene import Scene
from shapespace.viewer.slices import Slice

if TYPE_CHECKING:
    import viser

PREDICTION_COLOR = tuple(round(255 * channel) for channel in renderer.CLAY)
GROUND_TRUTH_COLOR = (178, 190, 204)
VIEW_DIRECTION = np.array([0.2, 0.16, 0.967])  # unit vector to the camera: in front, slightly aside and above
GAP = 0.25  # meters between parts that stand side by side
POINT_SIZE = 0.006  # meters


class SceneView:
    """The nodes of one page."""

    def __init__(self, client: "viser.ClientHandle") -> None:
        self._client = client
        self._nodes: dict[str, Any] = {}
        self._fitted_camera = 0.0, np.zeros(3)  # aspect ratio and position of the camera that was set last
        for part in PARTS:
            self._nodes[part] = client.scene.add_frame(f"/{part}", show_axes=False)
            self._nodes[f"{part}/label"] = client.scene.add_label(
                f"/{part}/label", part_label(part), anchor="bottom-center"
            )

    def draw(self, scene: Scene) -> None:
        """Replace the content of all parts."""
        self._draw_mesh("prediction", scene.mesh if scene.slice is None else scene.slice.behind, PREDICTION_COLOR)
        self._draw_mesh("ground_truth", scene.ground_truth, GROUND_TRUTH_COLOR)
        self._draw_scan(scene)
        self._draw_slice(scene.slice)

    def arrange(self, scene: Scene, shown: tuple[str, ...], side_by_side: bool) -> None:
        """Show the parts that are `shown` and present, side by side or at one place; hide the others."""
        visible = visible_parts(scene, shown)
        low, high = scene.mesh.bounds if len(scene.mesh.faces) else np.zeros((2, 3))
        for part in PARTS:
            self._nodes[part].visible = part in visible
            position = -scene.floor
            if part in visible and side_by_side:
                position[0] += (GAP + high[0] - low[0]) * (visible.index(part) - 0.5 * (len(visible) - 1))
            self._nodes[part].position = position
            self._nodes[f"{part}/label"].visible = part in visible and side_by_side and len(visible) > 1
            self._nodes[f"{part}/label"].position = (0.5 * (low[0] + high[0]), high[1] + 0.06, 0.5 * (low[2] + high[2]))

    def fit_camera(self, scene: Scene, shown: tuple[str, ...], side_by_side: bool) -> None:
        """Place the camera so that all visible parts are in the window."""
        if not len(scene.mesh.faces):
            return
        camera, (width, height, depth) = self._client.camera, np.ptp(scene.mesh.bounds, axis=0)
        gaps = len(visible_parts(scene, shown)) - 1
        width = width + gaps * (width + GAP) if side_by_side else width
        distance = 0.5 * depth + max(0.6 * height, 0.68 * width / camera.aspect) / np.tan(0.5 * camera.fov)
        center = np.array([0.0, 0.5 * height, 0.0])
        self._fitted_camera = camera.aspect, center + distance * VIEW_DIRECTION
        camera.position = self._fitted_camera[1]
        camera.look_at = center

    def window_changed(self) -> bool:
        """Whether the window has another aspect ratio since `fit_camera`, and the visitor has not moved the camera."""
        aspect, position = self._fitted_camera
        camera = self._client.camera
        return bool(aspect and camera.aspect != aspect and np.allclose(camera.position, position, atol=1e-3))

    def _draw_mesh(self, part: str, mesh: Trimesh | None, color: tuple[int, ...]) -> None:
        """A mesh of one color is updated in place, without flicker; for vertex colors viser needs a whole GLB."""
        key, scene = f"{part}/mesh", self._client.scene
        node = self._nodes.pop(key, None)
        if mesh is None or not len(mesh.faces):
            if node is not None:
                node.remove()
            return
        has_colors = isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex"
        if not has_colors and node is not None and hasattr(node, "vertices"):
            node.vertices, node.faces = np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.uint32)
            self._nodes[key] = node
            return
        if node is not None:
            node.remove()
        if has_colors:
            self._nodes[key] = scene.add_glb(f"/{key}", animation.colored_glb(mesh))
        else:
            self._nodes[key] = scene.add_mesh_simple(
                f"/{key}", mesh.vertices, mesh.faces, color=np.array(color), side="double"
            )

    def _draw_scan(self, scene: Scene) -> None:
        node = self._nodes.pop("scan/points", None)
        if node is not None and scene.scan is None:
            node.remove()
        if scene.scan is not None and scene.point_colors is not None:
            points = scene.scan.points - scene.floor  # near the origin: they are sent in half precision
            self._nodes["scan/points"] = self._client.scene.add_point_cloud(
                "/scan/points",
                points,
                scene.point_colors,
                point_size=POINT_SIZE,
                point_shape="circle",
                position=scene.floor,
            )

    def _draw_slice(self, cut: Slice | None) -> None:
        for key in ("prediction/slice", "prediction/lines"):
            node = self._nodes.pop(key, None)
            if node is not None:
                node.remove()
        if cut is None:
            return
        from viser.transforms import SO3

        scene = self._client.scene
        rotation = SO3.from_matrix(np.stack([cut.right, -cut.up, -np.cross(cut.right, cut.up)], axis=1))
        self._nodes["prediction/slice"] = scene.add_image(
            "/prediction/slice", cut.image, cut.side, cut.side, format="png", wxyz=rotation.wxyz, position=cut.center
        )
        if len(cut.lines):
            self._nodes["prediction/lines"] = scene.add_line_segments(
                "/prediction/lines",
                cut.lines.astype(np.float32),
                cut.line_colors,
                thickness=2.0,
                thickness_units="screen",
            )


def visible_parts(scene: Scene, shown: tuple[str, ...]) -> list[str]:
    """The parts that a scene has and that are `shown`, from left to right."""
    present = {"scan": scene.scan is not None, "prediction": True, "ground_truth": scene.ground_truth is not None}
    return [part for part in PARTS if present[part] and part in shown]
