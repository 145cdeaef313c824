"""ALSTM: soft attention over the cube's locations, then an LSTM (Sharma et al. 2016, arXiv 1511.04119)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
from keras import ops

from action_attention.errors import UserError
from action_attention.models.attention import (
    CENTRE_PRIOR,
    MOTION_PRIOR,
    Attention,
    LocationScores,
    MeanScores,
    Prior,
    PriorOnly,
    make_prior,
)
from action_attention.models.base import ActionModel, RecurrentSettings
from action_attention.models.glimpses import BesideMean, Glimpse, Quarters, Whole
from action_attention.models.locations import flatten_locations, to_maps
from action_attention.models.lstm import ForgetfulLSTMCell, LSTMCell
from action_attention.models.states import ClipStates, RecurrentCore, ZeroStates
from action_attention.registry import register_model
from action_attention.settings import Training, but, setting

SCORES = ("mean", "location", "motion")
BESIDE = ("none", "mean")
ABLATIONS = ("none", "first_states", "cell_state")
GLIMPSES = ("whole", "quarters")


@dataclass(frozen=True)
class LSTMSettings(RecurrentSettings):
    """Settings of every model on an LSTM."""

    ablate: str = setting(
        "none",
        "leave out the MLPs of h_0 and cell_0, or the carried cell state, as the tutorial's code does",
        choices=ABLATIONS, former_choices={"initial": "first_states", "carry": "cell_state"},
    )  # fmt: skip


@dataclass(frozen=True)
class GlimpseSettings(LSTMSettings):
    """Settings of an LSTM over glimpses."""

    glimpse: str = setting("whole", "pool the whole cube, or also each quarter of it by itself", choices=GLIMPSES)


@dataclass(frozen=True)
class ALSTMSettings(GlimpseSettings):
    scores: str = setting(
        "mean", "what scores a location: the frame's mean cube (the tutorial), its own features, or its motion",
        choices=SCORES,
    )  # fmt: skip
    motion_prior: bool = MOTION_PRIOR
    centre_prior: bool = CENTRE_PRIOR
    beside: str = setting("none", "what is appended to the glimpse: nothing, or the mean cube", choices=BESIDE)
    heads: int = setting(1, "number of heads that score locations; the map shown is their mean", low=1, high=64)
    temperature: float = setting(
        1.0,
        "tau, which divides location or motion scores: below 1 maps are sharper; 0: learned, from 1 (location only)",
        low=0,
    )
    attention_units: int = setting(128, "units of the hidden layer that scores locations", low=1, high=65536)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scores != "location" and self.heads != 1:
            raise UserError(f"heads is for scores=location. Received: scores={self.scores}")
        if self.scores == "mean" and self.temperature != 1:
            raise UserError("temperature is for scores=location and scores=motion. Received: scores=mean")
        if self.scores == "motion" and not self.temperature:
            raise UserError("of scores=motion gamma and delta are learned; give a temperature above 0. Received: 0")
        if self.heads > 1 and self.glimpse != "whole":
            raise UserError(f"several heads take glimpse=whole. Received: heads={self.heads}, glimpse={self.glimpse}")
        if self.scores == "motion" and self.motion_prior:
            raise UserError("scores=motion is the motion prior by itself. Received: motion_prior=True")

    @property
    def takes_motion(self) -> bool:
        return self.motion_prior or self.scores == "motion"


@dataclass(frozen=True)
class ALSTMTraining(Training):
    attention_penalty: float = but(Training, "attention_penalty", 0.5, search=(0.0, 0.1, 0.5, 2.0))


class AttentionLSTM(RecurrentCore):
    """An LSTM over glimpses of the feature cube, made of an attention and a glimpse.

        c_t = attention(X_t, h_{t-1});  z_t = glimpse(c_t, X_t);  h_t, cell_t = LSTM(z_t, (h_{t-1}, cell_{t-1}))
        h_0 = mlp_h(mean_t mean_i X_{t,i});  cell_0 = mlp_c(the same)

    With several cells each reads the hidden state of the one below, has MLPs of its own for its initial states, and
    h_{t-1} above is that of the uppermost. The loop over frames is unrolled, so T must be static. Dropout is at the
    input of every fully connected layer (not at the LSTM's own kernels) and between cells (Zaremba et al. 2014, arXiv
    1409.2329).

    Call arguments: features `(B, T, H, W, D)`, the mask of real frames `(B, T)` and, where the settings take them,
    motion maps `(B, T, H, W)`. Returns hidden states `(B, T, U)` and attention `(B, T, H, W)`, the mean of the heads.
    """

    def __init__(
        self, settings: LSTMSettings, options: dict[str, Any], attention: Attention, glimpse: Glimpse,
        prior: Prior | None = None, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(name="core", dtype=options["dtype"], **kwargs)
        units, numbers = settings.lstm_units, ["", *range(2, settings.cells + 1)]
        self.dropout = keras.layers.Dropout(settings.dropout, dtype=self.dtype_policy, name="core_dropout")
        self.first = (
            ZeroStates(units, settings.cells, name="first")
            if settings.ablate == "first_states"
            else ClipStates(units, [f"mlp_{state}{n}" for n in numbers for state in "hc"], options, name="first")
        )
        cell = ForgetfulLSTMCell if settings.ablate == "cell_state" else LSTMCell
        decay = {**options, "recurrent_regularizer": options["kernel_regularizer"]}
        self.cells = [cell(units, name=f"lstm{n}", **decay) for n in numbers]
        self.glimpse, self.attention = glimpse, attention
        self.prior = prior

    def build(
        self, features_shape: tuple, mask_shape: tuple | None = None, motion_shape: tuple | None = None,
        flow_shape: tuple | None = None,
    ) -> None:  # fmt: skip
        self.first.build(features_shape)
        if self.prior:
            self.prior.build(features_shape)
        self.glimpse.build(features_shape)
        self.attention.build(features_shape)
        for n, cell in enumerate(self.cells):
            cell.build((None, cell.units if n else self.glimpse.size))

    def first_states(self, features: Any, mask: Any, flow: Any = None, training: bool | None = None) -> list[list]:
        frame_means = ops.mean(flatten_locations(features), axis=2)
        return self.first.start(frame_means, mask, partial(self.dropout, training=training))

    def go_on(
        self, features: Any, mask: Any, states: Any, motion: Any = None, flow: Any = None, training: bool | None = None
    ) -> tuple[Any, Any, Any]:
        cube, drop, states = flatten_locations(features), partial(self.dropout, training=training), list(states)
        frame_means = ops.mean(cube, axis=2)
        look = self.attention.over(cube, frame_means, drop, self.prior(features, motion) if self.prior else None)
        glance = self.glimpse.over(cube, frame_means, drop)
        steps = [cell.over(cube.shape[1], ops.shape(cube)[0], training) for cell in self.cells]
        hidden, hiddens, attention = states[-1][0], [], []
        for t in range(cube.shape[1]):
            weights = look(t, hidden)
            below = glance(t, weights)
            for n, step in enumerate(steps):
                hidden, states[n] = step(drop(below) if n else below, states[n])
                below = hidden
            attention.append(ops.mean(weights, axis=1))
            hiddens.append(hidden)
        maps = to_maps(ops.stack(attention, axis=1), mask, features.shape[2:4])
        return ops.stack(hiddens, axis=1), maps, states


def make_glimpse(settings: GlimpseSettings, options: dict[str, Any], whole: Glimpse) -> Glimpse:
    """As the setting `glimpse` has it."""
    return Quarters(settings.lstm_units, options, name="glimpse") if settings.glimpse == "quarters" else whole


@register_model("alstm", ALSTMSettings, ALSTMTraining)
class ALSTM(ActionModel):
    """Attention scored from the frame's mean cube, which is the tutorial's, from each location, or from motion."""

    small_operations = True

    def make_core(self, settings: ALSTMSettings, options: dict[str, Any]) -> AttentionLSTM:
        attention: Attention = {
            "mean": lambda: MeanScores(settings.lstm_units, options, name="attention"),
            "location": lambda: LocationScores(
                settings.attention_units, options, settings.heads, settings.temperature, settings.lstm_units,
                name="attention",
            ),
            "motion": lambda: PriorOnly(settings.temperature, name="attention"),
        }[settings.scores]()  # fmt: skip
        glimpse = make_glimpse(settings, options, Whole(settings.heads, name="glimpse"))
        if settings.beside == "mean":
            glimpse = BesideMean(glimpse, name="beside")
        return AttentionLSTM(settings, options, attention, glimpse, make_prior(settings, options))
