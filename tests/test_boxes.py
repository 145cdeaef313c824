"""Boxes cut out of attention, their fit to the actor's, and what looks at nothing: closed forms."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from action_attention.boxes import action_boxes, average_precision, box_iou, grid_boxes, localize_boxes
from action_attention.errors import UserError
from action_attention.localization import Actor
from action_attention.metrics import VideoPrediction
from action_attention.overlays import draw_overlays
from data_prep.recognizer import Result
from experiments import predict, table


def maps(frames, *cells, background=0.0):
    """Maps of 7 x 7 whose given cells `(row, column, value)` stand out."""
    found = np.full((frames, 7, 7), background)
    for row, column, value in cells:
        found[:, row, column] = value
    return found


def test_a_single_location_is_its_own_cell_at_half_of_its_height():
    """Between neighbouring centres a bilinear map falls to half at the cell's edge."""
    boxes = action_boxes(maps(6, (2, 4, 1.0)), 0.5)
    np.testing.assert_allclose(boxes, [[4 / 7, 2 / 7, 5 / 7, 3 / 7]] * 6, atol=1.5 / 224)
    wide, narrow = action_boxes(maps(1, (2, 4, 1.0)), 0.25)[0], action_boxes(maps(1, (2, 4, 1.0)), 0.75)[0]
    assert wide[0] < 4 / 7 - 0.03 < narrow[0] - 0.06
    np.testing.assert_array_equal(action_boxes(maps(1, background=1.0), 0.5), [[0, 0, 1, 1]])


def test_only_what_is_connected_with_the_largest_counts():
    boxes = action_boxes(maps(3, (1, 1, 1.0), (1, 2, 0.9), (5, 5, 0.95)), 0.5)
    np.testing.assert_allclose(boxes, [[1 / 7, 1 / 7, 3 / 7, 2 / 7]] * 3, atol=0.02)


def test_a_box_is_steady_over_five_frames():
    """One frame that looks elsewhere moves nothing; after a jump the boxes jump too, and stay."""
    steady = maps(11, (3, 3, 1.0))
    outlier = steady.copy()
    outlier[5] = maps(1, (0, 6, 1.0))[0]
    np.testing.assert_allclose(action_boxes(outlier, 0.5), action_boxes(steady, 0.5), atol=2 / 224)
    jump = np.concatenate([steady, maps(11, (0, 6, 1.0))])
    before, after = action_boxes(steady, 0.5)[0], action_boxes(maps(1, (0, 6, 1.0)), 0.5)[0]
    np.testing.assert_allclose(action_boxes(jump, 0.5)[[5, -5]], [before, after], atol=2 / 224)


def test_overlaps_in_closed_form():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 1], [0.2, 0.2, 0.2, 0.9]])
    expected = [0.5, 1, 0.5, 0, 0]
    np.testing.assert_allclose(box_iou(boxes, np.array([0, 0, 0.5, 1.0])), expected)


def test_the_oracle_is_the_best_box_of_whole_cells():
    exact = np.array([[1 / 7, 2 / 5, 4 / 7, 3 / 5]])
    np.testing.assert_allclose(grid_boxes(exact, (5, 7)), exact)
    near = np.array([[0.13, 0.42, 0.58, 0.61]])
    np.testing.assert_allclose(grid_boxes(near, (5, 7)), exact)


def test_average_precision_is_scikit_learns_where_all_are_found_and_less_where_not():
    random = np.random.default_rng(0)
    right, scores = random.random(40) < 0.3, random.random(40)
    assert average_precision(scores, right, int(right.sum())) == pytest.approx(average_precision_score(right, scores))
    assert average_precision(scores, right, 2 * int(right.sum())) == pytest.approx(
        average_precision_score(right, scores) / 2
    )
    assert average_precision(scores, np.zeros(40, bool), 3) == 0


def prediction(name, attention, said):
    label = "ab".index(name[0])
    return VideoPrediction(name, label, np.tile([said, 1 - said], (len(attention), 1)), attention)


@pytest.fixture
def scene():
    """Actors who fill one cell or two; of two videos the attention is on them, of one beside."""
    actors, predictions = {}, []
    for name, row, column, looks, said in (
        ("a/1", 2, 2, (2, 2), 0.9), ("a/2", 4, 5, (4, 5), 0.2), ("b/1", 1, 1, (5, 5), 0.3),
        ("b/train", 3, 3, (3, 3), 0.5),
    ):  # fmt: skip
        masks = np.zeros((6, 70, 140), bool)
        masks[1:, 10 * row : 10 * (row + 1), 20 * column : 20 * (column + 1)] = True  # in the first frame nobody is
        actors[name] = Actor.from_masks(masks, (7, 7))
        predictions.append(prediction(name, maps(6, (*looks, 1.0)), said))
    return actors, predictions[:3], predictions[3:]


def test_boxes_are_judged_in_closed_form(scene):
    actors, predictions, training = scene
    np.testing.assert_allclose(actors["a/1"].boxes[:2], [[0] * 4, [2 / 7, 2 / 7, 3 / 7, 3 / 7]])
    found = localize_boxes(predictions, training, actors.get, lambda name: np.ones((6, 7, 7)))
    assert (found["videos"], found["training_videos"]) == (3, 1)
    assert found["tau"]["attention"] == 0.5
    near = found["tube_iou"]["attention"]
    assert near == pytest.approx(2 / 3, abs=0.06)
    assert found["tube_iou"] | {"attention": 0, "above_training_box_ci95": 0} == pytest.approx({
        "attention": 0, "above_training_box_ci95": 0, "motion": 1 / 49, "motion_centre": pytest.approx(0, abs=0.2),
        "whole_frame": 1 / 49, "centred_box": 0, "training_box": 0, "oracle": 1,
    })  # fmt: skip
    assert found["corloc_0.5"]["attention"] == pytest.approx(2 / 3)
    assert found["corloc_0.5"]["training_box"] == 0
    # class a: its two tubes are right and rank 1 and 3 of three; class b: its only tube is wrong
    assert found["video_map_0.5"]["attention"] == pytest.approx(((1 + 2 / 3) / 2 + 0) / 2)
    assert found["video_map_0.5"]["oracle"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_the_threshold_comes_from_training_videos_and_none_without_them(scene):
    actors, predictions, _ = scene
    spread = maps(6, (3, 3, 1.0), (3, 4, 0.45), background=0.0)
    tuned = localize_boxes(predictions, [prediction("b/train", spread, 0.5)], actors.get)
    assert tuned["tau"]["attention"] > 0.45
    assert localize_boxes(predictions, [], actors.get) is None
    assert localize_boxes(predictions, [prediction("a/unknown", spread, 0.5)], actors.get) is None


def test_boxes_given_as_such_are_in_shares_of_the_frame():
    actor = Actor.from_boxes(np.array([[10, 20, 60, 40.0], [0, 0, 0, 0]]), (100, 80), (7, 7))
    np.testing.assert_allclose(actor.boxes, [[0.1, 0.25, 0.6, 0.5], [0, 0, 0, 0]])


def test_the_table_names_attention_and_baselines(scene):
    actors, predictions, training = scene
    found = {"boxes": localize_boxes(predictions, training, actors.get)}
    result = {
        "dataset": "tiny", "split": 1, "subset": "test", "validation": "none", "weights": "imagenet", "model": "alstm",
        "seed": 0, "videos": 3, "config": {}, "localization": found,
    }  # fmt: skip
    lines = table.boxes([result]).splitlines()
    assert [line.count("|") for line in lines] == [11] * len(lines)
    assert " | 66.7% | 66.7% | 66.7% | " in lines[2]
    assert [line.split(" | ")[1] for line in lines[3:]] == [
        f"baseline: {name}" for name in ("whole frame", "centred box of the median training size",
                                         "median training box", "best box of whole cells")
    ]  # fmt: skip
    assert table.boxes([{**result, "localization": {}}]) == ""


def test_a_box_is_drawn_where_it_is_and_nowhere_else():
    frame = np.full((120, 160, 3), 90, np.uint8)
    said = VideoPrediction("a/1", None, np.full((2, 3), 1 / 3), maps(2, (3, 3, 1.0)))
    boxes = np.array([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 1.0, 1.0]])
    plain, drawn = (
        list(draw_overlays([frame] * 2, said, ["a", "b", "c"], "mode", boxes=given)) for given in (None, boxes)
    )
    for one, other, (left, top, right, bottom) in zip(plain, drawn, boxes, strict=True):
        changed = np.argwhere((one != other).any(axis=2))
        above = next(n for n in range(len(one)) if (one[n] != one[0]).any()) - 1  # any line of the header
        height, width = 0.75 * one.shape[1], one.shape[1]
        rows, columns = changed[:, 0], changed[:, 1]
        assert above >= 0
        assert columns.min() == pytest.approx(left * width, abs=4)
        assert columns.max() == pytest.approx(right * width, abs=4)
        assert rows.max() - rows.min() == pytest.approx((bottom - top) * height, abs=4)
        inside = (columns > left * width + 8) & (columns < right * width - 8)
        assert set(np.unique(rows[inside]) - rows.min()) <= {*range(8), *range(int(rows.max() - rows.min()) - 8, 999)}


def test_a_result_has_boxes_where_a_threshold_was_chosen(tmp_path):
    said = VideoPrediction("a/1", None, np.full((2, 3), 1 / 3), maps(2, (3, 3, 1.0)))
    frame = np.full((48, 64, 3), 90, np.uint8)
    known = Result(said, ["a", "b", "c"], "mode", 15.0, lambda: [frame, frame], box_tau=0.5)
    known.overlay(tmp_path / "boxes.mp4", boxes=True)
    predict._write_frames(tmp_path / "said.json", {"video": "a"}, known)
    frames = json.loads((tmp_path / "said.json").read_text())["frames"]
    np.testing.assert_allclose([each["box"] for each in frames], action_boxes(said.attention, 0.5), atol=1e-6)
    unknown = replace(known, box_tau=None)
    assert unknown.boxes is None
    predict._write_frames(tmp_path / "said.json", {"video": "a"}, unknown)
    assert "box" not in json.loads((tmp_path / "said.json").read_text())["frames"][0]
    with pytest.raises(UserError, match=r"^this model gives no boxes: their threshold is chosen by `make eval`, given"):
        unknown.overlay(tmp_path / "none.mp4", boxes=True)
    assert not (tmp_path / "none.mp4").exists()
