"""A training that goes wrong stops, says where and on which scans, and leaves its last good checkpoint as it was."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from shapespace.data.loader import StepDataset
from shapespace.training.run import Run

WINDOW = 500  # steps with whose median loss the next one is compared
MIN_WINDOW = 20  # steps without which there is nothing to compare with
SPIKE_FACTOR = 10.0  # as large as that, a loss has left where it was: it is about what an untrained network has
PATIENCE = 200  # steps in a row that a loss may stay there before the training is stopped
MAX_CODE_RATIO = 10.0  # times the median length of all codes: such a code belongs to no shape


class _Seen(NamedTuple):
    step: int
    loss: Float[Tensor, ""]
    terms: Mapping[str, Tensor]


class DivergenceMonitor:
    """Losses and codes of one training. Steps are looked at some at a time, so that a GPU need not wait at each."""

    def __init__(self, run: Run, dataset: StepDataset) -> None:
        """`dataset` knows the scans of each step."""
        self.run, self.dataset = run, dataset
        self._unseen: list[_Seen] = []
        self._recent = deque[float](maxlen=WINDOW)
        self._climbing = 0  # steps in a row
        self._told = set[str]()

    def update(self, step: int, loss: Float[Tensor, ""], terms: Mapping[str, Tensor]) -> None:
        """Remember what a step's batch gave, before the step."""
        self._unseen.append(_Seen(step, loss.detach(), terms))

    def check_losses(self, *, last: bool = False) -> None:
        """Look at the steps since the last look; at the end of a training, a short climb is enough.

        Raises `FloatingPointError` for a loss that is no number or has blown up, and for a field that has died.
        """
        for seen in self._unseen:
            loss = seen.loss.item()
            if not math.isfinite(loss):
                raise self._stopped(f"the loss is {loss}", seen)
            usual = statistics.median(self._recent) if len(self._recent) >= MIN_WINDOW else math.inf
            self._climbing = self._climbing + 1 if loss > SPIKE_FACTOR * usual else 0
            if not self._climbing:
                self._recent.append(loss)
            elif self._climbing >= (PATIENCE // 10 if last else PATIENCE):
                since = f"after {self._climbing} steps of more than {SPIKE_FACTOR:g} times the usual {usual:.3g}"
                raise self._stopped(f"the loss has blown up to {loss:.3g}, {since},", seen)
        if self._unseen and _has_died(self._unseen[-1].terms):
            raise self._stopped("the field is zero everywhere", self._unseen[-1])
        self._unseen.clear()

    @property
    def is_stable(self) -> bool:
        """Whether the last loss was a usual one: only then are the weights good enough for a checkpoint."""
        return not self._climbing

    def check_weights(self, step: int, model: nn.Module, codes: Float[Tensor, "n k"] | None) -> None:
        """Look at what is to be saved; `codes` are those of all training scans. Scans whose codes explode are named.

        Raises `FloatingPointError` for numbers that are none.
        """
        if codes is not None and codes.numel():
            lengths = codes.norm(dim=1)
            if len(wrong := self._names(~torch.isfinite(lengths))):
                raise FloatingPointError(f"the codes of {_listed(wrong)} are no numbers at step {step}. {self._mend()}")
            self._name(step, lengths)
        lost = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        if lost:
            raise FloatingPointError(f"the weights {_listed(lost)} are no numbers at step {step}. {self._mend()}")

    def _name(self, step: int, lengths: Float[Tensor, "n"]) -> None:
        """Name, once, the scans whose codes are far longer than the others'."""
        usual = lengths.median()
        names = [name for name in self._names(lengths > MAX_CODE_RATIO * usual) if usual > 0 and name not in self._told]
        if names:
            self._told.update(names)
            tqdm.write(
                f"note: at step {step} the codes of {_listed(names)} are more than {MAX_CODE_RATIO:g} times as long as the "
                f"median ({usual:.3g}): look at these scans, or raise --weights.code-reg.",
                file=sys.stderr,
            )

    def _names(self, which: Tensor) -> list[str]:
        return [self.dataset.names[row] for row in which.nonzero().flatten().tolist()]

    def _stopped(self, what: str, seen: _Seen) -> FloatingPointError:
        terms = ", ".join(f"{name} {float(term):.3g}" for name, term in seen.terms.items())
        scans = _listed(list(dict.fromkeys(self.dataset.scans_of(seen.step - 1))))
        return FloatingPointError(f"{what} at step {seen.step}, on the scans {scans} (terms: {terms}). {self._mend()}")

    def _mend(self) -> str:
        """What can be done."""
        smaller = "lower --optim.lr and --optim.lr-muon, or set --optim.max-grad-norm 1"
        progress = self.run.progress()
        if progress is None:
            return f"There is no checkpoint yet: begin again, and {smaller}."
        return (
            f"The checkpoint of step {progress.steps} is as it was. Go on from its model: shapespace train STORE "
            f"--init-from {self.run.folder} --out OTHER, and {smaller}; shapespace train --resume {self.run.folder} goes "
            "on from there with the same settings, if it was not they that were at fault."
        )


def _has_died(terms: Mapping[str, Tensor]) -> bool:
    """No surface is off zero, and no slope is near 1: too large a step may leave such a field, and none brings it back.

    The terms must be those of a field.
    """
    known = "eikonal" in terms and "surface" in terms
    return known and abs(float(terms["eikonal"]) - 1) < 0.05 and float(terms["surface"]) < 5e-3


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
