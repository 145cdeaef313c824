"""Decodes videos in a process of its own: one that crashes or hangs the decoder loses nothing but itself.

The process reads a path a line (JSON) and answers `FRAME`, a frame's hash and its bytes for every sampled frame, then
`END`, the length of what follows in 8 bytes, and JSON: what a cache says of the video, or why it cannot be used. The
motion maps of a video that can be used come last, if they are asked for. `WAIT` says that it reads on. It is killed by
its own alarm if a frame takes too long, by its limit if it wants absurd memory, by its parent if even that does not end
it, and ends with its parent, however that ended.
"""

import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import av
import cv2
import numpy as np

from action_attention.errors import UserError
from action_attention.files import file_sha256
from data_prep.duplicates import HASH_SIDE, frame_hash
from data_prep.flow import MotionMaps, flow_pictures
from data_prep.videos import UnusableVideoError, VideoReader, resize

READY, WAIT, FRAME, END = b"r", b"w", b"f", b"e"
STARTS = 3  # tries to start the process
START_SECONDS = 120.0
LENGTH_BYTES, HASH_BYTES = 8, HASH_SIDE**2 // 8
GRACE_SECONDS = 5.0  # after which a process whose alarm has not ended it is killed, and a killed one is left behind
# 16 reference frames of 8K video need 2 GB; a header that announces more than any camera makes is refused by this
MEMORY_BYTES = 4 << 30


class DecoderCrashError(UnusableVideoError):
    """The decoder's process died."""


class Decoder:
    """Decodes one video after the other; whatever a file does to the decoder is a reason to reject that file.

    Args:
        fps: sampled frames per second.
        size: side of the square that frames are resized to, pixels.
        timeout: seconds within which the next frame has to come.
        grid: rows and columns of the motion maps (`flow.MotionMaps`) to make; None for none.
        stream: `rgb`, the frames themselves, or `flow`, each one's flow to the next as a picture, or `mirrored_flow`,
            that of the mirrored frames; these take a `grid`.

    Attributes:
        hash: of the last frame itself, whatever the stream (`duplicates.frame_hash`), uint8 `(HASH_BYTES,)`.
        about: after the last frame, the fields of `Video` that are the file's own.
        remarks: after the last frame, what a person should know of the file.
        times: after the last frame, those of all frames, in seconds after the first.
        motion: after the last frame, the motion maps, float16 `(frames, rows, columns)`.
    """

    def __init__(
        self, fps: float, size: int, timeout: float = 60.0, grid: tuple[int, int] | None = None, stream: str = "rgb"
    ):
        self.fps, self.size, self.timeout, self.grid, self.stream = fps, size, timeout, grid, stream
        self.hash = np.zeros(HASH_BYTES, np.uint8)
        self.motion: np.ndarray | None = None
        self.about: dict[str, Any] = {}
        self._process: Any = None  # a Popen, whose pipes are there
        self.remarks: list[str] = []
        self.times: list[float] = []
        self._closed, self._reading = False, Lock()

    def frames(self, path: Path) -> Iterator[np.ndarray]:
        """RGB frames of a video as `VideoReader` yields them. Raises UnusableVideoError, maybe after some frames."""
        passed = 0
        while True:
            fresh = self._process is None
            try:
                for frame in islice(self._answers(path), passed, None):
                    passed += 1
                    yield frame
                return
            except DecoderCrashError:
                if fresh:  # else an earlier video, or the system's want of memory, may be to blame
                    raise

    def close(self) -> None:
        """Kills the process, whatever it is doing; from another thread too."""
        self._closed = True
        if process := self._process:
            process.kill()  # which ends what reads its answers
            if self._reading.acquire(timeout=GRACE_SECONDS):
                _stop(process)
                self._reading.release()

    def _start(self) -> Any:
        arguments = (self.stream, self.fps, self.size, self.timeout, *(self.grid or ()))
        command = [sys.executable, "-m", "data_prep.decoder", *map(str, arguments)]
        root = Path(__file__).parents[1]
        for _ in range(STARTS):
            try:  # in a session of its own, out of reach of the terminal's Ctrl-C: stopping it is the parent's business
                process = self._process = subprocess.Popen(
                    command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
                )
            except OSError as error:
                raise UserError(f"no process can be started for the decoder ({error.strerror})") from error
            with suppress(EOFError, TimeoutError):
                if not self._closed and self._receive(process, 1, START_SECONDS) == READY:
                    return process
            _stop(process)
            if self._closed:
                break
        self._process = None
        raise UserError("the decoder's process does not start; what it printed says why")

    def _receive(self, process: Any, size: int, seconds: float | None = None) -> bytearray:
        """So many bytes of the process. Raises EOFError if it ended, TimeoutError if it gives nothing for too long."""
        received = bytearray(size)
        rest, milliseconds = memoryview(received), 1000 * (seconds or self.timeout + GRACE_SECONDS)
        with self._reading:
            while rest:
                poll = select.poll()
                if process.stdout.closed:
                    raise EOFError
                poll.register(process.stdout, select.POLLIN)
                if not poll.poll(milliseconds):
                    raise TimeoutError
                read = os.readv(process.stdout.fileno(), [rest])
                if not read:
                    raise EOFError
                rest = rest[read:]
        return received

    def _answers(self, path: Path) -> Iterator[np.ndarray]:
        process, shape, answer = self._process or self._start(), (self.size, self.size, 3), None
        try:
            os.write(process.stdin.fileno(), json.dumps(str(path.absolute())).encode() + b"\n")
            while (tag := self._receive(process, 1)) != END:
                if tag == FRAME:
                    self.hash = np.frombuffer(self._receive(process, HASH_BYTES), np.uint8)
                    yield np.frombuffer(self._receive(process, math.prod(shape)), np.uint8).reshape(shape)
            length = int.from_bytes(self._receive(process, LENGTH_BYTES), "little")
            answer = json.loads(self._receive(process, length))
            if self.grid and "reason" not in answer:
                maps = (answer["video"]["frames"], *self.grid)
                self.motion = np.frombuffer(self._receive(process, 2 * math.prod(maps)), np.float16).reshape(maps)
        except (BrokenPipeError, EOFError):
            with suppress(subprocess.TimeoutExpired):  # its exit status says why, once it has ended
                process.wait(GRACE_SECONDS)
        except TimeoutError:
            raise DecoderCrashError(f"the decoder's process stood still for {self.timeout:g} s") from None
        finally:
            if answer is None:
                self._process = None
                _stop(process)
        if answer is None:
            code = process.returncode or 0
            if code == -signal.SIGALRM:
                raise UnusableVideoError(f"the decoder gave no frame for {self.timeout:g} s")
            raise DecoderCrashError(
                f"the decoder crashed ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"
            )
        if "reason" in answer:
            raise UnusableVideoError(answer["reason"])
        self.about, self.remarks, self.times = answer["video"], answer["remarks"], answer["times"]


def _stop(process: subprocess.Popen) -> None:
    """Kills the process and closes its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        pipe.close()  # type: ignore[union-attr]
    with suppress(subprocess.TimeoutExpired):  # the system may not let go of it, such as at a dead mount
        process.wait(GRACE_SECONDS)


def main() -> None:
    stream, fps, size, timeout = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    rows, columns = map(int, sys.argv[5:] or (0, 0))
    cv2.setNumThreads(1)  # the network needs the cores
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the parent is gone
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or used + MEMORY_BYTES < hard:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, hard))
    answers.write(READY)
    answers.flush()
    for line in sys.stdin.buffer:
        motion = MotionMaps((rows, columns)) if rows else None
        about = _decode(Path(json.loads(line)), stream, fps, size, timeout, answers, motion)
        answer = json.dumps(about).encode()
        answers.write(END + len(answer).to_bytes(LENGTH_BYTES, "little") + answer)
        if motion and "reason" not in about:
            answers.write(motion.all().tobytes())
        answers.flush()


def _decode(
    path: Path, stream: str, fps: float, size: int, timeout: float, answers: BinaryIO, motion: MotionMaps | None
) -> dict:
    def alarm_in(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def reads_on() -> None:
        answers.write(WAIT)
        answers.flush()
        alarm_in(timeout)

    alarm_in(timeout)
    try:
        if not path.exists():
            raise UnusableVideoError("does not exist under this name: a link to nothing, or a name that is not UTF-8")
        if not path.is_file():
            raise UnusableVideoError("is no file, but a folder, a pipe or a device")
        file_bytes, sha256 = path.stat().st_size, file_sha256(path, on_block=reads_on)
        reader = VideoReader(path, fps, size)
        for frame, its_hash in _pictures(reader, stream, size, motion):
            alarm_in(0)  # writing takes as long as the network needs
            answers.write(FRAME)
            answers.write(np.packbits(its_hash).data)
            answers.write(frame.data)
            answers.flush()
            alarm_in(timeout)
    except UnusableVideoError as error:
        return {"reason": str(error)}
    except OSError as error:
        return {"reason": error.strerror or str(error)}
    except (av.FFmpegError, cv2.error, MemoryError) as error:
        return {"reason": f"the decoder failed: {str(error) or 'out of memory'}"}
    finally:
        alarm_in(0)
    info = reader.info
    video = {
        "frames": info.sampled_frames, "source_fps": info.fps, "sampled_fps": info.sampled_fps,
        "announced_frames": info.announced_frames, "decoded_frames": info.decoded_frames,
        "width": info.width, "height": info.height, "file_bytes": file_bytes, "file_sha256": sha256,
    }  # fmt: skip
    return {"video": video, "remarks": info.remarks(fps), "times": info.sample_times}


def _pictures(
    reader: VideoReader, stream: str, size: int, motion: MotionMaps | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What the network is to see of each frame, and the frame's hash."""
    if stream == "rgb":
        for frame in reader:
            yield frame, frame_hash(frame)
            if motion:
                motion.add(reader.picture)
        return
    hashes = deque[np.ndarray]()

    def frames() -> Iterator[np.ndarray]:
        for frame in reader:
            hashes.append(frame_hash(frame))
            yield np.ascontiguousarray(reader.picture[:, ::-1]) if stream == "mirrored_flow" else reader.picture

    assert motion
    for picture in flow_pictures(frames(), motion):
        yield resize(picture, size), hashes.popleft()


if __name__ == "__main__":
    main()
