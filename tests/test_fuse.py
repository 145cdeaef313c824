"""Late fusion: what is averaged, how weights are chosen, and that the result is a run for tables and reports."""

import json
import shutil

import numpy as np
import pytest
from forked import run, succeeds
from scipy.special import softmax

from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.metrics import VideoPrediction
from action_attention.runs import Run
from experiments.fuse import choose_weights, fuse, parse_weights
from experiments.report import read_runs
from tests.test_training import config, make_run


def predictions(seed, frames=5, labels=(0, 1, 2, 1), sure=1.0):
    """Of some videos; the larger `sure`, the likelier the true class."""
    random, made = np.random.default_rng(seed), []
    for number, label in enumerate(labels):
        said = softmax(random.normal(0, 1, (frames, 3)) + sure * np.eye(3)[label], axis=1)
        made.append(VideoPrediction(f"c{label}/{number}", label, said, random.random((frames, 2, 2))))
    return made


def test_frames_are_averaged_by_weight_and_the_first_run_of_frames_is_looked_through():
    whole, one, other = predictions(0, frames=1), predictions(1), predictions(2)
    for ours, a, b, c in zip(fuse([whole, one, other], [0.5, 0.2, 0.3]), whole, one, other, strict=True):
        expected = 0.5 * a.probabilities + 0.2 * b.probabilities + 0.3 * c.probabilities
        np.testing.assert_allclose(ours.probabilities, expected)
        np.testing.assert_array_equal(ours.attention, b.attention)
        assert (ours.name, ours.label) == (a.name, a.label)
        assert ours.loss == pytest.approx(-np.log(expected[:, a.label]).mean())


def test_weights_are_those_of_the_best_accuracy_and_then_of_the_least_cross_entropy():
    """A run that always says the opposite of the truth gets nothing; among runs that are right, the surer one all."""
    labels = (0, 1, 2) * 20
    wrong, right = predictions(0, labels=labels, sure=-5), predictions(1, labels=labels, sure=5)
    surer = predictions(2, labels=labels, sure=15)
    weights = choose_weights([wrong, right], "mean")
    assert weights[1] > 0.6
    assert choose_weights([right, surer], "mean") == [0.0, 1.0]
    assert choose_weights([surer, right], "mean") == [1.0, 0.0]


@pytest.mark.parametrize("text", ["0.5", "1,2,3", "a,b", "-1,2", "0,0", "nan,1", "inf,1", ""])
def test_weights_that_are_not_one_for_each_run_are_refused(text):
    with pytest.raises(UserError, match=r"must be equal, validation, or 2 numbers from 0 with commas between them"):
        parse_weights(text, [None, None], "mean")


def test_weights_need_not_sum_to_one():
    assert parse_weights("3,1", [None, None], "mean") == [0.75, 0.25]
    assert parse_weights("equal", [None] * 4, "mean") == [0.25] * 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache_folder, split):
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("one", 1), ("two", 2)):
        make_run(folder / name, cache_folder, split, config("softmax", seed=seed))
    lists = folder / "splits.csv"
    rows = [f"{name},{subset}" for subset in ("train", "test") for name in split[subset]]
    rows += [f"{name},train" for name in split["validation"]]
    lists.write_text("\n".join(["video,subset", *rows]) + "\n")
    succeeds("experiments.svm", "--features", cache_folder, "--splits", lists, "--run_dir", folder / "svm", "--C=1",
             "--dataset=tiny")  # fmt: skip
    return folder


def test_a_fusion_is_a_run_that_tables_and_reports_show(runs, cache, tmp_path):
    folders = [argument for name in ("one", "svm", "two") for argument in ("--run_dir", runs / name)]
    said = succeeds("experiments.fuse", *folders, "--output", tmp_path / "fused", "--weights=2,1,1")
    of_runs = [Run.open(runs / name, of_frames=False).predictions() for name in ("one", "svm", "two")]
    fused = Run.open(tmp_path / "fused")
    for ours, *parts in zip(fused.predictions(), *of_runs, strict=True):
        expected = sum(w * part.probabilities for w, part in zip((0.5, 0.25, 0.25), parts, strict=True))
        np.testing.assert_allclose(ours.probabilities, expected, atol=1e-6)
        np.testing.assert_array_equal(ours.attention, parts[0].attention)
    metrics = fused.metrics()
    right = [ours.probabilities.mean(0).argmax() == ours.label for ours in fused.predictions()]
    assert metrics["video_top1"] == pytest.approx(np.mean(right))
    assert f"| fuse, runs=softmax + svm + softmax, weights=0.5 0.25 0.25 | 1 | {np.mean(right):.1%} | " in said
    (shown,) = read_runs([tmp_path / "fused"], "test")
    assert shown.history == []
    page = succeeds("experiments.report", "--run_dir", tmp_path / "fused", "--output", tmp_path / "page")
    assert "index.html" in page
    with pytest.raises(UserError, match=r"fuses other runs \(softmax .* softmax\) and has no model of its own; give"):
        evaluate(tmp_path / "fused", cache)
    done = run("experiments.fuse", *folders, "--output", tmp_path / "fused")
    assert (done.returncode, "already holds a run; give another --output" in done.stderr) == (1, True)


def test_what_cannot_be_fused_is_said(runs, tmp_path):
    one = ("--run_dir", runs / "one")
    for arguments, sentence in (
        (one, "a fusion takes several runs; give --run_dir more than once"),
        ((*one, "--run_dir", tmp_path / "other"), "have different test videos and cannot be fused"),
        ((*one, "--run_dir", runs / "two", "--weights=validation"), "holds no frames.npz, where an evaluation keeps"),
    ):
        if not (tmp_path / "other").exists():
            shutil.copytree(runs / "two", tmp_path / "other")
            rows = (tmp_path / "other/eval/test/predictions.csv").read_text().splitlines(keepends=True)
            (tmp_path / "other/eval/test/predictions.csv").write_text("".join(rows).replace("leap/", "leap/x"))
        done = run("experiments.fuse", *arguments, "--output", tmp_path / "fused")
        assert done.returncode == 1
        assert sentence in done.stderr
    assert not (tmp_path / "fused").exists()


def test_weights_chosen_on_validation_videos_are_written_down(runs, cache, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(runs / name, tmp_path / name)
        evaluate(tmp_path / name, cache, "validation")
    folders = [argument for name in ("one", "two") for argument in ("--run_dir", tmp_path / name)]
    succeeds("experiments.fuse", *folders, "--output", tmp_path / "fused", "--weights=validation")
    chosen = choose_weights([Run.open(tmp_path / name).predictions("validation") for name in ("one", "two")], "mean")
    assert json.loads((tmp_path / "fused/run.json").read_text())["config"]["weights"] == "{:g} {:g}".format(*chosen)
