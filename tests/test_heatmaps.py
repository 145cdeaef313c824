"""Heatmaps on an absolute scale, and by the tutorial's recipe."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from action_attention.errors import UserError
from action_attention.heatmaps import HEATMAPS, heatmap, overlay, paint, relative_entropy, times_uniform


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
    for name in HEATMAPS:
        assert np.array_equal(overlay(frame, uniform, name), frame)


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
    drawn = overlay(frame, spot(3, 3), "tutorial")
    assert drawn.shape == frame.shape
    changed = (drawn != frame).any(axis=2)
    assert 0.1 < changed.mean() <= 0.2
    assert changed[120, 160]


def test_an_overlay_is_half_frame_and_half_colour():
    hottest = cv2.applyColorMap(np.full((1, 1), 255, np.uint8), cv2.COLORMAP_JET)[0, 0, ::-1]
    assert hottest[0] > hottest[1] == hottest[2] == 0  # red, in RGB
    peak = overlay(np.full((240, 320, 3), 100, np.uint8), spot(3, 3), "tutorial")[120, 160]
    np.testing.assert_allclose(peak, 50 + hottest / 2, atol=3)


def test_the_tutorials_look_is_what_it_was_in_version_0_2():
    """Pixels that its code drew; outside of the heatmap the frame."""
    frame = (np.arange(96 * 128 * 3).reshape(96, 128, 3) % 251).astype(np.uint8)
    drawn = overlay(frame, np.arange(49).reshape(7, 7) % 11 / 230, "tutorial")
    assert drawn[8::16, 72].tolist() == [
        [25, 26, 27], [145, 146, 147], [14, 15, 16], [194, 172, 68], [129, 108, 2], [123, 124, 125],
    ]  # fmt: skip
    assert (drawn != frame).any(axis=2).sum() == 2458


SIDE = 9  # pixels of a location in the tests below: an odd number, so that there is one at its centre


def at(picture, row, column):
    return picture[SIDE * row + SIDE // 2, SIDE * column + SIDE // 2]


def weighs(times, others=0):
    """A map whose location (3, 3) weighs so many times uniform; `others`: how the rest is shared, all alike for 0."""
    rest = np.random.default_rng(others).random((7, 7)) ** 4 if others else np.ones((7, 7))
    rest[3, 3] = 0
    attention = rest / rest.sum() * (1 - times / 49)
    attention[3, 3] = times / 49
    assert attention.sum() == pytest.approx(1)
    return attention


@pytest.mark.parametrize(
    ("times", "place"), [(0, 0), (0.5, 0), (1, 0), (2**0.5, 1 / 6), (2, 1 / 3), (4, 2 / 3), (8, 1), (20, 1), (49, 1)]
)
def test_the_scale_counts_doublings_of_uniform_whatever_the_other_locations_weigh(times, place):
    for others in range(6):
        heat = times_uniform(weighs(times, others), (7 * SIDE, 7 * SIDE))
        assert at(heat, 3, 3) == pytest.approx(place, abs=1e-6)
        assert heat.min() >= 0
        assert heat.max() <= 1
    assert heat.max() > 0.5  # of another location: what is in the middle does not follow the frame's peak


def test_every_location_has_its_own_place_on_the_scale_in_grids_of_any_shape():
    for rows, columns in ((7, 7), (14, 14), (3, 5), (1, 4), (1, 1)):
        attention = np.random.default_rng(rows).dirichlet(np.ones(rows * columns)).reshape(rows, columns)
        heat = times_uniform(attention, (columns * SIDE, rows * SIDE))
        expected = np.clip(np.log2(attention * rows * columns) / 3, 0, 1)
        np.testing.assert_allclose(heat[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE], expected, atol=1e-6)


def test_between_locations_it_is_no_more_than_the_ones_around():
    """Four locations of 4 times uniform in a square, around which there is nothing: no pixel among them has more."""
    block = np.zeros((7, 7))
    block[2:4, 2:4] = 4 / 49
    heat = times_uniform(block, (7 * SIDE, 7 * SIDE))
    among = slice(2 * SIDE + SIDE // 2, 3 * SIDE + SIDE // 2 + 1)
    np.testing.assert_allclose(heat[among, among], 2 / 3, atol=1e-6)
    for seed in range(20):
        attention = np.random.default_rng(seed).dirichlet(np.full(49, 0.5)).reshape(7, 7)
        heat = times_uniform(attention, (480, 360))
        places = np.clip(np.log2(np.maximum(attention * 49, 1)) / 3, 0, 1)
        around = cv2.resize(places, (480, 360), interpolation=cv2.INTER_NEAREST)
        assert (heat <= cv2.dilate(around, np.ones((105, 139))) + 1e-6).all()  # a location is 51 by 69 pixels


def test_a_location_of_eight_times_uniform_has_full_colour_and_one_of_four_its_own():
    """0.6 of the hottest colour and 0.4 of the frame; whatever else is in the map, the same pixel."""
    hottest = cv2.applyColorMap(np.full((1, 1), round(0.95 * 255), np.uint8), cv2.COLORMAP_TURBO).reshape(3)[::-1]
    frame = np.full((7 * SIDE, 7 * SIDE, 3), 100, np.uint8)
    for times in (8, 12, 49):
        np.testing.assert_allclose(at(overlay(frame, weighs(times)), 3, 3), 40 + 0.6 * hottest, atol=1)
    pixels = [at(overlay(frame, weighs(4, others)), 3, 3).tolist() for others in range(6)]
    assert pixels == pixels[:1] * 6
    assert np.abs(np.subtract(pixels[0], 40 + 0.6 * hottest)).max() > 10


@pytest.mark.parametrize(("times", "grey", "any_frame"), [(1, 0, 0), (1.1, 4, 7), (1.2, 7, 14)])
def test_a_peak_that_hardly_stands_out_is_hardly_seen(times, grey, any_frame):
    """At most so many grey levels of 255, over mid grey and over any frame."""
    for value, most in ((np.full((63, 63, 3), 128, np.uint8), grey),
                        (np.random.default_rng(0).integers(0, 256, (63, 63, 3), np.uint8), any_frame)):  # fmt: skip
        changed = np.abs(overlay(value, weighs(times)).astype(int) - value)
        assert changed.max() <= most
        assert (changed.max() > 0) == (times > 1)


def test_nothing_is_drawn_where_no_location_nearby_is_above_uniform():
    frame = np.random.default_rng(0).integers(0, 256, (7 * SIDE, 7 * SIDE, 3), np.uint8)
    y, x = np.abs(np.mgrid[: 7 * SIDE, : 7 * SIDE] - (3 * SIDE + SIDE // 2)) / SIDE  # in locations from the only one
    changed = (overlay(frame, spot(3, 3)) != frame).any(axis=2)
    assert changed[np.maximum(y, x) < 0.7].all()
    assert not changed[np.maximum(y, x) >= 1].any()
    half = np.where(np.mgrid[:7, :7][1] < 3, 2, 0.25) / (3 * 7 * 2 + 4 * 7 * 0.25)
    changed = (overlay(frame, half) != frame).any(axis=2)
    assert changed[:, : 3 * SIDE - SIDE // 2].all()
    assert not changed[:, 3 * SIDE + SIDE // 2 :].any()


def test_opacity_grows_with_the_place_on_the_scale_to_six_tenths():
    """What is left of the difference between black and white is what shows of the frame."""
    heat = np.linspace(0, 1, 256)[None]
    black, white = (paint(np.full((1, 256, 3), value, np.uint8), heat).astype(int) for value in (0, 255))
    np.testing.assert_allclose(white - black, 255 * (1 - 0.6 * heat[..., None] * np.ones(3)), atol=1)


def test_another_heatmap_is_refused():
    with pytest.raises(UserError, match=r"^there is no heatmap 'jet'; give one of absolute, tutorial$"):
        overlay(np.zeros((8, 8, 3), np.uint8), spot(3, 3), "jet")


def test_relative_entropy_is_1_of_uniform_0_of_one_location_and_log_2_by_log_49_of_two():
    two = (spot(0, 0) + spot(4, 2)) / 2
    maps = np.stack([np.full((7, 7), 1 / 49), spot(3, 3), two])
    np.testing.assert_allclose(relative_entropy(maps), [1, 0, np.log(2) / np.log(49)], atol=1e-12)
    np.testing.assert_allclose(relative_entropy(maps.astype(np.float32)), relative_entropy(maps), atol=1e-6)
    quarter = np.zeros((1, 4, 16))
    quarter[:, :, :4] = 1 / 16
    assert relative_entropy(quarter) == pytest.approx(2 / 3)  # log 16 / log 64
    assert relative_entropy(np.ones((2, 1, 1))).tolist() == [1, 1]
