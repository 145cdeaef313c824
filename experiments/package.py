"""What `export --format=package` writes of an evaluated and calibrated run: four small files to predict with."""

import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from action_attention.errors import UserError
from action_attention.model_file import half_arrays
from action_attention.models import ActionModel
from action_attention.packages import PARTS, write_package
from action_attention.registry import defaults
from action_attention.runs import PRETRAINED, Run
from experiments.calibrate import runs_in_words
from experiments.table import SHARED_CONTROLS

UNSAID = "not stated by whoever made it"
KEPT = (
    "schema_version", "config", "classes", "dataset", "split", "validation", "videos", "best", "epochs", "seconds",
    "git", "versions",
)  # fmt: skip


def package(run: Run, output: Path, *, data: str = UNSAID, licence: str = UNSAID, limits: str = UNSAID) -> None:
    """Writes `run.json`, `model.npz`, `calibration.json` and `card.md` of a run, into a folder or a `.zip`.

    Nothing is written of the machine that the run was made on, nor of its folders. Raises UserError if the run is not
    evaluated on its test videos or not calibrated, or the output cannot be written to.
    """
    metrics, calibration = run.metrics("test"), run.calibration()
    if calibration is None:
        raise UserError(
            f"{run.folder} has no calibration.json; make it with `python -m experiments.calibrate "
            f"--run_dir={run.folder}`"
        )
    model, weights = run.model(), io.BytesIO()
    try:
        arrays: dict[str, Any] = half_arrays(model)
    except ValueError as error:
        raise UserError(f"{run.folder} cannot be packaged: {error}; train it with a --weight_decay") from error
    np.savez(weights, **arrays)
    about, cache = {key: run.about[key] for key in KEPT if key in run.about}, run.about["cache"]
    about["cache"] = _without_folder(cache) | {"cube_shape": list(model.cube_shape or ())}
    if run.box_tau is not None:
        about["box_tau"] = run.box_tau
    if "flow" in cache:
        about["cache"]["flow"] = _without_folder(cache["flow"])
    contents = (
        _json(about), weights.getvalue(), _json(calibration),
        card(output, run, model, metrics, calibration, data, licence, limits).encode(),
    )  # fmt: skip
    write_package(dict(zip(PARTS, contents, strict=True)), output)


def _without_folder(cache: dict[str, Any]) -> dict[str, Any]:
    kept = ("fingerprint", "settings", "cube_shape")
    return {key: cache[key] for key in kept if key in cache} | {"folder": ""}


def card(
    output: Path, run: Run, model: ActionModel, metrics: dict, calibration: dict, data: str, licence: str, limits: str
) -> str:
    """`card.md`: what the model is, was trained on, gets right and wrong, and where it should not be relied on."""
    settings, usual, features = run.config.flat(), defaults(run.config.model), run.features
    changed = {key: value for key, value in settings.items() if key != "model" and value != usual[key]}
    count = sum(math.prod(weight.shape) for weight in model.weights)
    low, high = metrics["video_top1_ci95"]
    videos = run.about.get("videos", {})
    of_test = f"{metrics['dataset']}, split {metrics['split']}, {metrics['videos']} test videos"
    given = [f"--model={run.config.model}", *map(_flag, changed, changed.values())]
    name = output.name.removesuffix(".zip")
    brought = output.resolve().parent == PRETRAINED.resolve()
    here = f"--pretrained={name}" if brought else f"--run_dir={shlex.quote(output.name)}"
    lines = [
        f"# {name}",
        "",
        f"{run.config.model}, {count:,} weights in float16: which of {len(run.classes)} actions a video shows, and "
        "where the model looks.",
        "",
        f"    python -m experiments.predict {here} --video=clip.mp4",
        "",
        "| | |",
        "|---|---|",
        f"| settings that are not the model's defaults | {_listed(changed)} |",
        f"| features | {features['backbone']}, weights {features['weights']}, {features['fps']:g} frames/s, cubes "
        f"{' x '.join(map(str, model.cube_shape or ()))} |",
        f"| data | {data} |",
        f"| licence | {licence} |",
        f"| videos | {_listed(videos)}; validation: {metrics['validation']} |",
        f"| actions | {', '.join(run.classes)} |",
        "",
        "## How often it is right",
        "",
        f"{metrics['video_top1']:.1%} of the videos ({of_test}; 95 % interval {low:.1%} to {high:.1%}); among its "
        f"first five {metrics['video_top5']:.1%}; macro F1 {metrics['macro_f1']:.1%}.",
        "",
        *_best_and_worst(metrics["per_class"]),
        "",
        *_where(metrics.get("localization")),
        "## How sure it may be",
        "",
        *_confidence(calibration),
        "",
        "## Limits",
        "",
        limits,
        "",
        "## How it was made",
        "",
        f"    python -m experiments.train {' '.join(given)}",
        "",
        "with --features, --splits and --run_dir; then experiments.eval, experiments.calibrate and "
        f"experiments.export. Git revision {run.about.get('git', 'unknown')}; "
        f"{_listed(run.about.get('versions', {}))}.",
        "",
    ]
    return "\n".join(lines)


def _best_and_worst(per_class: dict[str, dict]) -> list[str]:
    ranked = sorted(per_class, key=lambda name: (-per_class[name]["accuracy"], name))
    shown = [f"{name} {per_class[name]['accuracy']:.0%} of {per_class[name]['videos']}" for name in ranked]
    return [f"Best: {', '.join(shown[:3])}.", f"Worst: {', '.join(shown[::-1][:3])}."]


def _where(localization: dict | None) -> list[str]:
    if not localization:
        return []
    names = {"pointing": "Frames whose largest location is on the actor", "mass": "Attention on the actor"}
    said = []
    for measure, words in names.items():
        found = localization[measure]
        controls = [f"{title} {found[name]:.1%}" for name, title in SHARED_CONTROLS.items() if name in found]
        said.append(f"- {words}: {found['attention']:.1%} ({', '.join(controls)})")
    return ["## Where it looks", "", f"In {localization['videos']} annotated test videos:", "", *said, ""]


def _confidence(calibration: dict) -> list[str]:
    before, after, above = (calibration[key] for key in ("before", "after", "above_threshold"))
    accuracy = "" if above["accuracy"] is None else f", and {above['accuracy']:.1%} of those are right"
    return [
        f"Temperature {calibration['temperature']:.3f}, fitted on {runs_in_words(calibration)}. Judged on videos that "
        f"it was not fitted on ({calibration['judged_by']}): accuracy {after['accuracy']:.1%}, mean confidence "
        f"{after['confidence']:.1%} (uncalibrated {before['confidence']:.1%}), expected calibration error "
        f"{after['ece']:.1%} (uncalibrated {before['ece']:.1%}).",
        "",
        f"Below a confidence of {calibration['threshold']:.0%} it gives no answer. It answers for {above['share']:.1%} "
        f"of the validation videos{accuracy}.",
    ]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
