"""The control without a network: a linear SVM on one pooled vector a video, trained and tested in one go.

python -m experiments.svm --features DIR --splits DIR --split 1 --run_dir DIR [--motion difference]

It reads the same cache and lists as `experiments.train` and leaves a run directory for `experiments.table`. It decides
on videos, not on frames: columns of clips and frames stay empty, and there is nothing to look at. No seed matters.
"""

import csv
import time
from pathlib import Path

import numpy as np
from absl import flags
from sklearn.preprocessing import normalize as unit_norm
from sklearn.svm import LinearSVC
from tqdm import tqdm

from action_attention.clips import class_names
from action_attention.errors import UserError
from action_attention.evaluation import confusion_png
from action_attention.features import FeatureCache, write_json
from action_attention.metrics import VideoPrediction, rank_classes, summarize
from action_attention.models.inputs import MOTIONS
from action_attention.runs import Run, describe
from data_prep import program
from data_prep.datasets import groups_of
from data_prep.splits import validation_folds
from experiments import options, table

NORMALIZATIONS = ("sqrt_l2", "l2")
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 3


def pool(cubes: np.ndarray, normalize: str, motion: str) -> np.ndarray:
    """Cubes `(frames, F, F, D)` -> `(D,)`, or `(2 D,)` with how much successive cubes differ; each part of norm 1.

    `sqrt_l2` takes the square root of what was pooled first (power normalisation, Perronnin et al. 2010, ECCV).
    """
    cubes = cubes.astype(np.float32)
    parts = [cubes.sum(axis=(0, 1, 2))]  # the norm makes sums and means the same
    if motion == "difference":
        parts.append(np.abs(np.diff(cubes, axis=0)).sum(axis=(0, 1, 2)))
    return unit_norm(np.sqrt(parts) if normalize == "sqrt_l2" else parts).ravel()


def vectors_and_classes(vectors: dict[str, np.ndarray], videos: list[str]) -> tuple[list, list]:
    return [vectors[name] for name in videos], [name.split("/")[0] for name in videos]


def fit(vectors: dict[str, np.ndarray], videos: list[str], penalty: float) -> LinearSVC:
    """An SVM of the videos; the primal solver draws nothing at random."""
    return LinearSVC(C=penalty, dual=False).fit(*vectors_and_classes(vectors, videos))


def choose_penalty(vectors: dict[str, np.ndarray], folds: list[tuple[list[str], list[str]]]) -> tuple[float, float]:
    """The C of `PENALTIES` that is best on the folds' validation videos, and its mean accuracy on them."""
    accuracies = {
        penalty: float(np.mean([
            fit(vectors, kept, penalty).score(*vectors_and_classes(vectors, held_out)) for kept, held_out in folds
        ]))
        for penalty in PENALTIES
    }  # fmt: skip
    return max(accuracies.items(), key=lambda item: item[1])


def predict(
    svm: LinearSVC, vectors: dict[str, np.ndarray], videos: list[str], classes: list[str]
) -> list[VideoPrediction]:
    """Each video as a single frame, whose "probabilities" are the decision values of the classes."""
    scores = svm.decision_function([vectors[name] for name in videos])
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # two classes share one value
    labels = [classes.index(name.split("/")[0]) for name in videos]
    return [
        VideoPrediction(name, label, row[None], np.empty((1, 0, 0)), [row[None]], 0.0)
        for name, label, row in zip(videos, labels, scores, strict=True)
    ]


def write_evaluation(folder: Path, predictions: list[VideoPrediction], classes: list[str], about: dict) -> None:
    """What `evaluation.evaluate` writes, less what it says of frames."""
    of_frames = dict.fromkeys(("clip_top1", "frame_top1", "cross_entropy"))
    metrics = {**about, **summarize(predictions, classes, "mean"), **of_frames}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    (folder / "confusion.png").write_bytes(confusion_png(np.array(metrics["confusion"]), classes))
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "predicted", "right", "top5"])
        for prediction in predictions:
            ranking = [classes[index] for index in rank_classes(prediction.probabilities, "mean")]
            assert prediction.label is not None
            label = classes[prediction.label]
            writer.writerow([prediction.name, label, ranking[0], int(ranking[0] == label), " ".join(ranking[:5])])


def define_flags() -> None:
    options.define_data_flags()
    flags.adopt_module_key_flags(options)
    flags.DEFINE_string("run_dir", None, "run directory, the only place that output goes to", required=True)
    flags.DEFINE_enum("normalize", "sqrt_l2", NORMALIZATIONS, "of the pooled features")
    flags.DEFINE_enum("motion", "none", MOTIONS, "append how much successive cubes differ")
    flags.DEFINE_float(
        "C", None, "of the SVM [what is best on validation videos, three folds by recording]", lower_bound=0
    )


def main() -> None:
    args, started = flags.FLAGS, time.monotonic()
    cache, run_dir = FeatureCache(Path(args.features)), Path(args.run_dir)
    if Run(run_dir).json_file.exists():
        raise UserError(f"{run_dir} already holds a run; give another --run_dir")
    split, about = options.split_as_flagged(cache, run_dir, 0, "none" if args.C else "source")
    folds = [(split["train"], split["validation"])]  # as the lists have it, or
    if about["validation"] == "source":
        groups, _ = groups_of(Path(args.splits) if args.splits else None, run_dir, cache.videos)
        folds = validation_folds(split, FOLDS, 0, groups)
    split = {"train": sorted(split["train"] + split["validation"]), "validation": [], "test": split["test"]}
    classes = class_names(split["train"])
    unknown = set(class_names(split["test"])) - set(classes)
    if unknown or not split["test"]:
        raise UserError(f"the split tests {', '.join(sorted(unknown)) or 'no video'}, which it does not train; mend it")
    videos = tqdm([*split["train"], *split["test"]], "pooling", unit="video", disable=None)
    vectors = {name: pool(cache.read(name), args.normalize, args.motion) for name in videos}
    penalty, accuracy = (args.C, None) if args.C else choose_penalty(vectors, folds)
    svm = fit(vectors, split["train"], penalty)
    config = {"model": "svm", "seed": 0, "normalize": args.normalize, "motion": args.motion, "C": penalty}
    options.write_flags(run_dir, {})
    best = {"epoch": None, "val_video_top1": accuracy}  # no epoch: it decides on whole videos
    run = Run(run_dir, {**describe(config, cache, split), **about, "best": best, "epochs": None}, split)
    run.about["seconds"] = time.monotonic() - started
    run.write()
    about = {key: about[key] for key in ("dataset", "split", "validation")}
    about |= {"subset": "test", "model": "svm", "seed": 0, "weights": cache.settings["weights"]}
    write_evaluation(run.evaluation("test"), predict(svm, vectors, split["test"], classes), classes, about)
    chosen = "as given" if args.C else f"{accuracy:.1%} on validation videos"
    print(f"{run_dir}: C {penalty:g}, {chosen}\n")
    print(table.markdown([table.read_result(run_dir)]))


if __name__ == "__main__":
    program.run(main, define_flags)
