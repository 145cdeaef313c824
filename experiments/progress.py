"""One line an epoch while a model is trained; on a terminal, the epoch's steps are counted in its place until then."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import keras
from tqdm import tqdm

# what an epoch is told by: of training batches (loss, frames right), of validation videos (cross-entropy, videos right)
FIGURES = {
    "loss": "loss {:.4g}", "logits_frame_top1": "frames {:.1%}",
    "val_cross_entropy": "val {:.4g}", "val_video_top1": "videos {:.1%}",
}  # fmt: skip


class EpochLine(keras.callbacks.Callback):
    """Prints, to stderr, a line like this one when an epoch is done.

        epoch  3/30  loss 1.234  frames 45.2%  val 1.532  videos 52.1%  1:23 left

    The time left is that of all epochs to come, as long as those of this training so far: it may stop earlier. Call
    `close` at the end, however that comes, so that what is printed next has a line of its own.

    Args:
        clock: seconds, from any point on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._first: int | None = None  # epoch of this training, which may be one that goes on
        self._steps: tqdm | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._first is None:
            self._first, self._started = epoch, self._clock()
        self._steps = tqdm(
            total=self.params["steps"], desc=self._name(epoch), disable=None, leave=False, dynamic_ncols=True,
            bar_format="{desc}  step {n_fmt}/{total_fmt}{postfix}",
        )  # fmt: skip

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._steps is not None:
            self._steps.set_postfix_str("  ".join(["", *_figures(logs or {})]), refresh=False)
            self._steps.update()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert self._first is not None
        done, to_come = epoch + 1 - self._first, self.params["epochs"] - epoch - 1
        left = timedelta(seconds=round((self._clock() - self._started) / done * to_come))
        self.close()
        said = [self._name(epoch), *_figures(logs or {}), f"{str(left).removeprefix('0:')} left"]
        tqdm.write("  ".join(said), file=sys.stderr)

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()

    def _name(self, epoch: int) -> str:
        epochs = self.params["epochs"]
        return f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"


def _figures(logs: dict[str, float]) -> list[str]:
    return [text.format(logs[key]) for key, text in FIGURES.items() if key in logs]
