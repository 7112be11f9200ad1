"""Records of a training for TensorBoard."""

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

THUMBNAIL = 64  # pixels of a picture in TensorBoard's projector


PICTURED_CELLS = 48  # along the cube's edge, of the meshes in these pictures


def record_scalars(
    writer: Any,
    bar: Any,
    step: int,
    loss: Tensor,
    terms: Mapping[str, Tensor],
    optimiser: OptimizerGroup,
) -> None:
    writer.add_scalar("loss", loss.item(), step)
    writer.add_scalar("lr", optimiser.param_groups[0]["lr"], step)
    for name, term in terms.items():
        writer.add_scalar(f"terms/{name}", term.item(), step)
    shown = {name: f"{terms[name].item():.4f}" for name in ("surface", "occupancy", "chamfer") if name in terms}
    bar.set_postfix(loss=f"{loss.item():.4f}", **shown, refresh=False)


@torch.no_grad()
def record_meshes(writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device) -> None:
    """The surfaces of one batch's first scan, coarse, for TensorBoard's mesh page."""
    model.eval()
    mesh = _shape(model, model.encode(dataset[0].to(device))[0], 64)
    model.train()
    if not len(mesh.faces):  # no surface yet: early in a training that is ordinary
        return
    vertices, faces = torch.from_numpy(mesh.vertices.copy()), torch.from_numpy(mesh.faces.copy())
    writer.add_mesh("surface", vertices=vertices[None].float(), faces=faces[None].int(), global_step=step)


@torch.no_grad()
def record_codes(
    writer: Any, step: int, model: ShapeModel, dataset: StepDataset, device: torch.device, most: int
) -> None:
    """Codes of training scans, evenly spread over them, for TensorBoard's projector: each with a picture of its shape.

    Codes that are longer than there are of them are turned onto the axes that they span: distances stay the same.
    """
    model.eval()
    rows = np.unique(np.linspace(0, len(dataset.names) - 1, most).round().astype(int)).tolist()
    names = [dataset.names[row].replace("\t", " ") for row in rows]
    codes = [model.encode(dataset.single_scan(row).to(device)) for row in rows]
    pictures = [renderer.thumbnail(_shape(model, code, PICTURED_CELLS), THUMBNAIL) for code in codes]
    flat = torch.cat([code.flat for code in codes]).cpu()
    if flat.shape[1] > len(flat):
        left, length, _ = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
        flat = left * length
    model.train()
    writer.add_embedding(
        flat,
        metadata=[[name, name.partition("/")[0]] for name in names],
        metadata_header=["scan", "subject"],
        label_img=torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255,
        global_step=step,
        tag="codes",
    )


def _shape(model: ShapeModel, code: Code, resolution: int) -> Trimesh:
    """The surface of a code; a mesh without faces where there is none."""
    try:
        (mesh,) = model.extract_surface(code, resolution=resolution)
    except ValueError:
        return Trimesh()
    return mesh
