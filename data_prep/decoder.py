"""Decodes videos in a process of its own: one that crashes or hangs the decoder loses nothing but itself.

The process reads a path a line (JSON) and answers `FRAME` and a frame's bytes for every sampled frame, then `END` and a
line of JSON: what a cache says of the video, or why it cannot be used. It is killed by its own alarm if a frame takes
too long, by its limit if it wants absurd memory, and ends with its parent, however that ended.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from action_attention.errors import UserError
from action_attention.files import file_sha256
from data_prep.videos import UnusableVideoError, VideoReader

READY, FRAME, END = b"r", b"f", b"e"
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

    Attributes:
        about: after the last frame, the fields of `Video` that are the file's own.
    """

    def __init__(self, fps: float, size: int, timeout: float = 60.0):
        self.fps, self.size, self.timeout = fps, size, timeout
        self.about: dict[str, Any] = {}
        self._process: Any = None  # a Popen, whose pipes are there
        self._closed = False

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
            _stop(process)

    def _start(self) -> Any:
        command = [sys.executable, "-m", "data_prep.decoder", str(self.fps), str(self.size), str(self.timeout)]
        root = Path(__file__).parents[1]
        try:  # in a session of its own, out of reach of the terminal's Ctrl-C: stopping it is the parent's business
            self._process = subprocess.Popen(
                command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"no process can be started for the decoder ({error.strerror})") from error
        if self._closed or self._process.stdout.read(1) != READY:
            _stop(self._process)
            raise UserError("the decoder's process does not start; what it printed says why")
        return self._process

    def _answers(self, path: Path) -> Iterator[np.ndarray]:
        process = self._process = self._process or self._start()
        shape, answer = (self.size, self.size, 3), b""
        try:
            os.write(process.stdin.fileno(), json.dumps(str(path.absolute())).encode() + b"\n")
            while (tag := process.stdout.read(1)) == FRAME:
                frame = process.stdout.read(math.prod(shape))
                if len(frame) < math.prod(shape):
                    break
                yield np.frombuffer(frame, np.uint8).reshape(shape)
            answer = process.stdout.readline() if tag == END else b""
        except BrokenPipeError:
            pass
        finally:
            if not answer.endswith(b"\n"):
                self._process = None
                _stop(process)
        code = process.returncode
        if code == -signal.SIGALRM:
            raise UnusableVideoError(f"the decoder gave no frame for {self.timeout:g} s")
        if code is not None:
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise DecoderCrashError(f"the decoder crashed ({how})")
        about = json.loads(answer)
        if "reason" in about:
            raise UnusableVideoError(about["reason"])
        self.about = about


def _stop(process: subprocess.Popen) -> None:
    with process:  # closes its pipes and waits for it
        process.kill()


def main() -> None:
    fps, size, timeout = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
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
        about = _decode(Path(json.loads(line)), fps, size, timeout, answers)
        answers.write(END + json.dumps(about).encode() + b"\n")
        answers.flush()


def _decode(path: Path, fps: float, size: int, timeout: float, answers: BinaryIO) -> dict:
    def alarm_in(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)

    alarm_in(timeout)
    try:
        if not path.exists():
            raise UnusableVideoError("does not exist under this name: a link to nothing, or a name that is not UTF-8")
        if not path.is_file():
            raise UnusableVideoError("is no file, but a folder, a pipe or a device")
        file_bytes, sha256 = path.stat().st_size, file_sha256(path, on_block=lambda: alarm_in(timeout))
        reader = VideoReader(path, fps, size)
        for frame in reader:
            alarm_in(0)  # writing takes as long as the network needs
            answers.write(FRAME)
            answers.write(frame.data)
            answers.flush()
            alarm_in(timeout)
    except UnusableVideoError as error:
        return {"reason": str(error)}
    except OSError as error:
        return {"reason": error.strerror or str(error)}
    except (cv2.error, MemoryError) as error:
        return {"reason": f"the decoder failed: {getattr(error, 'err', '') or 'out of memory'}"}
    finally:
        alarm_in(0)
    info = reader.info
    return {
        "frames": info.sampled_frames, "source_fps": info.fps, "sampled_fps": info.sampled_fps,
        "announced_frames": info.announced_frames, "decoded_frames": info.decoded_frames,
        "width": info.width, "height": info.height, "file_bytes": file_bytes, "file_sha256": sha256,
    }  # fmt: skip


if __name__ == "__main__":
    main()
