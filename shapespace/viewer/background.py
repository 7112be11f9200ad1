"""Background thread of a session: answer the newest request and cancel the work for older ones."""

import sys
import traceback
from collections.abc import Callable, Iterator
from threading import Condition, Thread
from typing import Generic, TypeVar

import torch
from jaxtyping import Float

from shapespace.data.loader import Batch
from shapespace.geometry.isosurface import Balls
from shapespace.models.base import FieldModel
from shapespace.models.code import Code
from shapespace.nn.losses import Scalar

FIELD_CHUNK = 4096  # points of a field between two checks for a newer request: 50 ms of one core for `humans`

StillWanted = Callable[[], bool]

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Cancelled(Exception):  # noqa: N818 -- not an error: the regular end of work that a newer request replaces
    """Raised when a newer request replaces this one."""


class CancellableField(FieldModel):
    """A field that raises `Cancelled` as soon as its values are not wanted any more."""

    def __init__(self, model: FieldModel, still_wanted: StillWanted) -> None:
        super().__init__()
        self._model, self._still_wanted = model, still_wanted
        self.level, self.is_sdf, self.prior = model.level, model.is_sdf, None

    def encode(self, batch: Batch) -> Code:
        """Encode with the wrapped model."""
        return self._model.encode(batch)

    def loss_terms(self, batch: Batch, code: Code) -> dict[str, Scalar]:
        """Loss terms of the wrapped model."""
        return self._model.loss_terms(batch, code)

    def domain(self, code: Code) -> Balls | None:
        """Domain of the wrapped model."""
        return self._model.domain(code)

    def field(self, x: Float[torch.Tensor, "b q 3"], code: Code) -> Float[torch.Tensor, "b q"]:
        """Field of the wrapped model, in chunks of `FIELD_CHUNK` points.

        Raises:
            Cancelled: The values are not wanted any more.

        """
        values = []
        for chunk in x.split(FIELD_CHUNK, dim=1):
            if not self._still_wanted():
                raise Cancelled
            values.append(self._model.field(chunk, code))
        return torch.cat(values, dim=1)


class LatestRequest(Generic[Request, Answer]):
    """Thread that answers the newest request; older ones are dropped, except a first answer that has begun."""

    def __init__(
        self,
        work: Callable[[Request, StillWanted], Iterator[Answer]],
        deliver: Callable[[Answer], None],
        fail: Callable[[str], None],
    ) -> None:
        """Start the thread. `deliver` gets each answer, `fail` the message of an error; both are called in it."""
        self._work, self._deliver, self._fail = work, deliver, fail
        self._changed = Condition()
        self._ticket, self._pending, self._stopped = 0, list[Request](), False
        self._thread = Thread(target=self._run, daemon=True, name="latest")
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Replace all earlier requests by this one."""
        with self._changed:
            self._ticket += 1
            self._pending = [request]
            self._changed.notify_all()

    def stop(self) -> None:
        """Drop all requests and end the thread."""
        with self._changed:
            self._ticket += 1
            self._pending, self._stopped = [], True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread, at most this long (seconds)."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pending) or self._stopped)
                if self._stopped:
                    return
                request, ticket = self._pending.pop(), self._ticket

            def still_wanted(ticket: int = ticket) -> bool:
                return ticket == self._ticket

            try:
                for answer in self._work(request, still_wanted):
                    self._deliver(answer)
                    if not still_wanted():
                        break
            except Cancelled:
                pass
            except Exception as error:  # the thread must survive, and the page must show the message
                if not isinstance(error, ValueError | OSError):
                    traceback.print_exc(file=sys.stderr)
                if still_wanted():
                    self._fail(str(error) or type(error).__name__)
