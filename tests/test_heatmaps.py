"""Heatmaps by the tutorial's recipe."""

import numpy as np
import pytest

from action_attention.heatmaps import heatmap, overlay


def spot(row, column):
    attention = np.zeros((7, 7))
    attention[row, column] = 1
    return attention


@pytest.mark.parametrize(("row", "column"), [(1, 1), (3, 3), (5, 2)])
def test_the_peak_lies_where_the_attention_is(row, column):
    heat = heatmap(spot(row, column))
    assert heat.shape == (800, 800)
    peak = np.array(np.unravel_index(heat.argmax(), heat.shape)) / 800 * 7
    np.testing.assert_allclose(peak, [row + 0.5, column + 0.5], atol=0.1)


def test_only_what_is_above_the_percentile_is_kept():
    random = np.random.default_rng(0).random((7, 7))
    for percentile, kept in ((80, 0.2), (50, 0.5)):
        assert (heatmap(random, (200, 100), percentile) > 0).mean() == pytest.approx(kept, abs=0.01)
    assert heatmap(random).max() == 1


def test_an_overlay_leaves_the_rest_of_the_frame_alone():
    frame = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    drawn = overlay(frame, spot(3, 3))
    assert drawn.shape == frame.shape
    changed = (drawn != frame).any(axis=2)
    assert 0.1 < changed.mean() <= 0.2
    assert changed[120, 160]
    red, green, blue = overlay(np.full((240, 320, 3), 100, np.uint8), spot(3, 3))[120, 160]
    assert red > green == blue  # the hottest colour
