"""Video files: decoding, sampling to a frame rate, and what is wrong with a file. Nothing else opens videos."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from absl import logging

from action_attention.errors import UserError

# Containers only: a playlist or script that calls itself a video would make FFmpeg open whatever it names.
CONTAINERS = "avi,mov,mp4,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg,dv,mxf,rm,nut"
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", f"format_whitelist;{CONTAINERS}")
EXTENSIONS = (".avi", ".mp4", ".mkv", ".mov", ".webm")
# Containers round time stamps to milliseconds; without slack the frame that is meant would seem to come too early.
TIME_SLACK = 0.002


class UnusableVideoError(ValueError):
    """A video file that yields no frames; the message says why."""


@dataclass
class VideoInfo:
    """What a file announces (`fps`, `announced_frames`, `width`, `height`) and what was decoded from it so far.

    `source_frames` are the numbers of the sampled frames among the decoded ones;
    `sample_time` is that of the last sampled frame, in seconds after the file's first frame.
    """

    fps: float
    announced_frames: int
    width: int
    height: int
    decoded_frames: int = 0
    source_frames: list[int] = field(default_factory=list)
    duration: float = 0.0
    sample_time: float = 0.0

    @property
    def sampled_frames(self) -> int:
        return len(self.source_frames)

    @property
    def sampled_fps(self) -> float:
        """Frames per second among the sampled frames; below the requested rate where the file has fewer frames."""
        return self.sampled_frames / self.duration if self.duration else 0.0


class VideoReader:
    """Iterates over the frames of one video, sampled to `fps` by their time stamps.

    Sample k is the first frame shown at or after k / fps seconds: every second frame of a 30-fps file for `fps=15`, and
    never the same frame twice, so a file slower than `fps` keeps all its frames.

    Args:
        path: video file.
        fps: sampled frames per second.
        size: side of the square that frames are resized to (pixels, bilinear, aspect ratio not kept as in the paper);
            None keeps the file's own size.

    Yields RGB frames, uint8 `(height, width, 3)`. `info` is complete once the iterator is exhausted.

    Raises:
        UnusableVideoError: the file cannot be opened, or no frame of it can be decoded.
    """

    def __init__(self, path: Path, fps: float, size: int | None = None):
        self.path, self.fps, self.size = Path(path), fps, size
        if not is_utf8(str(path)):  # OpenCV crashes
            raise UnusableVideoError("its name is not UTF-8; rename it")
        # The FFmpeg backend by name: others take a "%" in a file name for an image sequence. One thread: the network
        # needs the cores, and decoding is a hundred times faster than it.
        self._capture = cv2.VideoCapture(str(self.path.absolute()), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise UnusableVideoError("cannot be opened as a video")
        number = self._capture.get
        announced = number(cv2.CAP_PROP_FRAME_COUNT)
        source_fps = number(cv2.CAP_PROP_FPS)
        self.info = VideoInfo(
            fps=source_fps if math.isfinite(source_fps) and 0 < source_fps <= 1000 else 0.0,
            announced_frames=int(announced) if math.isfinite(announced) and 0 < announced < 2**31 else 0,
            width=int(number(cv2.CAP_PROP_FRAME_WIDTH)),
            height=int(number(cv2.CAP_PROP_FRAME_HEIGHT)),
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        info = self.info
        interval = 1 / (info.fps or self.fps)
        start, previous, next_sample = None, -interval, -math.inf
        try:
            while self._capture.grab():
                stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # Some files carry no time stamps, or ones that run backwards: then the announced rate is all there is.
                time = stamp if math.isfinite(stamp) and stamp > previous else previous + interval
                start, previous = time if start is None else start, time
                info.decoded_frames += 1
                info.duration = time - start + interval
                if time + TIME_SLACK < next_sample:
                    continue
                decoded, frame = self._capture.retrieve()
                if not decoded or frame is None:
                    continue
                next_sample = sample_after(time, self.fps)
                info.source_frames.append(info.decoded_frames - 1)
                info.sample_time = time - start
                yield cv2.cvtColor(resize(frame, self.size) if self.size else frame, cv2.COLOR_BGR2RGB)
        except cv2.error as error:
            if not info.sampled_frames:
                raise UnusableVideoError(f"the decoder failed: {error.err}") from error
        finally:
            self._capture.release()
        if not info.sampled_frames:
            raise UnusableVideoError("no frame could be decoded")


def sample_after(time: float, fps: float) -> float:
    """When the first sample after the one at `time` is due, in seconds."""
    return (math.floor((time + TIME_SLACK) * fps) + 1) / fps


def sampled(times: Iterable[float], fps: float) -> Iterator[int]:
    """The numbers of the frames that `VideoReader` samples, given the times of all in seconds."""
    due = -math.inf
    for number, time in enumerate(times):
        if time + TIME_SLACK >= due:
            due = sample_after(time, fps)
            yield number


def resize(frame: np.ndarray, size: int) -> np.ndarray:
    """To a square of `size` pixels, bilinear; the aspect ratio is not kept, as in the paper."""
    return cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR)


def list_videos(root: Path) -> list[str]:
    """Names `<class>/<file>` of all videos below `root`, sorted: one folder per class, video files in it.

    Bytes of a name that are not UTF-8 are written as `\\xNN`; there is no file of that name, so what opens it says so.

    Raises:
        UserError: `root` is no folder or holds no video in a class folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds one folder of videos per class")
    # not by glob, which passes over a folder that must not be read
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    files = sorted(path for folder in folders for path in folder.iterdir() if not path.name.startswith("."))
    names = sorted(f"{path.parent.name}/{path.name}" for path in files if path.suffix.lower() in EXTENSIONS)
    if len(files) > len(names):
        other = next(path for path in files if path.suffix.lower() not in EXTENSIONS)
        logging.warning("%d files are no videos by their names, such as %s", len(files) - len(names), other)
    if not names:
        raise UserError(f"{root} holds no videos; expected {root}/<class>/<video>{{{','.join(EXTENSIONS)}}}")
    return [name if is_utf8(name) else os.fsencode(name).decode(errors="backslashreplace") for name in names]


def read_frames(path: Path, fps: float, size: int | None = None) -> np.ndarray:
    """All sampled frames of one video, uint8 RGB `(frames, height, width, 3)`. Raises as `VideoReader` does."""
    return np.stack(list(VideoReader(path, fps, size)))


def frame_reader(root: Path, fps: float) -> Callable[[str], np.ndarray | None]:
    """A function from a video's name `<class>/<file>` to its sampled frames, or None where they cannot be had."""

    def read(name: str) -> np.ndarray | None:
        try:
            return read_frames(root / name, fps)
        except UnusableVideoError:
            return None

    return read


def is_utf8(name: str) -> bool:
    """False for a file name as Python has it of bytes that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
