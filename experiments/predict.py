"""Says what videos show: the top 5 classes, an overlay video of where the model looks, and a JSON of every frame.

python -m experiments.predict --run_dir DIR|--pretrained NAME --video FILE|FOLDER|PATTERN [--video ...] [--output DIR]
python -m experiments.predict --run_dir DIR|--pretrained NAME --video camera:0|rtsp://... [--seconds 60] [--output DIR]
"""

import csv
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import write_json
from action_attention.files import written_whole
from action_attention.heatmaps import CLOSE_TO_UNIFORM, HEATMAPS, relative_entropy
from action_attention.metrics import percent
from action_attention.registry import find_model
from action_attention.runs import Run, pretrained_folder, pretrained_names
from action_attention.segments import Segment
from action_attention.settings import VOTES
from action_attention.timeline import NO_ACTION, clock, timeline_png
from data_prep import program
from data_prep.cameras import is_live
from data_prep.inputs import MADE, Inputs, find_videos
from data_prep.recognizer import CARTOONS, NO_BOXES, Recognizer, Result, check_video, of_cartoons
from data_prep.terminal import say, warn
from data_prep.videos import UnusableVideoError, as_text
from experiments.watch import watch

SHORT_SECONDS = 10  # videos up to here get a GIF too, longer ones the picture of a timeline
OVERLAYS = {"none": (), "mp4": (".mp4",), "gif": (".gif",), "both": (".mp4", ".gif")}


@dataclass
class Row:
    """A video in the summary; `error` says why there is nothing else of it."""

    video: str
    answer: str | None = None
    confidence: float | None = None
    calibrated: bool | None = None
    top_class: str | None = None
    seconds: float | None = None
    frames: int | None = None
    attention_entropy: float | None = None
    error: str | None = None
    segments: list[dict] = field(default_factory=list)


def define_flags() -> None:
    flags.DEFINE_string("run_dir", None, "run directory of a trained model")
    flags.DEFINE_string("pretrained", None, f"instead of --run_dir, a model of this package: {_names()}")
    flags.DEFINE_multi_string(
        "video", None, "video file, folder of them, or quoted pattern; give it once for each. Or one camera:0, or "
        "address such as rtsp://HOST/STREAM", required=True,
    )  # fmt: skip
    flags.DEFINE_bool("realtime", False, "play the file at its own speed, and treat it as a camera")
    flags.DEFINE_float(
        "seconds", None, "stop watching a camera or an address after this many seconds [its end, or Ctrl-C]", 0.1
    )
    flags.DEFINE_string(
        "output", None, "folder for the overlays and the JSON [predictions, in the run directory or, pretrained, here]"
    )
    flags.DEFINE_string("label", None, "the video's true class, if known: overlays then show what is right")
    flags.DEFINE_enum("vote", None, VOTES, "how frames decide the video's class [as trained]")
    flags.DEFINE_enum(
        "heatmap", "absolute", HEATMAPS, "colour scale: times uniform, or each frame scaled to its own peak"
    )
    flags.DEFINE_bool("boxes", False, "draw where the action is as a box, cut out of the attention")
    flags.DEFINE_enum(
        "overlay", None, OVERLAYS, f"what to draw [both, or mp4 where the video is longer than {SHORT_SECONDS} s]"
    )
    flags.DEFINE_bool("gif", None, "short for --overlay=both, --nogif for --overlay=mp4")
    flags.DEFINE_bool("json", True, "write each frame's time, class, confidence and attention as JSON")
    flags.DEFINE_string("weights", None, "weights file of the backbone, for a run whose features were made with one")


def main() -> None:
    args, started = flags.FLAGS, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary features, maybe gigabytes, go
    run = open_run(args.run_dir, args.pretrained)
    output = Path(args.output) if args.output else (Path() if run.pretrained else run.folder) / "predictions"
    if args.gif is not None and args.overlay:
        raise UserError("--gif is short for --overlay=both, --nogif for --overlay=mp4; give one of --gif and --overlay")
    if live := args.realtime or any(map(is_live, args.video)):
        _check_live()
    try:
        found = Inputs() if live else find_videos(args.video)
    except UserError as error:
        raise UserError(f"--video={error}") from None
    if args.label not in (None, *run.classes):
        raise UserError(f"the model knows no class {args.label}; its classes are {', '.join(run.classes)}")
    if of_cartoons(run):
        warn(CARTOONS)
    output.mkdir(parents=True, exist_ok=True)
    if args.boxes and run.box_tau is None:
        raise UserError(f"--boxes: {NO_BOXES}")
    recognizer, rows = Recognizer(run, args.weights), list[Row]()
    if live:
        drawn = {"overlay": args.overlay != "none", "heatmap": args.heatmap}
        written = watch(recognizer, args.video[0], output, seconds=args.seconds, vote=args.vote, **drawn)
        print("\n".join(["", *map(str, written)]))
        return
    alone = len(args.video) == 1 and Path(args.video[0]).is_file()
    try:
        for path, place in found.videos.items():
            try:
                rows.append(_predict(recognizer, path, output, place, alone))
            except UserError as error:
                if alone:
                    raise
                say(f"{as_text(str(path))}: {error}", sys.stderr)
                rows.append(Row(as_text(str(path)), error=str(error)))
    finally:
        if not alone:
            _write_summary(output, rows, found.passed_over)
    _print_end(rows, output, time.monotonic() - started, alone)


def _check_live() -> None:
    """Raises UserError for what does not go with a source that is looked at while it plays."""
    args = flags.FLAGS
    if len(args.video) > 1:
        raise UserError(f"--video={args.video[1]}: one camera, address or --realtime file at a time")
    if not is_live(args.video[0]):
        try:
            check_video(args.video[0])
        except UserError as error:
            raise UserError(f"--video={error}") from None
    unfit = {
        "label": args.label,
        "boxes": args.boxes,
        "gif": args.gif,
        "overlay": args.overlay not in (None, "none", "mp4"),
    }
    if given := [name for name, value in unfit.items() if value]:
        raise UserError(f"--{given[0]} is for files, not for a camera, an address or --realtime; leave it out")


def _predict(recognizer: Recognizer, path: Path, output: Path, place: Path, alone: bool) -> Row:
    """Predicts a video, prints what it shows, in a line unless it is alone, and writes its files at `place`.

    Raises UserError if it cannot be used.
    """
    args, name = flags.FLAGS, as_text(str(path))
    say(f"extracting features of {name}", sys.stderr)
    result = recognizer.predict(path, vote=args.vote, scratch=output).labelled(args.label)
    frames, segments = len(result.probabilities), result.segments
    row = Row(
        name, result.answer, round(result.confidence, 6), result.calibration is not None, result.top5[0]["class"],
        round(frames / result.fps, 3), frames, round(float(relative_entropy(result.attention).mean()), 6),
        segments=[
            {**asdict(each), "start": round(each.start, 3), "end": round(each.end, 3),
             "confidence": round(each.confidence, 6)} for each in segments
        ],
    )  # fmt: skip
    if alone:
        say(f"{name}: {frames} frames, {row.seconds:.1f} s, {recognizer.config.model}\n\n{_answer(result)}\n")
        _print_top5(result)
        say(_attention(row.attention_entropy or 0, recognizer))
    else:
        say(f"{name}: {_answer(result)}")
    if len(segments) > 1:
        say(_table(segments))
    try:
        written = _write(result, row, recognizer.run, output / place)
    except UnusableVideoError as error:
        raise UserError(f"{path} cannot be read a second time ({error}); has it changed meanwhile?") from error
    if alone:
        print("\n".join(["", *map(str, written)]))
    return row


def _write(result: Result, row: Row, run: Run, place: Path) -> list[Path]:
    """Overlays, the timeline's picture and the JSON of one video, whose names begin as `place`."""
    args, seconds, written = flags.FLAGS, row.seconds or 0, list[Path]()
    place.parent.mkdir(parents=True, exist_ok=True)
    wanted = args.overlay or ("both" if (seconds <= SHORT_SECONDS if args.gif is None else args.gif) else "mp4")
    for suffix in OVERLAYS[wanted]:
        bar = partial(
            tqdm, desc=f"drawing {suffix}", total=row.frames, unit=" frames", disable=None, leave=False,
            dynamic_ncols=True,
        )  # fmt: skip
        written.append(result.overlay(place.with_name(place.name + MADE + suffix), bar, args.heatmap, boxes=args.boxes))
    if seconds > SHORT_SECONDS and wanted != "none":
        written.append(place.with_name(f"{place.name}_timeline.png"))
        with written_whole(written[-1]) as part:
            part.write_bytes(timeline_png(result.segments))
    if args.json:
        written.append(place.with_name(f"{place.name}{MADE}.json"))
        about = {
            "video": row.video, "video_sha256": result.sha256, "run_dir": str(run.folder.absolute()),
            "model": run.config.model, "label": args.label, "vote": result.vote, "fps": result.fps, "top5": result.top5,
            "answer": row.answer, "confidence": row.confidence, "calibrated": row.calibrated,
            "attention_entropy": row.attention_entropy, "segments": row.segments,
        }  # fmt: skip
        _write_frames(written[-1], about, result)
    return written


def _write_summary(output: Path, rows: list[Row], passed_over: dict[str, str]) -> None:
    """`summary.csv`, a row a video, and `summary.json`, with segments and what was passed over besides."""
    columns = [column.name for column in fields(Row) if column.name != "segments"]
    with written_whole(output / "summary.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    write_json(output / "summary.json", {"videos": [asdict(row) for row in rows], "passed_over": passed_over})
    if passed_over:
        say(f"{len(passed_over)} files were passed over, such as {next(iter(passed_over))}: "
              f"{output / 'summary.json'} says why", sys.stderr)  # fmt: skip


def _print_end(rows: list[Row], output: Path, wall: float, alone: bool) -> None:
    """The throughput, to stderr of a video that is alone: its files' names stay the last lines. Raises UserError if
    some videos could not be used."""
    seconds, broken = sum(row.seconds or 0 for row in rows), sum(row.error is not None for row in rows)
    if not alone:
        print(f"\n{output / 'summary.csv'}\n{output / 'summary.json'}")
    say(
        f"{len(rows)} video{'s' * (len(rows) != 1)}, {seconds:.1f} s of video in {wall:.1f} s: "
        f"{seconds / wall:.2f} times real time",
        sys.stderr if alone else sys.stdout,
    )  # fmt: skip
    if broken:
        raise UserError(f"{broken} of {len(rows)} videos could not be used; {output / 'summary.csv'} says why")


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
    confidence = f"{percent(result.confidence)} %"
    if result.answer is None:
        threshold = result.calibration["threshold"] if result.calibration else 0
        return (
            f"none of my {len(result.classes)} actions with confidence (best guess: {result.top5[0]['class']}, "
            f"{confidence}; below {100 * threshold:g} % I do not decide)"
        )
    return f"{result.answer} (confidence {confidence}{'' if result.calibration else ', not calibrated'})"


def _table(segments: list[Segment]) -> str:
    """From, to, confidence and action of each segment, a line each."""
    rows = [
        f"  {_tenths(each.start):>9}  {_tenths(each.end):>9}"
        f"  {percent(each.confidence):>9}%  {each.action or NO_ACTION}"
        for each in segments
    ]
    return "\n".join([f"  {'from':>9}  {'to':>9}  {'confidence':>10}  action", *rows])


def _tenths(seconds: float) -> str:
    return f"{clock(seconds)}.{int(10 * seconds + 1e-6) % 10}"


def _print_top5(result: Result) -> None:
    say("   votes  probability  class")
    for row in result.top5:
        say(f"  {row['votes']:6.1%}  {row['probability']:11.1%}  {row['class']}")
    calibrated = ", calibrated" if result.calibration else ""
    decides = "most votes decide" if result.vote == "mode" else "the highest probability decides"
    say(f"votes: share of the frames that the class wins; probability: mean over the frames{calibrated}; {decides}")


def _attention(entropy: float, recognizer: Recognizer) -> str:
    if not find_model(recognizer.config.model).build.has_attention:
        return f"attention: none; {recognizer.config.model} weighs all places alike"
    close = " (close to uniform: it hardly prefers any place)" if entropy > CLOSE_TO_UNIFORM else ""
    return f"attention: {entropy:.2f} of uniform's entropy{close}"


def _write_frames(path: Path, about: dict, result: Result) -> None:
    """`about` and `frames`, one line a frame, as JSON; the text of a long video is never in memory as a whole."""
    with written_whole(path) as part, part.open("w") as file:
        file.write(json.dumps(about, indent=2).removesuffix("\n}") + ',\n  "frames": [')
        boxes = [None] * len(result.times) if result.boxes is None else result.boxes.round(6).tolist()
        each = zip(result.times, result.calibrated, result.attention, boxes, strict=True)
        bar = tqdm(
            each, "writing .json", len(result.times), leave=False, unit=" frames", disable=None, dynamic_ncols=True
        )
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
