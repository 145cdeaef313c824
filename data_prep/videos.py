"""Video files: decoding, sampling to a frame rate, and what is wrong with a file."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.stream import Disposition

from action_attention.errors import UserError

# Containers only, and files only: a playlist or script that calls itself a video would make FFmpeg open what it names.
CONTAINERS = "avi,mov,mp4,matroska,webm,mpeg,mpegts,mpegvideo,asf,flv,ogg,dv,mxf,rm,nut"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
# A title that is not UTF-8 costs no video. PyAV 19 has no such argument, and takes any title.
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
EXTENSIONS = (
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf",
    ".ogv", ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip
# Containers round time stamps to milliseconds; without slack the frame that is meant would seem to come too early.
TIME_SLACK = 0.002


class UnusableVideoError(ValueError):
    """A video file that yields no frames; the message says why."""


@dataclass
class VideoInfo:
    """What a file announces (`fps`, `announced_frames`, `width`, `height`) and what was decoded from it so far.

    `source_frames` are the numbers of the sampled frames among the decoded ones, `sample_times` their times in seconds
    after the file's first frame; `still` holds while all sampled frames are one picture.
    """

    fps: float
    announced_frames: int
    width: int
    height: int
    decoded_frames: int = 0
    source_frames: list[int] = field(default_factory=list)
    sample_times: list[float] = field(default_factory=list)
    duration: float = 0.0
    still: bool = True

    @property
    def sampled_frames(self) -> int:
        return len(self.source_frames)

    @property
    def sampled_fps(self) -> float:
        """Frames per second among the sampled frames; below the requested rate where the file has fewer frames."""
        return self.sampled_frames / self.duration if self.duration else 0.0

    def remarks(self, fps: float) -> list[str]:
        """What a person should know, besides its length, before they trust this video, sampled to `fps`."""
        remarks = []
        if self.sampled_frames == 1:
            remarks.append("has a single frame")
        elif self.still:
            remarks.append(f"all its {self.sampled_frames} sampled frames are the same picture")
        if self.sampled_frames > 1 and self.sampled_fps < fps / 5:
            remarks.append(f"shows {self.sampled_fps:.3g} frames/s by its time stamps, where {fps:g} are sampled")
        return remarks


class VideoReader:
    """Iterates over the frames of one video, sampled to `fps` by their time stamps.

    Sample k is the first frame shown at or after k / fps seconds: every second frame of a 30-fps file for `fps=15`, and
    never the same frame twice, so a file slower than `fps` keeps all its frames. Interlaced frames stay woven.

    Args:
        path: video file.
        fps: sampled frames per second.
        size: side of the square that frames are resized to (pixels, bilinear, aspect ratio not kept as in the paper);
            None keeps the file's own size.
        longest: pixels that the longer side of a frame has at most, both sides then being even; None for any.

    Yields RGB frames, uint8 `(height, width, 3)`, upright. `picture` is the last one as it was before it was resized;
    `info` is complete once the iterator is exhausted.

    Raises:
        UnusableVideoError: the file cannot be opened, or no frame of it can be decoded.
    """

    def __init__(self, path: Path, fps: float, size: int | None = None, longest: int | None = None):
        self.path, self.fps, self.size, self.longest = Path(path), fps, size, longest
        self.picture: Any = None
        self._packets, self._failure = 0, ""
        if not is_utf8(str(path)):
            raise UnusableVideoError("its name is not UTF-8; rename it")
        try:  # absolute: a name alone may look like a protocol's
            self._container = av.open(str(self.path.absolute()), container_options=OPTIONS, **LENIENT)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnusableVideoError(f"cannot be opened as a video: {_reason(error)}") from error
        try:
            self._stream = first_moving_pictures(self._container)
        except UnusableVideoError:
            self._container.close()
            raise
        self._stream.thread_count = 1  # the network needs the cores, and decoding is a hundred times faster than it
        rate, seconds = float(self._stream.guessed_rate or 0), (self._container.duration or 0) / av.time_base
        source_fps = rate if 0 < rate <= 1000 else 0.0
        announced = self._stream.frames or math.floor(seconds * source_fps + 0.5)
        self.info = VideoInfo(
            source_fps, announced if 0 < announced < 2**31 else 0, self._stream.width, self._stream.height
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        info, first = self.info, None
        interval = 1 / (info.fps or self.fps)
        start, previous, next_sample = None, -interval, -math.inf
        try:
            for decoded in self._decoded():
                stamp = self._stamp(decoded)
                # Some files carry no time stamps, or ones that run backwards: then the announced rate is all there is.
                time = stamp if stamp is not None and stamp > previous else previous + interval
                start, previous = time if start is None else start, time
                info.decoded_frames += 1
                info.duration = time - start + interval
                if time + TIME_SLACK < next_sample:
                    continue
                try:
                    frame = to_rgb(decoded, self.longest)
                except (av.FFmpegError, OSError, ValueError) as error:
                    self._failure = _reason(error)
                    continue
                next_sample = sample_after(time, self.fps)
                info.source_frames.append(info.decoded_frames - 1)
                info.sample_times.append(time - start)
                if first is None:
                    info.height, info.width = frame.shape[:2]
                self.picture = frame
                frame = resize(frame, self.size) if self.size else frame
                if first is None:
                    first = frame.copy()
                info.still = info.still and np.array_equal(frame, first)
                yield frame
            if not info.sampled_frames:
                why = f": {self._failure}" if self._failure else ""
                raise UnusableVideoError(f"no frame of its {self._stream.codec.name} stream could be decoded{why}")
            if not self._stream.frames and info.duration * info.fps >= 0.9 * info.announced_frames:
                info.announced_frames = self._packets  # of a variable rate: the announced one times the duration is not
        finally:
            self._container.close()  # then nothing is known of the stream any more

    def _decoded(self) -> Iterator[Any]:
        """All frames that can be decoded, in the order in which they are shown."""
        for packet in self._demuxed():
            self._packets += packet is not None
            try:
                frames = self._stream.decode(packet)
            except (av.FFmpegError, OSError, ValueError) as error:
                self._failure = _reason(error)
                continue
            yield from frames

    def _demuxed(self) -> Iterator[Any]:
        """The packets, then None for the frames that the decoder still holds."""
        try:
            yield from (packet for packet in self._container.demux(self._stream) if packet.size)
        except (av.FFmpegError, OSError, ValueError) as error:  # the rest of the file cannot be found
            self._failure = _reason(error)
        except IndexError:  # PyAV's, after the last packet, if a stream appeared within the file
            pass
        yield None

    def _stamp(self, frame: Any) -> float | None:
        """Seconds after the stream's start, or None; AVI has no presentation times, and those guessed for it jump."""
        stamp = frame.pts if frame.dts is None else frame.dts
        base = frame.time_base or self._stream.time_base
        if stamp is None or not base:
            return None
        return float((stamp - (self._stream.start_time or 0)) * base)


def first_moving_pictures(container: Any) -> Any:
    """The first video stream that is no cover art. Raises UnusableVideoError if there is none, or no decoder for it."""
    streams = container.streams.video
    moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise UnusableVideoError("has no moving pictures, only cover art" if streams else "has no pictures, only sound")
    if moving[0].codec_context is None:
        raise UnusableVideoError("its codec is unknown to FFmpeg, or has no decoder here; convert it to H.264")
    return moving[0]


def to_rgb(frame: Any, longest: int | None = None) -> np.ndarray:
    """A decoded frame, upright, uint8 `(height, width, 3)`; OpenCV's reader converts colours by the same filter."""
    size, scale = {}, (longest or math.inf) / max(frame.width, frame.height)
    if scale < 1:
        size = {name: 2 * max(1, round(scale * getattr(frame, name) / 2)) for name in ("width", "height")}
    filtered = "BILINEAR" if size else "BICUBIC"  # the former does for smaller pictures that people look at
    rgb = frame.to_ndarray(format="rgb24", interpolation=filtered, threads=1, **size)
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


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
    files = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
    names = sorted(f"{path.parent.name}/{path.name}" for path in files if is_video(path))
    if not names:
        raise UserError(f"{root} holds no videos; expected {root}/<class>/<video>{{{','.join(EXTENSIONS)}}}")
    return [as_text(name) for name in names]


def passed_over(root: Path) -> dict[str, str]:
    """What below `root` might be meant as a video but `list_videos` leaves out: path from `root` -> why, sorted."""

    def refuse(error: OSError) -> None:
        raise error

    found = {}
    for top in root.iterdir():
        tree = os.walk(top, onerror=refuse) if top.is_dir() else [(str(root), [], [top.name])]
        for folder, _, files in tree:
            in_class = Path(folder) == top
            for path in (Path(folder) / name for name in files if not name.startswith(".")):
                if is_video(path) and not in_class:
                    found[as_text(str(path.relative_to(root)))] = "not <class>/<video>; move it into a class folder"
                elif in_class and not is_video(path):
                    found[as_text(str(path.relative_to(root)))] = f"no video by its name ({' '.join(EXTENSIONS)})"
    return dict(sorted(found.items()))


def is_video(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def as_text(name: str) -> str:
    return name if is_utf8(name) else os.fsencode(name).decode(errors="backslashreplace")


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
