"""VideoLSTM's motion-based attention, re-stated in NumPy from its equations, frame by frame, over 30 frames."""

import numpy as np
import pytest
from scipy.special import softmax

from action_attention.errors import UserError
from action_attention.models import build_model
from action_attention.models.base import kernel_options
from action_attention.models.motion_conv_alstm import MotionConvALSTM
from tests.test_layers import CHANNELS, FRAMES, SIDE, UNITS, convolve, lstm_step, named, sigmoid

FLOW_CHANNELS = 3


@pytest.fixture
def inputs():
    """Features, mask and motion maps of two clips, and features of their flow."""
    random = np.random.default_rng(0)
    features = random.random((2, FRAMES, SIDE, SIDE, CHANNELS))
    flow = random.random((2, FRAMES, SIDE, SIDE, FLOW_CHANNELS))
    motion = random.exponential(1.0, (2, FRAMES, SIDE, SIDE))
    return features, np.ones((2, FRAMES), bool), motion, flow


def core(inputs, **settings):
    settings = MotionConvALSTM.settings_class(lstm_units=UNITS, **settings)
    layer = MotionConvALSTM.make_core(None, settings, kernel_options(settings, "float64"))
    call(layer, inputs, settings)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.5, weight.shape) for weight in layer.get_weights()])
    return layer, settings


def call(layer, inputs, settings, **more):
    features, mask, motion, flow = inputs
    return layer(features, mask, **({"motion": motion} if settings.takes_motion else {}), flow=flow, **more)


def numpy_motion_conv_alstm(layer, settings, inputs):
    features, _, motion, flow = inputs
    w = named(layer)

    def first(mean, name, conv):
        return np.tanh(conv(mean, w[f"{name}/kernel"]) + w[f"{name}/bias"])

    def around(maps, kernel):
        return convolve(maps, kernel.reshape(3, 3, -1, kernel.shape[-1]))

    g, e = (first(flow.mean(1), f"initial_{state}", np.matmul) for state in "ge")
    if settings.first_states == "clip":
        states = [first(features.mean(1), f"initial{n}", around) for n in range(2 * settings.cells)]
    else:
        states = [np.zeros((2, SIDE, SIDE, UNITS))] * (2 * settings.cells)
    hidden, memory = states[::2], states[1::2]
    prior = np.zeros((2, FRAMES, SIDE, SIDE))
    if settings.takes_motion:
        prior = w["prior/gamma"] * np.log(0.05 + motion / motion.mean((2, 3), keepdims=True))
    hiddens, maps = [], []
    for t in range(FRAMES):
        top = hidden[-1]
        gates = np.concatenate([flow[:, t], top], axis=-1) if settings.memory == "gates" else flow[:, t]
        g, e = lstm_step(gates, g, e, w, "conv_lstm_g")
        mixed = features[:, t] @ w["conv_x/kernel"] + w["conv_x/bias"] + g @ w["conv_g/kernel"]
        if settings.memory == "scores":
            mixed = mixed + top @ w["conv_h/kernel"]
        scores = (np.tanh(mixed) @ w["conv_score/kernel"] + w["conv_score/bias"])[..., 0] + prior[:, t]
        maps.append(softmax(scores.reshape(2, -1), axis=1).reshape(2, SIDE, SIDE))
        below = features[:, t] * maps[-1][..., None]
        for n, cell in enumerate(layer.cells):
            kernel, recurrent, bias = cell.get_weights()
            parts = np.split(convolve(below, kernel) + convolve(hidden[n], recurrent) + bias, 4, axis=-1)
            memory[n] = sigmoid(parts[1]) * memory[n] + sigmoid(parts[0]) * np.tanh(parts[2])
            below = hidden[n] = sigmoid(parts[3]) * np.tanh(memory[n])
        hiddens.append(below)
    return np.stack(hiddens, 1), np.stack(maps, 1)


@pytest.mark.parametrize("settings", [
    {}, {"memory": "scores"}, {"cells": 2}, {"first_states": "zeros"}, {"motion_prior": True, "memory": "scores"},
], ids=str)  # fmt: skip
def test_the_layer_is_videolstms_over_30_frames(settings, inputs):
    layer, settings = core(inputs, **settings)
    hidden, attention = call(layer, inputs, settings, training=False)
    expected_hidden, expected_attention = numpy_motion_conv_alstm(layer, settings, inputs)
    tolerance = 2e-6 if settings.takes_motion else 1e-10  # the prior's logarithm is taken in float32
    np.testing.assert_allclose(hidden, expected_hidden, atol=tolerance)
    np.testing.assert_allclose(attention, expected_attention, atol=2e-6)


@pytest.mark.parametrize("memory", ["gates", "scores"])
def test_only_flow_and_memory_move_the_attention_of_still_frames(memory, inputs):
    """The same frame throughout: another clip's flow gives other maps, and the flow of one frame all that follow."""
    features, mask, motion, flow = inputs
    still = features[:, :1].repeat(FRAMES, axis=1)
    layer, settings = core(inputs, memory=memory)
    _, maps = call(layer, (still, mask, motion, flow), settings)
    pushed = flow.copy()
    pushed[:, 10, 0, 0] += 5
    pushed[:, 11, 0, 0] -= 5  # so that the mean, where the states begin, is the same
    _, other = call(layer, (still, mask, motion, pushed), settings)
    apart = np.abs(np.array(maps) - other).max((0, 2, 3))
    assert apart[:10].max() < 1e-6
    assert apart[10] > 1e-4
    assert apart[12:20].max() > 1e-4


def test_padding_changes_nothing_on_real_frames_and_looks_nowhere(inputs):
    features, mask, motion, flow = inputs
    layer, settings = core(inputs)
    short = call(layer, (features[:, :12], mask[:, :12], motion[:, :12], flow[:, :12]), settings)
    fill = [np.concatenate([each[:, :12], each[:, 11:12].repeat(FRAMES - 12, axis=1)], axis=1) for each in inputs[::3]]
    padded = call(layer, (fill[0], np.arange(FRAMES)[None].repeat(2, 0) < 12, motion, fill[1]), settings)
    for one, other in zip(short, padded, strict=True):
        np.testing.assert_allclose(one, other[:, :12], atol=1e-6)
    assert not np.asarray(padded[1])[:, 12:].any()


def test_it_is_always_of_two_streams():
    with pytest.raises(UserError, match=r"^fusion must be one of attention. Received: 'none'$"):
        build_model("motion_conv_alstm", 3, fusion="none")
    with pytest.raises(UserError, match=r"^fusion must be one of none, early. Received: 'attention'$"):
        build_model("conv_alstm", 3, fusion="attention")
    model = build_model("motion_conv_alstm", 3, lstm_units=4)
    features = np.zeros((1, 2, 3, 3, 5))
    sentence = r'^this model takes features of optical flow too: {"flow": \(B, T, H, W, D\)}, .*Received: '
    with pytest.raises(UserError, match=sentence + "none$"):
        model({"features": features, "mask": np.ones((1, 2), bool)})
    with pytest.raises(UserError, match=sentence + r"\(1, 2, 2, 3, 5\)$"):
        model({"features": features, "mask": np.ones((1, 2), bool), "flow": features[:, :, :2]})
