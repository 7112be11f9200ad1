"""Frame: position, rotation and scale that bring a scan into the model cube."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """`model = rotation (world - center) / scale`; world lengths are meters.

    All scans of a dataset share one `scale`, so that the code holds the stature. Each scan has its own `center`, and
    its own `rotation` if its orientation was estimated (none: identity).
    """

    center: Float[Tensor, "*b 3"]
    scale: Float[Tensor, "*b"]
    rotation: Float[Tensor, "*b 3 3"] | None = None

    def to_model(self, world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """World points (meters) to model points."""
        return self.rotate((world - self.center[..., None, :]) / self.scale[..., None, None])

    def to_world(self, model: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Model points to world points (meters)."""
        return self.rotate_back(model) * self.scale[..., None, None] + self.center[..., None, :]

    def rotate(self, world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Directions in the world to directions in the model frame."""
        return world if self.rotation is None else world @ self.rotation.mT

    def rotate_back(self, model: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Directions in the model frame to directions in the world."""
        return model if self.rotation is None else model @ self.rotation

    def compose(self, other: "Frame") -> "Frame":
        """Compose with a frame whose world is the model space of this one."""
        center = self.to_world(other.center[..., None, :])[..., 0, :]
        first, second = self.rotation, other.rotation
        rotation = second if first is None else first if second is None else second @ first
        return Frame(center, self.scale * other.scale, rotation)
