"""Models of others that stand beside ours, re-stated in NumPy."""

import numpy as np
import pytest
from scipy.ndimage import correlate
from scipy.special import softmax

from action_attention.models.base import kernel_options
from action_attention.models.conv3d import Conv3D
from action_attention.models.late_fusion import LateFusion
from action_attention.models.temporal_attention import TemporalAttention
from tests.test_layers import named


@pytest.fixture
def clip():
    """Features of two clips, `(2, 9, 3, 4, 5)`, of which the second has six real frames, and their mask."""
    random = np.random.default_rng(0)
    features = random.random((2, 9, 3, 4, 5)) * random.exponential(1, (2, 9, 1, 1, 1))
    mask = np.arange(9) < np.array([[9], [6]])
    features[1, 6:] = features[1, 5]
    return features, mask


def core(model, clip, **settings):
    settings = model.settings_class(**settings)
    layer = model.make_core(None, settings, kernel_options(settings, "float64"))
    layer(*clip)
    random = np.random.default_rng(1)
    layer.set_weights([random.normal(0, 0.7, weight.shape) for weight in layer.get_weights()])
    return layer, named(layer)


def test_late_fusion_sees_a_frame_and_the_one_before_it_by_the_given_distance(clip):
    layer, w = core(LateFusion, clip, frames_apart=4, hidden_units=6)
    means, (hidden, maps) = clip[0].mean((2, 3)), layer(*clip)
    for t in range(9):
        pair = np.concatenate([means[:, t], means[:, max(t - 4, 0)]], axis=1)
        np.testing.assert_allclose(hidden[:, t], np.maximum(pair @ w["merge/kernel"] + w["merge/bias"], 0), atol=1e-10)
    np.testing.assert_allclose(maps, np.broadcast_to(clip[1][..., None, None] / 12, maps.shape), atol=1e-7)


def test_temporal_attention_is_one_weighted_sum_of_the_real_frames(clip):
    layer, w = core(TemporalAttention, clip, score_units=6)
    hidden, _ = layer(*clip)
    for row, real in enumerate((9, 6)):
        means = clip[0][row, :real].mean((1, 2))
        scores = np.tanh(means @ w["from_frame/kernel"] + w["from_frame/bias"]) @ w["scores/kernel"]
        weights = softmax(scores[:, 0])
        assert weights.max() > 1.1 / real  # the weights are not those of a mean
        np.testing.assert_allclose(hidden[row], np.broadcast_to(weights @ means, (9, 5)), atol=1e-6)


def test_conv3d_sees_the_frames_before_and_after(clip):
    layer, w = core(Conv3D, clip, filters=4, layers=2)
    maps = np.maximum(clip[0] @ w["reduce/kernel"][0, 0, 0] + w["reduce/bias"], 0)
    for name in ("conv1", "conv2"):
        kernel = w[f"{name}/kernel"]
        maps = np.maximum(w[f"{name}/bias"] + np.stack([
            sum(correlate(maps[..., i], kernel[None, ..., i, o], mode="constant") for i in range(4)) for o in range(4)
        ], axis=-1), 0)  # fmt: skip
    np.testing.assert_allclose(layer(*clip)[0], maps.mean((2, 3)), atol=1e-10)
