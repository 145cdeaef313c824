"""Says what one video shows: the top 5 classes, an overlay video of where the model looks, and a JSON of every frame.

python -m experiments.predict --run_dir DIR --video FILE --output DIR
"""

import json
import signal
import sys
from functools import partial
from pathlib import Path

from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.runs import Run
from action_attention.settings import VOTES
from data_prep import program
from data_prep.recognizer import Recognizer, Result, check_video

GIF_SECONDS = 10


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory of a trained model", required=True)
    flags.DEFINE_string("video", None, "video file", required=True)
    flags.DEFINE_string("output", None, "folder for the overlays and the JSON", required=True)
    flags.DEFINE_string("label", None, "the video's true class, if known: overlays then show what is right")
    flags.DEFINE_enum("vote", None, VOTES, "the video's class from its frames [as trained]")
    flags.DEFINE_bool("gif", None, f"write a GIF too [where the video is not longer than {GIF_SECONDS} s]")
    flags.DEFINE_bool("json", True, "write each frame's time, class, confidence and attention as JSON")
    flags.DEFINE_string("weights", None, "weights file of the backbone, for a run whose features were made with one")


def main() -> None:
    args = flags.FLAGS
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary features, maybe gigabytes, go
    run, path, output = Run.open(Path(args.run_dir)), Path(args.video), Path(args.output)
    try:
        check_video(args.video)
    except UserError as error:
        raise UserError(f"--video={error}") from None
    if args.label not in (None, *run.classes):
        raise UserError(f"the model knows no class {args.label}; its classes are {', '.join(run.classes)}")
    output.mkdir(parents=True, exist_ok=True)
    print(f"features of {path} ...", file=sys.stderr)
    result = Recognizer(run, args.weights).predict(path, vote=args.vote, scratch=output).labelled(args.label)
    frames, seconds = len(result.probabilities), len(result.probabilities) / result.fps
    print(f"{path}: {frames} frames, {seconds:.1f} s, {run.config.model}\n")
    _print_top5(result)
    written = []
    for suffix in (".mp4", ".gif")[: 1 + (seconds <= GIF_SECONDS if args.gif is None else args.gif)]:
        bar = partial(tqdm, desc=f"drawing {suffix}", total=frames, unit="frame", disable=None, dynamic_ncols=True)
        written.append(result.overlay(output / f"{path.stem}_prediction{suffix}", bar))
    about = {
        "video": str(path.absolute()), "video_sha256": result.sha256, "run_dir": str(run.folder.absolute()),
        "model": run.config.model, "label": args.label, "vote": result.vote, "fps": result.fps, "top5": result.top5,
    }  # fmt: skip
    if args.json:
        written.append(output / f"{path.stem}_prediction.json")
        _write_frames(written[-1], about, result)
    print("\n".join(["", *map(str, written)]))


def _print_top5(result: Result) -> None:
    print("   votes  probability  class")
    for row in result.top5:
        print(f"  {row['votes']:6.1%}  {row['probability']:11.1%}  {row['class']}")
    decides = "most votes decide" if result.vote == "mode" else "the highest probability decides"
    print(f"votes: share of the frames that the class wins; probability: mean over the frames; {decides}")


def _write_frames(path: Path, about: dict, result: Result) -> None:
    """`about` and `frames`, one line a frame, as JSON; the text of a long video is never in memory as a whole."""
    part = path.with_name(f"{path.name}.part")
    with part.open("w") as file:
        file.write(json.dumps(about, indent=2).removesuffix("\n}") + ',\n  "frames": [')
        each = zip(result.times, result.probabilities, result.attention, strict=True)
        bar = tqdm(each, "writing .json", len(result.times), unit="frame", disable=None, dynamic_ncols=True)
        for number, (time, probabilities, attention) in enumerate(bar):
            frame = {
                "time": round(time, 3), "class": result.classes[probabilities.argmax()],
                "confidence": round(float(probabilities.max()), 6), "attention": attention.round(6).tolist(),
            }  # fmt: skip
            file.write((",\n    " if number else "\n    ") + json.dumps(frame))
        file.write("\n  ]\n}\n")
    part.replace(path)


if __name__ == "__main__":
    program.run(main, define_flags)
