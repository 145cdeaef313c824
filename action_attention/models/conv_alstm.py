"""ConvALSTM: attention and LSTM kept convolutional (VideoLSTM's appearance part, Li et al. 2018, arXiv 1607.01794)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import ops

from action_attention.models.attention import CENTRE_PRIOR, MOTION_PRIOR, LocationScores, Look, make_prior
from action_attention.models.base import ActionModel, RecurrentSettings, kernel_options
from action_attention.models.locations import flatten_locations, neighbourhoods, to_maps
from action_attention.models.states import ClipStates, RecurrentCore, ZeroStates
from action_attention.registry import register_model
from action_attention.settings import Training, but, setting

HEADS = ("flatten", "conv", "pool")
FIRST_STATES = ("zeros", "clip")
CONV_HEAD_FILTERS = 64


@dataclass(frozen=True)
class ConvALSTMSettings(RecurrentSettings):
    lstm_units: int = but(RecurrentSettings, "lstm_units", 256)
    head: str = setting(
        "flatten",
        "how the classifier sees hidden maps: flattened, through a 3x3 convolution, or as their mean over locations",
        choices=HEADS,
        search=HEADS,
    )
    first_states: str = setting(
        "zeros", "first states of the recurrence: zeros, or convolutions of the clip's mean cube, as in alstm",
        choices=FIRST_STATES, formerly="initial",
    )  # fmt: skip
    mean_one_attention: bool = setting(
        False, "scale the attention that weighs the cube to mean 1 instead of sum 1", formerly="rescale"
    )
    motion_prior: bool = MOTION_PRIOR
    centre_prior: bool = CENTRE_PRIOR

    @property
    def takes_motion(self) -> bool:
        return self.motion_prior


@dataclass(frozen=True)
class ConvALSTMTraining(Training):
    """An epoch is long, and few are needed."""

    epochs: int = but(Training, "epochs", 20)
    patience: int = but(Training, "patience", 3)


class AttentionConvLSTM(RecurrentCore):
    """A ConvLSTM over the weighed cube, without a sum over locations (eq. 8-13).

        c_t = attention(X_t, h_{t-1});  h_t, cell_t = ConvLSTM(c_t X_t, (h_{t-1}, cell_{t-1}))

    The recurrence is that of Keras' `ConvLSTM2D`, 3x3, same padding, whose cell holds the weights. Hidden and cell maps
    start at zero, or at tanh(W_h * mean_t X_t) and tanh(W_c * mean_t X_t), 1x1 convolutions for each cell. With several
    cells each reads the hidden map of the one below, and h_{t-1} is the uppermost's. With `mean_one_attention` the cube
    is weighed by L c_t, whose mean is 1: uniform attention passes the cube on as it is, and there is nothing to gain in
    mere size from looking at few locations. The maps returned are c_t.

    Call arguments and results as `AttentionLSTM`, hidden maps `(B, T, H, W, U)`; where the settings take it, features
    of flow `(B, T, H, W, D')`.
    """

    from_clip = ClipStates

    def __init__(self, settings: ConvALSTMSettings, options: dict[str, Any], **kwargs: Any):
        super().__init__(name="core", dtype=options["dtype"], **kwargs)
        self.filters, self.mean_one = settings.lstm_units, settings.mean_one_attention
        self.attention = self.make_attention(settings, options)
        conv = {**options, "recurrent_regularizer": options["kernel_regularizer"], "padding": "same"}
        self.cells = [keras.layers.ConvLSTM2D(self.filters, 3, **conv).cell for _ in range(settings.cells)]
        for n, cell in enumerate(self.cells, 1):
            cell.name = f"conv_lstm{n}"  # Keras calls all of them alike, and their variables too
        self.dropout = keras.layers.Dropout(settings.dropout, dtype=self.dtype_policy, name="core_dropout")
        self.prior = make_prior(settings, options)
        names = [f"initial{n}" for n in range(2 * settings.cells)]
        self.first = (
            self.from_clip(self.filters, names, options, name="first")
            if settings.first_states == "clip"
            else ZeroStates(self.filters, settings.cells, name="first")
        )

    def make_attention(self, settings: Any, options: dict[str, Any]) -> keras.layers.Layer:
        return LocationScores(self.filters, options, name="attention")

    def start_attention(self, flow: Any, mask: Any, drop: Callable[[Any], Any]) -> list:
        """States of the attention's own."""
        return []

    def make_look(self, cube: Any, flow: Any, states: list, drop: Callable[[Any], Any], prior: Any) -> Look:
        """The attention's `look`, which keeps `states` up to date."""
        return self.attention.over(cube, None, drop, prior)

    def build(
        self, features_shape: tuple, mask_shape: tuple | None = None, motion_shape: tuple | None = None,
        flow_shape: tuple | None = None,
    ) -> None:  # fmt: skip
        if self.prior:
            self.prior.build(features_shape)
        _, _, height, width, channels = features_shape
        self.attention.build(*(shape for shape in (features_shape, flow_shape) if shape))
        self.first.build(features_shape)
        for n, cell in enumerate(self.cells):
            cell.build((None, height, width, self.filters if n else channels))

    def first_states(self, features: Any, mask: Any, flow: Any = None, training: bool | None = None) -> list[list]:
        drop = partial(self.dropout, training=training)
        return [self.start_attention(flow, mask, drop), *self.first.start(flatten_locations(features), mask, drop)]

    def go_on(
        self, features: Any, mask: Any, states: Any, motion: Any = None, flow: Any = None, training: bool | None = None
    ) -> tuple[Any, Any, Any]:
        (frames, height, width), cube = features.shape[1:4], flatten_locations(features)
        drop, of_attention, states = partial(self.dropout, training=training), list(states[0]), list(states[1:])
        look = self.make_look(cube, flow, of_attention, drop, self.prior(features, motion) if self.prior else None)
        picked = ops.cast(neighbourhoods(height, width), cube.dtype)
        steps = [conv_lstm(cell, picked) for cell in self.cells]
        hidden, hiddens, attention = states[-1][0], [], []
        for t in range(frames):
            attention.append(look(t, hidden)[:, 0])
            below = cube[:, t] * (attention[-1][..., None] * (height * width if self.mean_one else 1))
            for n, step in enumerate(steps):
                states[n] = list(step(below, states[n]))
                below = hidden = states[n][0]
            hiddens.append(hidden)
        hidden = ops.reshape(ops.stack(hiddens, axis=1), (-1, frames, height, width, self.filters))
        return hidden, to_maps(ops.stack(attention, axis=1), mask, (height, width)), [of_attention, *states]


def conv_lstm(cell: Any, picked: Any) -> Callable[[Any, Any], tuple[Any, Any]]:
    """The step of a ConvLSTM cell, inputs `(B, L, D)` and states `(B, L, U)` -> states; `picked` by `neighbourhoods`.

    A convolution is a matrix product over each location's neighbourhood. Written so its gradient by the kernel is a
    product too, which on CPUs is three times as fast as TensorFlow's gradient of a convolution.
    """
    kernel = ops.concatenate([cell.kernel, cell.recurrent_kernel], axis=2)
    kernel = ops.cast(ops.reshape(kernel, (-1, kernel.shape[-1])), picked.dtype)
    bias = ops.cast(cell.bias, picked.dtype)

    def step(inputs: Any, state: Any) -> tuple[Any, Any]:
        hidden, memory = state
        around = ops.matmul(picked, ops.concatenate([inputs, hidden], axis=-1))
        gates = ops.matmul(ops.reshape(around, (-1, kernel.shape[0])), kernel) + bias
        gates = ops.reshape(gates, (-1, picked.shape[1], kernel.shape[1]))
        keep_in, forget, candidate, keep_out = ops.split(gates, 4, axis=-1)
        memory = ops.sigmoid(forget) * memory + ops.sigmoid(keep_in) * ops.tanh(candidate)
        return ops.sigmoid(keep_out) * ops.tanh(memory), memory

    return step


@register_model("conv_alstm", ConvALSTMSettings, ConvALSTMTraining)
class ConvALSTM(ActionModel):
    """A score for each location; hidden maps instead of hidden vectors."""

    settings: ConvALSTMSettings

    def __init__(self, classes: int, settings: ConvALSTMSettings | None = None, **kwargs: Any):
        super().__init__(classes, settings, **kwargs)
        if self.settings.head == "conv":
            options = kernel_options(self.settings, self.dtype_policy)
            self.head = keras.layers.Conv2D(CONV_HEAD_FILTERS, 3, activation="relu", name="head", **options)

    def make_core(self, settings: Any, options: dict[str, Any]) -> keras.layers.Layer:
        return AttentionConvLSTM(settings, options)

    def to_vectors(self, hidden: Any, training: bool | None) -> Any:
        if self.settings.head == "pool":
            return ops.mean(hidden, axis=(2, 3))
        frames = hidden.shape[1]
        if self.settings.head == "conv":
            maps = self.dropout(ops.reshape(hidden, (-1, *hidden.shape[2:])), training=training)
            hidden = self.head(maps)
        return ops.reshape(hidden, (-1, frames, math.prod(hidden.shape[-3:])))
