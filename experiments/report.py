"""One static page about a run, or several side by side: numbers, curves, confusion, classes, and playing overlays.

python -m experiments.report --run_dir DIR [--run_dir DIR ...] --output DIR

`OUTPUT/index.html` opens from disk and needs no network: `report.html` of this package with the data inside it, the
overlays beside it in `OUTPUT/overlays/run<R>/<V>.mp4`. It is made from the run directories' files and the videos; no
model runs.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from absl import flags
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from action_attention.boxes import action_boxes
from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.files import written_whole
from action_attention.heatmaps import HEATMAPS
from action_attention.metrics import VideoPrediction, rank_classes
from action_attention.overlays import draw_overlays, write_video
from action_attention.runs import SUBSETS, Run
from data_prep import program
from data_prep.terminal import say, warn
from data_prep.videos import UnusableVideoError, VideoReader
from experiments import table

TOP = 5
FIGURES = ("Video top-5", "Clip top-1", "Frame top-1", "Macro F1")  # `table.COLUMNS`
LOCALIZATION = {"pointing": "Pointing accuracy", "mass": "Mass on the actor"}
CONTROLS = table.SHARED_CONTROLS | {"permuted": "another video's attention"}
WIDTH = 360  # pixels of an overlay: its text can be read in a card, and the page's folder stays small


@dataclass
class EvaluatedRun:
    """What the page shows of one run; `predictions` by video name."""

    run: Run
    result: dict
    history: list[dict]
    predictions: dict[str, VideoPrediction]

    @property
    def fps(self) -> float:
        return self.run.features["fps"]

    def galleries(self, limit: int) -> list[list[str]]:
        """Names of the videos that are right, and of those that are wrong, most confident first; 0 is no limit."""
        confidence, right = {}, {}
        for name, prediction in self.predictions.items():
            best = rank_classes(prediction.probabilities, self.result["vote"])[0]
            confidence[name] = prediction.probabilities[:, best].mean()
            right[name] = best == prediction.label
        ordered = sorted(self.predictions, key=lambda name: (-confidence[name], name))
        return [[name for name in ordered if right[name] == kind][: limit or None] for kind in (True, False)]


def read_runs(folders: list[Path], subset: str) -> list[EvaluatedRun]:
    """Reads evaluated runs. Raises UserError if one is not evaluated, or their videos or classes differ."""
    runs = []
    for folder in folders:
        run = Run.open(folder)
        predictions = {prediction.name: prediction for prediction in run.predictions(subset)}
        runs.append(EvaluatedRun(run, table.read_result(folder, subset), run.history(), predictions))
    for other in runs[1:]:
        for what, of_run in {
            "datasets": lambda run: run.run.about["dataset"],
            "classes": lambda run: run.run.classes,
            "frame rates": lambda run: run.fps,
            f"{subset} videos": lambda run: {name: len(p.probabilities) for name, p in run.predictions.items()},
        }.items():
            if of_run(other) != of_run(runs[0]):
                raise UserError(
                    f"{runs[0].run.folder} and {other.run.folder} have different {what} and cannot stand side by side; "
                    "make a report of each"
                )
    return runs


def find_videos(videos: str | None, run: EvaluatedRun) -> Path | None:
    """The folder of the videos: as given, else where the cache says that they were; None if that is not known."""
    if videos:
        if not Path(videos).is_dir():
            raise UserError(f"{videos} is not a folder; give --videos the folder of the class folders")
        return Path(videos)
    try:
        cache = FeatureCache(Path(run.run.about["cache"]["folder"]))
    except UserError:
        return None
    cache.close()
    return Path(cache.source)


def draw_video(
    path: Path, runs: list[EvaluatedRun], name: str, files: list[Path], heatmap: str = "absolute", boxes: bool = False
) -> dict:
    """Writes each run's overlay of one video; says its `fps` and `aspect`, or in `note` why there is none.

    `boxes` draws the boxes of runs that have a threshold for them (`Run.box_tau`).
    """
    if not path.is_file():
        return {"note": f"{path} is gone"}
    evaluated = len(runs[0].predictions[name].probabilities)
    try:
        for run, file in zip(runs, files, strict=True):
            reader = VideoReader(path, run.fps, size=None)
            fps = min(run.fps, reader.info.fps or run.fps)  # a slower file keeps all its frames, and its own speed
            said, tau = (run.predictions[name], run.run.classes, run.result["vote"]), run.run.box_tau
            found = action_boxes(said[0].attention, tau) if boxes and tau is not None else None
            drawn = draw_overlays(reader, *said, width=WIDTH, heatmap=heatmap, boxes=found)
            first = next(drawn)
            write_video(file, chain([first], drawn), fps)
    except UnusableVideoError as error:
        return {"note": f"{path}: {error}"}
    except UserError:  # no such heatmap
        raise
    except ValueError:  # more or fewer frames than predictions
        return {"note": f"{path} was evaluated with {evaluated} sampled frames and has another number of them now"}
    return {"fps": fps, "aspect": round(first.shape[1] / first.shape[0], 4)}


def draw_videos(
    root: Path | None, runs: list[EvaluatedRun], wanted: dict[str, int], output: Path, heatmap: str, boxes: bool
) -> dict[str, dict]:
    """Draws the wanted videos (name -> number); returns name -> what `draw_video` says."""
    if root is None:
        cache = runs[0].run.about["cache"]["folder"]
        return {
            name: {"note": f"{cache} is gone, and only it said where the videos are; give --videos"} for name in wanted
        }
    for number, _ in enumerate(runs):
        overlay_path(output, number, 0).parent.mkdir(parents=True, exist_ok=True)

    def draw(name: str) -> dict:
        files = [overlay_path(output, number, wanted[name]) for number, _ in enumerate(runs)]
        return draw_video(root / name, runs, name, files, heatmap, boxes)

    # Decoding, drawing and encoding release the interpreter's lock. With threads of their own, the heatmaps' small
    # matrix products would take more than twice the processor time.
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with threadpool_limits(1):
            said = tqdm(pool.map(draw, wanted), "overlays", len(wanted), unit=" videos", disable=None)
            return dict(zip(wanted, said, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def overlay_path(output: Path, run: int, video: int) -> Path:
    """Numbers, not names: any class, file or run name is then a file name and a URL on every system."""
    return output / "overlays" / f"run{run + 1}" / f"{video:05d}.mp4"


def make_report(
    runs: list[EvaluatedRun],
    videos: Path | None,
    output: Path,
    limit: int,
    heatmap: str = "absolute",
    boxes: bool = False,
) -> dict[str, dict]:
    """Writes the report; returns name -> what was drawn of each video.

    The page comes last and an older one goes first, so that a page never shows what is not there.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / "index.html").unlink(missing_ok=True)
    for old in output.glob("overlays/run*/?????.mp4*"):  # and what a killed one left of them
        old.unlink()
    names = sorted(runs[0].predictions)
    galleries = [run.galleries(limit) for run in runs]
    shown = {name for of_run in galleries for gallery in of_run for name in gallery}
    wanted = {name: number for number, name in enumerate(names) if name in shown}
    drawn = draw_videos(videos, runs, wanted, output, heatmap, boxes)
    page = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    with written_whole(output / "index.html") as part:
        data = _embedded(_page_data(runs, names, galleries, drawn))
        part.write_text(page.replace("{{data}}", data), encoding="utf-8")
    return drawn


def _page_data(runs: list[EvaluatedRun], names: list[str], galleries: list, drawn: dict[str, dict]) -> dict:
    """What `report.html` shows; a video is known by its number in `names`."""
    number = {name: index for index, name in enumerate(names)}
    first = runs[0].result
    folders = [run.run.folder.resolve() for run in runs]
    unique = len({folder.name for folder in folders}) == len(folders)
    return {
        "title": f"{first['dataset']}, split {first['split']}",
        "classes": runs[0].run.classes,
        "warnings": list(_warnings(runs)),
        "notes": list(_notes(runs, names, drawn)),
        "figures": _figures(runs),
        "settings": _settings(runs),
        "videos": [
            {
                "name": name,
                "label": runs[0].predictions[name].label,
                "frames": len(runs[0].predictions[name].probabilities),
                **drawn.get(name, {}),
            }
            for name in names
        ],
        "runs": [
            {
                "name": folder.name if unique else str(folder),
                "metrics": run.result,
                "history": run.history,
                "predictions": [_prediction(run, name) for name in names],
                "galleries": [[number[name] for name in gallery] for gallery in of_run],
            }
            for run, folder, of_run in zip(runs, folders, galleries, strict=True)
        ],
    }


def _prediction(run: EvaluatedRun, name: str) -> dict:
    """The predicted class and its mean probability, and the best classes with theirs."""
    probabilities = run.predictions[name].probabilities
    means = probabilities.mean(axis=0)
    ranking = rank_classes(probabilities, run.result["vote"])[:TOP]
    return {"top": [[int(label), round(float(means[label]), 4)] for label in ranking]}


def _warnings(runs: list[EvaluatedRun]) -> Iterator[str]:
    if any(run.result["weights"] == "random" for run in runs):
        yield table.RANDOM_WEIGHTS
    for run in runs:
        if run.result["validation"] == "tutorial":
            yield f"{run.run.folder.resolve().name}: {table.TUTORIAL}"


def _notes(runs: list[EvaluatedRun], names: list[str], drawn: dict[str, dict]) -> Iterator[str]:
    """What the galleries lack, and why."""
    without = [name for name, said in drawn.items() if "note" in said]
    if without:
        first = without[0]
        yield f"{len(without)} of {len(drawn)} videos have no overlay; the first: {first}: {drawn[first]['note']}"
    if len(drawn) < len(names):
        yield "The galleries hold each run's most confident videos only (--videos_per_gallery); all numbers count all."


def _figures(runs: list[EvaluatedRun]) -> list:
    """Rows of the table of numbers: a name and each run's value in words."""
    columns = []
    for run in runs:
        result, (low, high) = run.result, run.result["video_top1_ci95"]
        first, *others = (f"{result[key]:.1%}" for key in ("video_top1", *table.COLUMNS))
        shown = {"Video top-1": first, "95 % interval of video top-1": f"{low:.1%} to {high:.1%}"}
        shown |= zip(FIGURES, others, strict=True)
        shown["Cross-entropy"] = f"{result['cross_entropy']:.3f}"
        for measure, name in LOCALIZATION.items() if "localization" in result and table.looks(result) else ():
            found = result["localization"][measure]
            interval = found["attention_ci95"]
            shown[name] = f"{found['attention']:.1%}" + (
                f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
            )
            shown |= {f"{name}: {title}": _control(found, key) for key, title in CONTROLS.items()}
        if (boxes := result.get("localization", {}).get("boxes")) and table.looks(result):
            shown["Tube IoU of boxes"] = f"{boxes['tube_iou']['attention']:.3f}"
            shown["Tube IoU of boxes: median training box"] = f"{boxes['tube_iou']['training_box']:.3f}"
            shown["CorLoc 0.5"] = f"{boxes['corloc_0.5']['attention']:.1%}"
            shown["CorLoc 0.5: median training box"] = _control(boxes["corloc_0.5"], "training_box")
        columns.append(shown)
    return _rows(columns)


def _control(found: dict, name: str) -> str:
    """A control's score, and the 95 % interval of how far the attention is above it, paired by video."""
    if name not in found:
        return "-"
    above = found.get(f"above_{name}_ci95")
    points = " (attention: {:+.1f} to {:+.1f})".format(*(100 * end for end in above)) if above else ""
    return f"{found[name]:.1%}{points}"


def _rows(columns: list[dict[str, str]]) -> list:
    """Columns (name -> value) as rows (name, values), "-" where a column lacks a name."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, [column.get(name, "-") for column in columns]] for name in names]


def _settings(runs: list[EvaluatedRun]) -> list:
    """Every hyper-parameter, and what else made the runs, in words."""
    columns = []
    for run in runs:
        result, settings = run.result, run.run.features
        config = {"model": result["model"], "seed": result["seed"], **result["config"]}
        shown = {name.replace("_", " "): "default" if value is None else str(value) for name, value in config.items()}
        columns.append({
            "run directory": str(run.run.folder),
            **shown,
            "validation": result["validation"],
            "vote of this evaluation": result["vote"],
            "epochs": "none" if result["epochs"] is None else f"{result['epochs']}, kept: {result['best_epoch']}",
            "training": f"{result['seconds']:.0f} s",
            "features": ", ".join(settings[key] for key in ("backbone", "weights", "precision")),
            "frames per second": f"{run.fps:g}",
            "software": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
            "git revision": result["git"],
        })  # fmt: skip
    return _rows(columns)


def _embedded(data: dict) -> str:
    """JSON that may stand in a script element; a diverged run's NaN, which JSON lacks, becomes null."""
    plain = json.loads(json.dumps(data), parse_constant=lambda _: None)
    return json.dumps(plain, separators=(",", ":")).replace("<", "\\u003c")


def define_flags() -> None:
    flags.DEFINE_multi_string(
        "run_dir", None, "run directory of an evaluated run; give it once for each run", required=True
    )
    flags.DEFINE_string("output", None, "folder for the report", required=True)
    flags.DEFINE_enum("subset", "test", SUBSETS, "which evaluation")
    flags.DEFINE_string("videos", None, "folder of the videos [where they were extracted]")
    flags.DEFINE_integer(
        "videos_per_gallery", 0, "how many videos each gallery shows, the most confident first; 0: all", lower_bound=0
    )
    flags.DEFINE_enum(
        "heatmap", "absolute", HEATMAPS, "colour scale: times uniform, or each frame scaled to its own peak"
    )
    flags.DEFINE_bool("boxes", False, "draw where the action is as a box, of runs evaluated with annotations")


def main() -> None:
    args = flags.FLAGS
    runs = read_runs([Path(folder) for folder in args.run_dir], args.subset)
    output = Path(args.output)
    asked = output, args.videos_per_gallery, args.heatmap, args.boxes
    drawn = make_report(runs, find_videos(args.videos, runs[0]), *asked)
    without = sum("note" in said for said in drawn.values())
    if without:
        warn(f"{without} of {len(drawn)} videos could not be drawn; the page says why")
    of_runs = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    say(f"{output / 'index.html'}: {of_runs}, overlays of {len(drawn) - without} videos; open it in a browser")


if __name__ == "__main__":
    program.run(main, define_flags, "no page was left; the same command starts anew")
