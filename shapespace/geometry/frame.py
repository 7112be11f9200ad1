"""Where a scan lies in the world, and how large it is in the model cube."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """`model = (world - centre) / scale`; world lengths are metres.

    One `scale` serves a whole data set, so that stature stays in the code; `centre` belongs to one scan.
    """

    centre: Float[Tensor, "*b 3"]
    scale: Float[Tensor, "*b"]

    def to_model(self, world: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """World points (metres) as model points."""
        return (world - self.centre[..., None, :]) / self.scale[..., None, None]

    def to_world(self, model: Float[Tensor, "*b n 3"]) -> Float[Tensor, "*b n 3"]:
        """Model points as world points (metres)."""
        return model * self.scale[..., None, None] + self.centre[..., None, :]
