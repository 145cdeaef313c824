"""Frames of sources that do not wait: a camera, an address, a file played at its own speed.

with Newest(open_source("camera:0"), fps=15) as source:
    for shot in source:                     # the newest sampled frame, each once
        shot.time, shot.frame, shot.taken, source.dropped
"""

import re
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from action_attention.errors import UserError
from data_prep.videos import (
    CONTAINERS,
    TIME_SLACK,
    UnusableVideoError,
    VideoReader,
    first_moving_pictures,
    sample_after,
    to_rgb,
)

CAMERA = re.compile(r"camera:(\d+)")
ADDRESS = re.compile(r"(rtsp|rtsps|rtmp|http|https|udp|tcp)://.+")
# no `file`: a playlist at an address must not make FFmpeg open what lies on this machine
OPTIONS = {
    "format_whitelist": f"{CONTAINERS},rtsp,sdp,hls,mpjpeg,mjpeg,image2pipe",
    "protocol_whitelist": "rtsp,rtp,rtmp,http,https,udp,tcp,tls,crypto,httpproxy",
}
SECONDS = 10.0  # after which an address that sends nothing is given up
Frames = Generator[tuple[float, np.ndarray], None, None]


@dataclass(frozen=True)
class Shot:
    """A frame, RGB uint8 `(height, width, 3)`, its time in seconds since the first, and when it came (`monotonic`)."""

    frame: np.ndarray
    time: float
    taken: float


def is_live(source: str) -> bool:
    """Whether this names a camera or an address."""
    return bool(CAMERA.fullmatch(source) or ADDRESS.fullmatch(source))


def open_source(source: str) -> Frames:
    """Frames of `camera:N`, an address, or a file, each with its time in seconds since the first, when it is due.

    A camera's frames come when it has them; others not before their time, so that a file plays at its own speed. Raises
    UserError, at the first frame too, if there is no such source or it gives no pictures.
    """
    if camera := CAMERA.fullmatch(source):
        return _camera(int(camera[1]))
    return _at_their_time(_address(source) if ADDRESS.fullmatch(source) else _file(Path(source)))


def _camera(number: int) -> Frames:
    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise UserError(f"camera:{number} cannot be opened; is it connected, and free? The first one is camera:0")
        start = time.monotonic()
        while (got := camera.read())[0]:
            yield time.monotonic() - start, cv2.cvtColor(got[1], cv2.COLOR_BGR2RGB)
    finally:
        camera.release()


def _address(address: str) -> Frames:
    try:
        container = av.open(address, options={"rtsp_transport": "tcp"}, container_options=OPTIONS, timeout=SECONDS)
    except (av.FFmpegError, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{address} cannot be opened as a video ({why}); check the address") from error
    with container:
        try:
            stream = first_moving_pictures(container)
        except UnusableVideoError as error:
            raise UserError(f"{address} {error}") from error
        stream.thread_count, first, interval = 1, None, 1 / float(stream.guessed_rate or 25)
        with suppress(av.FFmpegError, OSError, IndexError):  # the stream ends, however it ends
            last = -interval
            for frame in container.decode(stream):
                first = frame.time if first is None else first
                now = last + interval if frame.time is None or first is None else frame.time - first
                last = max(last, now)
                yield last, to_rgb(frame)


def _file(path: Path) -> Frames:
    try:
        reader = VideoReader(path, fps=1000)
        for frame in reader:
            yield reader.info.sample_times[-1], frame
    except UnusableVideoError as error:
        raise UserError(f"{path} cannot be used ({error}); give a video that FFmpeg can decode") from error


def _at_their_time(frames: Frames) -> Frames:
    start = None
    for due, frame in frames:
        start = time.monotonic() - due if start is None else start
        if (early := start + due - time.monotonic()) > 0:
            time.sleep(early)
        yield due, frame


class Newest:
    """The newest sampled frame of a source, each once, for a reader that may be slower than the source.

    A thread takes the frames as they come and keeps one. A sampled frame that a newer one replaces before it was read
    is counted in `dropped`. What the source raises is raised at the reader.

    Args:
        frames: of `open_source`.
        fps: sampled frames per second (`videos.sample_after`).
    """

    def __init__(self, frames: Frames, fps: float):
        self.fps, self.dropped = fps, 0
        self._frames, self._ended = frames, False
        self._shot: Shot | None = None
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._take, daemon=True)

    def __enter__(self) -> "Newest":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()
        self._thread.join(SECONDS)

    def stop(self) -> None:
        """Ends the reader's iteration and the source, from any thread and from a signal's handler."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def __iter__(self) -> Iterator[Shot]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._shot or self._ended or self._error)
                shot, self._shot = self._shot, None
            if shot is None:
                if self._error:
                    raise self._error
                return
            yield shot

    def _take(self) -> None:
        due = -np.inf
        try:
            for at, frame in self._frames:
                if self._ended:
                    return
                if at + TIME_SLACK < due:
                    continue
                due = sample_after(at, self.fps)
                with self._changed:
                    self.dropped += self._shot is not None
                    self._shot = Shot(frame, at, time.monotonic())
                    self._changed.notify()
        except Exception as error:  # whatever it is, the reader is to know
            self._error = error
        finally:
            self._frames.close()
            with self._changed:
                self._ended = True
                self._changed.notify()
