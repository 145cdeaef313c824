"""Every model: outputs, saving, golden values, and that it loads without the training code."""

import ast
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from action_attention.errors import UserError
from action_attention.loss import losses
from action_attention.model_file import WEIGHTS, load_keras
from action_attention.models import build_model
from action_attention.models.conv_alstm import CONV_HEAD_FILTERS
from action_attention.models.upgrade import MOVES
from action_attention.registry import find_model, model_names

MODEL_NAMES = model_names()

# logits[0, -1] of each model, seeded as in `golden`: they guard against a silent change of a forward pass
GOLDEN = {
    "alstm": [0.025221, 0.031513, -0.159217, 0.036067],
    "conv_alstm": [-0.267498, -0.231258, 0.089357, 0.117098],
    "avg_lstm": [0.009879, 0.02423, 0.127126, -0.141974],
    "max_lstm": [-0.127768, -0.010527, 0.109135, -0.156728],
    "attentive_pool": [-0.286528, -0.366278, 0.545939, -0.083285],
    "rank_pool": [-6.482767, 0.660722, -3.187764, 0.527964],
    "softmax": [0.210441, 0.172578, -0.003005, 0.022528],
    "conv3d": [0.098109, 0.033245, 0.071555, 0.068609],
    "late_fusion": [-0.151089, 0.105298, -0.012736, 0.232111],
    "motion_conv_alstm": [0.182532, -0.121685, 0.111021, -0.008427],
    "temporal_attention": [-0.241673, 0.219052, 0.09738, 0.134877],
}


CUBE, FLOW = (7, 7, 512), (7, 7, 16)
OLD = Path(__file__).parent / "version_0_1"


def small(name, **settings):
    """A model of four classes and, where it has units or filters, eight of them."""
    units = {key: 8 for key in ("lstm_units", "hidden_units", "filters") if key in find_model(name).fields}
    return build_model(name, 4, cube_shape=CUBE, flow_shape=FLOW, **{**units, **settings})


def clips(frames=6):
    random = np.random.default_rng(0)
    shape = (2, frames, 7, 7, 512)
    features = (random.random(shape) * (random.random(shape) < 0.1)).astype(np.float16)
    mask = np.arange(frames) < np.array([[frames], [frames - 2]])
    flow = random.random((2, frames, *FLOW)).astype(np.float16)
    return {"features": features, "mask": mask, "flow": flow}


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_outputs_say_class_and_place_of_every_frame(name):
    model, inputs = small(name), clips()
    outputs = model(inputs)
    assert outputs["logits"].shape == (2, 6, 4)
    assert outputs["attention"].shape == (2, 6, 7, 7)
    np.testing.assert_allclose(np.sum(outputs["attention"], axis=(2, 3)), inputs["mask"], atol=1e-5)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_saved_model_loads_to_identical_outputs(name, policy, tmp_path):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = drawn(small(name, dropout=0.3, weight_decay=1e-4))
    finally:
        keras.config.set_dtype_policy(previous)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    before, after = model(clips()), loaded(clips())
    for key in ("logits", "attention"):
        assert before[key].dtype == "float32"
        np.testing.assert_array_equal(before[key], after[key])
    assert len(loaded.losses) == len(model.losses)


def test_a_saved_model_needs_the_models_and_nothing_else_of_the_project(tmp_path):
    small("alstm").save(tmp_path / "model.keras")
    code = (
        "import sys, keras, action_attention.models\n"
        "keras.saving.load_model(sys.argv[1], safe_mode=True)\n"
        "own = ('action_attention.', 'data_prep', 'experiments')\n"
        "print(sorted(name for name in sys.modules if name.startswith(own)))"
    )
    command = [sys.executable, "-c", code, tmp_path / "model.keras"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    needed = {"errors", "models", "registry", "settings"}
    assert {name.split(".")[1] for name in ast.literal_eval(done.stdout)} == needed


def drawn(model):
    """With weights drawn at random: those of `rank_pool`'s classifier start at zero."""
    random = np.random.default_rng(1)
    model.set_weights([random.normal(0, 0.1, weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_golden_outputs(name):
    logits = np.asarray(drawn(small(name))(clips())["logits"])[0, -1]
    np.testing.assert_allclose(logits, GOLDEN[name], rtol=1e-4, atol=1e-5)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"alstm, attentive_pool, conv3d, conv_alstm, late_fusion, motion_conv_alstm, avg_lstm, max_lstm, "
        r"rank_pool, softmax, temporal_attention\. Received: name='lstm'",
    ):
        build_model("lstm", 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize": "sqrt_l2", "motion": "difference", "channel_dropout": 0.3},
        {"head": "conv", "first_states": "clip", "mean_one_attention": True},
        {"head": "pool"},
        {"glimpse": "quarters", "ablate": "cell_state"},
    ],
)
def test_further_settings_survive_saving(settings, tmp_path):
    model = small("alstm" if "glimpse" in settings else "conv_alstm", **settings)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(clips())["logits"], loaded(clips())["logits"])
    assert loaded.get_config().items() >= settings.items()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_normalized_features_have_no_scale(name):
    model, inputs = drawn(small(name, normalize="sqrt_l2")), clips()
    brighter = {**inputs, "features": inputs["features"] * np.float16(4)}
    # the normalisation's epsilon is 1e-6 of a mean square of about 0.05
    np.testing.assert_allclose(model(inputs)["logits"], model(brighter)["logits"], atol=1e-3)
    plain = drawn(small(name))
    assert np.abs(plain(inputs)["logits"] - plain(brighter)["logits"]).max() > 1e-2


def test_channel_dropout_takes_the_same_channels_from_all_frames_and_in_training_only():
    model = small("softmax", dropout=0.0, channel_dropout=0.5)
    same = np.repeat(clips()["features"][:1, :1], 6, axis=1).repeat(2, axis=0)
    inputs = {"features": same, "mask": np.ones((2, 6), bool)}
    trained, plain = (np.array(model(inputs, training=training)["logits"]) for training in (True, False))
    np.testing.assert_allclose(trained, np.repeat(trained[:, :1], 6, axis=1), rtol=1e-5)
    assert np.abs(trained[0] - trained[1]).max() > 1e-2  # each clip draws its own
    assert np.abs(trained - plain).max() > 1e-2
    np.testing.assert_allclose(plain, build_model_with(model.get_weights())(inputs)["logits"], rtol=1e-5)


def build_model_with(weights):
    model = small("softmax")
    model.set_weights(weights)
    return model


def test_motion_lets_a_model_without_memory_see_that_something_moves():
    inputs = clips()
    still = {**inputs, "features": np.repeat(inputs["features"][:, :1], 6, axis=1)}
    model = small("softmax", motion="difference")
    logits = np.array(model(still)["logits"])
    np.testing.assert_allclose(logits, logits[:, :1].repeat(6, axis=1), atol=1e-5)
    moving = {**inputs, "features": np.concatenate([inputs["features"][:, 1:2], still["features"][:, 1:]], axis=1)}
    logits = np.array(model(moving)["logits"])  # frames 1 and 2 show the same picture, but 1 differs from frame 0
    np.testing.assert_allclose(logits[:, 2], logits[:, 3], atol=1e-5)
    assert np.abs(logits[:, 1] - logits[:, 2]).max() > 1e-3


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if "cells" in find_model(name).fields])
def test_a_further_cell_is_one_more_of_the_same_with_a_state_of_its_own(name, tmp_path):
    """Reading U inputs: an LSTM of 4 U (2 U + 1) weights and two MLPs of 513 U, a ConvLSTM of 4 U (9 * 2 U + 1)."""
    model, units = small(name, cells=3), 8
    lstm, conv = 4 * units * (2 * units + 1) + 2 * 513 * units, 4 * units * (9 * 2 * units + 1)
    more = conv if "conv" in name else lstm
    if name == "motion_conv_alstm":  # with states of its own: two 3x3 convolutions of 512 channels
        more += 2 * units * (9 * 512 + 1)
    assert model.count_params() - small(name).count_params() == 2 * more
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(clips())["logits"], loaded(clips())["logits"])


@pytest.mark.parametrize(("head", "inputs"), [("flatten", 7 * 7 * 8), ("pool", 8), ("conv", 5 * 5 * CONV_HEAD_FILTERS)])
def test_heads_decide_what_the_classifier_sees(head, inputs):
    assert small("conv_alstm", head=head).classifier.kernel.shape == (inputs, 4)


def test_an_unknown_setting_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"flatten, conv, pool.*Received: 'mean'"):
        build_model("conv_alstm", 4, head="mean")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("softmax", {"glimpse": "nonsense"}, "softmax has no setting glimpse; it has dropout, .*Received: glimpse="),
        ("max_lstm", {"glimpse": "quarters"}, "max_lstm has no setting glimpse"),
        ("alstm", {"head": "pool"}, "alstm has no setting head"),
        ("alstm", {"wings": 2}, "alstm has no setting wings"),
        ("alstm", {"dropout": 1.5}, r"dropout must be a number at least 0, at most 1\. Received: 1\.5"),
        ("alstm", {"dropout": float("nan")}, "dropout must be a number at least 0, at most 1. Received: nan"),
        ("alstm", {"cells": True}, "cells must be a whole number at least 1, at most 16. Received: True"),
        ("conv_alstm", {"mean_one_attention": 1}, "mean_one_attention must be true or false. Received: 1"),
    ],
)
def test_a_setting_that_a_model_does_not_have_or_that_is_out_of_range_is_refused(name, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build_model(name, 4, **settings)


def inputs_without(key):
    return {name: value for name, value in clips().items() if name not in (key, "flow")}


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (inputs_without("mask"), r'takes {"features": \(B, T, H, W, D\), "mask": .*Received: features'),
        (clips()["features"], "takes .* Received: ndarray"),
        (
            {**clips(), "features": clips()["features"][0]},
            r"the shape \(B, T, 7, 7, 512\)\. Received: \(6, 7, 7, 512\)",
        ),
        ({**clips(), "features": clips()["features"][..., :5]}, r"\(B, T, 7, 7, 512\)\. Received: \(2, 6, 7, 7, 5\)"),
        ({**clips(), "mask": clips()["mask"][:, :4]}, r"the features' shape \(B, T\), \(2, 6\)\. Received: \(2, 4\)"),
    ],
)
def test_inputs_that_are_not_a_clip_are_one_clear_error(inputs, sentence):
    with pytest.raises(UserError, match=sentence) as raised:
        small("alstm")(inputs)
    assert "\n" not in str(raised.value)


def test_a_missing_mask_is_one_clear_error_in_fit_too():
    model = build_model("alstm", 4, lstm_units=8)
    model.compile("adam", loss=losses())
    with pytest.raises(UserError, match=r'^a model takes {"features": .*Received: features$'):
        model.fit(inputs_without("mask"), {"logits": np.zeros((2, 6)), "attention": np.ones((2, 6))}, verbose=0)


def test_maps_need_not_be_square_and_keep_their_orientation():
    """One location of a 2 x 3 map is not zero; maximum pooling's attention is all there."""
    features = np.zeros((1, 4, 2, 3, 5), np.float32)
    features[:, :, 1, 2] = 1
    outputs = build_model("max_lstm", 4, lstm_units=8)({"features": features, "mask": np.ones((1, 4), bool)})
    np.testing.assert_array_equal(np.argwhere(np.array(outputs["attention"][0, 0]) == 1), [[1, 2]])
    for name in MODEL_NAMES:
        model = build_model(name, 4, cube_shape=(2, 3, 5))
        inputs = {"features": features, "mask": np.ones((1, 4), bool), "flow": features}
        assert model(inputs)["attention"].shape == (1, 4, 2, 3)


@pytest.mark.parametrize("path", sorted(OLD.glob("*.keras")), ids=lambda path: path.stem)
def test_a_model_file_of_version_0_1_gives_what_it_gave_then(path, tmp_path):
    """Written by that version, with its outputs; one for each place that weights stood at."""
    with np.load(OLD / "outputs.npz") as then:
        inputs, expected = {key: then[key] for key in ("features", "mask")}, then[path.stem]
    model = load_keras(path)
    # processors with AVX-512 round a ConvLSTM of three cells 3.1e-6 away from those with AVX2, which wrote this
    np.testing.assert_allclose(model(inputs)["logits"], expected, atol=1e-5)
    model.save(tmp_path / "again.keras")  # and as a file of this version
    np.testing.assert_array_equal(load_keras(tmp_path / "again.keras")(inputs)["logits"], model(inputs)["logits"])


def test_the_old_files_hold_weights_at_every_old_place():
    places = set()
    for path in OLD.glob("*.keras"):
        with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read(WEIGHTS))) as weights:
            weights.visit(places.add)
    assert all(any(re.fullmatch(old, place) for place in places) for old, *_ in MOVES)
