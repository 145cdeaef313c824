"""What a long video shows, one action after the other: by the definition, against a plain re-statement of it."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from action_attention.calibration import calibrated
from action_attention.metrics import VideoPrediction, rank_classes
from action_attention.segments import NONE, Segment, merge_runs, segments, window_labels
from action_attention.timeline import clock, colours, timeline_png
from data_prep.recognizer import Result

CLASSES = ["jump", "run", "walk"]
MILD = {"temperature": 2.0, "threshold": 0.5}


def sure_of(*runs, sure=0.9):
    """Probabilities `(frames, 3)` of runs of (class, frames); class None leaves the three alike."""
    rows = []
    for index, frames in runs:
        row = np.full(3, 1 / 3) if index is None else np.full(3, (1 - sure) / 2)
        if index is not None:
            row[index] = sure
        rows += [row] * frames
    return np.array(rows)


def cut(probabilities, fps=10.0, **settings):
    times = np.arange(len(probabilities)) / fps
    return segments(probabilities, CLASSES, times, len(probabilities) / fps, **settings)


def answer_of(probabilities, vote, calibration):
    """A video's answer and confidence, as `Result` has them."""
    said = VideoPrediction("a/b", None, probabilities, np.full((len(probabilities), 1, 1), 1.0))
    result = Result(said, CLASSES, vote, 10.0, lambda: (), calibration=calibration)
    return result.answer, result.confidence


def test_three_actions_in_turn_are_three_segments_that_meet_where_they_change():
    found = cut(sure_of((0, 40), (2, 60), (1, 50)), window=10)
    assert [segment.action for segment in found] == ["jump", "walk", "run"]
    assert [found[0].start, found[-1].end] == [0, 15]
    assert [one.end for one in found[:-1]] == [other.start for other in found[1:]]
    np.testing.assert_allclose([segment.end for segment in found], [4, 10, 15], atol=0.1)
    np.testing.assert_allclose([segment.confidence for segment in found], 0.9, atol=0.02)


@pytest.mark.parametrize("vote", ["mode", "mean"])
@pytest.mark.parametrize("calibration", [None, MILD])
@pytest.mark.parametrize("window", [1, 6, 7, 40, 99])
def test_a_frames_label_is_the_answer_to_the_window_around_it(vote, calibration, window):
    probabilities = np.random.default_rng(window).dirichlet([0.3] * 3, 40)
    sure = calibrated(probabilities, 2.0) if calibration else probabilities
    labels = window_labels(probabilities, sure, 0.5 if calibration else 0.0, vote, window)
    for frame, label in enumerate(labels):
        first = max(0, min(frame - window // 2, 40 - window))
        answer, _ = answer_of(probabilities[first : first + window], vote, calibration)
        assert answer == (None if label == NONE else CLASSES[label])


@pytest.mark.parametrize("vote", ["mode", "mean"])
@pytest.mark.parametrize("seed", range(8))
def test_each_segment_has_the_answer_and_the_confidence_of_its_own_frames(vote, seed):
    random = np.random.default_rng(seed)
    level = np.repeat(random.dirichlet([0.3] * 3, 12), 17, axis=0)
    probabilities = np.array([random.dirichlet(9 * row + 0.1) for row in level])
    found = cut(probabilities, vote=vote, window=10, calibration=MILD)
    assert len(found) > 1
    for segment in found:
        frames = slice(round(10 * segment.start), round(10 * segment.end))
        assert answer_of(probabilities[frames], vote, MILD) == (segment.action, pytest.approx(segment.confidence))
        assert segment.end - segment.start >= 1 - 1e-9
    assert all(one.action != other.action for one, other in pairwise(found))


def test_a_video_no_longer_than_the_window_is_one_segment_with_its_answer():
    probabilities = np.random.default_rng(0).dirichlet([0.3] * 3, 30)
    for vote in ("mode", "mean"):
        (found,) = cut(probabilities, vote=vote, window=30, calibration=MILD)
        assert (found.action, found.confidence) == answer_of(probabilities, vote, MILD)
        assert (found.start, found.end) == (0, 3)


def test_below_the_threshold_no_action_is_said_and_without_calibration_there_is_none():
    said = sure_of((0, 50), (None, 50), (1, 50))
    assert [segment.action for segment in cut(said, window=10, calibration=MILD)] == ["jump", None, "run"]
    unsure = cut(said, window=10, calibration=MILD)[1]
    assert unsure.confidence < MILD["threshold"]
    assert None not in [segment.action for segment in cut(said, window=10)]


def test_a_flicker_shorter_than_the_minimum_is_no_segment():
    said = sure_of((0, 40), (1, 6), (0, 40))
    assert [segment.action for segment in cut(said, window=1, minimum=0.7)] == ["jump"]
    assert [segment.action for segment in cut(said, window=1, minimum=0.6)] == ["jump", "run", "jump"]


def test_segments_change_at_the_frames_own_times():
    times = [0, 0.1, 0.5, 2.0, 2.1, 7.0]
    found = segments(sure_of((0, 3), (2, 3)), CLASSES, times, 8.0, window=1, minimum=1.0)
    assert found == [Segment(0, 2.0, "jump", pytest.approx(0.9)), Segment(2.0, 8.0, "walk", pytest.approx(0.9))]


def merged_plainly(labels, minimum):
    """The shortest run, of equals the first, goes to its longer neighbour, of equals the first, until none is short."""
    runs = []
    for label in labels:
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1
        else:
            runs.append([label, 1])
    while len(runs) > 1 and (short := min(range(len(runs)), key=lambda n: runs[n][1])) is not None:
        if runs[short][1] >= minimum:
            break
        beside = [n for n in (short - 1, short + 1) if 0 <= n < len(runs)]
        taker = max(beside, key=lambda n: runs[n][1])
        runs[taker][1] += runs.pop(short)[1]
        for n in range(len(runs) - 1, 0, -1):
            if runs[n][0] == runs[n - 1][0]:
                runs[n - 1][1] += runs.pop(n)[1]
    ends = np.cumsum([length for _, length in runs])
    return [(label, end - length, end) for (label, length), end in zip(runs, ends, strict=True)]


@pytest.mark.parametrize("seed", range(40))
def test_short_runs_go_to_the_longer_neighbour_the_shortest_first(seed):
    random = np.random.default_rng(seed)
    labels = np.repeat(random.integers(-1, 3, 30), random.integers(1, 6, 30))
    for minimum in (0, 1, 3, 8, 1000):
        assert merge_runs(labels, minimum) == merged_plainly(labels, minimum)


def test_an_hour_that_changes_with_every_frame_has_no_short_run_and_no_gap():
    runs = merge_runs(np.tile([0, 1, 2], 18_000), 15)  # in time that does not grow with the square of the runs
    assert all(end - first >= 15 for _, first, end in runs)
    assert [0, *(end for *_, end in runs)] == [*(first for _, first, _ in runs), 54_000]


def test_ranking_breaks_ties_as_a_videos_vote_does():
    said = np.array([[0.6, 0.4, 0], [0.1, 0.9, 0]])  # a frame each; the second is surer
    assert window_labels(said, said, 0.0, "mode", 2).tolist() == [1, 1] == [rank_classes(said, "mode")[0]] * 2


def test_the_picture_of_a_timeline_is_as_high_as_the_confidence_in_the_actions_colour():
    parts = [Segment(0, 50, "jump", 0.8), Segment(50, 75, None, 0.4), Segment(75, 100, "$run$", 1.0)]
    picture = cv2.imdecode(np.frombuffer(timeline_png(parts), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    areas = {action: int((picture == colour).all(axis=2).sum()) for action, colour in colours(parts).items()}
    legend = 400  # pixels of its patches
    assert areas["jump"] / areas[None] == pytest.approx(50 * 0.8 / (25 * 0.4), rel=0.05)
    assert areas["$run$"] / areas[None] == pytest.approx(1.0 / 0.4, rel=0.05)
    assert areas[None] > 10 * legend


def test_twenty_actions_have_colours_of_their_own_but_for_the_last_two():
    parts = [Segment(n, n + 1, f"action {n}", 0.9) for n in range(20)]
    assert len({colours(parts)[segment.action] for segment in parts[:18]} | {colours(parts)[None]}) == 19
    assert colours(parts[:3])["action 2"] == colours(parts)["action 2"]


def test_a_clock_has_hours_where_there_are_any():
    assert [clock(seconds) for seconds in (0, 7.9, 60, 3599, 3723)] == ["0:00", "0:07", "1:00", "59:59", "1:02:03"]
