"""Articulated bodies: one code gives the poses and local codes of many parts, each a small signed distance field.

Parts with a field each: Deng et al., NASA (ECCV 2020); local codes: Mihajlovic et al., COAP (CVPR 2022). The poses of
the parts begin as principal components of the registrations of the training scans (docs/concepts/articulated.md).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shapespace.data.loader import Batch
from shapespace.data.registration import (
    MOTION_REGISTRATIONS,
    PartTargets,
    make_template,
    registration_targets,
    registrations,
    require_registrations,
)
from shapespace.data.store import ScanSource
from shapespace.geometry.articulation import PartPoses, PartTree, part_tree
from shapespace.geometry.isosurface import Balls
from shapespace.models import sdf
from shapespace.models.base import ModelConfig, SDFModel
from shapespace.models.code import Code
from shapespace.models.encoders import SeparateEncoder
from shapespace.models.template import PosedTemplate
from shapespace.nn import losses
from shapespace.nn.hypernetwork import PartHypernetwork, rotation_to_6d
from shapespace.nn.latent import CodeTable, GaussianPrior
from shapespace.nn.mlp import Linearization
from shapespace.nn.part_mlp import PartLinearization, PartMLP, PartStates, nearest_parts
from shapespace.nn.part_pointnet import PartCorrections
from shapespace.nn.pointnet import PointNet
from shapespace.synthetic.body import Body

PARTS_OOD_LIMIT = 3.5
"""`GaussianPrior.ood_limit` of this family: by `humans` a chair, a ball, a box, a table and others have 4.5 to 9.2, and
tuning people 0.4 to 1.5. The parts explain more of a scan than one MLP does, with less of a deviation of the code."""

HEAD = ("head", "neck03", "eye")  # joints of the head
UNIFORM_SHARE = 8  # surface points for each uniform one
TREE_BODIES = 100  # that decide how the parts hang together
DOMAIN_MARGIN = 1.2  # radius of the domain's balls over the least that covers the training registrations


@dataclass(frozen=True)
class PartDensity:
    """How much denser the parts of a region are: weights of its area in the clustering of the template."""

    hands: float
    feet: float
    head: float


class PartExpansion(NamedTuple):
    """States of the parts, and their derivatives in the global code: in center (3), rotation vector (3), local code."""

    states: PartStates
    by_code: Float[Tensor, "b k p z"]

    def select(self, rows: slice) -> "PartExpansion":
        """Some of the bodies."""
        return PartExpansion(self.states.select(rows), self.by_code[rows])


class ArticulatedSDF(SDFModel):
    """Signed distance (model units) of a body as a blend of the fields of its parts.

    A code is either global, one tensor z (b, d), or that of a fit of the parts, four tensors: z, and the centers
    (b, k, 3), rotations (b, k, 3, 3) and local codes (b, k, l) of the parts, which then give the shape alone.
    """

    def __init__(
        self,
        encoder: SeparateEncoder,
        hypernetwork: PartHypernetwork,
        decoder: PartMLP,
        prior: GaussianPrior,
        density: PartDensity,
        loss_points: int,
    ) -> None:
        super().__init__()
        self.loss_points = loss_points
        self.encoder, self.hypernetwork, self.decoder, self.prior = encoder, hypernetwork, decoder, prior
        self.template = PosedTemplate()
        self.density = density
        self.register_buffer("local_std", torch.ones(decoder.num_parts, decoder.local_dim))
        self.register_buffer("target_center", torch.zeros(0), persistent=False)
        self.register_buffer("target_rotation", torch.zeros(0), persistent=False)
        self.register_buffer("target_weight", torch.zeros(0), persistent=False)
        self.register_load_state_dict_post_hook(_check_template)  # type: ignore[no-untyped-call]

    local_std: Tensor
    target_center: Tensor
    target_rotation: Tensor
    target_weight: Tensor
    _tree: PartTree | None = None
    _training_states: tuple[Any, PartStates] | None = None
    border_cache: tuple[Any, Any] | None = None  # of fitting.joints
    # smaller tasks make the products of a part small
    chunk_points = 19200  # of the batch, an eighth of which is in the loss
    fit_chunk_points = 1800

    def initialize(self, store: ScanSource, names: Sequence[str]) -> None:
        """Divide the template of the registrations into parts; take their poses as targets, and their components.

        A model that has a template, that of `--init-from`, keeps it with its components and codes.
        """
        if len(self.template.vertices):
            self._set_targets(registration_targets(store, names, self.template.part_template()))
            return
        require_registrations(store, names)
        vertices, faces = next(registrations(store, names[:1]))
        vertices, weight = rest_of(vertices, faces, self.density, store.scale)
        some = names[:: max(len(names) // MOTION_REGISTRATIONS, 1)][:MOTION_REGISTRATIONS]
        few = len(names) < MOTION_REGISTRATIONS  # they say too little about the joints
        moved = [] if few else [registration for registration, _ in registrations(store, some, faces)]
        template = make_template(vertices, faces, self.decoder.num_parts, weight, moved=moved)
        targets = registration_targets(store, names, template)
        self.decoder.radius.copy_(template.radius)
        self.template.set(template)
        farthest = max(
            float((torch.cdist(vertices, own) / template.radius).amin(dim=1).max())
            for (vertices, _), own in zip(registrations(store, names, faces), targets.center, strict=True)
        )
        self.template.reach.fill_(DOMAIN_MARGIN * farthest)
        self.set_targets(targets)

    @torch.no_grad()
    def set_targets(self, targets: PartTargets) -> None:
        """Take poses of the parts of the training scans as targets; mean, components and codes begin as theirs."""
        self._set_targets(targets)
        poses = torch.cat([self.target_center, rotation_to_6d(self.target_rotation)], dim=-1)
        codes, table = self.hypernetwork.initialize(poses), self.codes_parameter
        assert table is not None  # the family has free codes
        table.copy_(codes)

    def _set_targets(self, targets: PartTargets) -> None:
        device = self.decoder.radius.device
        self.target_center, self.target_rotation = targets.center.to(device), targets.rotation.to(device)
        self.target_weight = (targets.weight / targets.weight.mean()).to(device)

    def finish(self, store: ScanSource, names: Sequence[str]) -> None:
        """Learn how the vertices of the template follow the parts, where all scans have registrations."""
        table = self.codes_parameter
        if table is not None and len(table) and all(store.has_ground_truth(name) for name in names):
            with torch.no_grad():
                states = self.hypernetwork(table)
            each = (PartStates(*(tensor[row : row + 1] for tensor in states)) for row in range(len(names)))
            self.template.fit(each, (vertices for vertices, _ in registrations(store, names)))

    @property
    def code_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Global code; centers, rotations and local codes of the parts."""
        count, size = self.local_std.shape
        return (tuple(self.prior.mean.shape), (count, 3), (count, 3, 3), (count, size))

    @torch.no_grad()
    def summarize(self, codes: Float[Tensor, "n z"]) -> None:
        """Set the prior, and the spread of the local codes."""
        self.prior.fit(codes, shrink_to="diagonal")
        local = self.hypernetwork(codes).local_code
        self.local_std.copy_(local.std(dim=0, correction=0))

    def training_key(self) -> tuple[Any, ...]:
        """What changes with the weights on which the training bodies depend."""
        codes, version = self.codes_parameter, sum(p._version for p in self.hypernetwork.parameters())
        assert codes is not None  # the family has free codes
        return (version, codes._version, codes.device)

    @torch.no_grad()
    def training_states(self) -> PartStates:
        """States of the parts of all training scans, from their free codes; kept until the weights change."""
        codes, key = self.codes_parameter, self.training_key()
        if self._training_states is None or self._training_states[0] != key:
            self._training_states = key, self.hypernetwork(codes)
        return self._training_states[1]

    def border_points(self) -> tuple[Float[Tensor, "m 2 3"], Int[Tensor, "m 2"]]:
        """Points on the borders of the parts at rest, in the frames of their two parts (over the radius), and these."""
        return self.template.border_points(self.decoder.radius)

    def encode(self, batch: Batch) -> Code:
        """Encode a batch."""
        return self.encoder(batch, self.hypernetwork, self.decoder.radius)

    def states(self, code: Code) -> PartStates:
        """States of the parts: given, or from the global code."""
        if len(code.parts) == 1:
            return self.hypernetwork(code.parts[0])
        return PartStates(*code.parts[1:])

    def replace_vector(self, code: Code, vector: Float[Tensor, "b z"]) -> Code:
        """The code with another global code; parts of a fit keep their motions from those of the global code."""
        if len(code.parts) == 1:
            return Code((vector,))
        own, before, after = self.states(code), self.hypernetwork(code.parts[0]), self.hypernetwork(vector)
        return Code(
            (
                vector,
                after.center + own.center - before.center,
                own.rotation @ before.rotation.mT @ after.rotation,
                after.local_code + own.local_code - before.local_code,
            )
        )

    def expand(self, code: Code) -> Code:
        """The same shapes with the states of their parts."""
        return code if len(code.parts) > 1 else Code((*code.parts, *self.states(code)))

    def part_tree(self) -> PartTree:
        """Tree of the parts (model units, on the CPU) by their poses in training bodies, or in bodies of the prior.

        It is made once and kept, also if the weights change. Raises `ValueError` for a model without a template.
        """
        if not len(self.template.vertices):
            raise ValueError("part_tree: the model has no template with parts. Train it, or load a trained model.")
        if self._tree is None:
            table = self.codes_parameter
            if table is not None and len(table):
                codes: Tensor = table
            else:
                codes = self.prior.sample(TREE_BODIES, torch.Generator().manual_seed(0))
            chosen = torch.linspace(0, len(codes) - 1, min(TREE_BODIES, len(codes))).long()
            with torch.no_grad():
                states = self.hypernetwork(codes[chosen])
            mesh = (self.template.vertices, self.template.faces, self.template.labels, self.template.center)
            vertices, faces, labels, center = (tensor.cpu().numpy() for tensor in mesh)
            self._tree = part_tree(vertices, faces, labels, center, poses=PartPoses(states.center, states.rotation))
        return self._tree

    def field(self, x: Float[Tensor, "b q 3"], code: Code) -> Float[Tensor, "b q"]:
        """Signed distance (model units), negative inside; meaningful in the domain."""
        return self.decoder(x, self.states(code))

    def domain(self, code: Code) -> Balls:
        """The balls around the parts, whose radius is that of the part times a factor that covers all training bodies.

        Far from all parts the field was never taught; without the domain it has spurious surfaces there.
        """
        return Balls(self.states(code).center[0], self.template.reach * self.decoder.radius)

    def nearest_parts(self, x: Float[Tensor, "b q 3"], center: Float[Tensor, "b k 3"]) -> Int[Tensor, "b q n"]:
        """The parts that are blended at each point."""
        return nearest_parts(x, center, self.decoder.radius).permute(1, 2, 0)

    def linearize(self, x: Float[Tensor, "b q 3"], code: Code) -> Linearization:
        """Signed distance with its gradient in x and its Jacobian in the global code.

        Parts of a fit move as those of the global code do.
        """
        return self.linearize_expanded(x, self.expand_parts(code))

    def expand_parts(self, code: Code) -> PartExpansion:
        """The parts of codes with the derivatives by which they follow the global codes."""
        return PartExpansion(self.states(code), self.hypernetwork.jacobian(code.parts[0]))

    def linearize_expanded(self, x: Float[Tensor, "b q 3"], parts: PartExpansion) -> Linearization:
        """`linearize` where the parts are known."""
        local = self.decoder.linearize(x, parts.states)
        return Linearization(local.value, local.gradient, chain(local, parts.by_code))

    def linearize_parts(self, x: Float[Tensor, "b q 3"], states: PartStates) -> PartLinearization:
        """Signed distance with its gradient in x and its Jacobian in the states of the parts."""
        return self.decoder.linearize(x, states)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, losses.Scalar]:
        """Terms of `sdf.loss_terms`, `part_center`, `part_rotation` and the code regularization.

        In training the loss of the field has no gradient in the poses of the parts: with it, training diverges. The
        uniform points without a target are moved into the domain, since the field is not used elsewhere. Outside of
        training the parts have no target poses, and their two terms are 0.
        """
        states = self.states(code)
        shape = states.detach_pose() if self.training else states
        if batch.target_sdf is None:
            batch = self._balance(batch, shape)
            batch = replace(batch, uniform_points=self._into_domain(batch.uniform_points, shape))
        terms = sdf.loss_terms(self.decoder.value_and_gradient, self.decoder, batch, shape)
        terms["part_center"] = terms["part_rotation"] = states.center.new_zeros(())
        if self.training and len(self.target_center):
            index = batch.scan_index
            weight = self.target_weight[index]
            terms["part_center"] = (weight * (states.center - self.target_center[index]).norm(dim=-1)).mean()
            difference = (states.rotation - self.target_rotation[index]).flatten(2)
            terms["part_rotation"] = (weight * difference.norm(dim=-1)).mean()
        terms["code_reg"] = code.parts[0].norm(dim=-1).mean()
        return terms

    @torch.no_grad()
    def draw_by_part(
        self,
        points: Float[Tensor, "b n 3"],
        states: PartStates,
        uniform: Float[Tensor, "b n"],
        count: int,
    ) -> Int[Tensor, "b c"]:
        """Indices of `count` points of each body, in their order; small parts have more of them than their share.

        A point's chance is in proportion to n^(-3/4), n the number of points that its part has. The draw is that of
        exponential keys (Efraimidis & Spirakis 2006), from `uniform` random numbers in [0, 1].
        """
        part = self.nearest_parts(points, states.center)[..., 0]
        share = torch.nn.functional.one_hot(part, self.decoder.num_parts).sum(dim=1).gather(1, part)
        keys = -uniform.clamp(1e-6, 1).log() * share.pow(0.75)
        return keys.topk(count, dim=1, largest=False).indices.sort(dim=1).values

    @torch.no_grad()
    def _balance(self, batch: Batch, states: PartStates) -> Batch:
        """The batch with `loss_points` of the surface points of each scan, so that small parts have more of them.

        The random numbers of the draw are the directions of the near points.
        """
        count = self.loss_points
        if batch.surface.shape[1] <= count:
            return batch
        x, y, _ = (batch.near_points - batch.surface).unbind(dim=-1)
        uniform = torch.atan2(y, x) / (2 * torch.pi) + 0.5
        chosen = self.draw_by_part(batch.surface, states, uniform, count)[..., None].expand(-1, -1, 3)
        vectors = ("surface", "near_points", "normals", "unoriented_normals")
        present = {name: tensor for name in vectors if (tensor := getattr(batch, name)) is not None}
        anywhere = batch.uniform_points[:, : max(1, count // UNIFORM_SHARE)]
        kept: dict[str, Any] = {name: tensor.gather(1, chosen) for name, tensor in present.items()}
        return replace(batch, uniform_points=anywhere, **kept)

    def _into_domain(self, points: Float[Tensor, "b m 3"], states: PartStates) -> Float[Tensor, "b m 3"]:
        """Points of cubes around the parts from uniform points of a cube about the origin.

        The first coordinate of a point chooses the part; what is left of it is as uniform as the other two.
        """
        # of each scan by itself, so that chunks and processes have the points of the batch
        unit = points / points.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-9) * 0.5 + 0.5
        place = unit[..., 0] * self.decoder.num_parts
        part = place.long().clamp(max=self.decoder.num_parts - 1)
        unit = torch.cat([(place - part)[..., None], unit[..., 1:]], dim=-1)
        center = states.center.detach().gather(1, part[..., None].expand(-1, -1, 3))
        reach = self.template.reach * self.decoder.radius[part]
        return center + (2 * unit - 1) * reach[..., None]


def _check_template(model: ArticulatedSDF, _: Any) -> None:
    """Refuse a file whose template does not have the parts of the model: its sizes are those of the file."""
    model.template.check(*model.local_std.shape)
    if not bool((model.decoder.radius > 0).all()):
        raise ValueError(f"decoder.radius has the minimum {float(model.decoder.radius.min()):g}, not above 0")


def rest_of(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], density: PartDensity, scale: float
) -> tuple[Float[Tensor, "v 3"], Float[np.ndarray, "v"] | float]:
    """Rest vertices (model units) of the template of a registration, and the density of the parts at each.

    If the faces are those of the synthetic body, they are its mean at rest, with the densities of its regions; `scale`
    is meters per model unit. Otherwise the registration itself, whose regions are not known.
    """
    body = Body.load()
    if faces.shape != body.faces.shape or not bool((faces == torch.from_numpy(body.faces)).all()):
        return vertices, 1.0
    regions = body.parts()
    weight = np.where(regions["hands"], density.hands, np.where(regions["feet"], density.feet, 1.0))
    rest = body.mean[: -len(body.joints)]
    return torch.from_numpy((rest - rest.mean(axis=0)) / scale).float(), np.where(
        body.moved_by(*HEAD), density.head, weight
    )


def chain(local: PartLinearization, by_code: Float[Tensor, "b k p z"]) -> Float[Tensor, "b q z"]:
    """Jacobian in the global code: the sum over the blended parts of a point of their Jacobians' products."""
    count, nearest = local.jacobian.shape[1:3]
    result = [local.jacobian.new_empty(0, count, by_code.shape[-1])]
    for parts, jacobian, matrices in zip(local.part, local.jacobian, by_code, strict=True):
        part = parts.flatten()
        order = part.argsort()
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        sizes = part.bincount(minlength=len(matrices)).tolist()
        rows = jacobian.flatten(0, 1).index_select(0, order)
        product = rows.new_empty(len(rows), matrices.shape[-1])
        for a, b, c in zip(rows.split(sizes), matrices, product.split(sizes), strict=True):
            torch.mm(a, b, out=c)
        # the sum of the rows of a point, in a quarter of the time of putting them in order first
        of_points = torch.nn.functional.embedding_bag(inverse.view(count, nearest), product, mode="sum")
        result.append(of_points[None])
    return torch.cat(result)


@dataclass(frozen=True)
class ArticulatedConfig(ModelConfig):
    """Settings of an `ArticulatedSDF` model."""

    code_dim: int = 192
    """Dimension of the global code."""
    num_parts: int = 76
    """Number of body parts."""
    local_dim: int = 24
    """Dimension of the local code of a part."""
    width: int = 64
    """Units of each hidden layer of a part."""
    depth: int = 4
    """Hidden layers of a part."""
    beta: float = 30.0
    """Sharpness of the softplus (1 / radius of a part)."""
    hyper_width: int = 256
    """Units of each hidden layer of the hyper-network."""
    hand_density: float = 10.0
    """Weight of the hands' area in the clustering of the template into parts."""
    foot_density: float = 2.0
    """Weight of the feet's area."""
    head_density: float = 2.5
    """Weight of the head's area."""
    loss_points: int = 128
    """Surface points of each scan in the loss of a step, of those of the batch; small parts have more of them."""
    encoder_points: int = 512
    """Points of a scan that the PointNet reads."""
    encoder_width: int = 128
    """Units of the middle layer on each point."""
    encoder_features: int = 256
    """Features of which the PointNet takes the maximum over the points."""
    encoder_corrections: int = 0
    """Corrections of the PointNet's code by a small PointNet in the frame of each part."""
    correction_points: int = 1024
    """Points of a scan that the corrections read."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of range."""
        for name, value in asdict(self).items():
            if name == "encoder_corrections" and value == 0:
                continue
            if not 0 < value < math.inf:
                least = "at least 1" if isinstance(value, int) else "above 0"
                raise ValueError(f"--model.{name.replace('_', '-')} {value:g}: must be {least}.")


def build_articulated(config: ArticulatedConfig, *, num_scans: int = 0) -> ArticulatedSDF:
    """Build an articulated model, with free codes for `num_scans` training scans."""
    hypernetwork = PartHypernetwork(
        code_dim=config.code_dim, num_parts=config.num_parts, local_dim=config.local_dim, width=config.hyper_width
    )
    pointnet = PointNet(
        code_dim=config.code_dim,
        num_points=config.encoder_points,
        width=config.encoder_width,
        features=config.encoder_features,
    )
    corrections = PartCorrections(
        code_dim=config.code_dim,
        num_parts=config.num_parts,
        count=config.encoder_corrections,
        num_points=config.correction_points,
    )
    table = CodeTable(num_scans=num_scans, code_dim=config.code_dim)
    decoder = PartMLP(
        num_parts=config.num_parts,
        local_dim=config.local_dim,
        width=config.width,
        depth=config.depth,
        beta=config.beta,
    )
    return ArticulatedSDF(
        SeparateEncoder(pointnet, corrections, table),
        hypernetwork,
        decoder,
        GaussianPrior(code_dim=config.code_dim, ood_limit=PARTS_OOD_LIMIT),
        PartDensity(config.hand_density, config.foot_density, config.head_density),
        config.loss_points,
    )
