"""Tables of several evaluated runs; runs that differ only in their seed share a row.

python -m experiments.table --run_dir DIR [--run_dir DIR ...] [--output FILE.json]
python -m experiments.table --results FILE.json [--differences]
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from action_attention.boxes import CORLOC, VIDEO_MAP
from action_attention.errors import UserError
from action_attention.features import with_stream
from action_attention.metrics import mean_interval95
from action_attention.registry import defaults, find_model, model_names, renamed
from action_attention.runs import SCHEMA_VERSION, Run
from action_attention.schemas import METRICS, OF_FRAMES
from action_attention.untrusted import read_json
from data_prep import program
from experiments import text_table
from experiments.text_table import define_format, show

ROW_KEYS = ("dataset", "split", "subset", "validation", "weights", "model", "config")
RANDOM_WEIGHTS = "VGG16 WITH RANDOM WEIGHTS: these accuracies mean nothing."
TUTORIAL = "TUTORIAL PROTOCOL: chosen on test videos"
COLUMNS = ("video_top5", "clip_top1", "frame_top1", "macro_f1")
MEASURES = ("pointing", "mass")
SHARED_CONTROLS = {
    "uniform": "uniform attention", "centre": "centre of the frame", "motion": "motion alone",
    "motion_centre": "motion x centred Gaussian",
}  # fmt: skip
BOXES = {
    "motion": "motion alone", "motion_centre": "motion x centred Gaussian", "whole_frame": "whole frame",
    "centred_box": "centred box of the median training size", "training_box": "median training box",
    "oracle": "best box of whole cells",
}  # fmt: skip
OF_BOXES = {"corloc": CORLOC, "video_map": VIDEO_MAP}
# settings that a row does not name beside its model
UNNAMED = ("epochs", "min_steps", "patience", "clip_length", "vote")
# what --output writes of a run, as `untrusted.complaint` takes it
RESULT = {
    **METRICS, **dict.fromkeys(OF_FRAMES, (float, None)), "config": {}, "seconds": float,
    "schema_version?": int,
    **dict.fromkeys(("best_epoch", "epochs"), (int, None)),
}  # fmt: skip


def read_result(run_dir: Path, subset: str = "test") -> dict:
    """The metrics of an evaluated run and how it was trained, without what only the machine that made it knows.

    Where the model looks in each class stays in the run, so that the results of many runs are a small file.
    """
    run = Run.open(run_dir, of_frames=False, finished=True)
    metrics = run.metrics(subset)
    metrics.get("localization", {}).pop("per_class", None)
    config = {key: value for key, value in run.about["config"].items() if key not in ("seed", "model")}
    if (stream := with_stream(run.features)["stream"]) != "rgb":
        config["stream"] = stream
    about = {key: run.about[key] for key in ("epochs", "seconds", "git", "versions")}
    best = {"schema_version": SCHEMA_VERSION, "best_epoch": run.about["best"]["epoch"]}
    return {**metrics, "config": config, **best, **about}


def read_results(path: Path) -> list[dict]:
    """What `--output` wrote. Raises UserError if the file is not that."""
    try:
        results = read_json(path, [RESULT])
    except ValueError as error:
        raise UserError(f"{path} is not what --output of this program wrote ({error}); write it again") from error
    for result in results:
        if result.get("schema_version", 1) == 1 and result["best_epoch"] is not None:
            result["best_epoch"] += 1  # that schema counted epochs from 0
        result["schema_version"] = SCHEMA_VERSION
    return results


def markdown(results: list[dict]) -> str:
    """A Markdown table. One seed: accuracy with Wilson's 95 % interval. Several: mean, standard deviation and the 95 %
    interval of the mean over seeds (Student's t)."""
    lines = [
        "| data, subset | model | seeds | video top-1 | 95 % interval | top-5 | clip | frame | macro F1 | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for runs in _rows(results):
        top1 = np.array([run["video_top1"] for run in runs])
        shown = [*_about(runs), *_mean_and_interval(top1, runs[0]["video_top1_ci95"])]
        means = [_mean(runs, column) for column in COLUMNS]
        shown += ["-" if mean is None else f"{mean:.1%}" for mean in means]
        epochs, seconds = _mean(runs, "epochs"), _mean(runs, "seconds")
        shown.append(f"{'' if epochs is None else f'{epochs:.0f} epochs, '}{seconds:.0f} s")
        lines.append(f"| {' | '.join(shown)} |")
    if any(result["weights"] == "random" for result in results):
        lines.append(f"\n{RANDOM_WEIGHTS}")
    return "\n".join(lines)


def localization(results: list[dict]) -> str:
    """A Markdown table of how much of the attention is on the actor, of the results that say so; empty if none does.

    Below the models of a split stand the controls that are the same for all of them, "-" where no result has one. What
    the attention of another video would have scored depends on the model and stands in its row.
    """
    results = [result for result in results if "localization" in result and looks(result)]
    lines = [
        "| attention on the actor | model or control | seeds | pointing accuracy | 95 % interval "
        "| with another video's maps | mass | 95 % interval | with another video's maps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    parts: list[tuple[str, dict[str, list[str]], list[list[str]]]] = []  # where, controls, rows of models
    for runs in _rows(results):
        (where, *about), shown = _about(runs), []
        for measure in MEASURES:
            found = [run["localization"][measure] for run in runs]
            values = np.array([each["attention"] for each in found])
            shown += _mean_and_interval(values, found[0]["attention_ci95"])
            permuted = _mean([{"permuted": None, **each} for each in found], "permuted")
            shown.append("-" if permuted is None else f"{permuted:.1%}")
        controls = _controls(runs)
        for of_part, known, models in parts:
            if of_part == where and all(known.get(name, said) == said for name, said in controls.items()):
                known.update(controls)  # a result of before version 0.3 knows fewer
                models.append([where, *about, *shown])
                break
        else:
            parts.append((where, controls, [[where, *about, *shown]]))
    for where, known, rows in parts:
        for name, title in SHARED_CONTROLS.items():
            pointing, mass = known.get(name, ("-", "-"))
            rows.append([where, f"control: {title}", "-", pointing, "-", "-", mass, "-", "-"])
        lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) if results else ""


def boxes(results: list[dict]) -> str:
    """A Markdown table of how well boxes cut out of the attention fit the actor; empty if no result says so."""
    head = ["boxes of the action", "model or baseline", "seeds", "tube IoU", *(f"CorLoc {least:g}" for least in CORLOC)]
    head += ["CorLoc 0.5 above the training box, points", *(f"video-mAP {least:g}" for least in VIDEO_MAP)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    corloc, video_map = ([f"{of}_{least:g}" for least in all_of] for of, all_of in OF_BOXES.items())
    models, baselines = [], dict[tuple[str, str], str]()
    for runs in _rows([each for each in results if each.get("localization", {}).get("boxes") and looks(each)]):
        where, *model = _about(runs)
        found = [run["localization"]["boxes"] for run in runs]

        def shown(name: str, found: list[dict] = found) -> tuple[list[str], list[str]]:
            of = {key: np.mean([each[key][name] for each in found]) for key in ("tube_iou", *corloc, *video_map)}
            first = [f"{of['tube_iou']:.3f}", *(f"{of[key]:.1%}" for key in corloc)]
            return first, [f"{of[key]:.1%}" for key in video_map]

        above = np.array([each["corloc_0.5"]["attention"] - each["corloc_0.5"]["training_box"] for each in found])
        interval = mean_interval95(100 * above)
        if len(found) == 1 and (of_videos := found[0]["corloc_0.5"]["above_training_box_ci95"]):
            interval = [100 * end for end in of_videos]
        first, last = shown("attention")
        gain = "{:+.1f} to {:+.1f}".format(*interval) if interval else "-"
        models.append([where, *model, *first, gain, *last])
        for name, title in BOXES.items():
            if all(name in each["tube_iou"] for each in found):  # its video-mAP depends on the model's classes
                row = [where, f"baseline: {title}", "-", *shown(name)[0], "-", *["-"] * len(VIDEO_MAP)]
                baselines.setdefault((name, where), f"| {' | '.join(row)} |")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in models), *baselines.values()]) if models else ""


def _controls(runs: list[dict]) -> dict[str, list[str]]:
    """Pointing accuracy and mass, in words, of the controls that do not depend on the model, as far as they are known.

    They are alike in all runs of a row: the first run that knows one tells it.
    """
    known: dict[str, list[str]] = {}
    for run in runs:
        found = [run["localization"][measure] for measure in MEASURES]
        here = {name: [f"{each[name]:.1%}" for each in found if name in each] for name in SHARED_CONTROLS}
        known = {name: said for name, said in here.items() if len(said) == len(MEASURES)} | known
    return known


def over_splits(results: list[dict]) -> str:
    """A Markdown table of the models that ran on several splits: the mean of the splits, for each seed that ran on all.

    Empty if there are none. Mean, standard deviation and 95 % interval are over seeds. Where all runs say so: how much
    of the attention is on the actor, and the attention's entropy relative to uniform.
    """
    lines = [
        "| data, mean of splits | model | seeds | video top-1 | 95 % interval | pointing | mass | entropy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for splits in _models(results):
        seeds = _common_seeds(splits)
        if len(splits) > 1 and seeds:
            top1 = np.mean([[_by_seed(runs)[seed] for seed in seeds] for runs in splits], axis=0)
            first = splits[0][0]
            where = f"{first['dataset']}, splits {_split_names(splits)}"
            where += "" if first["subset"] == "test" else f", {first['subset']}"
            model = _about([_without_penalty(first)])[1]
            runs = [run for of_split in splits for run in of_split if run["seed"] in seeds]
            looks = [_mean([_looking(run) for run in runs], key) for key in (*MEASURES, "entropy")]
            shown = [f"{look:.1%}" if look is not None else "-" for look in looks[:-1]]
            shown.append(f"{looks[-1]:.2f}" if looks[-1] is not None else "-")
            lines.append(f"| {' | '.join([where, model, str(len(seeds)), *_mean_and_interval(top1, None), *shown])} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _looking(run: dict) -> dict[str, float | None]:
    found = run.get("localization") if looks(run) else None
    measured = {measure: found[measure]["attention"] if found else None for measure in MEASURES}
    return {**measured, "entropy": run.get("entropy") if looks(run) else None}


def looks(result: dict) -> bool:
    """Whether its model has an attention: uniform maps are those of a control, and no row for each model without."""
    name = result["model"]
    return name not in model_names() or find_model(name).build.has_attention


def _models(results: list[dict]) -> list[list[list[dict]]]:
    """The rows of each model, one a split."""
    models: dict[str, list[list[dict]]] = {}
    for runs in _rows(results):
        first = _without_penalty(runs[0])
        key = json.dumps([first[key] for key in ROW_KEYS if key != "split"], sort_keys=True)
        models.setdefault(key, []).append(runs)
    return list(models.values())


def _common_seeds(rows: list[list[dict]]) -> list[int]:
    return sorted(set.intersection(*({run["seed"] for run in runs} for runs in rows)))


def _split_names(splits: list[list[dict]]) -> str:
    return ", ".join(sorted(str(runs[0]["split"]) for runs in splits))


def _without_penalty(result: dict) -> dict:
    """The same for any C and temperature of an SVM, chosen on each split, if there are videos to choose them on."""
    chosen = "" if "C" in result["config"] else result["validation"]
    config = {key: value for key, value in result["config"].items() if (key, chosen) != ("temperature", "")}
    return {**result, "validation": chosen, "config": {**config, "C": None}}


def differences(results: list[dict]) -> str:
    """A Markdown table of what each model gains over the first one, in points of video top-1.

    Runs of one split and seed are paired. A seed's gain is the mean over the splits that both models ran, if it ran on
    all of them; the 95 % interval is that of the mean over seeds (Student's t). Models are named by what is otherwise
    than in the first. Raises UserError if no other model ran on a split and seed of the first one's.
    """
    first, *others = _models(results)
    base = {runs[0]["split"]: runs for runs in first}
    name, lines = _about(first[0])[1], []
    for splits in others:
        shared = [runs for runs in splits if runs[0]["split"] in base]
        seeds = _common_seeds(shared + [base[runs[0]["split"]] for runs in shared]) if shared else []
        if seeds:
            pairs = [(_by_seed(runs), _by_seed(base[runs[0]["split"]])) for runs in shared]
            gains = 100 * np.mean([[ours[seed] - its[seed] for seed in seeds] for ours, its in pairs], axis=0)
            interval = mean_interval95(gains)
            shown = [_otherwise(first[0][0], splits[0][0]), _split_names(shared), str(len(seeds))]
            shown += [f"{gains.mean():+.1f}", "{:+.1f} to {:+.1f}".format(*interval) if interval else "-"]
            lines.append(f"| {' | '.join(shown)} |")
    if not lines:
        raise UserError(
            f"--differences: no other model ran on a split and seed of {name}; add such runs, or leave it out"
        )
    head = [f"| against {name} | splits | seeds | video top-1, points | 95 % interval |", "|---|---|---|---|---|"]
    return "\n".join([*head, *lines])


def _otherwise(first: dict, other: dict) -> str:
    """What is otherwise in a result's training than in the first one's."""
    names = [other["model"]] if other["model"] != first["model"] else []
    names += [TUTORIAL] if other["validation"] == "tutorial" != first["validation"] else []
    settings = {key: value for key, value in other["config"].items() if key not in (*UNNAMED, "model")}
    names += [f"{key}={value}" for key, value in settings.items() if value != first["config"].get(key)]
    return ", ".join(names)


def _by_seed(runs: list[dict]) -> dict[int, float]:
    return {run["seed"]: run["video_top1"] for run in runs}


def _rows(results: list[dict]) -> list[list[dict]]:
    """Results that differ only in their seed, together; what a result says nothing of has its default."""
    rows: dict[str, list[dict]] = {}
    for result in results:
        result["config"] = {**_defaults(result), **renamed(result["config"])}
        key = json.dumps([result[key] for key in ROW_KEYS], sort_keys=True)
        rows.setdefault(key, []).append(result)
    return list(rows.values())


def _defaults(result: dict) -> dict:
    return {key: value for key, value in defaults(result["model"]).items() if key != "seed"}


def _about(runs: list[dict]) -> list[str]:
    """The first cells of a row: data, the model with the settings that are not its defaults, number of seeds."""
    first = runs[0]
    where = f"{first['dataset']}, split {first['split']}, {first['videos']} {first['subset']} videos"
    if first["validation"] == "tutorial":
        where += f" ({TUTORIAL})"
    usual = _defaults(first)
    config = {key: value for key, value in first["config"].items() if key not in UNNAMED and value != usual.get(key)}
    settings = "".join(f", {key}={value}" for key, value in config.items())
    return [where, first["model"] + settings, str(len(runs))]


def _mean(runs: list[dict], key: str) -> float | None:
    """The mean over runs; None if a model has no such figure (an SVM has no epochs and decides of videos only)."""
    values = [run[key] for run in runs]
    return None if None in values else float(np.mean(values))


def _mean_and_interval(values: np.ndarray, interval_of_one: list[float] | None) -> list[str]:
    interval = mean_interval95(values) or interval_of_one
    spread = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return [f"{values.mean():.1%}{spread}", "{:.1%} to {:.1%}".format(*interval) if interval else "-"]


def define_flags() -> None:
    flags.DEFINE_multi_string("run_dir", [], "run directory of an evaluated run; give it once for each run")
    flags.DEFINE_string("subset", "test", "which evaluation")
    flags.DEFINE_multi_string("results", [], "file that an earlier --output wrote")
    flags.DEFINE_bool("differences", False, "add what each model gains over the first one, seed by seed")
    flags.DEFINE_string("output", None, "file to keep the results in")
    define_format()
    flags.adopt_module_key_flags(text_table)


def main() -> None:
    args = flags.FLAGS
    if not args.run_dir and not args.results:
        raise UserError("give at least one --run_dir or --results")
    results = [result for file in args.results for result in read_results(Path(file))]
    results += [read_result(Path(folder), args.subset) for folder in args.run_dir]
    if args.output:
        lines = ",\n".join(json.dumps(result, separators=(",", ":")) for result in results)  # a line for each run
        Path(args.output).write_text(f"[\n{lines}\n]\n")
    tables = [markdown(results), over_splits(results), localization(results), boxes(results)]
    if args.differences:
        tables.append(differences(results))
    show("\n\n".join(filter(None, tables)))


if __name__ == "__main__":
    program.run(main, define_flags)
