"""The control without a network: a linear SVM on one pooled vector a video, trained and tested in one go.

python -m experiments.svm --features DIR --splits DIR --split 1 --run_dir DIR [--motion difference]

It reads the same cache and lists as `experiments.train` and leaves a run directory for `experiments.table`. It decides
on videos, not on frames: columns of clips and frames stay empty, and there is nothing to look at. No seed matters.
"""

import time
from functools import lru_cache
from pathlib import Path

import numpy as np
from absl import flags
from scipy.special import softmax
from sklearn.preprocessing import normalize as unit_norm
from sklearn.svm import LinearSVC
from tqdm import tqdm

from action_attention.calibration import fit_temperature
from action_attention.clips import class_names
from action_attention.errors import UserError
from action_attention.evaluation import write_evaluation
from action_attention.features import FeatureCache
from action_attention.metrics import VideoPrediction, summarize
from action_attention.models import ActionModel, build_model
from action_attention.runs import Run, describe
from action_attention.schemas import OF_FRAMES
from data_prep import program
from data_prep.datasets import groups_of
from data_prep.splits import validation_folds
from data_prep.terminal import say
from experiments import options, table, text_table

NORMALIZATIONS = ("sqrt_l2", "l2")
POOLINGS = ("mean", "mean_motion", "maxmin", "rank")
MOTIONS = ("none", "difference", "signed")
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 3


def pool(
    cubes: np.ndarray, normalize: str, motion: str = "none", pooling: str = "mean", moved: np.ndarray | None = None
) -> np.ndarray:
    """A video's cubes `(frames, F, F, D)` as one vector, parts of D, each of norm 1.

    `pooling` "mean": the mean; "mean_motion": that, and a mean in which each location weighs as its motion map `moved`
    `(frames, F, F)` says, plus 5 % of the video's mean; "maxmin": the maximum and the minimum over frames of their
    means over locations (P-CNN, Cheron et al. 2015, arXiv 1506.03607). `motion` "difference" appends how much
    successive cubes differ, "signed" the maximum and the minimum of how the means over locations change within two
    frames, as P-CNN does. `sqrt_l2` takes the (signed) square root of what was pooled first (power normalisation,
    Perronnin et al. 2010, ECCV).
    """
    cubes = cubes.astype(np.float32)
    means = cubes.mean(axis=(1, 2))
    parts = [means.max(axis=0), means.min(axis=0)] if pooling == "maxmin" else [means.mean(axis=0)]
    if pooling == "mean_motion":
        assert moved is not None
        weights = moved.astype(np.float32) + 0.05 * moved.mean(dtype=np.float32)
        parts.append(np.tensordot(weights, cubes, axes=3) if weights.any() else parts[0])
    if motion == "difference":
        parts.append(np.abs(np.diff(cubes, axis=0)).sum(axis=(0, 1, 2)))  # the norm makes sums and means the same
    if motion == "signed":
        change = means[2:] - means[:-2] if len(means) > 2 else np.zeros_like(means[:1])
        parts += [change.max(axis=0), change.min(axis=0)]
    rooted = np.sign(parts) * np.sqrt(np.abs(parts)) if normalize == "sqrt_l2" else parts
    return unit_norm(rooted).ravel()


def pool_video(cache: FeatureCache, name: str, normalize: str, motion: str, pooling: str) -> np.ndarray:
    """`pool` of a video's frames and, if the cache has it beside them, of their flow; for "rank", `pool_ranks`."""
    if pooling == "rank":
        return pool_ranks(cache, name)
    moved = cache.read_motion(name) if pooling == "mean_motion" else None
    streams = [cache, *([cache.flow] if cache.flow else [])]
    return np.concatenate([pool(stream.read(name), normalize, motion, pooling, moved) for stream in streams])


def pool_ranks(cache: FeatureCache, name: str) -> np.ndarray:
    """What the classifier of an untrained `rank_pool` sees, the whole video as one clip; each part has norm 1."""
    model, motion = untrained(*cache.cube_shapes), cache.read_motion(name)
    inputs = {"motion": motion[None], "mask": np.ones((1, len(motion)), bool)}
    for stream, features in (("features", cache), ("flow", cache.flow)):
        if features:
            inputs[stream] = features.read(name)[None].astype(np.float32)
    for_core, _ = model.prepare(inputs)
    cubes = for_core.pop("features")
    vectors, _ = model.core(cubes, for_core.pop("mask"), **for_core)
    return unit_norm(np.reshape(vectors[0, 0], (-1, cubes.shape[-1]))).ravel()


@lru_cache
def untrained(cube_shape: tuple[int, int, int], flow_shape: tuple[int, int, int] | None = None) -> ActionModel:
    """`rank_pool` with both priors, and of two streams if there are two."""
    settings = {"normalize": "sqrt_l2", "motion_prior": True, "centre_prior": True}
    settings["fusion"] = "early" if flow_shape else "none"
    return build_model("rank_pool", 1, cube_shape=cube_shape, flow_shape=flow_shape, **settings)


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
    svm: LinearSVC, vectors: dict[str, np.ndarray], videos: list[str], classes: list[str], temperature: float = 1.0
) -> list[VideoPrediction]:
    """Each video as a single frame that looks nowhere; its probabilities are softmax(decision values / temperature)."""
    scores = svm.decision_function([vectors[name] for name in videos])
    scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores  # two classes share one value
    labels, shares = [classes.index(name.split("/")[0]) for name in videos], softmax(scores / temperature, axis=1)
    return [
        VideoPrediction(name, label, row[None], np.zeros((1, 1, 1)), [row[None]], 0.0)
        for name, label, row in zip(videos, labels, shares, strict=True)
    ]


def choose_temperature(
    vectors: dict[str, np.ndarray], folds: list[tuple[list[str], list[str]]], classes: list[str], penalty: float
) -> float:
    """The temperature at which the folds' validation videos are likeliest: how sure its decisions may be taken for."""
    of_folds = [predict(fit(vectors, kept, penalty), vectors, held_out, classes) for kept, held_out in folds]
    return fit_temperature([prediction for of_fold in of_folds for prediction in of_fold])


def define_flags() -> None:
    options.define_data_flags()
    flags.adopt_module_key_flags(options)
    text_table.define_format()
    flags.adopt_module_key_flags(text_table)
    flags.DEFINE_string("run_dir", None, "run directory; all output goes there", required=True)
    flags.DEFINE_enum("normalize", "sqrt_l2", NORMALIZATIONS, "normalisation of the pooled features")
    flags.DEFINE_enum(
        "pooling",
        "mean",
        POOLINGS,
        "mean; mean and a mean weighted by motion; maximum and minimum over frames; what rank_pool's classifier sees",
    )
    flags.DEFINE_enum("motion", "none", MOTIONS, "append how much successive cubes differ, or how frames change")
    flags.DEFINE_float(
        "C", None, "C of the SVM [the best on validation videos, three folds by recording]", lower_bound=0
    )
    flags.DEFINE_float(
        "temperature", None, "divides decision values, to make probabilities [chosen as C is; 1 if C is given]", 1e-3
    )


def main() -> None:
    args, started = flags.FLAGS, time.monotonic()
    cache, run_dir = options.open_features(args.features, args.flow_features), Path(args.run_dir)
    if args.pooling == "rank" and (args.motion, args.normalize) != ("none", "sqrt_l2"):
        raise UserError("pooling=rank has its own changes and norm; leave out --motion and --normalize")
    if Run(run_dir).json_file.exists():
        raise UserError(f"{run_dir} already holds a run; give another --run_dir")
    split, about = options.split_as_flagged(cache, run_dir, 0, "none" if args.C else "source")
    folds = [(split["train"], split["validation"])]  # as the lists have it, or
    if about["validation"] == "source":
        groups, _ = groups_of(Path(args.splits) if args.splits else None, run_dir, cache.videos)
        folds = validation_folds(split, FOLDS, 0, groups)
    split = {"train": sorted(split["train"] + split["validation"]), "validation": [], "test": split["test"]}
    classes = class_names(split["train"])
    if not split["test"]:
        raise UserError("the split has no test videos; correct it")
    if unknown := set(class_names(split["test"])) - set(classes):
        raise UserError(f"the split has no training videos of {', '.join(sorted(unknown))}, although it tests them")
    videos = tqdm([*split["train"], *split["test"]], "pooling", unit=" videos", disable=None)
    vectors = {name: pool_video(cache, name, args.normalize, args.motion, args.pooling) for name in videos}
    # an SVM is a sum of training vectors: where these span less than all dimensions, the rest decides nothing
    basis, _ = np.linalg.qr(np.stack([vectors[name] for name in split["train"]]).T)
    vectors = {name: vector @ basis for name, vector in vectors.items()}
    penalty, accuracy = (args.C, None) if args.C else choose_penalty(vectors, folds)
    temperature = args.temperature or (1.0 if args.C else choose_temperature(vectors, folds, classes, penalty))
    svm = fit(vectors, split["train"], penalty)
    config = {"model": "svm", "seed": 0, "normalize": args.normalize, "motion": args.motion, "C": penalty}
    since_0_3 = {"pooling": args.pooling, "flow": bool(cache.flow), "temperature": round(temperature, 4)}
    config |= {key: value for key, value in since_0_3.items() if value not in ("mean", False, 1)}
    options.write_flags(run_dir, {})
    best = {"epoch": None, "val_video_top1": accuracy}  # no epoch: it decides on whole videos
    run = Run(run_dir, {**describe(config, cache, split), **about, "best": best, "epochs": None}, split)
    run.about["seconds"] = time.monotonic() - started
    run.write()
    about = {key: about[key] for key in ("dataset", "split", "validation")}
    predictions = predict(svm, vectors, split["test"], classes, temperature)
    about |= {"subset": "test", "model": "svm", "seed": 0, "weights": cache.settings["weights"]}
    about |= summarize(predictions, classes, "mean") | dict.fromkeys(OF_FRAMES)
    write_evaluation(run.evaluation("test"), about, predictions, classes)
    chosen = "as given" if args.C else f"{accuracy:.1%} on validation videos"
    say(f"{run_dir}: C {penalty:g}, {chosen}; temperature {temperature:.3g}\n")
    text_table.show(table.markdown([table.read_result(run_dir)]))


if __name__ == "__main__":
    program.run(main, define_flags)
