"""One line an epoch while a model is trained; on a terminal, the epoch's steps are counted in its place until then."""

import sys
import time
from collections.abc import Callable
from typing import Any

import keras
from tqdm import tqdm

from data_prep.terminal import fitted

# what an epoch is told by: of training batches (loss, frames right), of validation videos (cross-entropy, videos right)
FIGURES = {
    "loss": "loss {:.3f}", "logits_frame_top1": "frames {:6.1%}",
    "val_cross_entropy": "val {:.3f}", "val_video_top1": "videos {:6.1%}",
}  # fmt: skip


class EpochLine(keras.callbacks.Callback):
    """Prints, to stderr, a line like this one when an epoch is done.

        epoch  3/30  loss 1.234  frames  45.2%  val 1.532  videos  52.1%  1:23 left

    The time left is that of all epochs to come, each as long as the mean of this training's so far without its first,
    which begins slowly; training may stop earlier. Call `close` at the end, however that comes, so that what is printed
    next has a line of its own.

    Args:
        clock: seconds, from any point on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._ends: list[float] = []  # of the epochs of this training, after its start
        self._steps: tqdm | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._ends = self._ends or [self._clock()]
        self._steps = tqdm(
            total=self.params["steps"], desc=self._name(epoch), disable=None, leave=False, dynamic_ncols=True,
            bar_format="{desc}  step {n_fmt}/{total_fmt}{postfix}",
        )  # fmt: skip

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._steps is not None:
            self._steps.set_postfix_str("  ".join(["", *_figures(logs or {})]), refresh=False)
            self._steps.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._ends.append(self._clock())
        counted = self._ends[1:] if len(self._ends) > 2 else self._ends
        mean = (counted[-1] - counted[0]) / (len(counted) - 1)
        self.close()
        left = _clock_time(round(mean * (self.params["epochs"] - epoch - 1)))
        line = "  ".join([self._name(epoch), *_figures(logs or {}), f"{left} left"])
        tqdm.write(fitted(line, sys.stderr), file=sys.stderr)

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()

    def _name(self, epoch: int) -> str:
        epochs = self.params["epochs"]
        return f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"


def _figures(logs: dict[str, float]) -> list[str]:
    return [text.format(logs[key]) for key, text in FIGURES.items() if key in logs]


def _clock_time(seconds: int) -> str:
    """`1:23`, or `1:02:23` from an hour on."""
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}:{seconds:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
