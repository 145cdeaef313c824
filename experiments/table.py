"""One table of several evaluated runs; runs that differ only in their seed share a row.

python -m experiments.table --run_dir DIR [--run_dir DIR ...] [--output FILE.json]
python -m experiments.table --results FILE.json
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from action_attention.errors import UserError
from action_attention.evaluation import read_run
from action_attention.features import write_json
from action_attention.metrics import mean_interval95
from data_prep import program

ROW_KEYS = ("dataset", "split", "subset", "validation", "weights", "model", "config")
RANDOM_WEIGHTS = "VGG16 WITH RANDOM WEIGHTS: these accuracies mean nothing."
TUTORIAL = "TUTORIAL PROTOCOL: chosen on test videos"
COLUMNS = ("video_top1", "video_top5", "clip_top1", "frame_top1", "macro_f1")


def read_result(run_dir: Path, subset: str = "test") -> dict:
    """The metrics of an evaluated run and how it was trained, without what only the machine that made it knows."""
    run, _ = read_run(run_dir, of_frames=False)
    path = run_dir / "eval" / subset / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with `make eval RUN_DIR={run_dir}`")
    config = {key: value for key, value in run["config"].items() if key not in ("seed", "model")}
    about = {key: run[key] for key in ("epochs", "seconds", "git", "versions")}
    return {**json.loads(path.read_text()), "config": config, "best_epoch": run["best"]["epoch"], **about}


def markdown(results: list[dict]) -> str:
    """A Markdown table. One seed: accuracy with Wilson's 95 % interval. Several: mean, standard deviation and the 95 %
    interval of the mean over seeds (Student's t)."""
    lines = [
        "| data, subset | model | seeds | video top-1 | 95 % interval | top-5 | clip | frame | macro F1 | training |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {}
    for result in results:
        rows.setdefault(json.dumps([result[key] for key in ROW_KEYS]), []).append(result)
    lines += map(_row, rows.values())
    if any(result["weights"] == "random" for result in results):
        lines.append(f"\n{RANDOM_WEIGHTS}")
    return "\n".join(lines)


def _row(runs: list[dict]) -> str:
    first = runs[0]
    values = {name: [run[name] for run in runs] for name in (*COLUMNS, "epochs", "seconds")}
    mean = {name: None if None in of_runs else np.mean(of_runs) for name, of_runs in values.items()}
    top1 = np.array([run["video_top1"] for run in runs])
    low, high = mean_interval95(top1) or first["video_top1_ci95"]
    spread = f" ± {100 * top1.std(ddof=1):.1f}" if len(runs) > 1 else ""
    where = f"{first['dataset']}, split {first['split']}, {first['videos']} {first['subset']} videos"
    if first["validation"] == "tutorial":
        where += f" ({TUTORIAL})"
    shown = [where, first["model"], len(runs), f"{mean['video_top1']:.1%}{spread}", f"{low:.1%} to {high:.1%}"]
    shown += ["-" if mean[column] is None else f"{mean[column]:.1%}" for column in COLUMNS[1:]]
    epochs = "" if mean["epochs"] is None else f"{mean['epochs']:.0f} epochs, "
    shown.append(f"{epochs}{mean['seconds']:.0f} s")
    return f"| {' | '.join(map(str, shown))} |"


def define_flags() -> None:
    flags.DEFINE_multi_string("run_dir", [], "run directory of an evaluated run; give it once a run")
    flags.DEFINE_string("subset", "test", "which evaluation")
    flags.DEFINE_multi_string("results", [], "file that --output wrote before")
    flags.DEFINE_string("output", None, "file to keep the results in")


def main() -> None:
    args = flags.FLAGS
    if not args.run_dir and not args.results:
        raise UserError("give at least one --run_dir or --results")
    results = [result for file in args.results for result in json.loads(Path(file).read_text())]
    results += [read_result(Path(folder), args.subset) for folder in args.run_dir]
    if args.output:
        write_json(Path(args.output), results)
    print(markdown(results))


if __name__ == "__main__":
    program.run(main, define_flags)
