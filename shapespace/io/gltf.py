"""Reader of glTF and GLB: the vertices as the file poses them, by nodes, morph targets and skins.

trimesh reads meshes in their bind pose and quantized attributes as they are stored; pygltflib parses the JSON alone.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

from shapespace.geometry.findings import Finding
from shapespace.io import raw_scan
from shapespace.io.errors import BadFileError
from shapespace.io.raw_scan import RawScan

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_DRACO, _MESHOPT = "KHR_draco_mesh_compression", "EXT_meshopt_compression"
_KNOWN = (_DRACO, "KHR_mesh_quantization")  # of the extensions that change geometry
_HARMLESS = (
    "KHR_materials_",
    "KHR_texture_",
    "EXT_texture_",
    "MSFT_texture_",
    "KHR_lights_",
    "KHR_animation_",
    "KHR_xmp",
    "EXT_structural_metadata",
    "EXT_mesh_features",
    "EXT_instance_features",
)
_TRIANGLES, _STRIP, _FAN, _POINTS = 4, 5, 6, 0


def read_gltf(path: Path) -> RawScan:
    """All triangles and points of the default scene; materials and animations are ignored."""
    tree, binary = _read_chunks(path)
    _check(path, tree)
    scene = _Scene(path, tree, binary)
    points, faces, count = [np.zeros((0, 3))], [np.zeros((0, 3), np.int64)], 0
    for node in scene.order:
        for vertices, triangles in scene.primitives(node):
            points.append(vertices)
            faces.append(triangles + count)
            count += len(vertices)
            if 24 * count > raw_scan.MAX_UNPACKED:
                raise BadFileError(f"{path}: more than {count:,} vertices in its scene. Export fewer.")
    joined = np.concatenate(faces)
    findings = [Finding("pose-applied", {"what": " and ".join(sorted(scene.posed))})] if scene.posed else []
    return RawScan(np.concatenate(points), joined if len(joined) else None, findings=tuple(findings))


def _read_chunks(path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON, and the binary chunk of a GLB."""
    data = path.read_bytes()
    if data[:4] != b"glTF":
        tree = json.loads(data)
        if not isinstance(tree, dict):
            raise ValueError("no JSON object")
        return tree, b""
    chunks, place = [], 12
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "little")
        if place + 8 + length > len(data):
            raise BadFileError(f"{path}: truncated. A chunk of {length:,} bytes is incomplete: copy the file again.")
        chunks.append(data[place + 8 : place + 8 + length])
        place += 8 + length
    tree = json.loads(chunks[0])
    if not isinstance(tree, dict):
        raise ValueError("no JSON object")
    return tree, chunks[1] if len(chunks) > 1 else b""


def _check(path: Path, tree: dict[str, Any]) -> None:
    """Refuse version 1, arrays of impossible length, and extensions that change the geometry in an unknown way."""
    if isinstance(tree.get("meshes", []), dict):
        raise BadFileError(f"{path}: glTF 1.0 is not read. Convert it to glTF 2.0 (Blender, or gltf-pipeline).")
    for accessor in tree.get("accessors", []):
        if not 0 <= accessor["count"] <= raw_scan.MAX_UNPACKED // 24:
            raise BadFileError(
                f"{path}: declares an array of {accessor['count']:,} rows; 0 to {raw_scan.MAX_UNPACKED // 24:,} are "
                "read. Export it again, or with fewer points."
            )
    unknown = [
        name
        for name in tree.get("extensionsRequired", [])
        if name not in _KNOWN and not str(name).startswith(_HARMLESS)
    ]
    if unknown:
        raise BadFileError(
            f"{path}: needs {', '.join(map(str, unknown))[:120]}, which is not supported. Export it without this "
            "compression or extension (Blender: GLB without compression; gltf-transform copy removes compression)."
        )


@dataclass
class _Scene:
    """A file, and the transforms of the nodes of its default scene."""

    path: Path
    tree: dict[str, Any]
    binary: bytes
    posed: set[str] = field(default_factory=set)
    """What moved vertices: the skeleton, morph targets."""

    def __post_init__(self) -> None:
        nodes = self.tree.get("nodes", [])
        scenes = self.tree.get("scenes", [])
        children = {child for node in nodes for child in node.get("children", [])}
        roots = [index for index in range(len(nodes)) if index not in children]
        if scenes:
            roots = scenes[self.tree.get("scene", 0)].get("nodes", [])
        self.order: list[int] = []
        self.world: dict[int, Float[np.ndarray, "4 4"]] = {}
        waiting = [(root, np.eye(4)) for root in reversed(roots)]
        while waiting:
            index, above = waiting.pop()
            if index in self.world:  # a node has one parent: no circles, no copies
                continue
            self.world[index] = above @ _local(nodes[index])
            self.order.append(index)
            waiting += [(child, self.world[index]) for child in reversed(nodes[index].get("children", []))]

    def primitives(self, index: int) -> "list[tuple[Float[np.ndarray, 'n 3'], Int[np.ndarray, 'm 3']]]":
        """Vertices in the scene, and triangles, of each part of the mesh of a node."""
        node = self.tree["nodes"][index]
        if "mesh" not in node:
            return []
        mesh, parts = self.tree["meshes"][node["mesh"]], []
        weights = node.get("weights", mesh.get("weights", []))
        for primitive in mesh["primitives"]:
            mode = primitive.get("mode", _TRIANGLES)
            if mode not in (_POINTS, _TRIANGLES, _STRIP, _FAN):
                continue  # lines
            arrays, corners = self._decoded(primitive)
            points = arrays["POSITION"].astype(np.float64)[:, :3]
            moved = self._morphed(points, primitive, weights)
            if "skin" in node and "JOINTS_0" in arrays:
                moved, matrix = self._skinned(moved, arrays, node["skin"], index), np.eye(4)
            else:
                matrix = self.world[index]
                moved = moved @ matrix[:3, :3].T + matrix[:3, 3]
            faces = _triangles(
                np.arange(len(points)) if corners is None else corners.reshape(-1).astype(np.int64), mode
            )
            parts.append((moved, faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else faces))
        return parts

    def _decoded(self, primitive: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Attributes of the vertices by name, and the corners of the faces if there are indices."""
        wanted = [name for name in primitive["attributes"] if name.split("_")[0] in ("POSITION", "JOINTS", "WEIGHTS")]
        packed = primitive.get("extensions", {}).get(_DRACO)
        if packed is None:
            arrays = {name: self.accessor(primitive["attributes"][name]) for name in wanted}
            return arrays, self.accessor(primitive["indices"]) if "indices" in primitive else None
        try:
            import DracoPy
        except ModuleNotFoundError as missing:
            raise BadFileError(
                f"{self.path}: compressed by Draco, which needs the package DracoPy. Run pip install "
                "'shapespace[draco]', or export it without compression."
            ) from missing
        mesh = DracoPy.decode(self._view(packed["bufferView"]))
        arrays = {}
        for attribute in mesh.attributes:
            for name in wanted:
                if packed["attributes"].get(name) == attribute["unique_id"]:
                    accessor = self.tree["accessors"][primitive["attributes"][name]]
                    arrays[name] = _normalized(np.asarray(attribute["data"]), accessor)
        faces = getattr(mesh, "faces", None)
        return arrays, None if faces is None else np.asarray(faces)

    def _morphed(
        self, points: Float[np.ndarray, "n 3"], primitive: Mapping[str, Any], weights: list[Any]
    ) -> Float[np.ndarray, "n 3"]:
        """The points with the displacements of the morph targets, by their weights."""
        moved = points
        for target, weight in zip(primitive.get("targets", []), weights, strict=False):
            if weight and "POSITION" in target:
                moved = moved + float(weight) * self.accessor(target["POSITION"]).astype(np.float64)
                self.posed.add("morph targets")
        return moved

    def _skinned(
        self, points: Float[np.ndarray, "n 3"], arrays: dict[str, np.ndarray], skin: int, node: int
    ) -> Float[np.ndarray, "n 3"]:
        """The points in the pose of the joints; the transform of their own node does not count (glTF 2.0, 3.7.3)."""
        content = self.tree["skins"][skin]
        joints = np.stack([self.world.get(joint, np.eye(4)) for joint in content["joints"]])
        if "inverseBindMatrices" in content:
            inverse = self.accessor(content["inverseBindMatrices"]).astype(np.float64).reshape(-1, 4, 4)
            joints = joints @ inverse[: len(joints)].transpose(0, 2, 1)  # stored column by column
        moved, total = np.zeros_like(points), np.zeros((len(points), 1))
        for name in (name for name in arrays if name.startswith("JOINTS_")):
            weights = arrays["WEIGHTS_" + name.removeprefix("JOINTS_")].astype(np.float64)
            for column in range(weights.shape[1]):
                matrix, weight = joints[arrays[name][:, column].astype(np.int64)], weights[:, column, None]
                moved += weight * (np.einsum("nij,nj->ni", matrix[:, :3, :3], points) + matrix[:, :3, 3])
                total += weight
        moved = np.where(total > 0, moved / np.where(total > 0, total, 1), points)
        matrix = self.world[node]
        unposed = points @ matrix[:3, :3].T + matrix[:3, 3]
        if np.abs(moved - unposed).max(initial=0) > 1e-4 * np.ptp(points, axis=0).max(initial=0):
            self.posed.add("its skeleton")
        return moved

    def accessor(self, index: int) -> np.ndarray:
        """Values of an accessor, (count, width); integers that are normalized become fractions."""
        accessor = self.tree["accessors"][index]
        kind, width, count = np.dtype(_TYPES[accessor["componentType"]]), _WIDTHS[accessor["type"]], accessor["count"]
        values = np.zeros((count, width), kind)
        if "bufferView" in accessor:
            values = self._strided(accessor["bufferView"], accessor.get("byteOffset", 0), kind, count, width)
        if "sparse" in accessor:
            values, sparse = values.copy(), accessor["sparse"]
            place, rows = sparse["indices"], sparse["values"]
            chosen = self._strided(
                place["bufferView"],
                place.get("byteOffset", 0),
                np.dtype(_TYPES[place["componentType"]]),
                sparse["count"],
                1,
            )
            values[chosen[:, 0]] = self._strided(
                rows["bufferView"], rows.get("byteOffset", 0), kind, sparse["count"], width
            )
        return _normalized(values, accessor)

    def _strided(self, view: int, start: int, kind: np.dtype, count: int, width: int) -> np.ndarray:
        data, row = self._view(view), kind.itemsize * width
        step = self.tree["bufferViews"][view].get("byteStride", row)
        if count and (start < 0 or step < row or start + step * (count - 1) + row > len(data)):
            raise ValueError(f"an array of {count:,} rows is beyond its {len(data):,} bytes")
        return (
            np.ndarray((count, width), kind, data, start, (step, kind.itemsize))
            if count
            else np.zeros((0, width), kind)
        )

    def _view(self, index: int) -> bytes:
        view = self.tree["bufferViews"][index]
        if _MESHOPT in view.get("extensions", {}):
            raise BadFileError(
                f"{self.path}: compressed by {_MESHOPT}. Export it without (gltf-transform copy removes compression)."
            )
        data, start = self._buffer(view["buffer"]), view.get("byteOffset", 0)
        if start < 0 or view["byteLength"] < 0 or start + view["byteLength"] > len(data):
            raise ValueError(f"bytes {start:,} to {start + view['byteLength']:,} of a buffer of {len(data):,}")
        return data[start : start + view["byteLength"]]

    def _buffer(self, index: int) -> bytes:
        uri = self.tree["buffers"][index].get("uri")
        if uri is None:
            return self.binary
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        name = Path(unquote(uri))
        if "://" in uri or name.is_absolute() or ".." in name.parts:
            raise ValueError(f"buffer {uri[:60]} is outside its folder")
        if not (self.path.parent / name).is_file():
            raise BadFileError(
                f"{self.path}: its buffer {str(name)[:60]} is missing. Copy it beside the file, or export GLB, which "
                "is one file."
            )
        return (self.path.parent / name).read_bytes()


def _local(node: Mapping[str, Any]) -> Float[np.ndarray, "4 4"]:
    """Transform of a node: its matrix (stored column by column), or translation, rotation and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
    matrix = np.eye(4)
    if "rotation" in node:
        matrix[:3, :3] = Rotation.from_quat(node["rotation"]).as_matrix()
    matrix[:3, :3] *= np.array(node.get("scale", [1, 1, 1]), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


def _normalized(values: np.ndarray, accessor: Mapping[str, Any]) -> np.ndarray:
    """Integers as fractions of their largest value, if the accessor declares it."""
    if not accessor.get("normalized") or values.dtype.kind == "f":
        return values
    return np.maximum(values.astype(np.float64) / np.iinfo(values.dtype).max, -1)


def _triangles(corners: Int[np.ndarray, "n"], mode: int) -> Int[np.ndarray, "m 3"]:
    if mode == _POINTS or len(corners) < 3:
        return np.zeros((0, 3), np.int64)
    if mode == _TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if mode == _FAN:
        return np.stack([np.broadcast_to(corners[0], len(corners) - 2), corners[1:-1], corners[2:]], axis=1)
    strip = np.stack([corners[:-2], corners[1:-1], corners[2:]], axis=1)
    strip[1::2] = strip[1::2, [1, 0, 2]]
    return strip
