"""Old names in files and on the command line, and the present ones; no other module knows an old name.

A file is upgraded where it is parsed. Files of any earlier format are read, the present one is written.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = {
    "model": 2,
    "codes": 1,
    "checkpoint": 2,
    "scores": 2,
    "motion": 2,
    "sequences": 2,
    "robustness": 2,
    "ablation": 2,
    "path": 2,
}
"""The format of each kind of file that is written. The store counts for itself (`shapespace.data.store`)."""

_MODEL = {
    "code": "code_dim",
    "radius": "init_radius",
    "space": "dims",
    "spread": "code_init_std",
    "learn": "supervision",
}
_TERMS = {
    "code": "code_reg",
    "tangent": "tangent_plane",
    "far": "unsigned_distance",
    "lesson": "distillation",
}
_LM = {
    "points": "num_points",
    "steps": "max_steps",
    "offset": "normal_offset",
    "huber": "huber_delta",
    "noise": "noise_std",
    "evidence": "effective_samples",
    "free": "free_space_points",
    "clear": "free_space_ratio",
    "gain": "ftol",
    "trial": "trial_steps",
    "pose": "alignment",
    "turn": "rotation_std",
    "shift": "translation_std",
    "size": "scale_std",
    "likely": "max_candidates",
    "keep": "max_starts",
    "worse": "max_cost_ratio",
}
_SEQUENCE = {"bend": "acceleration_std", "rounds": "max_steps"}


def _within(group: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{group}.{old}": f"{group}.{new}" for old, new in names.items()}


NAMES: dict[str, dict[str, str]] = {
    "model header": {"sizes": "config", "about": "metadata"},
    "model config": _MODEL,
    "loss terms": _TERMS,
    "training": {
        **_within("model", _MODEL),
        "batch.surface": "batch.surface_points",
        "batch.sigma": "batch.near_std",
        "batch.half": "batch.half_extent",
        "batch.sloped": "batch.gradient_stride",
        "batch.labels": "batch.occupancy_points",
        "batch.workers": "batch.num_workers",
        "optim.steps": "optim.max_steps",
        "optim.visits": "optim.max_epochs",
        "optim.minutes": "optim.max_minutes",
        "optim.lr_hidden": "optim.lr_muon",
        "optim.warmup": "optim.warmup_steps",
        "optim.clip": "optim.max_grad_norm",
        **_within("weights", _TERMS),
        "start": "init_from",
        "learn": "trainable",
        "products": "matmul_precision",
        "pictured": "projector_codes",
    },
    "checkpoint": {"optimiser": "optimizer"},
    "optimizer state": {"visits": "step", "mean": "exp_avg", "square": "exp_avg_sq"},
    "scores": {"protocols": "metrics"},
    "metrics": {
        "l1": "chamfer_l1",
        "sq_sum": "chamfer_l2",
        "one_sided": "one_sided_chamfer",
        "surface": "surface_distance",
        "normals": "normal_consistency",
        "parts": "part_distance",
    },
    "columns": {
        "truth_to_found": "completeness",
        "found_to_truth": "accuracy",
        "visible_truth_to_found": "visible_completeness",
        "hidden_truth_to_found": "hidden_completeness",
        "scan_to_found": "scan_to_mesh",
        "found_to_scan": "mesh_to_scan",
        "scan_to_found_max": "scan_to_mesh_max",
        "found_to_scan_max": "mesh_to_scan_max",
        "flicker": "acceleration_error",
        "oddness": "ood_score",
        "in_band": "in_interval",
        "how": "corruptions",
        "end": "outcome",
        "said": "message",
        "way": "fit",
    },
    "settings of scores": {
        "trained_seconds": "training_seconds",
        "trained_steps": "training_steps",
        "weight_numbers": "num_parameters",
        "weight_bytes": "parameter_bytes",
        "code_numbers": "code_dim",
        "joint": "sequence",
    },
    "lm": _LM,
    "sequence": _SEQUENCE,
    "robustness": {"things": "non_people", "drawn": "random_cases"},
    "ablation": {"row": "variant"},
    "path": {"format": "mesh_format"},
    "synthesis": {"motion": "motion_fraction", "test_people_poses": "poses_per_test_person"},
    "tensorboard": {"wait": "time/data_wait", "codes/numbers": "codes/values", "codes/lengths": "codes/norms"},
}
"""Old names and new ones, for each kind of file; a dot stands between a group and a name within it."""

_ENCODERS = {"points": "pointnet", "table": "autodecoder", "taught": "distilled"}
_SUPERVISION = {"labels": "occupancy"}
_EXECUTION = {"blocked": "chunked"}
_ALIGNMENT = {"given": "fixed", "near": "local", "heading": "yaw", "rotation": "full"}
_PATHS = {"spherical": "slerp", "shortest": "geodesic"}
_CASES = {
    "few": "sparse",
    "one_view": "single_view",
    "one_view_encoded": "single_view_encoded",
    "turned": "rotated",
    "furnished": "cluttered",
    "furnished_view": "cluttered_single_view",
}
_CONFIGS = {"teach": "encoder_only", "single": "single_scan", "single_paper": "single_scan_paper"}

VALUES: dict[str, dict[str, dict[str, str]]] = {
    "model config": {"encoder": _ENCODERS, "supervision": _SUPERVISION},
    "training": {"model.encoder": _ENCODERS, "model.supervision": _SUPERVISION, "execution": _EXECUTION},
    "lm": {"alignment": _ALIGNMENT},
}
"""Old values and new ones, by the present name of what they are the value of."""


# --------------------------------------------------------------------------------------------------------------- files


def check_format(kind: str, number: object, source: object, remedy: str) -> None:
    """Raise `ValueError` for a file whose format this version does not know; `remedy` says what makes it again."""
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= FORMATS[kind]:
        known = "format 1" if FORMATS[kind] == 1 else f"formats 1 to {FORMATS[kind]}"
        raise ValueError(
            f"{source}: format {number} of {kind} files is unknown, this version reads {known}. "
            f"Install the version that wrote it, or {remedy}."
        )


def upgrade_model(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header of a model's file with the present names; the tensors have kept theirs."""
    header = _renamed(header, "model header")
    if isinstance(config := header.get("config"), Mapping):
        header["config"] = _renamed(config, "model config")
    if isinstance(metadata := header.get("metadata"), Mapping):
        weights = metadata.get("weights")
        header["metadata"] = {
            **metadata,
            **({"weights": _renamed(weights, "loss terms")} if isinstance(weights, Mapping) else {}),
        }
    return {**header, "format": FORMATS["model"]}


def upgrade_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a training with the present names."""
    state = _renamed(state, "checkpoint")
    optimizer = state.get("optimizer")
    if isinstance(optimizer, Mapping) and isinstance(parts := optimizer.get("parts"), Sequence):
        state["optimizer"] = {**optimizer, "parts": [_upgrade_optimizer(part) for part in parts]}
    return {**state, "format": FORMATS["checkpoint"]}


def _upgrade_optimizer(part: Any) -> Any:
    if not isinstance(part, Mapping) or not isinstance(part.get("state"), Mapping):
        return part
    return {
        **part,
        "state": {
            key: _renamed(value, "optimizer state") if isinstance(value, Mapping) else value
            for key, value in part["state"].items()
        },
    }


def upgrade_training(content: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Settings of a training with the present names; a note on stderr names `source` and what was old in it.

    Raises `ValueError` where a setting is given by its old name and by its new one.
    """
    changes: dict[str, str] = {}
    upgraded = _upgrade_group(content, "", changes, source)
    if changes:
        _note(f"{source} uses earlier names: " + ", ".join(f"{old} (now {new})" for old, new in changes.items()))
    return upgraded


def _upgrade_group(content: Mapping[str, Any], prefix: str, changes: dict[str, str], source: object) -> dict[str, Any]:
    upgraded: dict[str, Any] = {}
    for key, value in content.items():
        old = f"{prefix}{key}"
        path = NAMES["training"].get(old, old)
        name = path.removeprefix(prefix)
        if path != old:
            if name in content:
                raise ValueError(f"{source}: both {old} and {path}, which is its new name. Remove {old}.")
            changes[old] = path
        if isinstance(value, Mapping):
            upgraded[name] = _upgrade_group(value, f"{path}.", changes, source)
            continue
        upgraded[name] = value
        if isinstance(value, str) and value in (values := VALUES["training"].get(path, {})):
            upgraded[name] = values[value]
            changes[f"{old}: {value}"] = f"{path}: {values[value]}"  # beside the name, if that is new too
    return upgraded


@cache  # once for each file, however often it is read
def _note(sentence: str) -> None:
    print(f"note: {sentence}.", file=sys.stderr)


def upgrade_scores(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `scores.json` with the present names."""
    content = _renamed(content, "scores")
    if isinstance(metrics := content.get("metrics"), Mapping):
        content["metrics"] = {
            NAMES["metrics"].get(name, name): {**its, "units": _renamed(its["units"], "columns")}
            if isinstance(its, Mapping) and isinstance(its.get("units"), Mapping)
            else its
            for name, its in metrics.items()
        }
    if isinstance(summary := content.get("summary"), Mapping):
        content["summary"] = {split: _upgrade_metrics(its) for split, its in summary.items()}
    if isinstance(rows := content.get("rows"), list):
        content["rows"] = [_upgrade_metrics(row) for row in rows]
    return {**content, **_upgraded_settings(content), "format": FORMATS["scores"]}


def upgrade_motion(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `motion.json` with the present names."""
    medians, rows = content.get("medians"), content.get("rows")
    upgraded = dict(content)
    if isinstance(medians, Mapping):
        upgraded["medians"] = {_PATHS.get(path, path): _upgrade_row(its) for path, its in medians.items()}
    if isinstance(rows, list):
        upgraded["rows"] = [_upgrade_row(row) for row in rows]
    return {**upgraded, **_upgraded_settings(content), "format": FORMATS["motion"]}


def upgrade_path(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `path.json` with the present names."""
    upgraded = _renamed(content, "path")
    if isinstance(path := content.get("path"), str):
        upgraded["path"] = _PATHS.get(path, path)
    return {**upgraded, "format": FORMATS["path"]}


def upgrade_table(content: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """A `sequences.json`, `robustness.json` or `ablation.json` with the present names; `kind` says which it is."""
    upgraded = _renamed(content, kind) if kind == "robustness" else dict(content)
    for key in ("rows", "non_people", "random_cases"):
        if isinstance(rows := upgraded.get(key), list):
            upgraded[key] = [_upgrade_row(row, kind) for row in rows]
    return {**upgraded, **_upgraded_settings(content), "format": FORMATS[kind]}


def upgrade_synthesis(content: Mapping[str, Any]) -> dict[str, Any]:
    """A `synthesis.json` with the present names, and the values of settings that older ones lack."""
    return {"poses_from": "limits", "appearance": "bare", "scanners": "ring", **_renamed(content, "synthesis")}


def upgrade_tag(tag: str) -> str:
    """The present tag of a TensorBoard record."""
    return f"loss/{tag.removeprefix('terms/')}" if tag.startswith("terms/") else NAMES["tensorboard"].get(tag, tag)


def _upgrade_metrics(row: Any) -> Any:
    """The scores of a scan or a split: metrics, and their columns."""
    if not isinstance(row, Mapping):
        return row
    return {
        NAMES["metrics"].get(name, name): _renamed(its, "columns") if isinstance(its, Mapping) else its
        for name, its in row.items()
    }


def _upgrade_row(row: Any, kind: str = "motion") -> Any:
    """A row of a table: columns, and the names of paths, cases and variants in it."""
    if not isinstance(row, Mapping):
        return row
    row = _renamed(_renamed(row, "ablation") if kind == "ablation" else row, "columns")
    for key, values in (("path", _PATHS), ("case", _CASES)):
        if isinstance(value := row.get(key), str):
            row[key] = values.get(value, value)
    if isinstance(medians := row.get("medians"), Mapping):
        row["medians"] = {
            split: _renamed(its, "columns") if isinstance(its, Mapping) else its for split, its in medians.items()
        }
    return row


def _upgraded_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(settings := content.get("settings"), Mapping):
        return {}
    settings = _renamed(settings, "settings of scores")
    for group in ("lm", "sequence"):
        if isinstance(its := settings.get(group), Mapping):
            settings[group] = _renamed(its, group)
    return {"settings": settings}


def _renamed(content: Mapping[Any, Any], kind: str) -> dict[Any, Any]:
    """The content under its present names, in its order, with present values."""
    names, values = NAMES[kind], VALUES.get(kind, {})
    renamed = {names.get(key, key): value for key, value in content.items()}
    for key, its in values.items():
        if isinstance(value := renamed.get(key), str):
            renamed[key] = its.get(value, value)
    return renamed


# -------------------------------------------------------------------------------------------------------- command line


VERBS = {
    "picture": "render",
    "robust": "robustness",
    "scan": "simulate",
    "motion": "evaluate-paths, or evaluate-sequences in the place of --frames",
}
"""Old commands and new ones."""


def _options(names: Mapping[str, str]) -> dict[str, str]:
    return {f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in names.items()}


_ALIGNED = _options(_within("lm", _LM))
_ADAM = {"--adam.start": "--adam.init", "--adam.sigma": "--adam.near-std", "--adam.half": "--adam.half-extent"}
_REFINE = {
    "--refine.known": "--refine.max-points",
    "--refine.places": "--refine.field-points",
    "--refine.reach": "--refine.trust-distance",
    "--refine.around": "--refine.signed-distance-weight",
    "--refine.held": "--refine.validation-fraction",
    "--refine.look": "--refine.eval-every",
    "--refine.lr-hidden": "--refine.lr-muon",
    "--refine.sigma": "--refine.near-std",
}
_INPUT = {"--jump": "--max-depth-jump", "--near": "--min-depth", "--far": "--max-depth"}
_JOINT = {
    "--joint.bend": "--sequence.acceleration-std",
    "--joint.rounds": "--sequence.max-steps",
    "--joint.fps": "--sequence.fps",
}
_SAMPLES = {"--samples": "--posterior-samples"}
_TRAINING = _options(NAMES["training"])

OPTIONS: dict[str, dict[str, str]] = {
    "synthesize": _options(NAMES["synthesis"]),
    "preprocess": {"--max-bad": "--max-rejected"},
    "train": _TRAINING,
    "encode": {**_INPUT, **_SAMPLES},
    "fit": {
        "--sequence": "--as-sequence",
        "--no-sequence": "--no-as-sequence",
        **_INPUT,
        **_SAMPLES,
        **_ALIGNED,
        **_ADAM,
        **_REFINE,
        **_JOINT,
    },
    "interpolate": {**_INPUT, **_ALIGNED},
    "evaluate": {"--protocols": "--metrics", **_ALIGNED, **_ADAM, **_REFINE},
    "reconstruct": {**{old: new for old, new in _TRAINING.items() if old != "--model.learn"}, **_REFINE},
    "evaluate-paths": _ALIGNED,
    "evaluate-sequences": {**_ALIGNED, **_JOINT},
    "view": _INPUT,
    "robustness": {
        "--things": "--non-people",
        "--no-things": "--no-non-people",
        "--drawn": "--random-cases",
        **_ALIGNED,
    },
    "reproduce": {"--recipe": "--config"},
    "ablate": {"--rows": "--variants"},
}
"""Old options and new ones, for each command."""

OPTION_VALUES: dict[str, dict[str, str]] = {
    "--lm.alignment": _ALIGNMENT,
    "--model.encoder": _ENCODERS,
    "--model.supervision": _SUPERVISION,
    "--execution": _EXECUTION,
    "--path": _PATHS,
    "--paths": _PATHS,
    "--cases": _CASES,
    "--metrics": NAMES["metrics"],
    "--config": _CONFIGS,
}
"""Old values and new ones, by the present name of the option."""


class Rename(NamedTuple):
    """What was typed, and what to type."""

    old: str
    new: str


def renamed_options(verb: str, words: Sequence[str]) -> list[Rename]:
    """The options, and their values, that have another name now, among the words behind a command."""
    return list(_renames(OPTIONS.get(verb, {}), words))


def _renames(options: Mapping[str, str], words: Sequence[str]) -> Iterator[Rename]:
    index = 0
    while index < len(words):
        option, equals, value = words[index].partition("=")
        index += 1
        if not option.startswith("--"):
            continue
        values = [value] if equals else []
        while not equals and index < len(words) and not words[index].startswith("--"):
            values.append(words[index])
            index += 1
        old = option.replace("_", "-")
        new = options.get(old, old)
        present = OPTION_VALUES.get(new, {})
        stale = {value: present[value] for value in values if value in present and not _is_file(new, value)}
        if stale:
            yield Rename(" ".join((option, *stale)), " ".join((new, *stale.values())))
        elif new != old:
            yield Rename(option, new)


def _is_file(option: str, value: str) -> bool:
    """Whether a config is given as a file, whatever its name."""
    return option == "--config" and Path(value).is_file()


def sentence_of(renames: Sequence[Rename]) -> str:
    """What was renamed, and what to use."""
    olds, news = (", ".join(names) for names in zip(*renames, strict=True))
    return f"{olds} {'was' if len(renames) == 1 else 'were'} renamed: use {news}."
