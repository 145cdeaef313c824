"""Heatmaps by the tutorial's recipe."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from action_attention.heatmaps import heatmap, overlay


def spot(row, column):
    attention = np.zeros((7, 7))
    attention[row, column] = 1
    return attention


@pytest.mark.parametrize("size", [(800, 800), (320, 240), (176, 440)])
@pytest.mark.parametrize(("row", "column"), [(1, 1), (3, 3), (5, 2)])
def test_the_peak_lies_where_the_attention_is(row, column, size):
    width, height = size
    heat = heatmap(spot(row, column), size)
    assert heat.shape == (height, width)
    peak = np.array(np.unravel_index(heat.argmax(), heat.shape)) / (height, width) * 7
    np.testing.assert_allclose(peak, [row + 0.5, column + 0.5], atol=0.1)


def test_it_is_upsampling_then_a_gaussian_filter_then_what_is_above_the_percentile():
    """The recipe word by word, on the picture itself."""
    attention = np.random.default_rng(0).random((7, 7))
    for size, percentile, sigma in ((800, 80, 0.5), (280, 60, 1.0)):
        smooth = cv2.resize(attention, (size, size), interpolation=cv2.INTER_CUBIC)
        smooth = gaussian_filter(smooth, sigma * size / 7, mode="nearest")
        expected = np.where(smooth > np.percentile(smooth, percentile), smooth, 0) / smooth.max()
        np.testing.assert_allclose(heatmap(attention, (size, size), percentile, sigma), expected, atol=1e-9)


def test_only_what_is_above_the_percentile_is_kept():
    random = np.random.default_rng(0).random((7, 7))
    for percentile, kept in ((80, 0.2), (50, 0.5)):
        assert (heatmap(random, (200, 100), percentile) > 0).mean() == pytest.approx(kept, abs=0.01)
    assert heatmap(random).max() == 1
    assert (heatmap(random) > 0).mean() == pytest.approx(0.2, abs=0.001)


@pytest.mark.parametrize("value", [0, 1 / 49, np.float32(1 / 49), np.nan])
def test_nothing_of_a_map_without_a_peak_is_coloured(value):
    """The pooled controls look everywhere alike: no place of theirs may look preferred, by rounding or by a tie."""
    uniform = np.full((7, 7), value)
    assert np.array_equal(heatmap(uniform), np.zeros((800, 800)))
    frame = np.random.default_rng(0).integers(0, 256, (144, 176, 3), np.uint8)
    assert np.array_equal(overlay(frame, uniform), frame)


def test_a_heatmap_is_the_square_one_stretched_to_the_frame():
    """A spot at the centre reaches over the same share of height and width, whatever the aspect ratio."""
    square = heatmap(spot(3, 3))
    for size in ((640, 160), (90, 360)):
        stretched = cv2.resize(heatmap(spot(3, 3), size), (800, 800), interpolation=cv2.INTER_LINEAR)
        inside = (square == 0) == (stretched == 0)
        assert inside.mean() > 0.97
        np.testing.assert_allclose(stretched[200:600:50, 400], square[200:600:50, 400], atol=0.03)


def test_an_overlay_leaves_the_rest_of_the_frame_alone():
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    drawn = overlay(frame, spot(3, 3))
    assert drawn.shape == frame.shape
    changed = (drawn != frame).any(axis=2)
    assert 0.1 < changed.mean() <= 0.2
    assert changed[120, 160]


def test_an_overlay_is_half_frame_and_half_colour():
    hottest = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_JET)[0, 0, ::-1]
    assert hottest[0] > hottest[1] == hottest[2] == 0  # red, in RGB
    peak = overlay(np.full((240, 320, 3), 100, np.uint8), spot(3, 3))[120, 160]
    np.testing.assert_allclose(peak, 50 + hottest / 2, atol=3)
