"""What is drawn with a frame, and the files that drawn frames go to."""

import weakref
from itertools import islice

import av
import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from action_attention import overlays
from action_attention.errors import UserError
from action_attention.evaluation import draw_gallery
from action_attention.heatmaps import HEATMAPS, overlay
from action_attention.metrics import VideoPrediction
from action_attention.overlays import (
    BACKGROUND,
    MUTED,
    NEUTRAL,
    OTHER,
    PLAIN,
    RIGHT,
    WRONG,
    draw_overlays,
    gallery,
    write_video,
)
from action_attention.segments import Segment
from action_attention.timeline import CURSOR, colours

CLASSES = ["jump", "run", "walk"]
GREY = np.full((240, 320, 3), 128, np.uint8)


def predicted(*winners, label=0, sure=0.8):
    """A prediction whose frame n goes to class `winners[n]`; attention at the upper left location."""
    probabilities = np.full((len(winners), 3), (1 - sure) / 2)
    probabilities[np.arange(len(winners)), winners] = sure
    attention = np.zeros((len(winners), 7, 7))
    attention[:, 1, 1] = 1
    return VideoPrediction("a/b.avi", label, probabilities, attention, [probabilities], None)


def draw(prediction, frame=GREY, classes=CLASSES, vote="mode", **settings):
    return list(draw_overlays([frame] * len(prediction.probabilities), prediction, classes, vote, **settings))


def parts(drawn, frame=GREY):
    """Text above, picture and bar below; the picture is the enlarged frame's."""
    rows = np.flatnonzero((drawn[:, 0] != BACKGROUND).any(axis=1))  # the strips' margin
    above, below = drawn[: rows[0]], drawn[rows[-1] + 1 :]
    picture = drawn[rows[0] : rows[-1] + 1]
    assert len(picture) == pytest.approx(drawn.shape[1] * frame.shape[0] / frame.shape[1], abs=1)
    return above, picture, below


def count(picture, colour):
    return int((picture == colour).all(axis=2).sum())


def bar_lengths(drawn):
    """Pixels of each colour along the middle of the bar, without the line between neighbours: {colour: pixels}."""
    below = parts(drawn)[2]
    coloured = [(below == colour).all(axis=2) for colour in (RIGHT, WRONG, NEUTRAL, OTHER)]
    row = next(y for y in range(len(below)) if sum(mask[y].sum() for mask in coloured) > below.shape[1] / 2)
    return {
        colour: int(mask[row + 2].sum())
        for colour, mask in zip((RIGHT, WRONG, NEUTRAL, OTHER), coloured, strict=True)
    }  # fmt: skip


def test_a_frame_is_green_where_it_is_right_red_where_wrong_and_blue_where_nobody_knows():
    right, wrong = draw(predicted(0, 1))
    assert count(parts(right)[0], RIGHT) > 10
    assert count(parts(wrong)[0], WRONG) > 10
    assert count(parts(right)[0], WRONG) == count(parts(wrong)[0], RIGHT) == 0
    (unknown,) = draw(predicted(0, label=None))
    assert count(parts(unknown)[0], NEUTRAL) > 10
    assert not any(count(unknown, colour) for colour in (RIGHT, WRONG, PLAIN))


def test_the_true_class_stands_there_only_if_it_is_known():
    (known,), (unknown,) = draw(predicted(0)), draw(predicted(0, label=None))
    assert count(parts(known)[0], PLAIN) > 10
    assert len(parts(known)[0]) > len(parts(unknown)[0])
    (other,) = draw(predicted(0, label=2))
    assert not np.array_equal(parts(known)[0], parts(other)[0])


def test_class_and_confidence_are_drawn():
    (sure,), (unsure,) = draw(predicted(0)), draw(predicted(0, sure=0.6))
    assert not np.array_equal(parts(sure)[0], parts(unsure)[0])
    (renamed,) = draw(predicted(0), classes=["bump", "run", "walk"])
    assert not np.array_equal(parts(sure)[0], parts(renamed)[0])
    (close,) = draw(predicted(0, sure=0.609))  # no number is rounded up
    np.testing.assert_array_equal(parts(close)[0], parts(unsure)[0])


def test_the_bar_shows_the_shares_of_the_vote_so_far():
    """Of a known true class (green, first) and of the leading one (red if it is another), the rest in grey."""
    drawn = draw(predicted(1, 1, 0, 0, 0, 2))
    del drawn[3]  # a tie
    width = sum(bar_lengths(drawn[0]).values())
    assert width == pytest.approx(480, abs=20)
    for picture, (right, wrong, other) in zip(
        drawn, [(0, 1, 0), (0, 1, 0), (1 / 3, 2 / 3, 0), (3 / 5, 0, 2 / 5), (1 / 2, 0, 1 / 2)],
        strict=True,
    ):  # fmt: skip
        lengths = bar_lengths(picture)
        for colour, share in ((RIGHT, right), (WRONG, wrong), (OTHER, other), (NEUTRAL, 0)):
            assert lengths[colour] == pytest.approx(share * width, abs=3)
    first_pixel = parts(drawn[2])[2][:, 10]
    assert count(first_pixel[None], RIGHT)
    assert not count(first_pixel[None], WRONG)


def test_the_bar_of_an_unknown_truth_shows_the_leading_class():
    lengths = bar_lengths(draw(predicted(1, 1, 0, 2, label=None))[-1])
    assert lengths[NEUTRAL] == pytest.approx(lengths[OTHER], abs=3)
    assert lengths[RIGHT] == lengths[WRONG] == 0


def test_the_bar_of_a_mean_vote_shows_mean_probabilities():
    lengths = bar_lengths(draw(predicted(0, 1), vote="mean")[-1])
    width = sum(lengths.values())
    assert lengths[RIGHT] == pytest.approx(0.45 * width, abs=3)  # (0.8 + 0.1) / 2, a tie that the first class leads


@pytest.mark.parametrize("vote", ["mode", "mean"])
def test_calibrated_probabilities_are_shown_and_the_predictions_decide(vote):
    said, milder = predicted(0, 0), predicted(0, 0, sure=0.6)
    drawn = draw(said, vote=vote, calibrated=milder.probabilities)
    np.testing.assert_array_equal(drawn, draw(milder, vote=vote))
    assert not np.array_equal(drawn, draw(said, vote=vote))


def test_the_leading_class_is_the_predictions_where_calibrated_means_are_in_another_order():
    prediction = VideoPrediction("a/b.avi", 0, np.array([[0.9, 0.1], [0.3, 0.7]]), np.ones((2, 1, 1)))
    milder = np.array([[0.55, 0.45], [0.4, 0.6]])  # means 0.6 and 0.4 here, 0.475 and 0.525 there
    shown = draw(prediction, vote="mean", calibrated=milder)[1]
    other = draw(VideoPrediction("a/b.avi", 0, milder, np.ones((2, 1, 1))), vote="mean")[1]
    assert count(parts(shown)[2], WRONG) == 0 < count(parts(other)[2], WRONG)


def looking(*maps):
    """A prediction with these attention maps, one a frame."""
    probabilities = np.tile([0.8, 0.1, 0.1], (len(maps), 1))
    return VideoPrediction("a/b.avi", 0, probabilities, np.array(maps, float), [probabilities], None)


def peaked(times):
    """A 7x7 map whose central location weighs so many times uniform, the others alike."""
    attention = np.full((7, 7), (1 - times / 49) / 48)
    attention[3, 3] = times / 49
    return attention


@pytest.fixture
def words(monkeypatch):
    """Every text that is drawn, in order."""
    said, write = [], ImageDraw.ImageDraw.text

    def record(draw, place, text, *arguments, **settings):
        said.append(text)
        return write(draw, place, text, *arguments, **settings)

    overlays._legend.cache_clear()
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    yield said
    overlays._legend.cache_clear()


def legend_bar(drawn):
    """The legend's bar, and the columns of its ticks within it."""
    below = parts(drawn)[2]
    ticked = next(y for y in range(len(below)) if 2 <= count(below[y : y + 1], MUTED) <= 4)
    ticks = np.flatnonzero((below[ticked] == MUTED).all(axis=1))
    return below[ticked - 1, ticks[0] : ticks[-1] + 1], ticks - ticks[0]


@pytest.mark.parametrize("width", [288, 360, 480, 1280])
def test_the_legends_colours_are_those_of_locations_that_weigh_as_much(width, words):
    """Over mid grey, which the frame is: 1, 2, 4 and 8 times uniform, at ticks with these numbers."""
    drawn = draw(looking(*map(peaked, (1, 2, 4, 8))), width=width)
    bar, ticks = legend_bar(drawn[0])
    assert len(ticks) == 4
    assert [text for text in words if text[0].isdigit() or text == "uniform"][:5] == ["1x", "2x", "4x", "8x", "uniform"]
    np.testing.assert_allclose(np.diff(ticks), (len(bar) - 1) / 3, atol=1)
    for picture, tick in zip(drawn, ticks, strict=True):
        _, frame, _ = parts(picture)
        centre = frame[len(frame) // 2, width // 2].astype(int)
        np.testing.assert_allclose(bar[tick], centre, atol=5)  # there is no pixel just at the centre
    assert np.array_equal(bar[0], (128, 128, 128))
    assert bar[-1][0] > bar[-1][1] + 60  # red


@pytest.mark.parametrize("width", [288, 360, 480])
def test_the_legend_takes_no_pixel_of_the_picture_and_ends_within_the_frame(width):
    above, frame, below = parts(*draw(looking(peaked(1)), width=width))
    assert np.array_equal(frame, cv2.resize(GREY, frame.shape[1::-1]))  # as tall as the frame, and nothing in it
    assert 2 * len(above) > len(below) > 40
    assert count(below[:, -7:], BACKGROUND) == 7 * len(below)
    assert count(below, PLAIN) > 10  # the sentence
    assert count(below, MUTED) > 10


def test_a_map_close_to_uniform_is_called_so_and_no_other(words):
    """From 0.98 of uniform's entropy: half of the locations with 1.3 and half with 0.7 are above, 1.5 and 0.5 below."""
    close = "attention close to uniform"
    halves = [np.where(np.arange(48).reshape(6, 8) % 2, 1 + by, 1 - by) / 48 for by in (0.3, 0.5)]
    for attention, expected in ((np.full((7, 7), 1 / 49), True), (halves[0], True), (halves[1], False),
                                (peaked(8), False), (peaked(49), False), (np.full((7, 7), np.nan), False)):  # fmt: skip
        for heatmap in HEATMAPS:
            words.clear()
            overlays._legend.cache_clear()
            (drawn,) = draw(looking(attention), heatmap=heatmap)
            assert (close in words) == expected
            assert (count(parts(drawn)[2], PLAIN) > 0) == expected


def test_each_frame_is_judged_by_its_own_map():
    below = [parts(drawn)[2] for drawn in draw(looking(peaked(8), peaked(1), peaked(8)))]
    assert [count(each, PLAIN) > 0 for each in below] == [False, True, False]


def test_the_tutorials_legend_says_that_each_frame_is_scaled_to_its_own_peak(words):
    (drawn,) = draw(looking(peaked(4)), heatmap="tutorial")
    assert "each frame to its own peak" in words
    assert not {"1x", "2x", "4x", "8x", "uniform"} & set(words)
    hottest, below = overlay(GREY, peaked(4), "tutorial")[120, 160], parts(drawn)[2]
    assert np.abs(below.astype(int) - hottest).max(axis=2).min() <= 3  # is in the bar
    words.clear()
    (drawn,) = draw(looking(peaked(4)))
    assert "each frame to its own peak" not in words


def test_the_legend_can_be_read_in_a_gif(tmp_path):
    """360 pixels wide, with 256 colours a frame: the bar goes from grey over green to red, the sentence stands out."""
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    frame = cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC)  # of many colours
    drawn = draw(looking(*[peaked(1)] * 3), frame, width=360)
    write_video(tmp_path / "a.gif", iter(drawn), 10.0)
    with Image.open(tmp_path / "a.gif") as file:
        shown = np.asarray(file.convert("RGB")).astype(int)
    legend = len(drawn[0]) - len(overlays._legend(360, "absolute", True))
    assert np.abs(shown[legend:] - drawn[0][legend:]).mean() < 4
    bar, ticks = legend_bar(drawn[0])
    row = next(y for y in range(legend, len(shown)) if np.array_equal(drawn[0][y, 15 : 15 + len(bar)], bar))
    grey, _, orange, red = shown[row + 5, 15 + ticks]
    assert np.ptp(grey) < 40
    assert orange[0] > orange[2] + 40
    assert red[0] > red[1] + 60


def test_a_heatmap_that_there_is_not_is_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(UserError, match="there is no heatmap 'jet'; give one of absolute, tutorial"):
        write_video(tmp_path / "a.mp4", draw_overlays([GREY], predicted(0), CLASSES, "mode", heatmap="jet"), 15.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "size", [(176, 144), (175, 143), (320, 240), (1200, 1280), (1920, 1080), (1080, 1921), (144, 176)]
)
def test_drawn_frames_have_even_sides_the_sources_shape_and_are_wide_enough_to_read(size):
    frame = np.full((size[1], size[0], 3), 128, np.uint8)
    (drawn,) = draw(predicted(0), frame)
    picture = parts(drawn, frame)[1]
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    assert drawn.shape[1] == max(480, 2 * round(size[0] * min(1, 1280 / max(size)) / 2))
    assert picture.shape[1] / picture.shape[0] == pytest.approx(size[0] / size[1], rel=0.01)
    quarter = picture[: len(picture) // 2, : drawn.shape[1] // 2]
    assert count(picture, (128, 128, 128)) > 0.7 * picture.shape[0] * picture.shape[1]
    assert count(quarter, (128, 128, 128)) < 0.7 * quarter.shape[0] * quarter.shape[1]  # where it looks


@pytest.mark.parametrize("width", [176, 1920])
def test_no_text_runs_out_of_the_frame(width):
    """The confidence of a class with an endless name is still read: its strip ends as that of a short name does."""
    frame = np.full((width * 3 // 4, width, 3), 128, np.uint8)
    for name in ("walk", "climbing_up_" * 12, "W" * 90):
        (drawn,) = draw(predicted(0), frame, [name, "run", "x"])
        strips = np.concatenate([parts(drawn, frame)[0], parts(drawn, frame)[2]])
        margin = max(14, drawn.shape[1] // 40) // 2
        for columns in (strips[:, : margin - 2], strips[:, -(margin - 2) :]):
            assert count(columns, BACKGROUND) == columns.shape[0] * columns.shape[1]


def test_letters_that_are_not_ascii_are_drawn_as_what_they_are():
    drawn = [parts(draw(predicted(0), classes=[name, "run", "x"])[0])[0] for name in ("ö", "ü", "ж", "?", "\ufffe")]
    assert all(
        not np.array_equal(one, other) for number, one in enumerate(drawn) for other in drawn[number + 1 :]
    )  # the last is a letter that no font has


def test_more_or_fewer_frames_than_predictions_are_refused():
    for frames in (1, 3):
        with pytest.raises(ValueError, match="zip"):
            list(draw_overlays([GREY] * frames, predicted(0, 1), CLASSES, "mode"))


def test_frames_are_drawn_as_they_come():
    """However long the video: a drawn frame is there before the next one is read."""
    read = []
    frames = (read.append(number) or GREY for number in range(100))
    drawn = draw_overlays(frames, predicted(*[0] * 100), CLASSES, "mode")
    for number in range(5):
        next(drawn)
        assert len(read) == number + 1


def test_a_gallery_is_annotated_frames_from_the_first_to_the_last():
    rows = [(predicted(0, 0, 1, 1, 2), np.stack([GREY] * 5)), (predicted(1, label=0), np.stack([GREY]))]
    for heatmap in HEATMAPS:
        picture = gallery(rows, CLASSES, "mode", columns=3, width=160, heatmap=heatmap)
        expected = []
        for prediction, frames in rows:
            drawn = draw(prediction, width=160, heatmap=heatmap)
            chosen = [0, (len(frames) - 1) // 2, len(frames) - 1]
            expected.append(np.concatenate([np.pad(drawn[n], ((0, 4), (0, 4), (0, 0)), constant_values=255)
                                            for n in chosen], axis=1))  # fmt: skip
        np.testing.assert_array_equal(picture, np.concatenate(expected))


def test_the_gallery_of_every_epoch_has_the_same_videos():
    """Whatever the model says: the first video of up to six classes, which depends on the videos alone."""
    classes = [f"class{number}" for number in range(9)]
    names = [f"{name}/{film}.avi" for name in classes for film in range(3)]
    drawn = []
    for seed in range(3):
        random, read = np.random.default_rng(seed), []
        predictions = [
            VideoPrediction(name, number // 3, random.dirichlet(np.ones(9), 4), random.random((4, 7, 7)), [], 0.0)
            for number, name in enumerate(names)
        ]
        picture = draw_gallery(predictions, classes, "mode", lambda name: read.append(name) or np.stack([GREY] * 4))  # noqa: B023
        drawn.append((read, picture))
    assert drawn[0][0] == drawn[1][0] == drawn[2][0] == [f"class{number}/0.avi" for number in range(6)]
    assert drawn[0][1].shape == drawn[1][1].shape
    assert not np.array_equal(drawn[0][1], drawn[1][1])


def moving(frames):
    """Drawn frames of a moving square, 96 x 64."""
    for number in range(frames):
        frame = np.full((64, 96, 3), (30, 90, 160), np.uint8)
        frame[20:40, number % 70 : number % 70 + 20] = (250, 200, 20)
        yield frame


@pytest.mark.parametrize("fps", [15.0, 14.985, 15000 / 1001, 7.5, 30.0])
def test_an_mp4_plays_in_a_browser_and_as_long_as_its_source(tmp_path, fps):
    path = tmp_path / "a.mp4"
    write_video(path, moving(45), fps)
    with av.open(str(path)) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(fps, rel=1e-5)
        assert file.duration / 1e6 == pytest.approx(45 / fps, abs=1e-3)
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(pictures) == 45
    for drawn, picture in zip(moving(45), pictures, strict=True):
        assert np.abs(drawn.astype(int) - picture).mean() < 6
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # can be played before it is loaded as a whole
    assert int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) == 45


@pytest.mark.parametrize("fps", [15.0, 14.985, 29.97, 7.3])
def test_a_gif_does_not_drift(tmp_path, fps):
    """Delays are whole hundredths of a second; every frame is still shown at its own time."""
    write_video(tmp_path / "a.gif", moving(60), fps)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.info["loop"] == 0  # for ever
        delays = []
        for number, drawn in enumerate(moving(60)):
            file.seek(number)
            delays.append(file.info["duration"] / 1000)
            assert np.abs(np.asarray(file.convert("RGB")).astype(int) - drawn).mean() < 6
        assert file.n_frames == 60
    starts = np.cumsum([0, *delays])
    np.testing.assert_allclose(starts[:-1], np.arange(60) / fps, atol=0.0051)
    assert starts[-1] == pytest.approx(60 / fps, abs=0.011)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_frames_are_written_as_they_come(tmp_path, suffix):
    """However long the video: the writer keeps hold of no frame that it has passed on."""
    alive = []

    def frames():
        for frame in moving(100):
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            assert sum(reference() is not None for reference in alive) <= 4

    write_video(tmp_path / f"a{suffix}", frames(), 15.0)
    assert len(alive) == 100


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", '100%d_#&()!\'+ "größe" x:y;$HOME.mp4', "http:x.gif"])
def test_a_file_appears_when_it_is_complete_whatever_its_name(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def broken():
        yield from islice(moving(9), 5)
        assert not (tmp_path / name).exists()
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        write_video(name, broken(), 15.0)
    assert not list(tmp_path.iterdir())
    write_video(name, moving(9), 15.0)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with av.open(str(tmp_path / name)) as file:
        assert len(list(file.decode(video=0))) == 9


def test_other_kinds_of_file_and_videos_without_frames_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.mp4 or \.gif\. Received: path=.*a\.avi"):
        write_video(tmp_path / "a.avi", moving(3), 15.0)
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", iter([]), 15.0)
    assert not list(tmp_path.iterdir())


def test_segments_run_along_below_with_a_cursor_at_the_frames_time():
    """Each in its own colour over its share of the width; a single one says nothing that is not there already."""
    parts = [Segment(0, 1, "jump", 0.8), Segment(1, 3, None, 0.4), Segment(3, 4, "run", 0.9)]
    times = [0.0, 1.0, 2.0, 3.9]
    prediction = predicted(0, 1, 2, 0)
    plain, drawn = draw(prediction), draw(prediction, segments=parts, times=times)
    for time, before, after in zip(times, plain, drawn, strict=True):
        np.testing.assert_array_equal(after[: len(before)], before)
        strip = after[len(before) :]
        cursor = np.flatnonzero((strip[:14] == CURSOR).all(axis=(0, 2)))
        assert cursor == pytest.approx([480 * time / 4], abs=8)
        row = strip[1]
        for segment in parts:
            found = np.flatnonzero((row == colours(parts)[segment.action]).all(axis=1))
            assert found.min() == pytest.approx(480 * segment.start / 4, abs=10)
            assert found.max() == pytest.approx(480 * segment.end / 4, abs=10)
    words = [after[len(before) + 14 :] for before, after in zip(plain, drawn, strict=True)]
    assert [np.array_equal(words[0], other) for other in words] == [True, False, False, False]
    np.testing.assert_array_equal(words[1], words[2])  # the name is that of the segment from its first moment on
    assert not np.array_equal(words[1], words[3])
    (alone,) = draw(predicted(0), segments=parts[:1], times=[0.0])
    np.testing.assert_array_equal(alone, draw(predicted(0))[0])
