"""The recurrences, re-stated in NumPy from the papers' equations, frame by frame."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from scipy.signal import correlate
from scipy.special import expit as sigmoid
from scipy.special import softmax

from action_attention.models.alstm import ALSTM
from action_attention.models.base import kernel_options
from action_attention.models.conv_alstm import ConvALSTM
from action_attention.models.inputs import sqrt_l2, with_motion
from action_attention.models.locations import neighbourhoods, quarters
from action_attention.models.pooled_lstm import AverageLSTM, MaxLSTM

FRAMES, SIDE, CHANNELS, UNITS = 30, 3, 5, 4


def core(model, dtype="float64", **settings):
    """A model's core, with UNITS units."""
    settings = model.settings_class(lstm_units=UNITS, **settings)
    layer = model.make_core(model, settings, kernel_options(settings, dtype))
    layer.settings = settings
    return layer


@pytest.fixture
def clip():
    """Features `(2, 30, 3, 3, 5)` like pool5 (sparse, not negative) and the mask of all frames."""
    random = np.random.default_rng(0)
    shape = (2, FRAMES, SIDE, SIDE, CHANNELS)
    features = (random.random(shape) * (random.random(shape) < 0.5)).astype(np.float32)
    return features, np.ones((2, FRAMES), bool)


def built(layer, clip, scale=1.0):
    """The layer with random weights, biases included; `scale` makes gates that forget little or much.

    The layers compute in float64 here: over 30 frames a recurrence of large weights magnifies rounding.
    """
    layer(*clip)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, scale, weight.shape) for weight in layer.get_weights()])
    return layer


def named(layer):
    """Weights by `<layer>/<variable>`."""
    return {"/".join(weight.path.split("/")[-2:]): np.asarray(weight.value, np.float64) for weight in layer.weights}


def lstm_step(inputs, hidden, cell, weights, prefix):
    kernel, recurrent, bias = (weights[f"{prefix}/{name}"] for name in ("kernel", "recurrent_kernel", "bias"))
    gates = inputs @ kernel + hidden @ recurrent + bias
    gate_in, forget, candidate, gate_out = np.split(gates, 4, axis=-1)
    cell = sigmoid(forget) * cell + sigmoid(gate_in) * np.tanh(candidate)
    return sigmoid(gate_out) * np.tanh(cell), cell


def numpy_alstm(layer, features, *, reset_cell=False):
    """Sharma et al. 2016; with `reset_cell`, the tutorial's defect: the cell starts at zero in every frame."""
    w, cells = named(layer), ["", *range(2, layer.settings.cells + 1)]
    cube = features.reshape(len(features), FRAMES, SIDE * SIDE, CHANNELS).astype(np.float64)
    mean = cube.mean((1, 2))

    def first(state, n):
        if layer.settings.ablate == "first_states":
            return np.zeros((len(features), UNITS))
        return np.tanh(mean @ w[f"mlp_{state}{n}/kernel"] + w[f"mlp_{state}{n}/bias"])

    hidden, cell = ({n: first(state, n) for n in cells} for state in "hc")
    hiddens, maps = [], []
    for t in range(FRAMES):
        mixed = cube[:, t].mean(1) @ w["mlp1/kernel"] + w["mlp1/bias"] + hidden[cells[-1]] @ w["mlp2/kernel"]
        locations = softmax(np.tanh(mixed) @ w["mlp3/kernel"] + w["mlp3/bias"], axis=-1)
        if layer.settings.glimpse == "whole":
            below = np.einsum("bl,bld->bd", locations, cube[:, t])
        else:
            below = in_quarters(locations, cube[:, t]) @ w["mlp_z/kernel"] + w["mlp_z/bias"]
        for n in cells:
            before = np.zeros_like(cell[n]) if reset_cell or layer.settings.ablate == "cell_state" else cell[n]
            below, cell[n] = lstm_step(below, hidden[n], before, w, f"lstm{n}")
            hidden[n] = below
        hiddens.append(below)
        maps.append(locations.reshape(-1, SIDE, SIDE))
    return np.stack(hiddens, 1), np.stack(maps, 1)


def in_quarters(locations, frame):
    """Attention-weighted sums over a frame's 3 x 3 locations and over its quarters of 2 x 2, these times 9/4."""
    weighted = (locations[..., None] * frame).reshape(-1, SIDE, SIDE, CHANNELS)
    quarters = [weighted[:, row : row + 2, column : column + 2].sum((1, 2)) for row in (0, 1) for column in (0, 1)]
    return np.concatenate([weighted.sum((1, 2)), *(9 / 4 * quarter for quarter in quarters)], axis=-1)


def convolve(maps, kernel):
    """Same-padded 3x3 convolution of `(B, F, F, in)` with `(3, 3, in, out)`, by SciPy."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.stack(
        [
            [correlate(image, kernel[..., out], mode="valid")[..., 0] for out in range(kernel.shape[-1])]
            for image in padded
        ]
    ).transpose(0, 2, 3, 1)


def numpy_conv_alstm(layer, features, *, reset_cell=False):
    """VideoLSTM's appearance part; with `reset_cell`, its cell starts at zero in every frame."""
    w = named(layer)
    cells = [cell.get_weights() for cell in layer.cells]
    states = [np.zeros((len(features), SIDE, SIDE, UNITS))] * (2 * len(cells))
    if layer.settings.first_states == "clip":
        clip_mean = features.astype(np.float64).mean(axis=1)
        states = [np.tanh(clip_mean @ w[f"initial{n}/kernel"] + w[f"initial{n}/bias"]) for n in range(len(states))]
    hidden, cell = states[::2], states[1::2]
    hiddens, maps = [], []
    for t in range(FRAMES):
        frame = features[:, t].astype(np.float64)
        mixed = np.tanh(frame @ w["conv_x/kernel"] + w["conv_x/bias"] + hidden[-1] @ w["conv_h/kernel"])
        locations = softmax((mixed @ w["conv_score/kernel"]).reshape(len(features), -1), axis=-1)
        attention = locations.reshape(-1, SIDE, SIDE)
        weights = attention * (SIDE * SIDE if layer.settings.mean_one_attention else 1)
        below, before, hidden, cell = frame * weights[..., None], [*zip(hidden, cell, strict=True)], [], []
        for (last_hidden, last_cell), (kernel, recurrent, bias) in zip(before, cells, strict=True):
            gates = convolve(below, kernel) + convolve(last_hidden, recurrent) + bias
            gate_in, forget, candidate, gate_out = np.split(gates, 4, axis=-1)
            cell.append(sigmoid(forget) * (0 if reset_cell else last_cell) + sigmoid(gate_in) * np.tanh(candidate))
            below = sigmoid(gate_out) * np.tanh(cell[-1])
            hidden.append(below)
        hiddens.append(below)
        maps.append(attention)
    return np.stack(hiddens, 1), np.stack(maps, 1)


RECURRENCES = {
    "alstm": (lambda: core(ALSTM), numpy_alstm),
    "conv_alstm": (lambda: core(ConvALSTM), numpy_conv_alstm),
    "alstm of two cells": (lambda: core(ALSTM, cells=2), numpy_alstm),
    "alstm without initial states": (lambda: core(ALSTM, ablate="first_states"), numpy_alstm),
    "alstm with glimpses of quarters": (lambda: core(ALSTM, glimpse="quarters"), numpy_alstm),
    "alstm that carries no cell state": (lambda: core(ALSTM, cells=2, ablate="cell_state"), numpy_alstm),
    "conv_alstm from the clip's mean, rescaled": (
        lambda: core(ConvALSTM, cells=2, first_states="clip", mean_one_attention=True, dropout=0.5),
        numpy_conv_alstm,
    ),
    "conv_alstm of two cells": (lambda: core(ConvALSTM, cells=2), numpy_conv_alstm),
}


@pytest.mark.parametrize("name", RECURRENCES)
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_the_layer_is_the_papers_recurrence_over_30_frames(name, scale, clip):
    make, restated = RECURRENCES[name]
    layer = built(make(), clip, scale)
    hidden, attention = layer(*clip, training=False)
    expected_hidden, expected_attention = restated(layer, clip[0])
    np.testing.assert_allclose(hidden, expected_hidden, atol=1e-10)
    np.testing.assert_allclose(attention, expected_attention, atol=1e-6)  # maps are float32 always


@pytest.mark.parametrize("name", [name for name in RECURRENCES if "no cell state" not in name])
def test_a_cell_that_is_reset_every_frame_is_another_recurrence(name, clip):
    """What the tutorial's code does differs visibly, so the test above would catch it."""
    make, restated = RECURRENCES[name]
    layer = built(make(), clip)
    hidden, _ = layer(*clip, training=False)
    reset_hidden, _ = restated(layer, clip[0], reset_cell=True)
    assert np.abs(np.asarray(hidden)[:, 5:] - reset_hidden[:, 5:]).max() > 0.1


@pytest.mark.parametrize("settings", [{}, {"cells": 2}, {"ablate": "cell_state"}])
def test_one_product_is_the_gradient_that_a_loop_adds_up_frame_by_frame(settings, clip, monkeypatch):
    layer = built(core(ALSTM, dropout=0.0, **settings), clip)

    def step():
        with tf.GradientTape() as tape:
            hidden, attention = layer(*clip, training=True)
            loss = ops.sum(hidden**2) + ops.cast(ops.sum(attention**2), "float64")
        gradients = tape.gradient(loss, [weight.value for weight in layer.weights], unconnected_gradients="zero")
        return {"loss": loss, **dict(zip((weight.path for weight in layer.weights), gradients, strict=True))}

    def gradients_made():
        """How many matrices of the size of an LSTM's kernel a traced step makes."""
        sizes = [
            tuple(weight.shape) for weight in layer.weights if weight.path.endswith("kernel") and "lstm" in weight.path
        ]
        made = tf.function(step).get_concrete_function().graph.get_operations()
        return sum(each.type in ("MatMul", "Einsum") and tuple(each.outputs[0].shape) in sizes for each in made)

    eager, traced, made = step(), tf.function(step)(), gradients_made()
    monkeypatch.setattr(keras.backend, "backend", lambda: "another")  # which has the loop as it stands
    assert gradients_made() == FRAMES * made
    for name, expected in step().items():
        np.testing.assert_allclose(eager[name], expected, 1e-9, 1e-12, err_msg=name)
        np.testing.assert_allclose(traced[name], expected, 1e-9, 1e-12, err_msg=name)


@pytest.mark.parametrize("which", ["mlp_h", "mlp_c"])
def test_both_initial_states_of_alstm_matter_in_the_first_frame(which, clip):
    layer = built(core(ALSTM, "float32"), clip)
    before, _ = layer(*clip, training=False)
    layer.first.mlps[["mlp_h", "mlp_c"].index(which)].bias.assign_add(np.ones(UNITS))
    after, _ = layer(*clip, training=False)
    assert np.abs(np.asarray(after - before))[:, 0].max() > 0.01


def test_conv_alstm_with_attention_taken_out_is_keras_conv_lstm2d(clip):
    """Uniform scores leave X_t / F*F: then the hidden maps are those of Keras' own layer."""
    features, mask = clip
    layer = built(core(ConvALSTM), clip)
    layer.attention.to_scores.set_weights([np.zeros((UNITS, 1))])
    hidden, _ = layer(features, mask)
    reference = keras.layers.ConvLSTM2D(UNITS, 3, padding="same", return_sequences=True, dtype="float64")
    reference(features)
    reference.set_weights(layer.cells[0].get_weights())
    np.testing.assert_allclose(hidden, reference(features.astype(np.float64) / SIDE**2), atol=1e-10)


@pytest.mark.parametrize(("pooled", "pooling"), [(AverageLSTM, "mean"), (MaxLSTM, "max")])
def test_controls_differ_from_alstm_in_the_glimpse_only(pooled, pooling, clip):
    features, mask = clip
    layer = built(core(pooled), clip)
    w, cube = named(layer), features.reshape(2, FRAMES, SIDE * SIDE, CHANNELS).astype(np.float64)
    mean = cube.mean((1, 2))
    hidden = np.tanh(mean @ w["mlp_h/kernel"] + w["mlp_h/bias"])
    cell = np.tanh(mean @ w["mlp_c/kernel"] + w["mlp_c/bias"])
    for t in range(FRAMES):
        hidden, cell = lstm_step(getattr(np, pooling)(cube[:, t], axis=1), hidden, cell, w, "lstm")
    hiddens, attention = layer(features, mask, training=False)
    np.testing.assert_allclose(hiddens[:, -1], hidden, atol=1e-10)
    np.testing.assert_allclose(ops.sum(attention, axis=(2, 3)), 1, atol=1e-5)


def test_dropout_is_active_in_training_only_and_different_in_every_frame(clip):
    layer = built(core(ALSTM, "float32"), clip)
    plain = [np.asarray(layer(*clip, training=False)[0]) for _ in range(2)]
    np.testing.assert_array_equal(plain[0], plain[1])
    dropped = [np.asarray(layer(*clip, training=True)[0]) for _ in range(2)]
    assert np.abs(dropped[0] - dropped[1]).max() > 0.01
    assert np.abs(dropped[0] - plain[0]).max() > 0.01


@pytest.mark.parametrize("make", [make for make, _ in RECURRENCES.values()], ids=RECURRENCES)
def test_padding_changes_nothing_on_real_frames_and_looks_nowhere(make, clip):
    features, mask = clip
    layer = built(make(), clip)
    short = layer(features[:, :12], mask[:, :12])
    padded_features = np.concatenate([features[:, :12], np.repeat(features[:, 11:12], FRAMES - 12, axis=1)], axis=1)
    padded = layer(padded_features, np.arange(FRAMES)[None].repeat(2, 0) < 12)
    for one, other in zip(short, padded, strict=True):
        np.testing.assert_allclose(one, other[:, :12], atol=1e-6)
    assert not np.asarray(padded[1])[:, 12:].any()


def test_uniform_attention_gives_every_quarter_its_mean():
    features = np.random.default_rng(0).random((49, 5))
    whole, *parts = (quarters(7, 7) / 49) @ features
    np.testing.assert_allclose(whole, features.mean(0))
    for part, (row, column) in zip(parts, [(0, 0), (0, 3), (3, 0), (3, 3)], strict=True):
        np.testing.assert_allclose(
            part, features.reshape(7, 7, 5)[row : row + 4, column : column + 4].mean((0, 1)), rtol=1e-6
        )


def test_the_average_control_with_quarters_is_alstm_whose_scores_are_equal(clip):
    layer = built(core(ALSTM, glimpse="quarters"), clip)
    layer.attention.to_scores.set_weights([np.zeros((UNITS, SIDE * SIDE)), np.zeros(SIDE * SIDE)])
    control = built(core(AverageLSTM, glimpse="quarters"), clip)
    weights = named(layer)
    for weight in control.weights:
        weight.assign(weights["/".join(weight.path.split("/")[-2:])])
    np.testing.assert_allclose(control(*clip)[0], layer(*clip)[0], atol=1e-10)


def test_sqrt_l2_takes_signed_roots_and_gives_every_frame_the_same_norm():
    features = np.random.default_rng(0).normal(size=(2, 3, 7, 7, 5)).astype("float32") * 100
    normalized = np.array(sqrt_l2(features))
    np.testing.assert_allclose(np.mean(normalized**2, axis=(2, 3, 4)), 1, rtol=1e-4)
    rooted = np.sign(features) * np.sqrt(np.abs(features))
    scale = normalized[1, 2] / rooted[1, 2]
    np.testing.assert_allclose(scale, scale[0, 0, 0], rtol=1e-4)
    assert np.all(np.array(sqrt_l2(np.zeros((1, 1, 7, 7, 5), "float32"))) == 0)


def test_motion_is_the_absolute_difference_from_the_cube_before_and_zero_for_the_first():
    features = np.random.default_rng(0).normal(size=(2, 4, 3, 3, 5)).astype("float32")
    moved = np.array(with_motion(features))
    np.testing.assert_array_equal(moved[..., :5], features)
    np.testing.assert_array_equal(moved[:, 0, ..., 5:], 0)
    np.testing.assert_array_equal(moved[:, 1:, ..., 5:], np.abs(np.diff(features, axis=1)))


def test_neighbourhoods_are_the_patches_of_a_padded_map():
    maps = np.random.default_rng(0).normal(size=(4, 5, 2)).astype("float32")
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    around = (neighbourhoods(4, 5) @ maps.reshape(20, 2)).reshape(4, 5, 3, 3, 2)
    for row in range(4):
        for column in range(5):
            np.testing.assert_array_equal(around[row, column], padded[row : row + 3, column : column + 3])
