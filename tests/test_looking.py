"""Attention that can look: location scores, the motion prior and attentive pooling, re-stated in NumPy."""

import keras
import numpy as np
import pytest
from scipy.special import softmax

from action_attention.errors import UserError
from action_attention.models import build_model
from action_attention.models.alstm import ALSTM, ALSTMSettings
from action_attention.models.attention import Prior
from action_attention.models.attentive_pool import AttentivePool
from action_attention.models.base import kernel_options
from action_attention.models.conv_alstm import ConvALSTM
from action_attention.registry import Config
from tests.test_layers import CHANNELS, FRAMES, SIDE, UNITS, lstm_step, named

PLACES = SIDE * SIDE


@pytest.fixture
def inputs():
    """Features, mask and motion maps of two clips; in one frame nothing moves."""
    random = np.random.default_rng(0)
    features = random.random((2, FRAMES, SIDE, SIDE, CHANNELS)).astype(np.float32)
    motion = random.exponential(1.0, (2, FRAMES, SIDE, SIDE)).astype(np.float32)
    motion[0, 3] = 0
    return features, np.ones((2, FRAMES), bool), motion


def core(model, inputs, **settings):
    """A core of random weights in float64, called with motion maps where its settings take them."""
    settings = model.settings_class(**settings)
    layer = model.make_core(model, settings, kernel_options(settings, "float64"))
    given = inputs if settings.takes_motion else inputs[:2]
    layer(*given)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.7, weight.shape) for weight in layer.get_weights()])
    layer.settings = settings
    return layer, given


def log_motion(motion, gamma):
    """gamma log(0.05 + m / mean m), and nothing where nothing moves."""
    flat = motion.reshape(2, FRAMES, PLACES).astype(np.float64)
    mean = flat.mean(2, keepdims=True)
    return gamma * np.log(0.05 + np.divide(flat, mean, out=np.ones_like(flat), where=mean > 0))


def log_centre(delta):
    """The logarithm of a Gaussian around the middle of 3 x 3 locations, sigma 1.5 of seven."""
    offsets = np.arange(SIDE) - 1
    return -delta * (offsets[:, None] ** 2 + offsets**2).reshape(-1) / (2 * (1.5 * SIDE / 7) ** 2)


def numpy_alstm(layer, features, motion):
    w, settings = named(layer), layer.settings
    cube = features.reshape(2, FRAMES, PLACES, CHANNELS).astype(np.float64)
    prior = log_motion(motion, w["prior/gamma"]) if settings.takes_motion else np.zeros((2, FRAMES, PLACES))
    prior = prior + log_centre(w["prior/delta"]) if settings.centre_prior else prior
    tau = settings.temperature or np.exp(w.get("attention/log_temperature", 0))
    mean = cube.mean((1, 2))
    hidden, cell = (np.tanh(mean @ w[f"mlp_{state}/kernel"] + w[f"mlp_{state}/bias"]) for state in "hc")
    hiddens, maps = [], []
    for t in range(FRAMES):
        scores = np.zeros((2, PLACES, 1))
        if settings.scores == "location":
            mixed = cube[:, t] @ w["conv_x/kernel"] + w["conv_x/bias"] + (hidden @ w["conv_h/kernel"])[:, None]
            scores = np.tanh(mixed) @ w["conv_score/kernel"] / tau
        elif settings.scores == "mean":
            mixed = cube[:, t].mean(1) @ w["mlp1/kernel"] + w["mlp1/bias"] + hidden @ w["mlp2/kernel"]
            scores = (np.tanh(mixed) @ w["mlp3/kernel"] + w["mlp3/bias"])[..., None]
        scores = scores + prior[:, t, :, None]
        weights = softmax(scores / tau if settings.scores == "motion" else scores, axis=1)  # (B, L, N)
        glimpse = np.concatenate([np.einsum("bl,bld->bd", head, cube[:, t]) for head in weights.transpose(2, 0, 1)], -1)
        if settings.beside == "mean":
            glimpse = np.concatenate([glimpse, cube[:, t].mean(1)], axis=-1)
        hidden, cell = lstm_step(glimpse, hidden, cell, w, "lstm")
        hiddens.append(hidden)
        maps.append(weights.mean(2).reshape(2, SIDE, SIDE))
    return np.stack(hiddens, 1), np.stack(maps, 1)


@pytest.mark.parametrize("settings", [
    {"scores": "location"},
    {"scores": "location", "heads": 3, "temperature": 0.5},
    {"scores": "location", "heads": 2, "temperature": 0.0, "motion_prior": True, "beside": "mean"},
    {"scores": "motion"},
    {"scores": "motion", "beside": "mean"},
    {"scores": "motion", "centre_prior": True},
    {"scores": "motion", "centre_prior": True, "temperature": 0.5},
    {"scores": "mean", "motion_prior": True},
    {"scores": "location", "centre_prior": True},
], ids=str)  # fmt: skip
def test_alstm_looks_as_the_equations_say(settings, inputs):
    layer, given = core(ALSTM, inputs, lstm_units=UNITS, attention_units=6, **settings)
    hidden, attention = layer(*given, training=False)
    expected_hidden, expected_attention = numpy_alstm(layer, inputs[0], inputs[2])
    np.testing.assert_allclose(hidden, expected_hidden, atol=2e-6)  # the prior's logarithm is taken in float32
    np.testing.assert_allclose(attention, expected_attention, atol=2e-6)


def test_conv_alstm_adds_the_same_prior(inputs):
    """With scores of zero its maps are softmax of the prior."""
    layer, given = core(ConvALSTM, inputs, lstm_units=UNITS, motion_prior=True)
    layer.attention.to_scores.set_weights([np.zeros((UNITS, 1))])
    _, attention = layer(*given)
    expected = softmax(log_motion(inputs[2], named(layer)["prior/gamma"]), axis=2)
    np.testing.assert_allclose(attention, expected.reshape(attention.shape), atol=2e-6)


def test_a_new_prior_weighs_locations_by_their_motion(inputs):
    """gamma starts at 1: weights are 0.05 + m / mean m, divided by their sum; alike where nothing moves."""
    motion = inputs[2]
    weights = softmax(
        np.asarray(Prior(motion=True, centre=False)(np.zeros((2, FRAMES, SIDE, SIDE, 1)), motion)), axis=2
    )
    wanted = 0.05 + motion.reshape(2, FRAMES, PLACES) / np.maximum(motion.mean((2, 3)), 1e-9)[..., None]
    wanted[0, 3] = 1
    np.testing.assert_allclose(weights, wanted / wanted.sum(2, keepdims=True), rtol=1e-5)


def test_attentive_pooling_is_softmax_over_all_places_of_all_real_frames(inputs):
    features, _, motion = inputs
    mask = np.arange(FRAMES) < np.array([[FRAMES], [FRAMES - 9]])
    layer, _ = core(AttentivePool, inputs, queries=3, value_units=2, motion_prior=True)
    hidden, attention = layer(features, mask, motion, training=False)
    w = named(layer)
    for clip, frames in enumerate((FRAMES, FRAMES - 9)):
        cube = features[clip, :frames].reshape(-1, CHANNELS).astype(np.float64)
        scores = cube @ w["queries/kernel"] + log_motion(motion, w["prior/gamma"])[clip, :frames].reshape(-1, 1)
        weights = softmax(scores, axis=0)  # (places, M)
        values = [np.maximum(weights[:, m] @ cube @ w["core/values"][m] + w["core/bias"][m], 0) for m in range(3)]
        np.testing.assert_allclose(hidden[clip], np.tile(np.concatenate(values), (FRAMES, 1)), atol=1e-4)
        maps = weights.mean(1).reshape(frames, SIDE, SIDE)
        expected = maps / maps.sum((1, 2), keepdims=True)
        np.testing.assert_allclose(attention[clip, :frames], expected, atol=1e-5)
        assert not np.asarray(attention)[clip, frames:].any()


@pytest.mark.parametrize(("model", "settings", "looks"), [
    ("alstm", {"scores": "mean"}, False), ("alstm", {"scores": "location"}, True),
    ("alstm", {"scores": "location", "heads": 4}, True), ("conv_alstm", {}, True), ("attentive_pool", {}, True),
])  # fmt: skip
def test_shuffling_a_frames_places_shuffles_the_map_of_a_model_that_looks(model, settings, looks, inputs):
    """The tutorial's scores see the mean cube only: they cannot know where anything is, and the map stays as it is."""
    features, mask, _ = inputs
    units = {} if model == "attentive_pool" else {"lstm_units": UNITS}
    network = build_model(model, 3, cube_shape=features.shape[2:], **units, **settings)
    random = np.random.default_rng(2)
    network.set_weights([random.normal(0, 1, weight.shape) for weight in network.get_weights()])
    order, at = np.random.default_rng(3).permutation(PLACES), 0  # where ConvALSTM's hidden maps are zero yet
    shuffled = features.copy()
    shuffled[:, at] = features[:, at].reshape(2, PLACES, CHANNELS)[:, order].reshape(features[:, at].shape)
    before, after = (
        np.asarray(network({"features": x, "mask": mask})["attention"])[:, at].reshape(2, PLACES)
        for x in (features, shuffled)
    )
    assert before.std() > 1e-3
    np.testing.assert_allclose(after, before[:, order] if looks else before, atol=1e-5)
    assert np.abs(after - (before if looks else before[:, order])).max() > 1e-3


def test_the_tutorials_scores_stay_the_default():
    settings = ALSTMSettings()
    assert (settings.scores, settings.heads, settings.beside, settings.takes_motion) == ("mean", 1, "none", False)
    assert Config.of("alstm", scores="motion").settings.takes_motion


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"heads": 4}, r"heads is for scores=location\. Received: scores=mean"),
    ({"scores": "motion", "heads": 4}, r"heads is for scores=location\. Received: scores=motion"),
    ({"temperature": 0.5}, r"temperature is for scores=location and scores=motion\. Received: scores=mean"),
    ({"scores": "motion", "temperature": 0.0}, "of scores=motion gamma and delta are learned"),
    ({"scores": "location", "heads": 2, "glimpse": "quarters"}, "several heads take glimpse=whole"),
    ({"scores": "motion", "motion_prior": True}, "scores=motion is the motion prior by itself"),
])  # fmt: skip
def test_settings_that_say_nothing_together_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ALSTMSettings(**settings)


@pytest.mark.parametrize("name", ["alstm", "conv_alstm", "attentive_pool"])
def test_motion_maps_that_are_missing_or_of_another_shape_are_told(name, inputs, tmp_path):
    features, mask, motion = inputs
    model = build_model(name, 3, cube_shape=features.shape[2:], motion_prior=True)
    with pytest.raises(UserError, match=r'takes motion maps too: {"motion": \(B, T, H, W\)}.*Received: none$'):
        model({"features": features, "mask": mask})
    with pytest.raises(UserError, match=r"Received: \(2, 30, 3\)$"):
        model({"features": features, "mask": mask, "motion": motion[..., 0]})
    given = {"features": features, "mask": mask, "motion": motion}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(model(given)["logits"], loaded(given)["logits"])
    assert model.learned() == {"gamma": 1.0}
