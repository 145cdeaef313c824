"""Attention on the actor: closed forms for both scores, both kinds of annotation, and what does not count."""

import numpy as np
import pytest
from scipy import stats

from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import FeatureCache
from action_attention.localization import Actor, localize, locate, motion_controls, permute
from action_attention.metrics import VideoPrediction, mean_interval95
from action_attention.runs import Run
from tests.test_training import config, make_run

UNIFORM = np.full((1, 7, 7), 1 / 49)


def spots(*locations):
    """One map for each location (row, column), with all attention there."""
    maps = np.zeros((len(locations), 7, 7))
    for index, location in enumerate(locations):
        maps[(index, *location)] = 1
    return maps


def one_box(*box, size=(70, 70)):
    return Actor.from_boxes(np.array([box], float), size, (7, 7))


def random_boxes(count, width, height, seed=0):
    """Boxes with corners on whole pixels."""
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.integers(0, width + 1, (count, 2))), np.sort(rng.integers(0, height + 1, (count, 2)))
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def masks_of(boxes, width, height):
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


@pytest.mark.parametrize(("width", "height"), [(70, 70), (80, 60), (320, 240), (33, 101)])
def test_boxes_and_masks_agree(width, height):
    """Also where cells do not end with pixels."""
    boxes = random_boxes(200, width, height)
    of_boxes, of_masks = (
        Actor.from_boxes(boxes, (width, height), (7, 7)),
        Actor.from_masks(masks_of(boxes, width, height), (7, 7)),
    )
    np.testing.assert_allclose(of_boxes.cells, of_masks.cells, atol=1e-12)
    np.testing.assert_array_equal(of_boxes.centres, of_masks.centres)
    assert 0 < of_boxes.centres.mean() < 1


@pytest.mark.parametrize(("width", "height"), [(80, 60), (320, 240)])
def test_uniform_attention_scores_the_actors_share_of_the_frame_in_both(width, height):
    masks = np.random.default_rng(0).random((5, height, width)) < 0.2
    area = masks.mean(axis=(1, 2))
    for uniform in (UNIFORM, UNIFORM.astype(np.float32)):
        np.testing.assert_allclose(
            locate(uniform, Actor.from_masks(masks, (7, 7))), np.stack([area, area], 1), rtol=1e-6
        )


def test_a_peak_on_the_actor_scores_one_and_off_it_nothing():
    actor = one_box(20, 30, 30, 40)  # the cell in row 3, column 2
    assert locate(spots((3, 2)), actor).tolist() == [[1, 1]]
    assert locate(spots((2, 3)), actor).tolist() == [[0, 0]]


def test_a_half_covered_cell_is_hit_if_its_centre_is_covered():
    left, right = one_box(0, 0, 5, 70), one_box(5, 0, 70, 70)  # the centre, x = 5, belongs to the right part
    assert locate(spots((0, 0)), left).tolist() == [[0, 0.5]]
    assert locate(spots((0, 0)), right).tolist() == [[1, 0.5]]
    quarter = one_box(65, 65, 99, 99)  # reaches out of the frame
    assert locate(spots((6, 6)), quarter).tolist() == [[1, 0.25]]


def test_pixels_of_a_mask_may_be_covered_in_part():
    masks = np.zeros((1, 7, 7))
    masks[0, 3, 3] = 0.25
    assert locate(spots((3, 3)), Actor.from_masks(masks, (7, 7))).tolist() == [[0.25, 0.25]]


def test_tied_locations_are_hit_by_the_share_of_their_area_on_the_actor():
    actor = one_box(0, 0, 20, 5)  # upper halves of the first two cells; their centres are not covered
    tied = (spots((0, 0)) + spots((0, 1)) + spots((0, 2)) + spots((6, 6))) / 4
    assert locate(tied, actor)[0] == pytest.approx([1 / 4, 1 / 4])


def test_mass_is_shared_out_and_the_peak_alone_points():
    attention = (3 * spots((0, 0)) + spots((6, 6))) / 4
    assert locate(attention, one_box(60, 60, 70, 70)).tolist() == [[0, 1 / 4]]
    assert locate(attention, one_box(0, 0, 10, 10)).tolist() == [[1, 3 / 4]]


def test_videos_count_once_beside_their_baselines_and_by_class():
    """Two videos: one of 3 frames looks at the actor, who is at the centre; one of 1 frame does not find it."""
    box = (30, 30, 40, 40)
    actors = {
        "a/1": Actor.from_boxes(np.array([box] * 3), (70, 70), (7, 7)),
        "b/1": Actor.from_boxes(np.array([(0, 0, 10, 20)]), (70, 70), (7, 7)),
    }
    predictions = [
        VideoPrediction("a/1", 0, None, spots((3, 3), (3, 3), (0, 0))),
        VideoPrediction("b/1", 2, None, spots((3, 3))),
    ]
    found = localize(predictions, ["a", "unseen", "b"], actors.get)
    assert (found["videos"], found["frames"]) == (2, 4)
    assert (found["without_annotation"], found["frames_without_annotation"]) == ([], 0)
    for key in ("pointing", "mass"):
        scores = found[key]
        assert scores["attention"] == pytest.approx((2 / 3 + 0) / 2)
        assert scores["uniform"] == pytest.approx((1 / 49 + 2 / 49) / 2)
        assert scores["centre"] == pytest.approx((1 + 0) / 2)
        assert scores["attention_ci95"] == pytest.approx(mean_interval95(np.array([2 / 3, 0])))
        assert scores["above_uniform_ci95"] == pytest.approx(mean_interval95(np.array([2 / 3 - 1 / 49, -2 / 49])))
        assert scores["above_centre_ci95"] == pytest.approx(mean_interval95(np.array([2 / 3 - 1, 0])))
    assert found["per_class"].keys() == {"a", "b"}
    assert found["per_class"]["a"]["videos"] == 1
    assert found["per_class"]["a"]["pointing"] == pytest.approx(
        {"attention": 2 / 3, "uniform": 1 / 49, "centre": 1, "permuted": 1}
    )
    assert found["per_class"]["b"]["mass"] == pytest.approx(
        {"attention": 0, "uniform": 2 / 49, "centre": 0, "permuted": 0}
    )


def test_frames_and_videos_without_an_actor_do_not_count_and_are_told():
    masks = np.ones((3, 14, 14), bool)
    masks[1:] = False
    actors = {"a/half": Actor.from_masks(masks, (7, 7)), "a/empty": Actor.from_masks(masks[1:], (7, 7))}
    names = {"a/half": 3, "a/empty": 2, "a/unknown": 4}
    predictions = [VideoPrediction(name, 0, None, np.repeat(UNIFORM, frames, 0)) for name, frames in names.items()]
    found = localize(predictions, ["a"], actors.get)
    assert (found["videos"], found["frames"], found["frames_without_annotation"]) == (1, 1, 8)
    assert found["without_annotation"] == ["a/empty", "a/unknown"]
    assert found["mass"]["attention"] == found["mass"]["uniform"] == pytest.approx(1)
    assert found["mass"]["attention_ci95"] is None  # of one video
    with pytest.raises(UserError, match="no actor is annotated in any of these videos"):
        localize(predictions[1:], ["a"], actors.get)


def test_the_interval_of_a_mean_is_students():
    values = np.array([0.2, 0.5, 0.9, 0.4])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval95(values) == pytest.approx([expected.low, expected.high])
    assert mean_interval95(values[:1]) is None


@pytest.mark.parametrize(("rows", "columns"), [(5, 6), (6, 5), (2, 8)])
def test_a_grid_need_not_be_square(rows, columns):
    """Cells of 10 x 10 pixels; the actor covers the two cells of the last row's right end, and half of the middle."""
    width, height, middle = 10 * columns, 10 * rows, (rows // 2, columns // 2)
    boxes = np.array([(width - 20, height - 10, width, height), [10 * middle[1], 10 * middle[0], 0, 0]])
    boxes[1, 2:] = boxes[1, :2] + (10, 5)
    actor = Actor.from_boxes(boxes, (width, height), (rows, columns))
    expected = np.zeros((2, rows, columns))
    expected[0, -1, -2:] = 1
    expected[(1, *middle)] = 0.5
    np.testing.assert_allclose(actor.cells, expected)
    of_masks = Actor.from_masks(masks_of(boxes, width, height), (rows, columns))
    np.testing.assert_allclose(of_masks.cells, expected, atol=1e-12)
    np.testing.assert_array_equal(of_masks.centres, actor.centres)
    maps = np.zeros((2, rows, columns))
    maps[:, -1, -1] = 1
    found = localize([VideoPrediction("a/1", 0, None, maps)], ["a"], lambda _: actor)
    cells = rows * columns
    assert found["mass"] == pytest.approx({
        "attention": 1 / 2, "uniform": (2 / cells + 0.5 / cells) / 2, "centre": 0.5 / 2, "attention_ci95": None,
        "above_uniform_ci95": None, "above_centre_ci95": None})  # fmt: skip


DOT = (((0, 0), (1, 2)), ((2, 4), (6, 6)))  # where it is in each frame of two videos


def dots():
    """Two videos whose actor, one cell, is where the motion is; the first attends to the centre, the other to it."""
    actors, motions, predictions = {}, {}, []
    for number, cells in enumerate(DOT):
        name = f"{'ab'[number]}/1"
        actors[name] = Actor(spots(*cells), spots(*cells))
        motions[name] = (7.5 * spots(*cells)).astype(np.float16)
        predictions.append(VideoPrediction(name, number, None, spots(*cells) if number else spots((3, 3), (3, 3))))
    return predictions, actors, motions


def gaussian(row, column):
    """exp(-distance² / (2 · 1.5²)) from the middle of a 7x7 grid."""
    return np.exp(-((row - 3) ** 2 + (column - 3) ** 2) / 4.5)


def test_the_motion_of_a_moving_dot_points_at_it_and_its_intervals_are_paired():
    predictions, actors, motions = dots()
    found = localize(predictions, ["a", "b"], actors.get, motions.get)
    for key in ("pointing", "mass"):
        scores = found[key]
        assert (scores["attention"], scores["motion"], scores["motion_centre"]) == (0.5, 1, 1)  # all motion is there
        for control in ("motion", "motion_centre"):
            assert scores[f"above_{control}_ci95"] == pytest.approx(mean_interval95(np.array([-1.0, 0])))
        # the first video has its own maps' miss for the other's, the other has the first's for its own
        assert scores["permuted"] == 0
        assert scores["above_permuted_ci95"] == pytest.approx(mean_interval95(np.array([0, 1.0])))
    assert found["per_class"]["b"]["pointing"] == pytest.approx(
        {"attention": 1, "uniform": 1 / 49, "centre": 0, "motion": 1, "motion_centre": 1, "permuted": 0}
    )


def test_motion_shares_the_mass_and_the_centre_decides_between_two_that_move():
    """A corner moves three times as much as a cell beside the middle, where the actor is."""
    motion = (3 * spots((0, 0)) + spots((3, 4))).astype(np.float16)
    actor = one_box(40, 30, 50, 40)
    found = localize([VideoPrediction("a/1", 0, None, UNIFORM)], ["a"], lambda _: actor, lambda _: motion)
    weighted = gaussian(3, 4) / (gaussian(3, 4) + 3 * gaussian(0, 0))
    assert found["pointing"]["motion"] == 0
    assert found["mass"]["motion"] == pytest.approx(1 / 4)
    assert found["pointing"]["motion_centre"] == 1
    assert found["mass"]["motion_centre"] == pytest.approx(weighted, rel=1e-12)


@pytest.mark.parametrize("shape", [(7, 7), (5, 6)])
def test_maps_of_motion_are_stated_in_numpy_and_a_still_frame_is_uniform(shape):
    motion = np.random.default_rng(0).random((3, *shape)).astype(np.float16)
    motion[1] = 0
    expected = motion.astype(float)
    expected[1] = 1
    row, column = np.indices(shape)
    middle = (shape[0] - 1) / 2, (shape[1] - 1) / 2
    weighted = expected * np.exp(-((row - middle[0]) ** 2 + (column - middle[1]) ** 2) / (2 * 1.5**2))
    maps = motion_controls(motion)
    np.testing.assert_allclose(maps["motion"], expected / expected.sum(axis=(1, 2), keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(maps["motion_centre"], weighted / weighted.sum(axis=(1, 2), keepdims=True), rtol=1e-12)
    assert not motion[1].any()  # it is not written into
    # all locations of a still frame tie, so it points as uniform attention does: by the actor's share of the frame
    actor = Actor.from_boxes(np.array([(0, 0, 30, 35)]), (60, 70), shape)
    assert locate(maps["motion"][1:2], actor)[0] == pytest.approx([1 / 4, 1 / 4])
    # and the Gaussian's largest locations are those around the middle: two columns of six are as near to it
    peaks = (maps["motion_centre"][1] == maps["motion_centre"][1].max()).nonzero()
    assert np.transpose(peaks).tolist() == ([[3, 3]] if shape == (7, 7) else [[2, 2], [2, 3]])


@pytest.mark.parametrize("read", [None, lambda name: None, lambda name: UNIFORM if name == "a/1" else None])
def test_motion_that_is_not_known_of_all_scored_videos_leaves_its_keys_out(read):
    actor = one_box(0, 0, 10, 10)
    predictions = [VideoPrediction(f"a/{number}", 0, None, UNIFORM) for number in (1, 2)]
    found = localize(predictions, ["a"], lambda _: actor, read)
    keys = ["attention", "uniform", "centre", "permuted"]
    above = [f"above_{name}_ci95" for name in keys[1:]]
    assert list(found["pointing"]) == list(found["mass"]) == [*keys, "attention_ci95", *above]
    assert list(found["per_class"]["a"]["mass"]) == keys
    if read and read("a/1") is not None:  # the other one is not scored
        found = localize(predictions, ["a"], {"a/1": actor}.get, read)
        assert found["pointing"]["motion"] == pytest.approx(1 / 49)


def test_permuted_maps_are_the_other_videos_by_place_in_it():
    """Frame k of 5 is frame floor(3 k / 5) of the other's 3: 0, 0, 1, 1, 2; of those, 2 of 3 are told back."""
    long, short = spots((0, 0), (0, 1), (0, 2), (0, 3), (0, 4)), spots((1, 0), (1, 1), (1, 2))
    seen = spots((1, 0), (1, 0), (1, 1), (1, 1), (1, 2)), spots((0, 0), (0, 1), (0, 3))
    predictions = [VideoPrediction("a/long", 0, None, long), VideoPrediction("b/short", 1, None, short)]
    actors = {each.name: Actor(maps, maps) for each, maps in zip(predictions, seen, strict=True)}
    for order in (predictions, predictions[::-1]):
        found = localize(order, ["a", "b"], actors.get)
        assert found["pointing"]["permuted"] == found["mass"]["permuted"] == 1
        assert found["pointing"]["attention"] == 0
    shown = np.array([False, True, False, False, True])[:, None, None]  # the actor is in two of the frames only
    maps = seen[0] * shown
    maps[1] = spots((6, 6))
    found = localize(predictions, ["a", "b"], {"a/long": Actor(maps, maps)}.get)
    assert found["frames"] == 2
    assert found["pointing"]["permuted"] == 1 / 2


@pytest.mark.parametrize("counts", [(1, 1), (3, 2, 4), (5, 5), (1, 4, 1, 2), (4, 1), (6,), (2, 2, 2)])
def test_every_video_gets_another_of_another_class_where_that_can_be(counts):
    labels = {f"{'dcba'[label]}/{number}": label for label, count in enumerate(counts) for number in range(count)}
    others = permute(labels)
    assert others.keys() == labels.keys()
    assert set(others.values()) == labels.keys()  # each is given once
    assert all(name != other for name, other in others.items())
    rng, names = np.random.default_rng(0), list(labels)
    for _ in range(5):
        assert permute({names[index]: labels[names[index]] for index in rng.permutation(len(names))}) == others
    alike = sum(name[0] == other[0] for name, other in others.items())
    assert alike == max(0, 2 * max(counts) - sum(counts))  # what of the largest class the others cannot take


def test_a_single_video_has_no_other():
    assert permute({"a/1": 0}) == permute({}) == {}
    found = localize([VideoPrediction("a/1", 0, None, UNIFORM)], ["a"], lambda _: one_box(0, 0, 10, 10))
    assert "permuted" not in found["pointing"]
    assert "above_permuted_ci95" not in found["mass"]


def test_evaluate_takes_the_motion_of_a_cache_that_has_it(cache, cache_folder, split, tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "run", cache_folder, split, config("softmax", epochs=1))

    def corner(name):
        maps = np.zeros((cache.videos[name].frames, *cache.cube_shape[:2]))
        maps[:, 0, 1] = 1
        return maps

    known = {}
    for has_motion in (False, True):
        monkeypatch.setattr(FeatureCache, "has_motion", has_motion)
        monkeypatch.setattr(cache, "read_motion", corner)
        evaluate(run_dir, cache, read_actor=lambda name: Actor(corner(name), corner(name)))
        known[has_motion] = Run.open(run_dir).metrics()["localization"]["pointing"]
    assert "motion" not in known[False]
    assert (known[True]["motion"], known[True]["motion_centre"]) == (1, 1)
    assert {**known[True], **known[False]} == known[True]
