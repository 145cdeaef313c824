"""The SVM control: what it pools, how it chooses, and that its run directory stands in a table and nowhere else."""

import csv
import json

import numpy as np
import pytest
from forked import run, succeeds

from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.runs import Run
from experiments import table
from experiments.svm import choose_penalty, choose_temperature, fit, pool, pool_video, predict


def test_a_video_is_the_root_of_its_mean_and_of_its_mean_change_each_of_norm_1():
    cubes = np.random.default_rng(0).random((6, 7, 7, 512)).astype(np.float16)
    mean, change = (part.mean(axis=(0, 1, 2), dtype=np.float64) for part in (cubes, np.abs(np.diff(cubes, axis=0))))
    pooled = pool(cubes, "sqrt_l2", "difference")
    np.testing.assert_allclose(pooled[:512], np.sqrt(mean / mean.sum()), rtol=1e-3)
    np.testing.assert_allclose(pooled[512:], np.sqrt(change / change.sum()), rtol=1e-3)
    np.testing.assert_allclose(pool(cubes, "l2", "none"), mean / np.linalg.norm(mean), rtol=1e-3)
    assert not pool(cubes[:1], "l2", "difference")[512:].any()  # a single frame does not change


def test_further_poolings_are_those_of_motion_and_of_p_cnn():
    random = np.random.default_rng(0)
    cubes, moved = random.normal(0, 1, (6, 2, 3, 4)).astype(np.float16), random.exponential(1, (6, 2, 3))
    x, frames = cubes.astype(np.float64), cubes.astype(np.float64).mean((1, 2))
    weighted = np.einsum("thw,thwd->d", moved + 0.05 * moved.mean(), x)
    change = frames[2:] - frames[:-2]
    for given, parts in (
        (("none", "mean_motion", moved), [frames.mean(0), weighted]),
        (("none", "maxmin"), [frames.max(0), frames.min(0)]),
        (("signed", "maxmin"), [frames.max(0), frames.min(0), change.max(0), change.min(0)]),
        (("signed", "mean"), [frames.mean(0), change.max(0), change.min(0)]),
    ):
        rooted = [np.sign(part) * np.sqrt(np.abs(part)) for part in parts]
        expected = np.concatenate([part / np.linalg.norm(part) for part in rooted])
        np.testing.assert_allclose(pool(cubes, "sqrt_l2", *given), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(pool(cubes[:2], "l2", "signed")[4:], 0)  # too short to change within two frames
    still = pool(cubes, "l2", "none", "mean_motion", np.zeros((6, 2, 3)))
    np.testing.assert_allclose(still[:4], still[4:])  # where nothing moves, both means are one


def test_two_streams_are_one_vector_after_the_other(cache):
    name, alone = min(cache.videos), {"normalize": "sqrt_l2", "motion": "none", "pooling": "mean_motion"}
    plain = pool_video(cache, name, **alone)
    cache.flow = cache  # stands in for it
    np.testing.assert_array_equal(pool_video(cache, name, **alone), np.tile(plain, 2))


def test_ranks_are_what_an_untrained_rank_pool_shows_its_classifier(cache):
    """Means of all locations and of those that move near the middle, their extreme changes, and the rank."""
    name = min(cache.videos)
    cubes, moved = cache.read(name).astype(np.float64), cache.read_motion(name).astype(np.float64)
    rooted = np.sign(cubes) * np.sqrt(np.abs(cubes))
    rooted /= np.sqrt((rooted**2).mean((1, 2, 3), keepdims=True) + 1e-6)
    grid = np.exp(-(((np.arange(7) - 3) / 1.5) ** 2) / 2)
    mean = moved.mean((1, 2), keepdims=True)
    weights = (0.05 + np.where(mean > 0, moved / np.maximum(mean, 1e-12), 0.95)) * grid[:, None] * grid
    weights /= weights.sum((1, 2), keepdims=True)
    seen = rooted.mean((1, 2)), (rooted * weights[..., None]).sum((1, 2))
    changes = [frames[2:] - frames[:-2] for frames in seen]
    parts = [part for s, d in zip(seen, changes, strict=True) for part in (s.mean(0), d.max(0), d.min(0))]
    parts.append(np.arange(1 - len(cubes), len(cubes), 2) @ seen[1])
    expected = np.concatenate([part / np.linalg.norm(part) for part in parts])
    given = {"normalize": "sqrt_l2", "motion": "none", "pooling": "rank"}
    np.testing.assert_allclose(pool_video(cache, name, **given), expected, atol=1e-4)
    cache.flow = cache  # stands in for it: each part has the channels of both
    twice = pool_video(cache, name, **given).reshape(7, 2, -1)
    np.testing.assert_allclose(twice, np.sqrt(0.5) * np.repeat(expected.reshape(7, 1, -1), 2, axis=1), atol=1e-4)


def test_ranks_with_changes_of_other_poolings_are_refused(cache_folder, tmp_path):
    done = run(
        "experiments.svm", "--features", cache_folder, "--run_dir", tmp_path, "--pooling=rank", "--motion=signed"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "pooling=rank has its own changes and norm; leave out --motion and --normalize" in done.stderr


def test_the_penalty_is_the_smallest_of_those_that_are_best_on_the_videos_held_out():
    """A rare class close to a frequent one: with C up to 1 the SVM leaves it out, with 3 and with 10 it is found."""
    random = np.random.default_rng(0)
    names = [f"{name}/{number}" for name, count in (("leap", 40), ("nod", 4)) for number in range(count)]
    vectors = {name: np.array([0.4 * name.startswith("nod"), 0.02 * random.random()]) for name in names}
    assert choose_penalty(vectors, [(names[half::2], names[1 - half :: 2]) for half in (0, 1)]) == (3.0, 1.0)


@pytest.mark.parametrize("classes", [["leap", "nod"], ["leap", "nod", "spin"]])
def test_a_decision_is_the_svms_own(classes):
    random = np.random.default_rng(0)
    names = [f"{name}/{number}" for name in classes for number in range(8)]
    vectors = {name: random.normal(classes.index(name.split("/")[0]), 1, 5) for name in names}
    svm = fit(vectors, names, 1.0)
    predictions = predict(svm, vectors, names, classes)
    decided = [classes[prediction.probabilities[0].argmax()] for prediction in predictions]
    assert decided == list(svm.predict(list(vectors.values())))


def test_probabilities_are_as_sure_as_they_are_right_on_the_videos_held_out():
    """Two classes that overlap: after the temperature the mean confidence is the accuracy, before it was far off."""
    random, classes = np.random.default_rng(0), ["leap", "nod"]
    names = [f"{name}/{number}" for name in classes for number in range(200)]
    vectors = {name: 0.05 * random.normal(classes.index(name.split("/")[0]), 0.7, 3) for name in names}
    folds = [(names[half::2], names[1 - half :: 2]) for half in (0, 1)]
    temperature = choose_temperature(vectors, folds, classes, 1.0)
    svm = fit(vectors, names[::2], 1.0)
    plain, calibrated = (predict(svm, vectors, names[1::2], classes, t) for t in (1.0, temperature))
    accuracy = np.mean([each.probabilities[0].argmax() == each.label for each in plain])
    off = [abs(np.mean([each.probabilities.max() for each in of]) - accuracy) for of in (plain, calibrated)]
    assert off[1] < 0.04
    assert off[0] > 0.2


def test_a_run_of_it_stands_in_a_table_and_is_refused_where_frames_are_needed(cache_folder, cache, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ("--features", cache_folder, "--run_dir", run_dir, "--dataset=tiny", "--motion=difference")
    said = succeeds("experiments.svm", *arguments)
    metrics = json.loads((run_dir / "eval" / "test" / "metrics.json").read_text())
    assert f"| tiny, split made, {metrics['videos']} test videos | svm, normalize=sqrt_l2, motion=" in said
    assert f" | 1 | {metrics['video_top1']:.1%} | " in said
    assert " | - | - | " in said
    assert table.markdown([table.read_result(run_dir)]) in said
    with (run_dir / "eval" / "test" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == json.loads((run_dir / "split.json").read_text())["test"]
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(metrics["video_top1"])
    for needs_frames in (lambda: evaluate(run_dir, cache), lambda: Run.open(run_dir).predictions()):
        with pytest.raises(UserError, match="is a run of svm, which decides on whole videos and not on their"):
            needs_frames()
    before = (run_dir / "run.json").read_bytes()
    done = run("experiments.svm", *arguments)
    assert (done.returncode, (run_dir / "run.json").read_bytes()) == (1, before)
    assert "already holds a run; give another --run_dir" in done.stderr
