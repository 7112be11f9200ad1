"""Meshes of fits in meters: the zero level set of the field, the registered template, and the posed template."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from trimesh import Trimesh

from shapespace.fitting.displacement import displaced
from shapespace.fitting.registration import Registration, register
from shapespace.fitting.result import Fit
from shapespace.geometry.frame import Frame
from shapespace.geometry.isosurface import largest_component
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.base import FieldModel, ShapeModel

COARSE_RESOLUTION = 48  # cells along the model cube, of the mesh from which coverage and stature are estimated

Components = Literal["largest", "all"]
Surface = Literal["auto", "field", "template"]


def choose_surface(model: ShapeModel, surface: Surface) -> Literal["field", "template"]:
    """The surface that `auto` stands for: the template if the model has one; others are returned as they are."""
    if surface != "auto":
        return surface
    has_template = isinstance(model, ArticulatedSDF) and len(model.template.faces) > 0
    return "template" if has_template else "field"


def field_mesh(model: ShapeModel, fit: Fit, *, resolution: int, components: Components = "largest") -> Trimesh:
    """The zero level set of a fit in the world; `ValueError` if there is none in the model cube."""
    (mesh,) = model.extract_surface(fit.code, resolution=resolution)
    if components == "largest" and isinstance(model, FieldModel):  # each patch of an atlas is a component
        mesh = largest_component(mesh)
    return Trimesh(to_world(mesh.vertices, fit.frame), mesh.faces, process=False)


def registered_mesh(model: ArticulatedSDF, fit: Fit, registration: Registration) -> Trimesh:
    """The template on the surface of a fit in the world, with the displacement of the fit if there is one."""
    (vertices,) = register(model, fit.code, registration)
    faces = registration.faces.numpy()
    moved = displaced(vertices.cpu().numpy(), faces, fit.displacement)
    return Trimesh(to_world(moved, fit.frame), faces, process=False)


def posed_mesh(model: ArticulatedSDF, fit: Fit) -> Trimesh:
    """The template in the pose and shape of a fit in the world, without a registration."""
    with torch.no_grad():
        (vertices,) = model.template(model.states(fit.code)).cpu()
    return Trimesh(to_world(vertices.numpy(), fit.frame), model.template.faces.cpu().numpy(), process=False)


def joint_positions(model: ArticulatedSDF, fit: Fit) -> dict[str, Float[np.ndarray, "3"]]:
    """Centers of the joints of a fit in the world, by name."""
    with torch.no_grad():
        (centers,) = model.template.joints(model.states(fit.code))
    return dict(zip(model.template.joint_names, to_world(centers.cpu().numpy(), fit.frame), strict=True))


def coarse_mesh(model: ShapeModel, fit: Fit) -> Trimesh:
    """A fast mesh of a fit in the world, for its quality: the posed template, or a coarse one of the field."""
    if isinstance(model, ArticulatedSDF) and choose_surface(model, "auto") == "template":
        return posed_mesh(model, fit)
    return field_mesh(model, fit, resolution=COARSE_RESOLUTION)


def to_world(points: Float[np.ndarray, "n 3"], frame: Frame) -> Float[np.ndarray, "n 3"]:
    """Points of the model frame in the world (float32)."""
    return frame.to_world(torch.from_numpy(np.asarray(points)).float()).numpy()


def to_model(points: Float[np.ndarray, "n 3"], frame: Frame, device: torch.device) -> Float[Tensor, "1 n 3"]:
    """World points in the model frame, as a batch of one."""
    return frame.to_model(torch.from_numpy(np.array(points)).float())[None].to(device)
