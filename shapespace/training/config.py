"""Settings of a training, with their defaults: every field is a key of a YAML config and a command-line option."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from shapespace.models.base import ModelConfig
from shapespace.models.registry import FAMILIES

S = TypeVar("S", bound=ModelConfig)
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(FAMILIES)]  # the command line lists the names


@dataclass(frozen=True)
class BatchConfig:
    """Scans and points of a training step."""

    scans: int = 16
    """Scans in a batch, over all processes."""
    points: int = 8000
    """Points that are read of each scan."""
    surface_points: int | None = None
    """Points of each scan in the loss; none: all. As many near points, and an eighth as many uniform, are added."""
    near_std: float = 0.01
    """Standard deviation of the near points about the scan (model units)."""
    half_extent: float = 1.8
    """Half edge of the box of the uniform points (model units)."""
    gradient_stride: int = 1
    """Compute the spatial gradient (terms `normal`, `eikonal`) at every k-th loss point."""
    occupancy_points: int = 0
    """Points of each scan with occupancy labels from ground truth, for families with supervision by occupancy."""
    num_workers: int = 0
    """Processes that prefetch batches; 0 prefetches one batch in a thread."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimizers, their schedule, and the length of the training."""

    max_steps: int = 100_000
    """Maximum number of steps."""
    max_epochs: float | None = None
    """Maximum number of epochs; at least 2,000 steps are run. Small training sets overfit with more."""
    max_minutes: float | None = None
    """Maximum duration (minutes). The schedule follows steps or minutes, whichever are further. A training that is not
    ended by its minutes is reproducible bit for bit."""
    lr: float = 5e-3
    """Learning rate of Adam for the networks."""
    lr_codes: float = 1e-3
    """Learning rate of the free codes, for each visit of a scan (lazy Adam without momentum)."""
    lr_muon: float | None = None
    """Learning rate of Muon for the hidden matrices, in units of Adam's; none: Adam."""
    schedule: Literal["cosine", "halving"] = "halving"
    """Learning rate schedule: a cosine down to a hundredth, or halved every `halve_every` steps."""
    halve_every: int = 500
    """Steps between two halvings of the learning rate."""
    warmup_steps: int = 0
    """Steps over which the learning rate increases linearly from zero."""
    max_grad_norm: float | None = None
    """Maximum norm of the gradient of all weights; none: no clipping."""
    encoder_share: float = 0.0
    """Share of the steps or minutes in which the encoder is trained alone, after the rest (family `articulated`)."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; 0 drops a term."""

    surface: float = 1.0
    normal: float = 1.0
    eikonal: float = 0.1
    code_reg: float = 1e-3
    tangent_plane: float = 0.0
    unsigned_distance: float = 0.0
    distillation: float = 0.0
    occupancy: float = 0.0
    chamfer: float = 0.0
    part_center: float = 0.0
    part_rotation: float = 0.0


@dataclass(frozen=True)
class TrainConfig(Generic[S]):
    """Settings of a training. The defaults are those of the IGR paper; `configs/*.yaml` state where they differ."""

    model: S
    family: Family = "igr"
    """Model family; it determines the options of --model."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    init_from: str | None = None
    """Initial weights: a run, a model file, or the name of a packaged model. Its free codes are used if the number of
    scans is the same (the scans must be, too); otherwise the codes are initialized by its encoder."""
    trainable: Literal["all", "encoder"] = "all"
    """Weights that are trained. `encoder` freezes the decoder and the codes of --init-from and uses its model settings
    (config `encoder_only`)."""
    rounds: int = 2
    """Number of times that the articulated family fits scans without registrations, from --init-from and then from the
    round before, and trains on the fits. Steps and minutes are shared by the rounds; the fits are not counted."""
    seed: int = 0
    """Seed of weights, order of scans and points."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the training; auto is a GPU if there is one."""
    matmul_precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Precision of matrix products (tf32 requires a GPU). Auto uses faster products than float32 if they change the
    gradients of the first batch by less than 1e-5."""
    execution: Literal["auto", "eager", "chunked", "compiled"] = "auto"
    """Execution of a step: one graph of all points, chunks on the cores of a CPU, or torch.compile. Auto chooses by the
    device and the length of the training. Results are equal up to rounding."""
    log_every: int = 20
    """Steps between two records in TensorBoard."""
    save_every: int = 500
    """Steps between two checkpoints."""
    mesh_every: int = 0
    """Steps between two meshes in TensorBoard; 0: at the end only."""
    projector_codes: int = 64
    """Codes in the projector of TensorBoard, each with a rendering of its shape; 0: none."""
