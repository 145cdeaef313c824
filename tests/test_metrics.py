"""Frames to videos: votes, ties, intervals, and that every number of the summary is what it is called."""

import numpy as np
import pytest
from scipy.stats import norm

from action_attention.metrics import (
    FrameAccuracy,
    VideoPrediction,
    interval95,
    rank_classes,
    running_votes,
    summarize,
)  # fmt: skip


def frames(*rows):
    return np.array(rows, float)


def test_a_videos_class_is_the_mode_of_its_frames_not_the_mean():
    probabilities = frames([0.6, 0.4, 0], [0.6, 0.4, 0], [0, 1, 0])
    assert rank_classes(probabilities, "mode")[0] == 0
    assert rank_classes(probabilities, "mean")[0] == 1


def test_ties_of_the_mode_go_to_the_larger_summed_probability():
    assert rank_classes(frames([0.6, 0.4, 0], [0.3, 0.7, 0]), "mode").tolist() == [1, 0, 2]
    assert rank_classes(frames([0.7, 0.3, 0], [0.4, 0.6, 0]), "mode").tolist() == [0, 1, 2]


def test_classes_that_win_no_frame_are_ranked_by_probability():
    assert rank_classes(frames([0.5, 0.1, 0.3, 0.1], [0.5, 0.3, 0.1, 0.1])).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Received: vote='median'"):
        rank_classes(frames([1.0]), "median")


def test_the_running_vote_leads_to_the_decision():
    probabilities = frames([0.6, 0.4, 0], [0.6, 0.4, 0], [0, 1, 0], [0.1, 0.2, 0.7])
    shares, leaders = zip(*running_votes(probabilities, "mode"), strict=True)
    np.testing.assert_allclose(shares, [[1, 0, 0], [1, 0, 0], [2 / 3, 1 / 3, 0], [1 / 2, 1 / 4, 1 / 4]])
    shares, _ = zip(*running_votes(probabilities, "mean"), strict=True)
    np.testing.assert_allclose(shares[2], [0.4, 0.6, 0])
    random = np.random.default_rng(0).dirichlet(np.ones(5), 40)
    for vote in ("mode", "mean"):
        leaders = [leader for _, leader in running_votes(random, vote)]
        assert leaders == [rank_classes(random[: count + 1], vote)[0] for count in range(40)]


def test_the_interval_is_wilsons():
    right, count, z = 630, 1530, norm.ppf(0.975)
    centre = (right + z**2 / 2) / (count + z**2)
    margin = z / (count + z**2) * np.sqrt(right * (count - right) / count + z**2 / 4)
    assert interval95(right, count) == pytest.approx([centre - margin, centre + margin])
    assert interval95(0, 5)[0] == 0


def test_the_summary_counts_videos_clips_and_frames_apart():
    sure = np.eye(3)
    predictions = [
        # right by the mode, 2 of 3 frames, one of two clips
        VideoPrediction("a/1", 0, sure[[0, 0, 1]], None, [sure[[0, 0]], sure[[1]]], 1.0),
        VideoPrediction("a/2", 0, sure[[1]], None, [sure[[1]]], 3.0),
        VideoPrediction("b/1", 1, sure[[1, 1, 1, 1]], None, [sure[[1, 1]], sure[[1, 1]]], 2.0),
    ]
    summary = summarize(predictions, ["a", "b", "c"])
    assert summary["videos"] == 3
    assert summary["video_top1"] == pytest.approx(2 / 3)
    assert summary["clip_top1"] == pytest.approx(3 / 5)
    assert summary["frame_top1"] == pytest.approx(6 / 8)
    assert summary["cross_entropy"] == pytest.approx(2)
    assert summary["video_top5"] == 1
    assert summary["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert summary["per_class"] == {"a": {"accuracy": 0.5, "videos": 2}, "b": {"accuracy": 1, "videos": 1}}
    assert summary["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_frame_accuracy_leaves_padding_out():
    metric = FrameAccuracy()
    logits = np.eye(3)[[[0, 1, 2, 2], [1, 1, 0, 0]]]
    metric.update_state(np.array([[0, 1, 0, -1], [1, -1, -1, -1]]), logits)
    assert float(metric.result()) == pytest.approx(3 / 4)
