"""Poses of the parts of raw scans, by fits of a space that has parts: targets of a training without registrations."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from shapespace.data.registration import PartTargets
from shapespace.data.store import ScanSource
from shapespace.fitting.fit import BatchFit, fit_lm
from shapespace.fitting.joints import Border
from shapespace.fitting.levenberg_marquardt import LMOptions
from shapespace.fitting.quality import ood_score
from shapespace.fitting.registration import register, registration_of
from shapespace.fitting.residuals import resample
from shapespace.geometry.scan import Scan
from shapespace.io.checkpoints import load_tensors, save_tensors
from shapespace.models.articulated import ArticulatedSDF
from shapespace.models.code import Code
from shapespace.nn.hypernetwork import pose_weights, rotation_from_6d, rotation_to_6d
from shapespace.nn.part_mlp import PartStates

CHUNK_SIZE = 16  # scans of a file
OOD_LIMIT = 8.0  # wider than the prior's: people unlike those of the space are what is to be learned
SCAN_POINTS = 20_000  # that are read of a scan
RESIDUAL_POINTS = 4096  # of a scan, by which its parts are judged
MAX_RESIDUAL = 0.1  # model units, of a point: it may be clutter
OPTIONS = LMOptions(scale_std=1e-4)
# A store has the size of its scans. With a free scale, fits of 20 unseen people (without the term of joints) had scales
# from 0.96 to 1.14, and mean errors of the part centers of 81, 49, 37 and 19 mm in the four worst; with a fixed one 32,
# 60, 14 and 16 mm.
HALF_DOUBT = 3.0  # at which the weight of a part pose is a half
MIN_WEIGHT = 0.1  # of a part pose; below, it is completed by those of the other parts
NOISE_STD = 0.02  # model units, of a number of a part pose beside the principal components
MAX_COMPONENTS = 96
KNOWN_BODIES = 1000  # of the space, whose part poses show how parts move together
MIN_USABLE = 0.5  # of the scans: with fewer usable fits the space does not describe them
_FORMAT = 1  # of stored fits: those of other formats are not used
TEMPLATE_BODIES = 200  # from which the skin of the template is learned


@dataclass(frozen=True)
class PartFits:
    """Fits of scans in the model frame of the store, and how far each part can be trusted. Lengths are model units."""

    center: Float[Tensor, "n k 3"]
    rotation: Float[Tensor, "n k 3 3"]
    code: Float[Tensor, "n z"]
    """Global codes."""
    ood_score: Float[Tensor, "n"]
    std: Float[Tensor, "n k"]
    """Standard deviation of the center, by the covariance of the fit."""
    residual: Float[Tensor, "n k"]
    """Root mean square of the field at the points of the scan that are nearest to the part; 0 without points."""
    gap: Float[Tensor, "n k"]
    """Mean distance between the points of the part's borders as it and as its neighbors place them."""

    @property
    def usable(self) -> Bool[Tensor, "n"]:
        """Whether a fit is finite and its score below `OOD_LIMIT`."""
        return self.center.flatten(1).isfinite().all(dim=1) & (self.ood_score <= OOD_LIMIT)

    def weights(self) -> Float[Tensor, "n k"]:
        """Weight of each part pose, from 1 down to 0; small where nothing was seen, and where a limb was lost.

        The covariance alone does not show a lost limb. In 16 fits of unseen people without the term of joints, the mean
        weight of parts within 20 mm of their true place was 0.91, that of parts that were off by more than 40 mm 0.09.
        With it no part was off by that much: the twelfth of lowest weight was 11.0 mm off in the mean, that of highest
        weight 3.2 mm.
        """
        unseen = torch.maximum(self.std / _typical(self.std), self.residual / _typical(self.residual))
        torn = self.gap / _typical(self.gap, dim=0)
        doubt = unseen.clamp(min=1) * torn.clamp(min=1) - 1
        return 1 / (1 + (doubt / HALF_DOUBT).square())

    def targets(self, known: PartStates) -> PartTargets:
        """Poses and weights as targets of a training; poses of little weight are completed by those of other parts.

        `known` are bodies of the space, beside which those of the fits show how parts move together.
        """
        weight, scale = self.weights(), pose_weights(self.center.cpu())
        own, others = (
            torch.cat([center, rotation_to_6d(rotation)], dim=-1) * scale
            for center, rotation in ((self.center, self.rotation), (known.center.cpu(), known.rotation.cpu()))
        )
        trusted = (weight >= MIN_WEIGHT).repeat_interleave(len(scale), dim=1)
        poses = complete(own.flatten(1), trusted, others.flatten(1)).view_as(own) / scale
        return PartTargets(poses[..., :3], rotation_from_6d(poses[..., 3:]), weight, self.code)

    def select(self, rows: Bool[Tensor, "n"]) -> "PartFits":
        """The fits of some scans."""
        return PartFits(**{name: tensor[rows] for name, tensor in vars(self).items()})


def fit_targets(
    model: ArticulatedSDF,
    store: ScanSource,
    names: Sequence[str],
    folder: Path,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[PartTargets, list[str]]:
    """Fit scans by code and parts; return the targets and the names of the scans that can be trained on.

    Every chunk of fits is stored in `folder`, and an interrupted call continues. With several processes, this is
    process `rank` of `world_size`; each works on its share of the chunks.

    Raises:
        ValueError: The fits of more than half of the scans are out of distribution.

    """
    fits = fit_scans(model, store, names, folder, rank=rank, world_size=world_size)
    usable = fits.usable
    left_out = [name for name, keep in zip(names, usable.tolist(), strict=True) if not keep]
    if (count := int(usable.sum())) < max(2, MIN_USABLE * len(names)):
        score = float(fits.ood_score.nan_to_num(nan=np.inf).median())
        raise ValueError(
            f"{store.path}: {count:,} of {len(names):,} scans can be fitted by the space of --init-from (median "
            f"out-of-distribution score {score:.1f}, limit {OOD_LIMIT:g}), and at least half are needed. Check the "
            "unit and the up axis of the scans (preprocess --unit --up), or start from a space of more people."
        )
    if left_out and rank == 0:
        print(
            f"{len(left_out):,} of {len(names):,} scans are left out, since their fits are out of distribution: "
            f"{', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}",
            file=sys.stderr,
        )
    return fits.select(usable).targets(known_bodies(model)), [name for name in names if name not in left_out]


def fit_scans(
    model: ArticulatedSDF, store: ScanSource, names: Sequence[str], folder: Path, *, rank: int = 0, world_size: int = 1
) -> PartFits:
    """Fits of all scans, from the files of finished chunks where there are any."""
    settings = [_FORMAT, CHUNK_SIZE, model.fingerprint(), str(store.path), store.metadata, list(names)]
    key = json.dumps(settings, sort_keys=True, default=str)
    folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
    chunks = [names[first : first + CHUNK_SIZE] for first in range(0, len(names), CHUNK_SIZE)]
    files = [folder / f"{index:05d}.safetensors" for index in range(len(chunks))]
    todo = [index for index in range(rank, len(chunks), world_size) if not files[index].exists()]
    for index in tqdm(todo, desc="part poses", unit="chunk", disable=len(todo) < 2):
        scans = [store.sample(name, SCAN_POINTS, np.random.default_rng(index)) for name in chunks[index]]
        save_tensors(files[index], vars(_measure(model, scans, fit_lm(model, scans, OPTIONS))), {"kind": "codes"})
    if dist.is_initialized():
        dist.barrier()
    parts = [load_tensors(file, "codes")[0] for file in files]
    return PartFits(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@torch.no_grad()
def _measure(model: ArticulatedSDF, scans: Sequence[Scan], fit: BatchFit) -> PartFits:
    """Poses in the frame of the scans, and how far they can be trusted."""
    states = model.states(fit.code)
    center, rotation = states.center.clone(), states.rotation.clone()
    placed = []
    for row, frame in enumerate(fit.frames):
        if frame is not None:
            center[row] = frame.to_world(center[row].cpu()).to(center)
            rotation[row] = frame.rotate_back(rotation[row].mT.cpu()).mT.to(rotation)
        placed.append(scans[row] if frame is None else scans[row].to_model(frame))
    covariance = fit.part_covariance
    assert covariance is not None  # the parts were fitted
    std = covariance[:, :, range(3), range(3)].sum(dim=-1).clamp(min=0).sqrt()
    scores = [ood_score(fit.code[row], model.prior) for row in range(len(scans))]
    residual = torch.cat([part_residuals(model, scan, model.states(fit.code[row])) for row, scan in enumerate(placed)])
    values = PartFits(
        center, rotation, fit.code.parts[0], torch.tensor(scores), std, residual, border_gaps(model, states)
    )
    return PartFits(**{name: tensor.cpu() for name, tensor in vars(values).items()})


def part_residuals(model: ArticulatedSDF, scan: Scan, states: PartStates) -> Float[Tensor, "1 k"]:
    """Root mean square of the field of one body at the points of its scan, by the nearest part; 0 without points."""
    x = torch.from_numpy(resample(scan, RESIDUAL_POINTS, 1).points).float()[None].to(states.center)
    squared = model.decoder(x, states)[0].abs().clamp(max=MAX_RESIDUAL).square()
    part = model.nearest_parts(x, states.center)[0, :, 0]
    sums = torch.zeros_like(states.center[0, :, 0]).index_add_(0, part, squared)
    return (sums / part.bincount(minlength=len(sums)).clamp(min=1)).sqrt()[None]


def border_gaps(model: ArticulatedSDF, states: PartStates) -> Float[Tensor, "b k"]:
    """Mean distance of the places that a part and its neighbors give to the points of their borders."""
    border = Border.of(model)
    gap = border.gaps(states).norm(dim=-1)
    sums = torch.zeros_like(states.center[..., 0])
    for side in border.parts.T:
        sums.index_add_(1, side, gap)
    return sums / border.parts.flatten().bincount(minlength=sums.shape[1]).clamp(min=1)


def _typical(values: Float[Tensor, "n k"], dim: int | None = None) -> Tensor:
    """Median over all, or over the scans."""
    median = values.median() if dim is None else values.median(dim=dim).values
    return median.clamp(min=1e-6)


def complete(
    x: Float[Tensor, "n p"], trusted: Bool[Tensor, "n p"], known: Float[Tensor, "m p"]
) -> Float[Tensor, "n p"]:
    """The rows with what is not trusted replaced by its mean given the rest of the row.

    The values are Gaussian along the principal components of all rows, with noise beside them (Tipping & Bishop,
    Probabilistic principal component analysis, JRSS B 61, 1999). In fits with lost limbs, the centers of weights below
    0.1 were 218 mm off, after their completion 115.
    """
    values, known = x.double(), known.double()
    rows = torch.cat([torch.where(trusted, values, known.mean(dim=0)), known])
    for _ in range(3):
        mean = rows.mean(dim=0)
        _, s, vh = torch.linalg.svd(rows - mean, full_matrices=False)
        axes = (s[:, None] * vh)[:MAX_COMPONENTS] / len(rows) ** 0.5
        noise = NOISE_STD**2 * torch.eye(len(axes), dtype=axes.dtype)
        for row in (~trusted).any(dim=1).nonzero()[:, 0].tolist():
            seen = axes * trusted[row]
            code = torch.linalg.solve(seen @ seen.T + noise, seen @ (values[row] - mean))
            rows[row] = torch.where(trusted[row], values[row], mean + code @ axes)
    return rows[: len(x)].to(x)


@torch.no_grad()
def known_bodies(model: ArticulatedSDF) -> PartStates:
    """Training bodies of a model, or bodies drawn from its prior if it has no codes."""
    codes = model.codes_parameter
    if codes is None or not len(codes):
        return model.states(Code((model.prior.sample(KNOWN_BODIES, torch.Generator().manual_seed(0)),)))
    rows = torch.linspace(0, len(codes) - 1, min(KNOWN_BODIES, len(codes))).long()
    return model.states(Code((codes[rows],)))


@torch.no_grad()
def learn_template(model: ArticulatedSDF) -> None:
    """Learn how the vertices of the template follow the parts from training bodies, registered by their own fields."""
    table = model.codes_parameter
    assert table is not None  # the family has free codes
    rows = torch.linspace(0, len(table) - 1, min(TEMPLATE_BODIES, len(table))).long().tolist()
    registration = registration_of(model)
    bodies = tqdm(rows, desc="template", unit="body")
    registered = (register(model, Code((table[row : row + 1],)), registration)[0] for row in bodies)
    model.template.fit((model.states(Code((table[row : row + 1],))) for row in rows), registered)
