"""Where a scan lies in the world, how it is turned, and how large it is in the model cube."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """`model = rotation (world - centre) / scale`; world lengths are metres.

    One `scale` serves a whole data set, so that stature stays in the code; `centre` belongs to one scan, and so does
    `rotation`, where it had to be found (none: not turned).
    """

    center: Float[Tensor, "*b 3"]
    scale: Float[Tensor, "*b"]
    rotation: Float[Tensor, "*b 3 3"] | None = None

    def to_model(self, world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """World points (metres) as model points."""
        return self.rotate((world - self.center[..., None, :]) / self.scale[..., None, None])

    def to_world(self, model: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Model points as world points (metres)."""
        return self.rotate_back(model) * self.scale[..., None, None] + self.center[..., None, :]

    def rotate(self, world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Directions in the world as directions in the model frame."""
        return world if self.rotation is None else world @ self.rotation.mT

    def rotate_back(self, model: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Directions in the model frame as directions in the world."""
        return model if self.rotation is None else model @ self.rotation

    def compose(self, other: "Frame") -> "Frame":
        """Both, one after the other: `other` takes what is model here for its world."""
        centre = self.to_world(other.center[..., None, :])[..., 0, :]
        first, second = self.rotation, other.rotation
        rotation = second if first is None else first if second is None else second @ first
        return Frame(centre, self.scale * other.scale, rotation)
