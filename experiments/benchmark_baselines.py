"""What `experiments.benchmark` measures against: the same work done the plain way, or by other libraries."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from action_attention.models.conv_alstm import ConvALSTM
from action_attention.registry import Config
from data_prep.backbones import build_backbone
from data_prep.videos import read_frames


def one_thread_loop(videos: Path, names: list[str], fps: float, weights: str) -> int:
    """Extraction as most write it: decode a video, `predict` it in float32, next one. Returns the frames."""
    network, frames = build_backbone(weights=weights, precision="float32"), 0
    model: Any = network.model
    for name in names:
        frames += len(model.predict(read_frames(videos / name, fps, network.input_size), verbose=0))
    return frames


def plain_conv_alstm(config: Config, classes: int) -> ConvALSTM:
    return PlainConvALSTM(classes, config.settings)


class PlainConvALSTM(ConvALSTM):
    """ConvALSTM as Keras' documentation leads to: `ConvLSTM2D`'s own cell called frame by frame."""

    def make_core(self, settings: Any, options: dict[str, Any]) -> keras.layers.Layer:
        return PlainCore(settings.lstm_units, name="core", dtype=options["dtype"])


class PlainCore(keras.layers.Layer):
    def __init__(self, filters: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.from_frame = keras.layers.Conv2D(filters, 1)
        self.from_hidden = keras.layers.Conv2D(filters, 1, use_bias=False)
        self.to_scores = keras.layers.Conv2D(1, 1, use_bias=False)
        self.cell = keras.layers.ConvLSTM2D(filters, 3, padding="same").cell

    def call(self, features: Any, mask: Any, training: bool | None = None) -> tuple[Any, Any]:
        hidden = ops.zeros_like(self.from_frame(features[:, 0]))
        states, hiddens, attention = [hidden, hidden], [], []
        for t in range(features.shape[1]):
            scores = self.to_scores(ops.tanh(self.from_frame(features[:, t]) + self.from_hidden(hidden)))
            weights = ops.softmax(ops.reshape(scores, (-1, math.prod(features.shape[2:4]))))
            attention.append(ops.reshape(weights, (-1, *features.shape[2:4], 1)))
            hidden, states = self.cell(features[:, t] * attention[-1], states)
            hiddens.append(hidden)
        maps = ops.stack(attention, axis=1)[..., 0] * ops.cast(mask, "float32")[..., None, None]
        return ops.stack(hiddens, axis=1), maps


def torch_alstm_step(
    cube_shape: tuple, classes: int, config: Config, compiled: bool
) -> Callable[[np.ndarray, np.ndarray], float]:
    """A training step of ALSTM in PyTorch: features `(B, T, H, W, D)` and labels `(B, T)` of whole clips -> the loss.

    The same layers, sizes, dropout, loss and optimizer as `models.alstm.ALSTM`. Raises ImportError.
    """
    import torch  # noqa: PLC0415 - an optional peer
    from torch import nn  # noqa: PLC0415
    from torch.nn import functional  # noqa: PLC0415

    (height, width, channels), units = cube_shape, config.settings.lstm_units
    penalty, learning_rate = config.training.attention_penalty, config.training.learning_rate

    class ALSTM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.initial_hidden, self.initial_cell = nn.Linear(channels, units), nn.Linear(channels, units)
            self.from_frame, self.from_hidden = nn.Linear(channels, units), nn.Linear(units, units, bias=False)
            self.to_scores = nn.Linear(units, height * width)
            self.cell, self.classifier = nn.LSTMCell(channels, units), nn.Linear(units, classes)
            self.dropout = nn.Dropout(config.settings.dropout)

        def forward(self, cube: Any) -> Any:
            frame_means = cube.mean(2)
            clip_mean = frame_means.mean(1)
            hidden = torch.tanh(self.initial_hidden(self.dropout(clip_mean)))
            cell = torch.tanh(self.initial_cell(self.dropout(clip_mean)))
            from_frames = self.from_frame(self.dropout(frame_means))
            hiddens, attention = [], []
            for t in range(cube.shape[1]):
                mixed = torch.tanh(from_frames[:, t] + self.from_hidden(self.dropout(hidden)))
                attention.append(torch.softmax(self.to_scores(self.dropout(mixed)), -1))
                glimpse = torch.bmm(attention[-1][:, None], cube[:, t])[:, 0]
                hidden, cell = self.cell(glimpse, (hidden, cell))
                hiddens.append(hidden)
            return self.classifier(self.dropout(torch.stack(hiddens, 1))), torch.stack(attention, 1)

    model = ALSTM()
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, eps=1e-7)
    forward = torch.compile(model) if compiled else model

    def step(features: np.ndarray, labels: np.ndarray) -> float:
        cube = torch.from_numpy(features).float().flatten(2, 3)
        logits, attention = forward(cube)
        entropy = functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).long().flatten())
        unattended = penalty / cube.shape[1] * (1 - attention.sum(1)).square().sum(1).mean()
        optimizer.zero_grad()
        (entropy + unattended).backward()
        optimizer.step()
        return float((entropy + unattended).detach())

    return step
