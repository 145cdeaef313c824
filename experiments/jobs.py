"""What a page asks of the models: videos, one after the other, and the frames of cameras, as they come."""

import base64
import io
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import logging
from PIL import Image

from action_attention.errors import UserError
from action_attention.heatmaps import CLOSE_TO_UNIFORM, overlay, relative_entropy
from action_attention.timeline import colours
from data_prep.live import LiveRecognizer
from data_prep.recognizer import Recognizer, Result

WAITING = 8  # videos that are uploaded, wait or are looked at, of all clients
KEPT = 16  # overlays of finished videos
CAMERAS = 4
IDLE_SECONDS = 10.0  # after which a camera's place is free
MAX_SIDE = 1280  # pixels of a camera's frame
UPLOADING, QUEUED, RUNNING, DONE, FAILED = "uploading", "queued", "running", "done", "failed"
AT_WORK = (UPLOADING, QUEUED, RUNNING)


class RefusedError(UserError):
    """A request that is not granted: a sentence, and the status of HTTP that says it to programs."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclass(eq=False)
class Job:
    """A client's video, `folder/video`, and what became of it: `folder/overlay.mp4` and `result`, or `error`."""

    client: str
    recognizer: Recognizer
    folder: Path
    state: str = UPLOADING
    share: float | None = None  # of the overlay's frames that are drawn
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def video(self) -> Path:
        return self.folder / "video"

    @property
    def overlay(self) -> Path:
        return self.folder / "overlay.mp4"


class Jobs:
    """The videos of all clients, one of each at a time, in a folder; `work()` looks at them in turn."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._jobs: dict[str, Job] = {}  # by identity, in the order in which they are looked at
        self._running: Job | None = None  # a job that was dropped while it ran is not among the others any more
        self._changed = threading.Condition()

    def begin(self, client: str, recognizer: Recognizer) -> str:
        """The identity of a new job, whose video is to be written next. The client's former one goes.

        Raises RefusedError if that is not finished, or too many wait.
        """
        with self._changed:
            at_work = [job.client for job in self._jobs.values() if job.state in AT_WORK]
            if client in at_work:
                raise RefusedError(409, "one video at a time: wait for the answer to the other one, or cancel it")
            if len(at_work) >= WAITING:
                raise RefusedError(503, f"{WAITING} videos are waiting already; try again in a minute")
            for former in [identity for identity, job in self._jobs.items() if job.client == client]:
                self._remove(former)
            identity = secrets.token_urlsafe(16)
            job = Job(client, recognizer, self._folder / identity)
            job.folder.mkdir()
            self._jobs[identity] = job
            return identity

    def get(self, identity: str) -> Job:
        """Raises RefusedError if there is none of that identity."""
        with self._changed:
            if identity not in self._jobs:
                raise RefusedError(404, "this video is no longer on the server; send it again")
            return self._jobs[identity]

    def submit(self, identity: str) -> None:
        """The video is there: it waits for its turn from now on."""
        with self._changed:
            job = self.get(identity)
            job.state = QUEUED
            self._jobs[identity] = self._jobs.pop(identity)
            self._changed.notify()

    def status(self, identity: str) -> dict[str, Any]:
        """For the page: `state`, `before` (videos whose turn is earlier), `share`, `result`, `error`."""
        with self._changed:
            job = self.get(identity)
            before = int(self._running not in (None, job))
            for other in self._jobs.values():
                if other is job:
                    break
                before += other.state == QUEUED
            return {"state": job.state, "before": before, "share": job.share, "result": job.result, "error": job.error}

    def drop(self, identity: str, client: str) -> None:
        """Removes a client's job and its files; one that runs ends when it can. Nothing happens if there is none."""
        with self._changed:
            if identity in self._jobs and self._jobs[identity].client == client:
                self._remove(identity)

    def work(self) -> None:
        """Looks at the videos as they come, for ever."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: any(job.state == QUEUED for job in self._jobs.values()))
                self._running = job = next(job for job in self._jobs.values() if job.state == QUEUED)
                job.state = RUNNING
            try:
                self._look_at(job)
            finally:
                with self._changed:
                    self._running = None
                    job.video.unlink(missing_ok=True)
                    if job not in self._jobs.values():
                        shutil.rmtree(job.folder, ignore_errors=True)
                    finished = [identity for identity, job in self._jobs.items() if job.state not in AT_WORK]
                    for oldest in finished[:-KEPT]:
                        self._remove(oldest)

    def _look_at(self, job: Job) -> None:
        try:
            result = job.recognizer.predict(job.video, scratch=job.folder)
            result.overlay(job.overlay, lambda frames: self._counted(job, frames, len(result.probabilities)))
            job.result, job.state = describe(result), DONE
        except (UserError, OSError) as error:
            job.error, job.state = str(error).replace(str(job.video), "this file"), FAILED
        except MemoryError:
            job.error, job.state = "memory ran out; give a shorter or smaller video", FAILED
        except Exception:
            logging.exception("a video could not be looked at")
            job.error, job.state = "something went wrong; the terminal that serves this page says what", FAILED

    def _counted(self, job: Job, frames: Iterable, count: int) -> Iterator:
        for number, frame in enumerate(frames, 1):
            with self._changed:
                if job not in self._jobs.values():
                    raise UserError("cancelled")
            job.share = number / count
            yield frame

    def _remove(self, identity: str) -> None:
        job = self._jobs.pop(identity)
        if job is not self._running:  # else `work` removes what it still writes to
            shutil.rmtree(job.folder, ignore_errors=True)


def describe(result: Result) -> dict[str, Any]:
    """What the page shows of a result, whose overlay is written; times in seconds."""
    frames, named = len(result.probabilities), colours(result.segments)
    return {
        **_answer(result, result.attention), "frames": frames, "seconds": frames / result.fps,
        "segments": [asdict(segment) | {"colour": named[segment.action]} for segment in result.segments],
    }  # fmt: skip


def _answer(result: Result, maps: np.ndarray) -> dict[str, Any]:
    """What it says; `uniform` tells whether the maps `(n, H, W)` are close to that."""
    uniform = float(relative_entropy(maps).mean()) > CLOSE_TO_UNIFORM
    return {"answer": result.answer, "confidence": result.confidence, "top5": result.top5, "uniform": uniform}


@dataclass
class _Camera:
    recognizer: Recognizer
    size: tuple[int, ...]
    live: LiveRecognizer
    used: float
    busy: threading.Lock = field(default_factory=threading.Lock)


class Cameras:
    """The cameras of all clients, one of each: every one has a model's states of its own."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera] = {}
        self._lock = threading.Lock()

    def step(self, client: str, recognizer: Recognizer, jpeg: bytes, seconds: float) -> dict[str, Any]:
        """What is seen with this frame of a camera, shown at a time of the camera's; empty if there is nothing to say.

        `picture` has the heatmap over the frame of `time`, which may be an earlier one; `took` is the model's time in
        seconds. Raises RefusedError if the frame cannot be read, the one before is not finished, or there are too many
        cameras.
        """
        frame = read_jpeg(jpeg)
        camera = self._camera(client, recognizer, frame.shape)
        if not camera.busy.acquire(blocking=False):
            raise RefusedError(429, "the previous frame is not finished")
        try:
            started = time.monotonic()
            seen = camera.live.step(frame, seconds) if camera.live.wants(seconds) else None
            took = time.monotonic() - started
        finally:
            camera.used = time.monotonic()
            camera.busy.release()
        if seen is None:
            return {}
        bgr = cv2.cvtColor(overlay(seen.frame, seen.attention), cv2.COLOR_RGB2BGR)
        said = _answer(seen.result, seen.attention[None])
        return {**said, "time": seen.time, "took": took, "picture": data_url(bgr, "jpeg")}

    def stop(self, client: str) -> None:
        with self._lock:
            self._cameras.pop(client, None)

    def _camera(self, client: str, recognizer: Recognizer, size: tuple[int, ...]) -> _Camera:
        with self._lock:
            now = time.monotonic()
            self._cameras = {
                name: camera for name, camera in self._cameras.items()
                if camera.busy.locked() or now - camera.used < IDLE_SECONDS
            }  # fmt: skip
            camera = self._cameras.get(client)
            if camera is None and len(self._cameras) >= CAMERAS:
                raise RefusedError(503, f"{CAMERAS} cameras are in use already; try again in a minute")
            if camera is None or camera.recognizer is not recognizer or camera.size != size:  # a phone was turned
                camera = self._cameras[client] = _Camera(recognizer, size, LiveRecognizer(recognizer), now)
            return camera


def read_jpeg(jpeg: bytes) -> np.ndarray:
    """RGB, uint8 `(height, width, 3)`. Raises RefusedError; what is too large is not unpacked."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            if max(image.size) <= MAX_SIDE:
                return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise RefusedError(400, "a frame must be a JPEG picture") from error
    raise RefusedError(400, f"a frame may have {MAX_SIDE} pixels a side. Received: {image.size}")


def data_url(bgr: np.ndarray, kind: str) -> str:
    """A picture, uint8 `(height, width, 3)`, as a text that a page shows."""
    _, encoded = cv2.imencode(f".{kind}", bgr)
    return f"data:image/{kind};base64,{base64.b64encode(encoded.tobytes()).decode()}"
