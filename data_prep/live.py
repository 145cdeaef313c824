"""A trained run before a camera: frame by frame, what it says now and where it looks.

    live = LiveRecognizer(action_attention.load("jhmdb21"))
    for time, frame in source:                  # at least `live.fps` frames a second, RGB uint8 (height, width, 3)
        if seen := live.step(frame, time):
            seen.result.answer, seen.result.top5, seen.attention

Nothing grows with the length of the stream.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from action_attention.metrics import VideoPrediction
from data_prep.flow import MotionMaps, flow_picture
from data_prep.recognizer import Recognizer, Result
from data_prep.videos import TIME_SLACK, resize, sample_after

WARM_UP = 8  # frames that a stream's first states are made of; before them there is no answer


@dataclass(frozen=True)
class Seen:
    """What the model says at one sampled frame of a stream.

    Attributes:
        frame: RGB uint8 `(height, width, 3)`.
        time: when it was shown, in seconds as the source counts them.
        attention: of this frame, `(H, W)`.
        result: of the last frames, at most a clip's number of them, this one included.
    """

    frame: np.ndarray
    time: float
    attention: np.ndarray
    result: Result


class LiveRecognizer:
    """A run's model on a stream.

    A recurrent model goes on from explicit states (`ActionModel.step`). They begin with the mean of the first `WARM_UP`
    frames, and anew after each clip's number of frames with the mean of these, since the model never saw longer clips.
    Any other model sees the last frames as one clip each time, and its answer is the one to that clip. Motion maps and
    optical flow are from a frame to the next: a model that takes them answers one sampled frame late.

    Args:
        recognizer: the run.
        vote: `mode` or `mean`; None for the one that the run was trained with.
    """

    def __init__(self, recognizer: Recognizer, vote: str | None = None):
        self.recognizer, self.fps, self._model = recognizer, recognizer.fps, recognizer.model
        training, self._settings = recognizer.config.training, recognizer.config.settings
        self._vote = vote or training.vote
        grid = next(iter(recognizer.networks.values())).cube_shape[:2]
        between_frames = self._settings.takes_motion or "flow" in recognizer.networks
        self._motion = MotionMaps(grid, keep=False) if between_frames else None
        self._waiting: tuple[np.ndarray, float] | None = None
        self._inputs: deque[dict[str, np.ndarray]] = deque(maxlen=training.clip_length)
        self._said: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=training.clip_length)
        self._states: Any = None
        for network in recognizer.networks.values():  # its first call takes a second, in which frames would be lost
            network(np.zeros((1, network.input_size, network.input_size, 3), np.uint8))
        self._steps, self._due = 0, -np.inf

    def wants(self, time: float) -> bool:
        """Whether the frame shown at `time` is among those that are sampled; `step` takes it for granted."""
        return time + TIME_SLACK >= self._due

    def step(self, frame: np.ndarray, time: float) -> Seen | None:
        """Takes the next sampled frame; None while there is no answer yet."""
        self._due = sample_after(time, self.fps)
        newest, of_grid, flow = (frame, time), None, None
        ready: tuple[np.ndarray, float] | None = newest
        if self._motion:
            of_grid = self._motion.add(frame)
            ready, self._waiting, flow = self._waiting, newest, self._motion.flow
        if ready is None:
            return None
        self._inputs.append(self._features(ready[0], of_grid, flow))
        outputs = self._go_on() if self._model.is_recurrent else self._look_back()
        if outputs is None:
            return None
        probabilities, maps = softmax(np.array(outputs["logits"][0]), axis=-1), np.array(outputs["attention"][0])
        self._said.extend(zip(probabilities, maps, strict=True))
        probabilities, maps = (np.stack(each) for each in zip(*self._said, strict=True))
        prediction = VideoPrediction("stream/frames", None, probabilities, maps)
        result = Result(prediction, self.recognizer.classes, self._vote, self.fps, list, **self.recognizer.of_run)
        return Seen(*ready, maps[-1], result)

    def _features(self, frame: np.ndarray, of_grid: Any, flow: Any) -> dict[str, np.ndarray]:
        """The model's inputs of one frame, `(1, 1, ...)`, given its motion map and its flow to the next."""
        inputs = {"mask": np.ones((1, 1), bool)}
        for name, (stream, network) in zip(("features", "flow"), self.recognizer.networks.items(), strict=False):
            picture = frame if stream == "rgb" else flow_picture(flow)
            inputs[name] = network(resize(picture, network.input_size)[None])[None]
        if self._settings.takes_motion:
            inputs["motion"] = np.asarray(of_grid, np.float16)[None, None]
        return inputs

    def _window(self) -> dict[str, np.ndarray]:
        """The last frames as one clip."""
        return {name: np.concatenate([each[name] for each in self._inputs], axis=1) for name in self._inputs[-1]}

    def _go_on(self) -> dict[str, Any] | None:
        """Outputs of the frames that have none: of the newest, or of the whole warm-up window."""
        length = self._inputs.maxlen or 0
        new = self._inputs[-1]
        if self._states is None:
            if len(self._inputs) < min(WARM_UP, length):
                return None
            new = self._window()
            self._states = self._model.first_states(new)
        elif self._steps >= length:
            self._states = {**self._model.first_states(self._window()), "before": self._states["before"]}
            self._steps = 0
        outputs, self._states = self._model.step(new, self._states)
        self._steps += new["mask"].shape[1]
        return outputs

    def _look_back(self) -> dict[str, Any]:
        """Outputs of the last frames, as one clip that is padded as in training while there are few.

        They replace what was said of these frames before.
        """
        self._said.clear()
        window, missing = self._window(), (self._inputs.maxlen or 0) - len(self._inputs)
        clip = {name: np.concatenate([value, *[value[:, -1:]] * missing], axis=1) for name, value in window.items()}
        clip["mask"][:, len(self._inputs) :] = False
        outputs = self._model.predict_on_batch(clip)
        return {name: value[:, : len(self._inputs)] for name, value in outputs.items()}
