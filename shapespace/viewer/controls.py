"""Controls of a session: tabs, sliders and buttons, and the `ViewRequest` that they describe."""

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

from shapespace.io import units
from shapespace.io.units import UnitName
from shapespace.rendering import colors
from shapespace.viewer.pose_controls import PoseControls
from shapespace.viewer.request import (
    COARSE,
    DEVIATION_LIMIT,
    ERROR_LIMIT,
    FINE,
    REGISTERED,
    ColorBy,
    Detail,
    InterpolatedShape,
    PrincipalShape,
    ScanShape,
    Subject,
    ViewRequest,
)
from shapespace.viewer.scene import STEPS, Scene, SceneBuilder
from shapespace.viewer.slices import LEVELS, Axis, SlicePlane

if TYPE_CHECKING:
    import viser

ACCEPTED = ".ply,.obj,.npy,.npz,.xyz,.glb,.off,.stl"  # suffixes in the file chooser; the first bytes decide
CELLS = {f"{cells} cells": cells for cells in (64, 96, FINE, 192, 256)}
FORMATS = ("ply", "obj", "glb")
MAX_COEFFICIENT = 3.0  # standard deviations: end of the sliders
PARTS = ("scan", "prediction", "ground_truth")
"""What a scene consists of, from left to right."""


@dataclass(frozen=True)
class Upload:
    """A file that a visitor has chosen, and how to read it."""

    name: str
    data: bytes
    unit: Any
    up: units.Up


@runtime_checkable
class Actions(Protocol):
    """What the controls call; implemented by the session."""

    def update(self) -> None:
        """Show the present request."""

    def arrange(self) -> None:
        """Show or hide the parts of the present scene."""

    def upload(self, upload: Upload) -> None:
        """Fit an uploaded scan."""

    def export(self, suffix: str) -> None:
        """Send the present mesh to the visitor."""


class Controls:
    """The controls of one page."""

    def __init__(self, gui: "viser.GuiApi", builder: SceneBuilder, actions: Actions) -> None:
        self._gui, self._builder, self._actions = gui, builder, actions
        self.subject: Subject | None = builder.initial_subject()
        self.playing, self._forward = False, True
        # Controls that the program sets too are Any: viser declares their values as read-only, which they are not.
        self._coefficients: list[Any] = []
        self._notice = gui.add_markdown("", visible=False)  # errors and progress; scenes do not change it
        self._summary = gui.add_markdown("")
        self._legend = gui.add_html(legend(ERROR_LIMIT), visible=False)
        tabs = gui.add_tab_group()
        with tabs.add_tab("Scans"):
            self._add_scans()
        with tabs.add_tab("Shapes"):
            self._add_shapes()
        with tabs.add_tab("Slice"):
            self._add_slice()
        with tabs.add_tab("Export"):
            self._format = gui.add_dropdown("format", FORMATS)
            gui.add_button("Export the shown mesh").on_click(lambda _: actions.export(self._format.value))

    # ---------------------------------------------------------------- state

    def request(self) -> ViewRequest | None:
        """The request that the controls describe; `None` without a subject. While playing it is coarse."""
        if self.subject is None:
            return None
        return ViewRequest(
            self.subject,
            self._color_by.value,
            self._limit.value,
            SlicePlane(self._axis.value, self._offset.value) if self._show_slice.value else None,
            COARSE if self.playing else self._fine_detail(),
            () if self._pose is None else self._pose.turns,
        )

    @property
    def shown(self) -> tuple[str, ...]:
        """The `PARTS` whose box is checked."""
        return tuple(part for part, box in self._shown.items() if box.value)

    @property
    def side_by_side(self) -> bool:
        """Whether the parts stand side by side."""
        return bool(self._side_by_side.value)

    def _fine_detail(self) -> Detail:
        value = self._detail.value  # checked, since a page may send any value, even a million cells
        return REGISTERED if value == REGISTERED and self._builder.parts is not None else CELLS.get(value, FINE)

    # ---------------------------------------------------------------- what the program changes

    def notify(self, text: str) -> None:
        """Show a note above the controls; an empty one removes it."""
        self._notice.content, self._notice.visible = escape_text(text), bool(text)

    def describe(self, scene: Scene) -> None:
        """Show the numbers of a scene, and the legend of its colors."""
        self._legend.visible = scene.request.color_by not in ("none", "part") and scene.scan is not None
        size = f"{scene.detail} cells" if isinstance(scene.detail, int) else scene.detail.capitalize()
        size = f"{size}, {len(scene.mesh.vertices):,} vertices"
        latency = f"{size}, {1e3 * scene.seconds:.0f} ms after the request."
        self._summary.content = escape_text("\n".join([*scene.summary, latency]))

    def lock_upload(self, locked: bool) -> None:
        """Disable or enable the upload button."""
        self._upload.disabled = locked

    def choose_upload(self, name: str) -> None:
        """Offer an uploaded scan and select it, colored by its uncertainty or else by its error."""
        builder = self._builder
        self.subject, self._show_scan.visible = ScanShape(name), True
        self._scan.options, self._from.options, self._to.options = builder.names, builder.ends, builder.ends
        self._scan.value = name
        self._color_by.value = "uncertainty" if builder.has_uncertainty(name) else "scan to mesh"

    def advance(self) -> None:
        """Move to the next step of the interpolation, forward to its end and back."""
        step = 1 / (STEPS - 1)
        if self._fraction.value > 1 - step / 2:
            self._forward = False
        elif self._fraction.value < step / 2:
            self._forward = True
        self._fraction.value = min(1.0, max(0.0, self._fraction.value + (step if self._forward else -step)))

    # ---------------------------------------------------------------- tabs

    def _add_scans(self) -> None:
        gui, builder = self._gui, self._builder
        self._scan: Any = gui.add_dropdown("scan", tuple(builder.names) or ("none",))
        self._scan.on_update(lambda _: self._choose_scan())
        # The dropdown reports changes only: this button returns to the scan that is already selected.
        self._show_scan = gui.add_button("Show the scan", visible=bool(builder.names))
        self._show_scan.on_click(lambda _: self._choose_scan())
        self._shown = {part: gui.add_checkbox(f"show {part_label(part)}", True) for part in PARTS}
        self._side_by_side = gui.add_checkbox("side by side", True)
        for box in (*self._shown.values(), self._side_by_side):
            box.on_update(lambda _: self._actions.arrange())
        choices = [choice for choice in get_args(ColorBy) if choice != "part" or builder.parts is not None]
        self._color_by: Any = gui.add_dropdown("color", choices)
        self._color_by.on_update(lambda _: self._change_colors())
        self._limit: Any = gui.add_number("end of the color scale (mm)", ERROR_LIMIT, min=1.0, max=500.0, step=1.0)
        self._limit.on_update(lambda _: self._change_limit())
        details = (REGISTERED,) if builder.parts is not None else ()
        default = REGISTERED if builder.parts is not None else f"{FINE} cells"
        self._detail = gui.add_dropdown("fine mesh", (*details, *CELLS), initial_value=default)
        self._detail.on_update(lambda _: self._actions.update())
        with gui.add_folder("Your scan"):
            self._unit = gui.add_dropdown("unit", ("auto", *get_args(UnitName)))
            self._up = gui.add_dropdown("up axis", get_args(units.Up), initial_value="y")
            self._upload = gui.add_upload_button("Fit a scan file", mime_type=ACCEPTED)
            self._upload.on_upload(lambda _: self._uploaded())

    def _add_shapes(self) -> None:
        gui, builder = self._gui, self._builder
        if builder.no_components_reason is not None:
            gui.add_markdown(escape_text(builder.no_components_reason))
        else:
            gui.add_markdown("Principal components of the training codes (standard deviations):")
            for number in range(1, builder.num_components + 1):
                slider = gui.add_slider(f"component {number}", -MAX_COEFFICIENT, MAX_COEFFICIENT, 0.1, 0.0)
                slider.on_update(lambda _: self._choose(self._principal_shape()))
                self._coefficients.append(slider)
            gui.add_button("Mean shape").on_click(lambda _: self._choose_mean())
        with gui.add_folder("Interpolation"):
            ends = tuple(builder.ends) or ("none",)
            if not builder.ends:
                gui.add_markdown("No shapes yet. Fit a scan file first.")
            self._from = gui.add_dropdown("from", ends)
            self._to = gui.add_dropdown("to", ends, initial_value=ends[-1])
            self._fraction: Any = gui.add_slider("fraction", 0.0, 1.0, 1 / (STEPS - 1), 0.0)
            for control in (self._from, self._to, self._fraction):
                control.on_update(lambda _: self._choose_interpolation())
            self._play = gui.add_button("Play")
            self._play.on_click(lambda _: self._toggle_play())
        self._pose = None
        if builder.parts is not None:
            with gui.add_folder("Pose"):
                self._pose = PoseControls(gui, list(builder.parts.joints), self._actions.update)

    def _add_slice(self) -> None:
        gui, builder = self._gui, self._builder
        if builder.no_slice_reason is not None:
            gui.add_markdown(escape_text(builder.no_slice_reason))
        self._show_slice = gui.add_checkbox("show slice", False, disabled=builder.no_slice_reason is not None)
        self._axis = gui.add_dropdown("normal axis", get_args(Axis), initial_value="z")
        self._offset = gui.add_slider("offset from the center (m)", -1.0, 1.0, 0.01, 0.0)
        for control in (self._show_slice, self._axis, self._offset):
            control.on_update(lambda _: self._actions.update())
        if getattr(builder.space.model, "is_sdf", False):
            levels = ", ".join(f"{level:+d}" if level else "0" for level in LEVELS)
            gui.add_markdown(f"Level lines at {levels} mm of signed distance. Zero is black, the inside is purple.")
        elif builder.no_slice_reason is None:
            gui.add_markdown("The field is not a distance. The black line is the surface, the inside is purple.")

    # ---------------------------------------------------------------- what the visitor changes

    def _choose(self, subject: Subject) -> None:
        self.subject = subject
        self._actions.update()

    def _choose_scan(self) -> None:
        """Show the fit of the selected scan as it is, without turned joints."""
        if self._pose is not None:
            self._pose.clear()
        self._choose(ScanShape(self._scan.value))

    def _principal_shape(self) -> PrincipalShape:
        return PrincipalShape(tuple(slider.value for slider in self._coefficients))

    def _choose_mean(self) -> None:
        for slider in self._coefficients:
            slider.value = 0.0
        self._choose(self._principal_shape())

    def _choose_interpolation(self) -> None:
        if self._from.value in self._builder.ends:
            self._choose(InterpolatedShape(self._from.value, self._to.value, self._fraction.value))

    def _toggle_play(self) -> None:
        self.playing = not self.playing and bool(self._builder.ends)
        self._play.label = "Stop" if self.playing else "Play"
        self._choose_interpolation()

    def _change_colors(self) -> None:
        self._limit.value = DEVIATION_LIMIT if self._color_by.value == "uncertainty" else ERROR_LIMIT
        self._change_limit()

    def _change_limit(self) -> None:
        self._legend.content = legend(self._limit.value)
        self._actions.update()

    def _uploaded(self) -> None:
        file = self._upload.value
        self._actions.upload(Upload(file.name, file.content, self._unit.value, self._up.value))


def part_label(part: str) -> str:
    """One of `PARTS` as the page shows it."""
    return part.replace("_", " ")


def legend(limit: float) -> str:
    """Color scale from 0 to `limit` mm, as HTML."""
    labels = "".join(f"<span>{label}</span>" for label in ("0", f"{limit / 2:g}", f"{limit:g} mm or more"))
    return (
        '<div style="padding: 0.4em 0.8em; font-size: 0.85em">'
        f'<div style="height: 0.8em; border-radius: 2px; background: {colors.css_ramp()}"></div>'
        f'<div style="display: flex; justify-content: space-between">{labels}</div></div>'
    )


def escape_text(text: str) -> str:
    """Plain text as Markdown: names of files and scans may contain Markdown or HTML, which is escaped."""
    lines = (re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", escape(line, quote=False)) for line in text.splitlines())
    return "  \n".join(lines)
