"""TensorBoard records of a training: scalars, meshes, codes with renderings."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trimesh import Trimesh

from shapespace.data.loader import StepDataset
from shapespace.models.base import ShapeModel
from shapespace.models.code import Code
from shapespace.rendering import renderer
from shapespace.training.optimizers import OptimizerGroup

THUMBNAIL_SIZE = 64  # edge of a rendering in the projector (pixels)
THUMBNAIL_RESOLUTION = 48  # cells along each edge of the cube, of the meshes in these renderings
MESH_RESOLUTION = 64  # the same, of the meshes in the mesh page


def record_scalars(
    writer: Any,
    bar: Any,
    step: int,
    loss: Tensor,
    terms: Mapping[str, Tensor],
    optimizers: OptimizerGroup,
) -> None:
    """Write loss, learning rate and terms of a step, and show some of them in the progress bar."""
    writer.add_scalar("loss", loss.item(), step)
    writer.add_scalar("lr", optimizers.param_groups[0]["lr"], step)
    for name, term in terms.items():
        writer.add_scalar(f"loss/{name}", term.item(), step)
    shown = {name: f"{terms[name].item():.4f}" for name in ("surface", "occupancy", "chamfer") if name in terms}
    bar.set_postfix(loss=f"{loss.item():.4f}", **shown, refresh=False)


@torch.no_grad()
def record_meshes(writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device) -> None:
    """Write the surface of the first training scan of step 0 to the mesh page."""
    model.eval()
    mesh = _shape(model, model.encode(dataset[0].to(device))[0], MESH_RESOLUTION)
    model.train()
    if not len(mesh.faces):  # usual early in a training: the field has no zero level yet
        return
    vertices, faces = torch.from_numpy(mesh.vertices.copy()), torch.from_numpy(mesh.faces.copy())
    writer.add_mesh("surface", vertices=vertices[None].float(), faces=faces[None].int(), global_step=step)


@torch.no_grad()
def record_codes(
    writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device, count: int
) -> None:
    """Write codes of about `count` training scans, evenly spaced, to the projector, with renderings of their shapes.

    If the dimension of the codes exceeds their number, they are projected onto their principal axes, which preserves
    all distances.
    """
    model.eval()
    rows = np.unique(np.linspace(0, len(dataset.names) - 1, count).round().astype(int)).tolist()
    names = [dataset.names[row].replace("\t", " ") for row in rows]
    codes = [model.encode(dataset.single_scan(row).to(device)) for row in rows]
    images = [renderer.thumbnail(_shape(model, code, THUMBNAIL_RESOLUTION), THUMBNAIL_SIZE) for code in codes]
    flat = torch.cat([code.flat for code in codes]).cpu()
    if flat.shape[1] > len(flat):
        left, singular, _ = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
        flat = left * singular
    model.train()
    writer.add_embedding(
        flat,
        metadata=[[name, name.partition("/")[0]] for name in names],
        metadata_header=["scan", "subject"],
        label_img=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255,
        global_step=step,
        tag="codes",
    )


def _shape(model: ShapeModel, code: Code, resolution: int) -> Trimesh:
    """Surface of a code; an empty mesh if the field has no zero level."""
    try:
        (mesh,) = model.extract_surface(code, resolution=resolution)
    except ValueError:
        return Trimesh()
    return mesh
