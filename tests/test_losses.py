"""The loss in closed form, its scale and its mask."""

import keras
import numpy as np
import pytest

from action_attention.loss import PADDING, AttentionPenalty, FrameCrossEntropy
from action_attention.models import build_model

FRAMES, LOCATIONS = 30, 49


def uniform(batch):
    return np.full((batch, FRAMES, 7, 7), 1 / LOCATIONS, np.float32)


def fixed(batch):
    attention = np.zeros((batch, FRAMES, 7, 7), np.float32)
    attention[:, :, 2, 3] = 1
    return attention


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("weight", [0.5, 10.0])
@pytest.mark.parametrize(
    ("attention", "expected"),
    [(uniform, LOCATIONS * (1 - FRAMES / LOCATIONS) ** 2), (fixed, (LOCATIONS - 1) + (FRAMES - 1) ** 2)],
)
def test_penalty_has_its_closed_form_whatever_the_batch(attention, expected, weight, batch):
    """7.367 for uniform attention, 889 for a gaze that never moves; times lambda / T."""
    assert expected == pytest.approx(7.367, abs=5e-4) or expected == 889
    mask = np.ones((batch, FRAMES), bool)
    loss = float(AttentionPenalty(weight)(mask, attention(batch)))
    assert loss == pytest.approx(weight / FRAMES * expected, rel=1e-5)


def test_penalty_counts_real_frames_only():
    mask = np.arange(FRAMES)[None] < 12
    attention = uniform(1) * mask[..., None, None]
    expected = 0.5 / 12 * LOCATIONS * (1 - 12 / LOCATIONS) ** 2
    assert float(AttentionPenalty(0.5)(mask, attention)) == pytest.approx(expected, rel=1e-5)


def test_a_clip_without_a_real_frame_adds_nothing_to_the_cross_entropy():
    labels = np.array([[1, 1], [PADDING, PADDING]], np.int32)
    loss = FrameCrossEntropy(reduction="none")(labels, np.zeros((2, 2, 4), np.float32))
    np.testing.assert_allclose(loss, [np.log(4), 0], rtol=1e-6)


def test_cross_entropy_of_uniform_logits_is_log_of_the_classes():
    labels = np.random.default_rng(0).integers(0, 51, (16, FRAMES))
    assert float(FrameCrossEntropy()(labels, np.zeros((16, FRAMES, 51), np.float32))) == pytest.approx(np.log(51))


def test_cross_entropy_is_the_mean_over_clips_of_the_mean_over_their_real_frames():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, FRAMES, 7)).astype(np.float32)
    labels = random.integers(0, 7, (3, FRAMES))
    labels[1, 12:], labels[2, 1:] = PADDING, PADDING
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    clips = [-logs[b, range(n), labels[b, :n]].mean() for b, n in enumerate((30, 12, 1))]
    assert float(FrameCrossEntropy()(labels, logits)) == pytest.approx(np.mean(clips), rel=1e-5)
    logits[1, 12:] = 1e4  # what is said of padded frames counts nowhere
    assert float(FrameCrossEntropy()(labels, logits)) == pytest.approx(np.mean(clips), rel=1e-5)


@pytest.mark.parametrize("name", ["alstm", "conv_alstm", "softmax"])
def test_weight_decay_is_omega_times_the_squared_kernels(name):
    model = build_model(name, 3, weight_decay=0.01, cube_shape=(3, 3, 5))
    kernels = [weight for weight in model.trainable_weights if "bias" not in weight.path]
    expected = 0.01 * sum(float(keras.ops.sum(keras.ops.square(kernel))) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
