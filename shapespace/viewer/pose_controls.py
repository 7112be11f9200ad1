"""Controls that turn the joints of the shown body: a joint, its three angles, and a reset."""

import math
from collections.abc import Callable, Sequence
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any

from shapespace.viewer.request import JointTurn

if TYPE_CHECKING:
    import viser

MAX_ANGLE = 120.0  # degrees: end of the sliders
AXES = ("x (left)", "y (up)", "z (front)")
"""Of the sliders, for a body that stands upright and faces z."""


class PoseControls:
    """Angles of all joints; the sliders show those of the selected joint."""

    def __init__(self, gui: "viser.GuiApi", joints: Sequence[str], update: Callable[[], None]) -> None:
        """Add the controls to the open folder. `update` is called after each change."""
        self._update, self._joints = update, tuple(joints)
        self._joint: Any = gui.add_dropdown("joint", self._joints)
        self._angles: list[Any] = [gui.add_slider(f"about {axis}", -MAX_ANGLE, MAX_ANGLE, 1.0, 0.0) for axis in AXES]
        self._lock = Lock()  # callbacks run in several threads
        self._shown = self._joints[0]
        self._others: dict[str, tuple[float, float, float]] = {}
        self._setter: int | None = None  # thread that sets the sliders, in which their callbacks run at once
        self._joint.on_update(lambda _: self._select())
        for slider in self._angles:
            slider.on_update(lambda _: self._turned())
        gui.add_button("Reset the pose").on_click(lambda _: self._reset())

    @property
    def turns(self) -> tuple[JointTurn, ...]:
        """The joints whose angles are not zero."""
        with self._lock:
            degrees = self._degrees()
        return tuple(JointTurn(joint, angles) for joint, angles in degrees.items() if any(angles))

    def clear(self) -> None:
        """Set all angles to zero, without an update."""
        with self._lock:
            self._others = {}
            self._show((0.0, 0.0, 0.0))

    def _degrees(self) -> dict[str, tuple[float, float, float]]:
        """Angles of the joints that have been selected; those of the shown one are the values of the sliders."""
        x, y, z = (_limited(slider.value) for slider in self._angles)
        return self._others | {self._shown: (x, y, z)}

    def _show(self, angles: tuple[float, float, float]) -> None:
        self._setter = get_ident()
        try:
            for slider, angle in zip(self._angles, angles, strict=True):
                slider.value = angle
        finally:
            self._setter = None

    def _select(self) -> None:
        with self._lock:
            if self._joint.value in self._joints:  # a page may send any value
                self._others = self._degrees()
                self._shown = self._joint.value
                self._show(self._others.get(self._shown, (0.0, 0.0, 0.0)))

    def _turned(self) -> None:
        if self._setter != get_ident():
            self._update()

    def _reset(self) -> None:
        self.clear()
        self._update()


def _limited(degrees: float) -> float:
    """The angle within the ends of the sliders; a page may send any value."""
    return min(MAX_ANGLE, max(-MAX_ANGLE, degrees)) if math.isfinite(degrees) else 0.0
