"""Says what one video shows: the top 5 classes, an overlay video of where the model looks, and a JSON of every frame.

python -m experiments.predict --run_dir DIR --video FILE --output DIR

The video goes through the extraction that made the run's features, into a temporary feature cache on disk, and is
decoded a second time for the overlay, so that memory does not grow with its length.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.evaluation import load_model, predict_videos, read_run
from action_attention.features import FeatureCache, Video
from action_attention.metrics import VOTES, VideoPrediction, rank_classes
from action_attention.overlays import draw_overlays, write_video
from data_prep import program
from data_prep.backbone import Backbone, build_backbone
from data_prep.extract import cache_settings, extract
from data_prep.videos import VideoReader

GIF_SECONDS, GIF_WIDTH = 10, 360  # a GIF takes ten times the bytes of an MP4


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory of a trained model", required=True)
    flags.DEFINE_string("video", None, "video file", required=True)
    flags.DEFINE_string("output", None, "folder for the overlays and the JSON", required=True)
    flags.DEFINE_string("label", None, "the video's true class, if known: overlays then show what is right")
    flags.DEFINE_enum("vote", None, VOTES, "the video's class from its frames [as trained]")
    flags.DEFINE_bool("gif", None, f"write a GIF too [where the video is not longer than {GIF_SECONDS} s]")
    flags.DEFINE_string("weights", None, "VGG16 weights file, for a run whose features were made with one")


def main() -> None:
    args = flags.FLAGS
    run_dir, path, output = Path(args.run_dir), Path(args.video), Path(args.output)
    run, _ = read_run(run_dir)
    classes, vote = run["classes"], args.vote or run["config"]["vote"]
    if not path.is_file():
        raise UserError(f"--video={args.video} is not a file; give a video file")
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the name of --video={os.fsencode(path)} is not UTF-8; rename the file or its folder"
        ) from None
    if args.label not in (None, *classes):
        raise UserError(f"the model knows no class {args.label}; its classes are {', '.join(classes)}")
    output.mkdir(parents=True, exist_ok=True)
    print(f"features of {path} ...", file=sys.stderr)
    video, prediction = predict(run_dir, path, output, args.weights)
    if args.label is not None:
        prediction = replace(prediction, label=classes.index(args.label))
    print(f"{path}: {video.frames} frames, {video.frames / video.sampled_fps:.1f} s, {run['config']['model']}\n")
    top5 = _top5(prediction, classes, vote)
    _print_top5(top5, vote)

    gif = video.frames <= GIF_SECONDS * video.sampled_fps if args.gif is None else args.gif
    written, times = [], []
    for suffix, width in ((".mp4", None), (".gif", GIF_WIDTH))[: 1 + gif]:
        times.clear()
        frames = _frames(path, run["cache"]["settings"]["fps"], times)
        overlays = draw_overlays(frames, prediction, classes, vote, width=width)
        written.append(output / f"{path.stem}_prediction{suffix}")
        progress = tqdm(overlays, f"drawing {suffix}", video.frames, unit="frame", disable=None, dynamic_ncols=True)
        write_video(written[-1], progress, video.sampled_fps)
    written.append(output / f"{path.stem}_prediction.json")
    about = {
        "video": str(path.absolute()), "video_sha256": video.file_sha256, "run_dir": str(run_dir.absolute()),
        "model": run["config"]["model"], "label": args.label, "vote": vote, "fps": video.sampled_fps, "top5": top5,
    }  # fmt: skip
    _write_frames(written[-1], about, times, prediction, classes)
    print("\n".join(["", *map(str, written)]))


def predict(
    run_dir: Path, path: Path, folder: Path, weights: str | None = None, network: Backbone | None = None
) -> tuple[Video, VideoPrediction]:
    """What a run's model says of a video file, by the code and settings that made the run's features.

    Args:
        run_dir: the run directory.
        path: the video file.
        folder: where a temporary feature cache may be made.
        weights: of VGG16, as for `build_backbone`; None for those that the run names.
        network: the backbone, if there is one already.

    Raises:
        UserError: the video cannot be used, or features as the run's cannot be made.
    """
    run, _ = read_run(run_dir)
    settings, config, model = run["cache"]["settings"], run["config"], load_model(run_dir)
    network = network or _build_backbone(run_dir, settings, weights)
    for key, value in cache_settings(network, settings["fps"]).items():
        if key != "weights" and settings.get(key) != value:
            raise UserError(
                f"{run_dir} was trained on features with {key}={settings.get(key)}, but now they have {key}={value}; "
                "give the same --weights, or extract and train again with this version"
            )
    path = path.absolute()
    name = f"{path.parent.name}/{path.name}"
    with tempfile.TemporaryDirectory(prefix=".features-", dir=folder) as features:
        extract(path.parents[1], Path(features), network, fps=settings["fps"], names=[name])
        cache = FeatureCache(Path(features))
        try:
            if name in cache.rejects:
                raise UserError(f"{path} cannot be used ({cache.rejects[name]}); give a video that FFmpeg can decode")
            clips = Clips(cache, [name], run["classes"], config["clip_length"], config["clip_stride"],
                          in_memory=False, labelled=False)  # fmt: skip
            (prediction,) = predict_videos(model, clips, config["batch_size"])
            return cache.videos[name], prediction
        finally:
            cache.close()


def _build_backbone(run_dir: Path, settings: dict, weights: str | None) -> Backbone:
    weights = weights or settings["weights"]
    if weights not in ("imagenet", "random") and not Path(weights).is_file():
        raise UserError(f"{run_dir} was trained on features of VGG16 with {settings['weights']}, and {weights} is not "
                        "a file here; give the same weights with --weights=FILE")  # fmt: skip
    return build_backbone(weights, settings["precision"])


def _top5(prediction: VideoPrediction, classes: list[str], vote: str) -> list[dict]:
    wins = prediction.probabilities.argmax(axis=1)
    return [
        {
            "class": classes[index],
            "votes": float((wins == index).mean()),
            "probability": float(prediction.probabilities[:, index].mean()),
        }
        for index in rank_classes(prediction.probabilities, vote)[:5]
    ]


def _print_top5(top5: list[dict], vote: str) -> None:
    print("   votes  probability  class")
    for row in top5:
        print(f"  {row['votes']:6.1%}  {row['probability']:11.1%}  {row['class']}")
    decides = "most votes decide" if vote == "mode" else "the highest probability decides"
    print(f"votes: share of the frames that the class wins; probability: mean over the frames; {decides}")


def _frames(path: Path, fps: float, times: list[float]) -> Iterator[np.ndarray]:
    """The sampled frames in the file's own size; their times, in seconds, are appended to `times`."""
    reader = VideoReader(path, fps, size=None)
    for frame in reader:
        times.append(reader.info.sample_time)
        yield frame


def _write_frames(path: Path, about: dict, times: list[float], prediction: VideoPrediction, classes: list[str]) -> None:
    """`about` and `frames`, one line a frame, as JSON; the text of a long video is never in memory as a whole."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as file:
        file.write(json.dumps(about, indent=2).removesuffix("\n}") + ',\n  "frames": [')
        each = zip(times, prediction.probabilities, prediction.attention, strict=True)
        for number, (time, probabilities, attention) in enumerate(each):
            frame = {
                "time": round(time, 3), "class": classes[probabilities.argmax()],
                "confidence": round(float(probabilities.max()), 6), "attention": attention.round(6).tolist(),
            }  # fmt: skip
            file.write((",\n    " if number else "\n    ") + json.dumps(frame))
        file.write("\n  ]\n}\n")
    part.replace(path)


if __name__ == "__main__":
    program.run(main, define_flags)
