"""What `predict` does with a camera, an address, or a file at its own speed: says what it sees while it sees it."""

import csv
import re
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from action_attention.errors import UserError
from action_attention.files import written_whole
from action_attention.metrics import percent
from action_attention.overlays import draw_overlays, write_video
from data_prep.cameras import Newest, open_source
from data_prep.live import LiveRecognizer, Seen
from data_prep.recognizer import Recognizer
from data_prep.terminal import say, width

COLUMNS = ("time", "answer", "best_guess", "confidence", "delay", "dropped")
EVERY = 1.0  # seconds between two lines on the screen
DELAYS = 100_000  # the last two hours'; a stream may have no end


@dataclass
class Sight:
    """An answer, seconds from the frame's arrival to it, and how many frames were dropped so far."""

    seen: Seen
    delay: float
    dropped: int


@dataclass
class Record:
    """What is told at the end: how many answers in how many seconds, how late they were, and frames dropped."""

    answers: int = 0
    seconds: float = 0.0
    dropped: int = 0
    delays: deque[float] = field(default_factory=partial(deque, maxlen=DELAYS))

    def __str__(self) -> str:
        late, latest = 1000 * np.percentile(self.delays, (50, 95))
        return (
            f"{self.answers} frames in {self.seconds:.1f} s: {self.answers / max(self.seconds, 1e-9):.1f} frames/s, "
            f"{self.dropped} dropped, delay {late:.0f} ms (95 % below {latest:.0f} ms)"
        )


def watch(
    recognizer: Recognizer, source: str, folder: Path, *, overlay: bool = True, seconds: float | None = None,
    vote: str | None = None, heatmap: str = "absolute",
) -> list[Path]:  # fmt: skip
    """Looks at a source until it ends, `seconds` have passed, or Ctrl-C; prints a line a second, and sums up.

    Args:
        recognizer: the run.
        source: `camera:N`, an address or a file.
        folder: for a CSV of every answer and, with `overlay`, an MP4, both named after the source; they are returned.
        vote, heatmap: as for `Recognizer.predict` and `Result.overlay`.

    Raises UserError if the source cannot be opened, or ends before there is an answer.
    """
    live, record = LiveRecognizer(recognizer, vote), Record()
    name = re.sub(r"[^A-Za-z0-9]+", "_", Path(source).stem if Path(source).is_file() else source).strip("_")[:60]
    table, film = folder / f"{name}_live.csv", folder / f"{name}_live.mp4"
    with Newest(open_source(source), live.fps) as newest, written_whole(table) as part, part.open("w") as file:
        before = signal.signal(signal.SIGINT, lambda *_: newest.stop())
        try:
            sights = _reported(_sights(newest, live, seconds), record, csv.writer(file))
            first = next(sights, None)
            if first is None:
                raise UserError(f"{source} ended before the model had seen enough; it takes a second of video")
            if overlay:
                write_video(film, _drawn(first, sights, live.fps, heatmap), live.fps)
            else:
                for _ in sights:
                    pass
        finally:
            signal.signal(signal.SIGINT, before)
    say(f"\n{record}")
    return [table, film] if overlay else [table]


def _sights(newest: Newest, live: LiveRecognizer, seconds: float | None) -> Iterator[Sight]:
    arrived = 0.0  # of the frame that is answered, which is the one before where the model takes motion
    for shot in newest:
        if seconds is not None and shot.time >= seconds:
            return
        seen = live.step(shot.frame, shot.time)
        if seen:
            yield Sight(seen, monotonic() - (shot.taken if seen.time == shot.time else arrived), newest.dropped)
        arrived = shot.taken


def _reported(sights: Iterable[Sight], record: Record, table: Any) -> Iterator[Sight]:
    """The same, each in the table and in the record, and one in a while on the screen."""
    table.writerow(COLUMNS)
    started, due, ended = monotonic(), 0.0, "\r" if sys.stdout.isatty() else "\n"
    for sight in sights:
        result, best = sight.seen.result, sight.seen.result.top5[0]["class"]
        at, confidence, delay = f"{sight.seen.time:.3f}", f"{result.confidence:.4f}", f"{sight.delay:.3f}"
        table.writerow([at, result.answer or "", best, confidence, delay, sight.dropped])
        record.answers, record.seconds, record.dropped = record.answers + 1, monotonic() - started, sight.dropped
        record.delays.append(sight.delay)
        if record.seconds >= due:
            due = record.seconds + EVERY
            said = result.answer or f"none with confidence (best guess: {best})"
            line = f"{sight.seen.time:6.1f} s  {said}, {percent(result.confidence)}%  delay {1000 * sight.delay:.0f} ms"
            print(f"{line}  {sight.dropped} dropped"[: width() - 1].ljust(79), end=ended, flush=True)
        yield sight


def _drawn(first: Sight, rest: Iterable[Sight], fps: float, heatmap: str) -> Iterator[np.ndarray]:
    """Overlays at `fps` frames a second; a dropped frame's place takes the one before it."""
    picture, shown = _overlay(first.seen, heatmap), 1
    yield picture
    for sight in rest:
        while shown < round((sight.seen.time - first.seen.time) * fps):
            yield picture
            shown += 1
        picture = _overlay(sight.seen, heatmap)
        yield picture
        shown += 1


def _overlay(seen: Seen, heatmap: str) -> np.ndarray:
    result = seen.result
    means = result.calibrated.mean(axis=0, keepdims=True)
    now = replace(result.prediction, probabilities=means, attention=seen.attention[None])
    return next(draw_overlays([seen.frame], now, result.classes, "mean", heatmap=heatmap))
