"""Late fusion: what several evaluated runs say of the same videos, averaged, as a run directory of its own.

python -m experiments.fuse --run_dir RGB --run_dir FLOW --output DIR [--weights equal|validation|0.4,0.6]

Each frame's probabilities are the weighted mean of what the runs say of it (two-stream networks, Simonyan and
Zisserman 2014, arXiv 1406.2199); a run that decides on whole videos, such as an SVM, says the same of all frames. The
attention is that of the first run that has one. `experiments.table` and `experiments.report` show the result.
"""

from itertools import product
from pathlib import Path

import numpy as np
from absl import flags

from action_attention.errors import UserError
from action_attention.evaluation import write_evaluation
from action_attention.features import write_json
from action_attention.metrics import VideoPrediction, rank_classes, summarize
from action_attention.runs import SCHEMA_VERSION, SUBSETS, Run
from action_attention.schemas import OF_FRAMES
from action_attention.settings import VOTES
from data_prep import program
from data_prep.terminal import say
from experiments import table, text_table

KEPT = ("classes", "cache", "videos", "git", "versions", "machine", "dataset", "split", "validation")
STEPS = 10  # weights are tried in tenths


def read_all(runs: list[Run], subset: str) -> list[list[VideoPrediction]]:
    """The runs' predictions of the same videos in the same order.

    Raises UserError if a run is not evaluated on the subset, or classes, videos or frames differ.
    """
    of_runs = [{each.name: each for each in run.predictions(subset)} for run in runs]
    first = of_runs[0]
    for run, other in zip(runs[1:], of_runs[1:], strict=True):
        for what, differ in {
            "classes": run.classes != runs[0].classes,
            f"{subset} videos": other.keys() != first.keys(),
            "frame rates": run.features["fps"] != runs[0].features["fps"],
        }.items():
            if differ:
                raise UserError(f"{runs[0].folder} and {run.folder} have different {what} and cannot be fused")
    return [[of_run[name] for name in first] for of_run in of_runs]


def fuse(of_runs: list[list[VideoPrediction]], weights: list[float]) -> list[VideoPrediction]:
    """The weighted mean of what runs say of each frame of each video; `weights` sum to 1.

    A run with one frame a video says it of all frames. The attention is the first run's that has all frames.
    """
    fused = []
    for parts in zip(*of_runs, strict=True):
        frames = max(len(part.probabilities) for part in parts)
        said = [np.broadcast_to(part.probabilities, (frames, part.probabilities.shape[1])) for part in parts]
        probabilities = np.tensordot(weights, said, axes=1)
        attention = next(part.attention for part in parts if len(part.probabilities) == frames)
        label = parts[0].label
        assert label is not None
        loss = float(-np.log(np.maximum(probabilities[:, label], np.finfo(float).tiny)).mean())
        fused.append(VideoPrediction(parts[0].name, label, probabilities, attention, [probabilities], loss))
    return fused


def choose_weights(of_runs: list[list[VideoPrediction]], vote: str) -> list[float]:
    """In tenths, those of the highest video accuracy; of several the ones with the least cross-entropy."""
    tried: dict[tuple[float, ...], tuple[float, float]] = {}
    for tenths in product(range(STEPS + 1), repeat=len(of_runs)):
        if sum(tenths) == STEPS:
            weights = [each / STEPS for each in tenths]
            fused = fuse(of_runs, weights)
            right = np.mean([rank_classes(each.probabilities, vote)[0] == each.label for each in fused])
            tried[tuple(weights)] = (float(right), -float(np.mean([each.loss for each in fused])))
    return list(max(tried.items(), key=lambda item: item[1])[0])


def parse_weights(text: str, runs: list[Run], vote: str) -> list[float]:
    """As `--weights` says; they sum to 1. Raises UserError if they are not one for each run."""
    if text == "equal":
        return [1 / len(runs)] * len(runs)
    if text == "validation":
        return choose_weights(read_all(runs, "validation"), vote)
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != len(runs) or min(weights) < 0 or not 0 < sum(weights) < np.inf:
        raise UserError(
            f"--weights={text} must be equal, validation, or {len(runs)} numbers from 0 with commas between them, one "
            "for each --run_dir"
        )
    return [weight / sum(weights) for weight in weights]


def define_flags() -> None:
    flags.DEFINE_multi_string("run_dir", None, "evaluated run; give it once for each run", required=True)
    flags.DEFINE_string("output", None, "run directory of the fusion", required=True)
    flags.DEFINE_string(
        "weights", "equal", "weights of the runs: equal, validation (chosen on validation videos), or numbers: 0.4,0.6"
    )
    flags.DEFINE_enum("subset", "test", SUBSETS, "which videos")
    text_table.define_format()
    flags.adopt_module_key_flags(text_table)
    flags.DEFINE_enum("vote", "mean", VOTES, "a video's class: by mean probability, or its frames' most frequent one")


def main() -> None:
    args = flags.FLAGS
    output = Path(args.output)
    runs = [Run.open(Path(folder), of_frames=False, finished=True) for folder in args.run_dir]
    if len(runs) < 2:
        raise UserError("a fusion takes several runs; give --run_dir more than once")
    if Run(output).exists:
        raise UserError(f"{output} already holds a run; give another --output")
    of_runs = read_all(runs, args.subset)
    weights = parse_weights(args.weights, runs, args.vote)
    shown = next((run for run in runs if run.of_frames), runs[0])  # whose attention it is
    first = shown.about
    about = {
        "schema_version": SCHEMA_VERSION,
        "config": {
            "model": "fuse", "seed": runs[0].about["config"]["seed"],
            "runs": " + ".join(run.model_name for run in runs), "weights": " ".join(f"{each:g}" for each in weights),
        },
        "of_frames": any(run.of_frames for run in runs),
        "best": {"epoch": None}, "epochs": None, "seconds": sum(run.about["seconds"] for run in runs),
        **{key: first[key] for key in KEPT if key in first},
    }  # fmt: skip
    fused, run = fuse(of_runs, weights), Run(output, about, {args.subset: [each.name for each in of_runs[0]]})
    metrics = {
        **{key: first.get(key) for key in ("dataset", "split", "validation")}, "subset": args.subset, "model": "fuse",
        "seed": about["config"]["seed"], "weights": shown.features["weights"],
        **summarize(fused, run.classes, args.vote), **({} if run.of_frames else dict.fromkeys(OF_FRAMES)),
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    run.write()
    write_json(run.history_file, [])
    write_evaluation(run.evaluation(args.subset), metrics, fused, run.classes)
    say(f"{output}: weights {about['config']['weights']}\n")
    text_table.show(table.markdown([table.read_result(output, args.subset)]))


if __name__ == "__main__":
    program.run(main, define_flags)
