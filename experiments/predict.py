"""Says what one video shows: the top 5 classes, an overlay video of where the model looks, and a JSON of every frame.

python -m experiments.predict --run_dir DIR|--pretrained NAME --video FILE [--output DIR]
"""

import json
import math
import signal
import sys
from functools import partial
from pathlib import Path

from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.files import written_whole
from action_attention.heatmaps import CLOSE_TO_UNIFORM, HEATMAPS, relative_entropy
from action_attention.runs import Run, pretrained_folder, pretrained_names
from action_attention.settings import VOTES
from data_prep import program
from data_prep.recognizer import CARTOONS, NO_BOXES, Recognizer, Result, check_video, of_cartoons

GIF_SECONDS = 10


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory of a trained model")
    flags.DEFINE_string("pretrained", None, f"in its place, a model of this package: {_names()}")
    flags.DEFINE_string("video", None, "video file", required=True)
    flags.DEFINE_string(
        "output", None, "folder for the overlays and the JSON [predictions, in the run directory or, pretrained, here]"
    )
    flags.DEFINE_string("label", None, "the video's true class, if known: overlays then show what is right")
    flags.DEFINE_enum("vote", None, VOTES, "the video's class from its frames [as trained]")
    flags.DEFINE_enum("heatmap", "absolute", HEATMAPS, "colours: times uniform, or each frame to its own peak")
    flags.DEFINE_bool("boxes", False, "draw where the action is as a box, cut out of the attention")
    flags.DEFINE_bool("gif", None, f"write a GIF too [where the video is not longer than {GIF_SECONDS} s]")
    flags.DEFINE_bool("json", True, "write each frame's time, class, confidence and attention as JSON")
    flags.DEFINE_string("weights", None, "weights file of the backbone, for a run whose features were made with one")


def main() -> None:
    args = flags.FLAGS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary features, maybe gigabytes, go
    run, path = open_run(args.run_dir, args.pretrained), Path(args.video)
    output = Path(args.output) if args.output else (Path() if run.pretrained else run.folder) / "predictions"
    try:
        check_video(args.video)
    except UserError as error:
        raise UserError(f"--video={error}") from None
    if args.label not in (None, *run.classes):
        raise UserError(f"the model knows no class {args.label}; its classes are {', '.join(run.classes)}")
    if of_cartoons(run):
        print(f"WARNING: {CARTOONS}", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    if args.boxes and run.box_tau is None:
        raise UserError(f"--boxes: {NO_BOXES}")
    print(f"features of {path} ...", file=sys.stderr)
    result = Recognizer(run, args.weights).predict(path, vote=args.vote, scratch=output).labelled(args.label)
    frames, seconds = len(result.probabilities), len(result.probabilities) / result.fps
    print(f"{path}: {frames} frames, {seconds:.1f} s, {run.config.model}\n")
    print(_answer(result), end="\n\n")
    _print_top5(result)
    entropy = float(relative_entropy(result.attention).mean())
    print(_attention(entropy))
    written = []
    for suffix in (".mp4", ".gif")[: 1 + (seconds <= GIF_SECONDS if args.gif is None else args.gif)]:
        bar = partial(tqdm, desc=f"drawing {suffix}", total=frames, unit="frame", disable=None, dynamic_ncols=True)
        overlay = output / f"{path.stem}_prediction{suffix}"
        written.append(result.overlay(overlay, bar, args.heatmap, boxes=args.boxes))
    about = {
        "video": str(path.absolute()), "video_sha256": result.sha256, "run_dir": str(run.folder.absolute()),
        "model": run.config.model, "label": args.label, "vote": result.vote, "fps": result.fps, "top5": result.top5,
        "answer": result.answer, "confidence": round(result.confidence, 6),
        "calibrated": result.calibration is not None, "attention_entropy": round(entropy, 6),
    }  # fmt: skip
    if args.json:
        written.append(output / f"{path.stem}_prediction.json")
        _write_frames(written[-1], about, result)
    print("\n".join(["", *map(str, written)]))


def open_run(run_dir: str | None, pretrained: str | None) -> Run:
    """The run that one of two flags names. Raises UserError if it is not exactly one, or there is no such run."""
    if (run_dir is None) == (pretrained is None):
        given = "both are" if run_dir is not None else "neither is"
        raise UserError(f"give --run_dir, a run of yours, or --pretrained ({_names()}); {given} given")
    folder = Path(run_dir) if run_dir is not None else pretrained_folder(str(pretrained))
    return Run.open(folder, pretrained=True)


def _names() -> str:
    return ", ".join(pretrained_names()) or "there are none in this installation"


def _answer(result: Result) -> str:
    confidence = f"{math.floor(100 * result.confidence + 1e-9)} %"  # 49.9 is below 50
    if result.answer is None:
        threshold = result.calibration["threshold"] if result.calibration else 0
        return (
            f"none of my {len(result.classes)} actions with confidence (best guess: {result.top5[0]['class']}, "
            f"{confidence}; below {100 * threshold:g} % I do not decide)"
        )
    return f"{result.answer} (confidence {confidence}{'' if result.calibration else ', not calibrated'})"


def _print_top5(result: Result) -> None:
    print("   votes  probability  class")
    for row in result.top5:
        print(f"  {row['votes']:6.1%}  {row['probability']:11.1%}  {row['class']}")
    calibrated = ", calibrated" if result.calibration else ""
    decides = "most votes decide" if result.vote == "mode" else "the highest probability decides"
    print(f"votes: share of the frames that the class wins; probability: mean over the frames{calibrated}; {decides}")


def _attention(entropy: float) -> str:
    close = " (close to uniform: it hardly prefers any place)" if entropy > CLOSE_TO_UNIFORM else ""
    return f"attention: {entropy:.2f} of uniform's entropy{close}"


def _write_frames(path: Path, about: dict, result: Result) -> None:
    """`about` and `frames`, one line a frame, as JSON; the text of a long video is never in memory as a whole."""
    with written_whole(path) as part, part.open("w") as file:
        file.write(json.dumps(about, indent=2).removesuffix("\n}") + ',\n  "frames": [')
        boxes = [None] * len(result.times) if result.boxes is None else result.boxes.round(6).tolist()
        each = zip(result.times, result.probabilities, result.attention, boxes, strict=True)
        bar = tqdm(each, "writing .json", len(result.times), unit="frame", disable=None, dynamic_ncols=True)
        for number, (time, probabilities, attention, box) in enumerate(bar):
            frame = {
                "time": round(time, 3), "class": result.classes[probabilities.argmax()],
                "confidence": round(float(probabilities.max()), 6), "attention": attention.round(6).tolist(),
                **({"box": box} if box else {}),
            }  # fmt: skip
            file.write((",\n    " if number else "\n    ") + json.dumps(frame))
        file.write("\n  ]\n}\n")


if __name__ == "__main__":
    program.run(main, define_flags)
