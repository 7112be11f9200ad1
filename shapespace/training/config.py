"""What a training is told: names and numbers, with their defaults; YAML becomes arguments."""

from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from shapespace.models.registry import ModelConfig

S = TypeVar("S", bound=ModelConfig)
Family = Literal["igr", "occupancy", "convolutional", "multiscale", "voxel", "atlas"]


@dataclass(frozen=True)
class BatchConfig:
    """What one step sees."""

    scans: int = 16
    """Scans in a batch, over all processes."""
    points: int = 8000
    """Points of each scan that are read."""
    surface_points: int | None = None
    """How many of them enter the loss (all by default); as many again are drawn around, and an eighth in the box."""
    near_std: float = 0.01
    """Standard deviation of the points around the scan, in model units."""
    half_extent: float = 1.8
    """Half the edge of the box of the other off-surface points, in model units."""
    gradient_stride: int = 1
    """The field's gradient (terms `normal` and `eikonal`) is computed at every so-manieth point of the loss."""
    occupancy_points: int = 0
    """Points of each scan that are labelled as inside or outside of its true surface, for families that learn by it."""
    num_workers: int = 0
    """Processes that read ahead; 0 reads one batch ahead, in a thread."""


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move."""

    max_steps: int = 100_000
    """Length of the training, at most."""
    max_epochs: float | None = None
    """How often each scan is seen, at most, once 2,000 steps are done. A set of few people that is seen too often is
    learned by heart: what lies between its codes gets worse again (docs/ablation.md)."""
    max_minutes: float | None = None
    """A budget of time: the schedule follows steps or minutes, whichever is further, and ends when either is spent.
    A training that stays within its minutes is repeatable to the bit."""
    lr: float = 5e-3
    """Adam's learning rate for the networks."""
    lr_codes: float = 1e-3
    """Learning rate for free codes, each of which is moved by its own Adam, without momentum, at its visits alone."""
    lr_muon: float | None = None
    """Muon's learning rate for the products between the decoder's hidden layers, in units of Adam's; none: Adam."""
    schedule: Literal["cosine", "halving"] = "halving"
    """Down to a hundredth along a cosine, or halved every `halve_every` steps."""
    halve_every: int = 500
    """Steps between two halvings."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from zero."""
    max_grad_norm: float | None = None
    """Largest norm of the gradient of all weights."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss's terms; 0 drops a term."""

    surface: float = 1.0
    normal: float = 1.0
    eikonal: float = 0.1
    code_reg: float = 1e-3
    tangent_plane: float = 0.0
    unsigned_distance: float = 0.0
    distillation: float = 0.0
    occupancy: float = 0.0
    chamfer: float = 0.0


@dataclass(frozen=True)
class TrainConfig(Generic[S]):
    """A training. The defaults are the paper's; `configs/*.yaml` state where they differ."""

    model: S
    family: Family = "igr"
    """What turns a code into a shape; it decides which settings --model has."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    weights: LossWeights = field(default_factory=LossWeights)
    init_from: str | None = None
    """A run, a model's file or the name of a space that comes with the package: the weights to start from. Its codes
    are taken where the number of scans is the same (the scans must be, too); others begin where the encoder of the
    start sees them."""
    trainable: Literal["all", "encoder"] = "all"
    """What moves; `encoder` leaves the decoder and the codes of `start` as they are, whose sizes it takes over (config
    `teach`)."""
    seed: int = 0
    """Of weights, order and points."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    matmul_precision: Literal["auto", "float32", "tf32", "bf16"] = "auto"
    """Precision of matrix products (tf32 needs a GPU). Auto takes faster ones than float32's only if the gradients of
    the first batch stay the same to 1e-5."""
    execution: Literal["auto", "eager", "chunked", "compiled"] = "auto"
    """How a step is computed: all points in one graph; in pieces side by side on the cores of a CPU; or through
    torch.compile. Auto goes by the device and the length of the training. The result is the same but for rounding."""
    log_every: int = 20
    """Steps between two records."""
    save_every: int = 500
    """Steps between two checkpoints."""
    mesh_every: int = 0
    """Steps between two meshes in TensorBoard; 0 writes them at the end only."""
    projector_codes: int = 64
    """Codes that TensorBoard's projector shows at the end, each with a picture of its shape, some tenths of a second
    each; 0 leaves it out."""
