"""A stream, frame by frame from explicit states, is what the model makes of the whole clip."""

import keras
import numpy as np
import pytest
from keras import ops

from action_attention.errors import UserError
from action_attention.models import build_model

FRAMES, SIDE, CHANNELS, CLASSES = 300, 3, 5, 4
RECURRENT = [
    ("alstm", {}),
    ("alstm", {"scores": "motion", "centre_prior": True, "temperature": 0.33, "normalize": "sqrt_l2"}),
    ("alstm", {"scores": "location", "heads": 2, "motion_prior": True, "beside": "mean", "temperature": 0.0}),
    ("alstm", {"fusion": "early", "motion": "difference", "normalize": "sqrt_l2", "cells": 2}),
    ("alstm", {"glimpse": "quarters", "ablate": "cell_state"}),
    ("avg_lstm", {"motion": "difference"}),
    ("max_lstm", {"ablate": "first_states"}),
    ("conv_alstm", {"motion_prior": True, "cells": 2, "head": "conv"}),
    ("conv_alstm", {"first_states": "clip", "mean_one_attention": True, "motion": "difference"}),
    ("motion_conv_alstm", {"motion": "difference", "centre_prior": True}),
    ("motion_conv_alstm", {"memory": "scores", "cells": 2, "head": "pool"}),
]


def make(name, settings):
    """A model whose weights are larger than new ones, so that its memory counts, but not so large that it is chaos."""
    model = build_model(name, CLASSES, cube_shape=(SIDE, SIDE, CHANNELS), lstm_units=6, **settings)
    random = np.random.default_rng(1)
    model.set_weights([weight + random.normal(0, 0.15, weight.shape) for weight in model.get_weights()])
    return model


def stream(model, frames=FRAMES):
    """Two streams, all that a model can take of them."""
    random = np.random.default_rng(0)
    shape = (2, frames, SIDE, SIDE)
    inputs = {
        "features": random.random((*shape, CHANNELS), "float32"), "mask": np.ones((2, frames), bool),
        "motion": random.exponential(1.0, shape).astype("float32"),
        "flow": random.random((*shape, CHANNELS), "float32"),
    }  # fmt: skip
    wanted = {"features", "mask", *["motion"] * model.settings.takes_motion, *["flow"] * model.settings.takes_flow}
    return {name: value for name, value in inputs.items() if name in wanted}


def part(inputs, first, end):
    return {name: value[:, first:end] for name, value in inputs.items()}


def run(model, inputs, states, ends):
    outputs, first = [], 0
    for end in ends:
        output, states = model.step(part(inputs, first, end), states)
        outputs.append(output)
        first = end
    return {name: np.concatenate([output[name] for output in outputs], axis=1) for name in outputs[0]}, states


def assert_alike(a, b, tolerance=1e-5):
    assert a.keys() == b.keys() == {"logits", "attention"}
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize(("name", "settings"), RECURRENT)
def test_a_stream_is_the_clip(name, settings):
    """Over 300 frames, for one set of settings of each model."""
    model = make(name, settings)
    first = next(each for each in RECURRENT if each[0] == name)
    frames = FRAMES if first == (name, settings) else 40
    inputs = stream(model, frames)
    whole = {key: ops.convert_to_numpy(value) for key, value in model(inputs).items()}
    assert np.ptp(whole["logits"], axis=1).max() > 0.1  # the frames differ
    by_frame, _ = run(model, inputs, model.first_states(inputs), range(1, frames + 1))
    assert_alike(by_frame, whole)
    by_pieces, _ = run(model, inputs, model.first_states(inputs), [1, 8, 20, 21])
    assert_alike(by_pieces, part(whole, 0, 21))


@pytest.mark.parametrize(("name", "settings"), RECURRENT)
def test_a_window_begins_a_stream_as_a_clip_of_its_length_begins(name, settings):
    """The steps over the window are the window's call, and what is carried on is of the window alone."""
    model = make(name, settings)
    inputs, window = stream(model, 30), 12
    states = model.first_states(part(inputs, 0, window))
    shorter = {key: ops.convert_to_numpy(value) for key, value in model(part(inputs, 0, window)).items()}
    steps, after = run(model, inputs, states, range(1, window + 1))
    assert_alike(steps, shorter)
    padded = {**inputs, "mask": np.arange(30) < window + np.zeros((2, 1))}
    for a, b in zip(*(keras.tree.flatten(each) for each in (states, model.first_states(padded))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    forms = [[tuple(tensor.shape) for tensor in keras.tree.flatten(each)] for each in (states, after)]
    assert forms[0] == forms[1]


def test_what_is_carried_matters():
    model = make("alstm", {})
    inputs = stream(model, 20)
    states = model.first_states(inputs)
    _, later = run(model, inputs, states, [10])
    fresh, _ = model.step(part(inputs, 10, 20), states)
    carried, _ = model.step(part(inputs, 10, 20), later)
    assert np.abs(fresh["logits"] - carried["logits"]).max() > 0.01


def test_states_are_not_changed_in_place():
    model = make("motion_conv_alstm", {})
    inputs = stream(model, 4)
    states = model.first_states(inputs)
    first, _ = model.step(inputs, states)
    again, _ = model.step(inputs, states)
    assert_alike(first, again, 0)


@pytest.mark.parametrize(
    "name", ["softmax", "attentive_pool", "temporal_attention", "late_fusion", "conv3d", "rank_pool"]
)
def test_a_model_without_memory_says_so(name):
    model = build_model(name, CLASSES, cube_shape=(7, 7, CHANNELS))
    assert not model.is_recurrent
    with pytest.raises(UserError, match="keeps no state between frames; call it with whole clips"):
        model.first_states({"features": np.zeros((1, 4, 7, 7, CHANNELS)), "mask": np.ones((1, 4), bool)})


def test_a_stream_of_other_cubes_is_refused():
    model = make("alstm", {})
    states = model.first_states(stream(model, 4))
    with pytest.raises(UserError, match="features must have the shape"):
        model.step({"features": np.zeros((2, 1, 4, 4, CHANNELS)), "mask": np.ones((2, 1), bool)}, states)
