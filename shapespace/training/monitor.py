"""Stop a diverging training, report the step and the scans, and keep the last good checkpoint."""

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

# The limits are arbitrary; they are wide enough for every config of `configs/`.
WINDOW = 500  # steps whose median loss is the usual loss
MIN_WINDOW = 20  # steps before which there is no usual loss
SPIKE_FACTOR = 10.0  # times the usual loss: about the loss of an untrained network
PATIENCE = 200  # consecutive steps above that limit before the training is stopped
MAX_CODE_RATIO = 10.0  # times the median norm of all codes: a longer code is reported


class _Record(NamedTuple):
    step: int
    loss: Float[Tensor, ""]
    terms: Mapping[str, Tensor]


class DivergenceMonitor:
    """Check losses, codes and weights of a training; losses are read in groups, to synchronize a GPU rarely."""

    def __init__(self, run: Run, dataset: StepDataset) -> None:
        """`dataset` has the names of the scans of each step."""
        self.run, self.dataset = run, dataset
        self._unchecked: list[_Record] = []
        self._recent = deque[float](maxlen=WINDOW)
        self._steps_above = 0  # consecutive steps with a loss above the limit
        self._reported = set[str]()

    def update(self, step: int, loss: Float[Tensor, ""], terms: Mapping[str, Tensor]) -> None:
        """Add the loss and the terms of a step, computed before the weights were updated."""
        self._unchecked.append(_Record(step, loss.detach(), terms))

    def check_losses(self, *, last: bool = False) -> None:
        """Check the losses since the last call; at the end of a training (`last`) a tenth of the patience applies.

        Raises `FloatingPointError` for a loss that is not finite or has diverged, and for a field that is zero.
        """
        for record in self._unchecked:
            loss = record.loss.item()
            if not math.isfinite(loss):
                raise self._error(f"the loss is {loss}", record)
            usual = statistics.median(self._recent) if len(self._recent) >= MIN_WINDOW else math.inf
            self._steps_above = self._steps_above + 1 if loss > SPIKE_FACTOR * usual else 0
            if not self._steps_above:
                self._recent.append(loss)
            elif self._steps_above >= (PATIENCE // 10 if last else PATIENCE):
                above = f"{self._steps_above} steps above {SPIKE_FACTOR:g} times the median {usual:.3g}"
                raise self._error(f"the loss diverged to {loss:.3g} ({above})", record)
        if self._unchecked and _is_zero_field(self._unchecked[-1].terms):
            raise self._error("the field is zero everywhere", self._unchecked[-1])
        self._unchecked.clear()

    @property
    def is_stable(self) -> bool:
        """Whether the last loss was below the limit; only then may a checkpoint be written."""
        return not self._steps_above

    def check_weights(self, step: int, model: nn.Module, codes: Float[Tensor, "n k"] | None) -> None:
        """Check what is to be saved; `codes` are those of all training scans. Report the scans of very long codes.

        Raises `FloatingPointError` for codes or weights that are not finite.
        """
        if codes is not None and codes.numel():
            norms = codes.norm(dim=1)
            if names := self._names(~torch.isfinite(norms)):
                raise FloatingPointError(f"step {step}: the codes of {_listed(names)} are not finite. {self._remedy()}")
            self._report_long_codes(step, norms)
        broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
        if broken:
            raise FloatingPointError(f"step {step}: the weights {_listed(broken)} are not finite. {self._remedy()}")

    def _report_long_codes(self, step: int, norms: Float[Tensor, "n"]) -> None:
        """Print, once for each, the scans whose codes are far longer than the median."""
        median = norms.median()
        names = self._names((norms > MAX_CODE_RATIO * median) & (median > 0))
        if names := [name for name in names if name not in self._reported]:
            self._reported.update(names)
            tqdm.write(
                f"note: step {step}: the codes of {_listed(names)} are more than {MAX_CODE_RATIO:g} times as long as "
                f"the median ({median:.3g}). Check these scans, or increase --weights.code-reg.",
                file=sys.stderr,
            )

    def _names(self, mask: Tensor) -> list[str]:
        return [self.dataset.names[row] for row in mask.nonzero().flatten().tolist()]

    def _error(self, what: str, record: _Record) -> FloatingPointError:
        terms = ", ".join(f"{name} {float(term):.3g}" for name, term in record.terms.items())
        scans = _listed(list(dict.fromkeys(self.dataset.scans_of(record.step - 1))))
        return FloatingPointError(f"step {record.step}: {what} on scans {scans} (terms: {terms}). {self._remedy()}")

    def _remedy(self) -> str:
        smaller = "lower --optim.lr and --optim.lr-muon, or set --optim.max-grad-norm 1"
        progress = self.run.progress()
        if progress is None:
            return f"There is no checkpoint: train again and {smaller}."
        return (
            f"The checkpoint of step {progress.steps} is unchanged: continue from its model with shapespace train "
            f"STORE --init-from {self.run.folder} --out OTHER and {smaller}; or, if the settings are right, with "
            f"shapespace train --resume {self.run.folder}"
        )


def _is_zero_field(terms: Mapping[str, Tensor]) -> bool:
    """Whether |f| is near 0 on the surface and its gradient is 0 (`eikonal` near 1).

    A step that is too large may lead there, and the gradients do not lead out again.
    """
    is_field = "eikonal" in terms and "surface" in terms
    return is_field and abs(float(terms["eikonal"]) - 1) < 0.05 and float(terms["surface"]) < 5e-3


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
