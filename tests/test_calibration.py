"""The temperature of a model's confidence, against closed forms; it is judged on videos that it was not fitted on."""

import json
import shutil

import numpy as np
import pytest

from action_attention import calibration
from action_attention.calibration import calibrate, calibrated, expected_calibration_error, fit_temperature, held_out
from action_attention.errors import UserError
from action_attention.metrics import VideoPrediction
from action_attention.runs import Run
from data_prep.recognizer import Result
from experiments.calibrate import calibrate_run, in_words
from tests.test_training import config, make_validated_run


def video(name, label, *frames):
    return VideoPrediction(name, label, np.array(frames, np.float32), np.full((len(frames), 1, 1), 1.0))


def known(temperature):
    """Videos of two classes whose confidence is exactly right at a temperature.

    Of n videos that say a class with probability p, m are of it, and p^(1/T) / (p^(1/T) + (1 - p)^(1/T)) = m / n.
    """
    videos = []
    for right, count in ((3, 4), (9, 10), (2, 3)):
        odds = (right / (count - right)) ** temperature
        frame = (odds / (1 + odds), 1 / (1 + odds))
        videos += [video(f"a/{count}_{n}", int(n >= right), *[frame] * (1 + n % 3)) for n in range(count)]
    return videos


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature):
    assert fit_temperature(known(temperature)) == pytest.approx(temperature, rel=0.02)


def test_the_temperature_is_that_of_least_loss_where_frames_differ():
    """Against all temperatures of a fine grid, by the formula in the docstring."""
    random = np.random.default_rng(0)
    videos = [video(f"a/{n}", n % 3, *random.dirichlet([0.3] * 3, 1 + n % 5)) for n in range(40)]
    for each in videos:
        each.probabilities[::2, each.label] += 0.5
        each.probabilities /= each.probabilities.sum(axis=1, keepdims=True)

    def loss(temperature):
        powers = [each.probabilities.astype(np.float64) ** (1 / temperature) for each in videos]
        means = [(power / power.sum(axis=1, keepdims=True)).mean(axis=0) for power in powers]
        return -np.mean([np.log(mean[each.label]) for mean, each in zip(means, videos, strict=True)])

    grid = np.geomspace(0.3, 6, 400)
    assert fit_temperature(videos) == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=0.01)


def test_what_is_always_right_or_never_ends_at_a_limit():
    always = [video(f"a/{n}", 0, (0.6, 0.4)) for n in range(5)]
    never = [video(f"a/{n}", 1, (0.6, 0.4)) for n in range(5)]
    assert fit_temperature(always) == pytest.approx(calibration.LIMITS[0], rel=0.01)
    assert fit_temperature(never) == pytest.approx(calibration.LIMITS[1], rel=0.01)
    with pytest.raises(UserError, match="fitted on videos of known class; some of these, or all, have none"):
        fit_temperature([])


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1, 3, 20])
def test_calibrated_probabilities_sum_to_1_and_keep_their_order(temperature):
    given = np.array([[0.7, 0.2, 0.1], [0, 1, 0], [1e-45, 0.5, 0.5]], np.float32)
    found = calibrated(given, temperature)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)
    assert (found.argmax(axis=1) == given.argmax(axis=1)).all()
    power = given[0].astype(np.float64) ** (1 / temperature)
    np.testing.assert_allclose(found[0], power / power.sum(), rtol=1e-6)


def test_the_expected_calibration_error_by_hand():
    confidences, right = np.array([0.9, 0.2, 0.6, 0.4]), np.array([True, False, True, True])
    # by confidence: 0.2 wrong, 0.4 right | 0.6 right, 0.9 right; means 0.3 and 0.75, accuracies 0.5 and 1
    assert expected_calibration_error(confidences, right, bins=2) == pytest.approx((0.2 + 0.25) / 2)
    assert expected_calibration_error(confidences, right) == pytest.approx((0.1 + 0.2 + 0.4 + 0.6) / 4)
    assert expected_calibration_error(confidences, right, bins=1) == pytest.approx(0.75 - 0.525)


def test_parts_that_are_judged_are_runs_or_fifths_of_one():
    parts = held_out([17])
    assert [len(part) for part in parts] == [4, 4, 3, 3, 3]
    assert sorted(np.concatenate(parts)) == list(range(17))
    assert [list(part) for part in held_out([2, 1, 3])] == [[0, 1], [2], [3, 4, 5]]
    assert [len(part) for part in held_out([3])] == [1, 1, 1]


@pytest.mark.parametrize("sizes", [[17], [6, 11]])
def test_no_video_is_judged_by_a_temperature_that_saw_it(sizes, monkeypatch):
    videos, fitted, judged = known(2.0), [], []
    for number, each in enumerate(videos):
        each.probabilities[:, 0] += 1e-6 * number  # so that each can be told from the others
    runs = [videos[: sizes[0]], videos[sizes[0] :]][: len(sizes)]

    def fit(predictions):
        fitted.append({prediction.name for prediction in predictions})
        return 2.0

    def soften(probabilities, temperature):
        (name,) = (each.name for each in videos if each.probabilities is probabilities)
        assert name not in fitted[-1]
        judged.append(name)
        return calibrated(probabilities, temperature)

    monkeypatch.setattr(calibration, "fit_temperature", fit)
    monkeypatch.setattr(calibration, "calibrated", soften)
    found = calibrate(runs)
    assert sorted(judged) == sorted(each.name for each in videos)
    parts = 5 if len(sizes) == 1 else 2
    assert [len(names) for names in fitted[:-1]] == [17 - len(part) for part in held_out(sizes)]
    assert (len(fitted), len(fitted[-1])) == (parts + 1, 17)  # the last is the one that is kept
    assert found["judged_by"] == ("5-fold by video" if len(sizes) == 1 else "leave-one-run-out")


def test_the_figures_of_a_calibration():
    """Two runs with the same videos: each is judged by the other's temperature, which is exact."""
    found = calibrate([known(2.0), known(2.0)])
    assert found["temperature"] == pytest.approx(2, rel=0.02)
    assert (found["videos"], found["runs"]) == (34, 2)
    accuracy = (3 + 9 + 2) / 17
    assert found["before"]["accuracy"] == found["after"]["accuracy"] == pytest.approx(accuracy)
    assert found["after"]["confidence"] == pytest.approx(accuracy, abs=0.002)
    sharp = np.mean([9 / 10] * 4 + [81 / 82] * 10 + [4 / 5] * 3)  # odds squared
    assert found["before"]["confidence"] == pytest.approx(sharp)
    assert found["above_threshold"] == {"share": 1.0, "accuracy": pytest.approx(accuracy)}
    assert (found["threshold"], found["threshold_means"]) == (0.5, "more likely right than wrong")
    unsure = [video(f"a/{n}", n % 3, (0.34, 0.33, 0.33)) for n in range(6)]
    found = calibrate([unsure])
    assert found["above_threshold"] == {"share": 0.0, "accuracy": None}
    assert "where the search ends (0.05 to 20)" in in_words({**found, "temperature": 20.0})
    with pytest.raises(UserError, match="needs at least two validation videos, not 1; hold out more"):
        calibrate([unsure[:1]])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    folder = make_validated_run(
        tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config("softmax", epochs=1)
    )
    return folder


def test_a_run_is_calibrated_on_its_own_validation_videos_or_on_those_of_others(run_dir, tmp_path):
    copies = [tmp_path / name for name in ("a", "b", "c", "d")]
    for copy in copies:
        shutil.copytree(run_dir, copy)
    assert Run.open(copies[0]).calibration() is None
    found = calibrate_run(copies[0], copies[:1])
    assert Run.open(copies[0]).calibration() == found == json.loads((copies[0] / "calibration.json").read_text())
    predictions = Run.open(run_dir).predictions("validation")
    assert found == calibrate([predictions])
    both = calibrate_run(copies[0], copies[1:3])
    assert (both["runs"], both["videos"], both["judged_by"]) == (2, 2 * len(predictions), "leave-one-run-out")
    assert both["temperature"] == pytest.approx(found["temperature"], rel=1e-4)

    with pytest.raises(UserError, match=r"^--from names a run twice, which would be judged by what it was fitted on;"):
        calibrate_run(copies[0], [copies[1], copies[0] / ".." / "b"])
    shutil.rmtree(copies[1] / "eval" / "validation")
    with pytest.raises(UserError, match=r"holds no frames\.npz, .*make eval RUN_DIR=\S+ ARGS=\"--subset=validation\""):
        calibrate_run(copies[0], copies[1:3])
    about = json.loads((copies[3] / "run.json").read_text())
    (copies[3] / "run.json").write_text(json.dumps({**about, "classes": ["leap", "nod", "turn"]}))
    with pytest.raises(UserError, match=r"have different classes; a temperature is of runs that differ in"):
        calibrate_run(copies[0], copies[2:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperature": float("nan")}, r"temperature is nan, not from 0\.05 to 20"),
        ({"temperature": -1.0}, r"temperature is -1\.0, not from"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"threshold": 1.5}, r"threshold is 1\.5, not from 0 to 1"),
        ({"before": None}, "before must be an object"),
    ],
)
def test_a_damaged_calibration_is_one_sentence(run_dir, tmp_path, change, reason):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    found = calibrate_run(copy, [copy])
    (copy / "calibration.json").write_text(json.dumps({**found, **change}))
    with pytest.raises(UserError, match=rf"calibration\.json is damaged \({reason}.*; make it again with `python -m"):
        Run.open(copy).calibration()


def result(calibration, *frames, vote="mode"):
    return Result(video("a/b", None, *frames), ["a", "b", "c"], vote, 15.0, lambda: (), calibration=calibration)


def test_an_answer_is_given_from_the_threshold_on():
    """p^(1/2) / Z: of (0.64, 0.32, 0.04) it is (0.8, 0.566, 0.2) / 1.566."""
    frame = (0.64, 0.32, 0.04)
    plain = result(None, frame)
    assert (plain.answer, plain.confidence) == ("a", pytest.approx(0.64))
    softer = 0.8 / (0.8 + 0.32**0.5 + 0.2)
    for threshold, answer in ((softer - 1e-3, "a"), (softer + 1e-3, None)):
        unsure = result({"temperature": 2.0, "threshold": threshold}, frame)
        assert (unsure.answer, unsure.confidence) == (answer, pytest.approx(softer))
        assert [row["class"] for row in unsure.top5] == ["a", "b", "c"]
        assert unsure.top5[0] == {"class": "a", "votes": 1.0, "probability": unsure.confidence}
        assert sum(row["probability"] for row in unsure.top5) == pytest.approx(1)
    assert result(None, (0.34, 0.33, 0.33)).answer == "a"  # without a calibration always


def test_the_winner_is_the_one_of_the_vote_also_where_it_is_not_the_most_probable():
    frames = [(0.5, 0.4, 0.1), (0.5, 0.4, 0.1), (0.0, 0.9, 0.1)]
    sharp = {"temperature": 0.5, "threshold": 0.5}
    voted = result(sharp, *frames)
    assert voted.top5[0]["class"] == "a"
    assert voted.confidence == pytest.approx(2 / 3 * 0.25 / 0.42)
    assert voted.answer is None
    assert result(sharp, *frames, vote="mean").answer == "b"
