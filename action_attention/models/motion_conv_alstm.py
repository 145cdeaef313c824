"""VideoLSTM (Li et al. 2018, arXiv 1607.01794): ConvALSTM whose attention is told by optical flow where to look."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from action_attention.models.attention import Look
from action_attention.models.conv_alstm import AttentionConvLSTM, ConvALSTM, ConvALSTMSettings, ConvALSTMTraining
from action_attention.models.locations import at_each, flatten_locations, neighbourhoods
from action_attention.models.states import ClipStates
from action_attention.registry import register_model
from action_attention.settings import but, setting

MEMORIES = ("gates", "scores")


@dataclass(frozen=True)
class MotionConvALSTMSettings(ConvALSTMSettings):
    fusion: str = but(ConvALSTMSettings, "fusion", "attention", choices=("attention",))
    first_states: str = but(ConvALSTMSettings, "first_states", "clip")
    memory: str = setting(
        "gates", "where h_{t-1} enters the motion attention: the gates of its LSTM, or its scores", choices=MEMORIES
    )


class MotionScores(keras.layers.Layer):
    """Scores from the frame, and from a recurrent map of the flow (its released `deep_cond_conv_lstm_layer.py`).

        g_t, e_t = ConvLSTM([M_t, h_{t-1}], (g_{t-1}, e_{t-1}));  g_0, e_0 = tanh(conv(mean_t M))
        s_t = u . tanh(W_x * X_t + W_g * g_t + b) + c;  c_t = softmax(s_t) over all locations

    M is the flow's cube; all convolutions are 1x1, here layers over the last axis. With `memory` "scores", the paper's
    variant, the gates see M_t alone and h_{t-1} adds W_h * h_{t-1} inside the tanh.
    """

    def __init__(self, units: int, memory: str, options: dict[str, Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.memory = units, memory
        decay = {**options, "recurrent_regularizer": options["kernel_regularizer"]}
        self.cell = keras.layers.LSTMCell(units, name="conv_lstm_g", **decay)
        self.first = ClipStates(units, ["initial_g", "initial_e"], options, name="first_g")
        self.from_frame = keras.layers.Dense(units, name="conv_x", **options)
        self.from_motion = keras.layers.Dense(units, use_bias=False, name="conv_g", **options)
        self.from_hidden = keras.layers.Dense(units, use_bias=False, name="conv_h", **options)
        self.to_scores = keras.layers.Dense(1, name="conv_score", **options)

    def build(self, features_shape: tuple, flow_shape: tuple) -> None:
        self.first.build(flow_shape)
        self.cell.build((None, flow_shape[-1] + (self.units if self.memory == "gates" else 0)))
        self.from_frame.build((None, features_shape[-1]))
        self.from_motion.build((None, self.units))
        self.to_scores.build((None, self.units))
        if self.memory == "scores":
            self.from_hidden.build((None, self.units))

    def start(self, flow: Any, mask: Any, drop: Callable[[Any], Any]) -> list:
        """g_0 and e_0, each `(B, L, U)`."""
        (states,) = self.first.start(flow, mask, drop)
        return states

    def over(self, cube: Any, flow: Any, states: list, prior: Any = None) -> Look:
        """As `Attention.over`, of frames in turn; the cubes of frames and flow are `(B, T, L, D)`. `states` are g_{t-1}
        and e_{t-1}, and then those of the frame that was looked at."""
        from_frames, locations = at_each(self.from_frame, cube), cube.shape[2]

        def look(t: int, hidden: Any) -> Any:
            before = [ops.reshape(each, (-1, self.units)) for each in states]
            gates = ops.concatenate([flow[:, t], hidden], axis=-1) if self.memory == "gates" else flow[:, t]
            _, after = self.cell(ops.reshape(gates, (-1, gates.shape[-1])), before)
            states[:] = [ops.reshape(each, (-1, locations, self.units)) for each in after]
            mixed = from_frames[:, t] + self.from_motion(states[0])
            if self.memory == "scores":
                mixed = mixed + self.from_hidden(hidden)
            scores = ops.swapaxes(self.to_scores(ops.tanh(mixed)), 1, 2)  # (B, 1, L)
            return ops.softmax(scores if prior is None else scores + prior[:, t, None])

        return look


class AroundStates(ClipStates):
    """h_0 = tanh(conv(mean_t X_t)), cell_0 likewise; convolutions 3x3 with same padding, of maps `(B, L, D)`."""

    def build(self, features_shape: tuple) -> None:
        *_, height, width, channels = features_shape
        self.picked = neighbourhoods(height, width)
        super().build((None, 9 * channels))

    def see(self, means: Any) -> Any:
        around = ops.matmul(ops.cast(self.picked, means.dtype), means)
        return ops.reshape(around, (-1, means.shape[1], 9 * means.shape[2]))


class MotionAttentionConvLSTM(AttentionConvLSTM):
    """`AttentionConvLSTM` under `MotionScores`."""

    from_clip = AroundStates

    def make_attention(self, settings: MotionConvALSTMSettings, options: dict[str, Any]) -> MotionScores:
        return MotionScores(settings.lstm_units, settings.memory, options, name="attention")

    def start_attention(self, flow: Any, mask: Any, drop: Callable[[Any], Any]) -> list:
        return self.attention.start(flatten_locations(flow), mask, drop)

    def make_look(self, cube: Any, flow: Any, states: list, drop: Callable[[Any], Any], prior: Any) -> Look:
        return self.attention.over(cube, flatten_locations(flow), states, prior)


@register_model("motion_conv_alstm", MotionConvALSTMSettings, ConvALSTMTraining)
class MotionConvALSTM(ConvALSTM):
    """VideoLSTM's layer. The priors, `mean_one_attention` and the heads before the classifier are ours."""

    def make_core(self, settings: Any, options: dict[str, Any]) -> keras.layers.Layer:
        return MotionAttentionConvLSTM(settings, options)
