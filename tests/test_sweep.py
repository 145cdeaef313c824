"""The sweep: it sees no test video, every trial counts once however it was stopped, and what it leaves can be used."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from forked import ROOT, succeeds
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.datasets import choose_split
from data_prep.splits import validation_folds
from experiments import sweep as program
from experiments.sweep import Sweep, finished, missing_tickets, open_study, work, write_results

optuna = pytest.importorskip("optuna")
SMALL = {"clip_length": 6, "batch_size": 8}


def a_sweep(cache_folder, output, **given):
    output.mkdir(exist_ok=True)
    cache = FeatureCache(cache_folder)
    folds = validation_folds({"train": sorted(cache.videos), "validation": []}, 2, 0)
    cache.close()
    return Sweep(cache_folder, output, {"split": 1}, "softmax", {**SMALL, **given}, folds, True, epochs=2, seed=0)


def do(sweep, *tickets):
    """The tickets' trials in this process."""
    work(sweep, SimpleNamespace(get=iter([*tickets, None]).__next__))


def settings(flagfile: Path) -> dict:
    return dict(re.fullmatch("--(.+?)=(.*)", line).groups() for line in flagfile.read_text().splitlines()[1:])


def test_a_sweep_tries_the_table_and_leaves_a_table_flags_and_hparams(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    study = open_study(sweep, {"model": "softmax"})
    do(sweep, 0, 1)
    assert missing_tickets(study, 3) == [2]
    first, second = finished(study)
    table = {"learning_rate": 1e-4, "dropout": 0.5, "weight_decay": 0.0, "normalize": "none", "motion": "none"}
    table |= {"channel_dropout": 0.0}
    assert first.params == table != second.params
    for trial in (first, second):
        curves = np.array(trial.user_attrs["curves"])
        assert curves.shape == (2, 2)  # folds, epochs
        assert trial.value == curves.mean(axis=0).max()
    write_results(sweep, study)
    write_results(sweep, study)
    assert sorted(path.name for path in sweep.output.iterdir()) == ["best.flags", "logs", "study.db", "sweep.md"]
    best = max((first, second), key=lambda trial: trial.value)
    rows = [line for line in (sweep.output / "sweep.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 3
    assert rows[1].startswith(f"| {best.number} | {best.value:.1%} |")
    kept = settings(sweep.output / "best.flags")
    epochs = 1 + int(np.mean(best.user_attrs["curves"], axis=0).argmax())
    expected = {"split": 1, "model": "softmax", **SMALL, **best.params, "epochs": epochs, "validation": "none"}
    assert kept == {name: str(value) for name, value in expected.items()}
    for trial in (first, second):
        (file,) = sweep.output.glob(f"logs/trial-{trial.number:04}/events*")  # once
        events = EventAccumulator(str(file))
        events.Reload()
        assert "_hparams_/session_start_info" in events.Tags()["tensors"]
        (value,) = events.Tensors("validation/best_video_top1")
        assert tf.make_ndarray(value.tensor_proto) == pytest.approx(trial.value)


def test_only_a_split_without_test_videos_can_be_had_from_a_cache_without_them(cache, tmp_path):
    for name in cache.videos:
        class_name, file_name = name.split("/")
        with (tmp_path / f"{class_name}_test_split1.txt").open("a") as file:
            file.write(f"{file_name} 1 \nfilm9_{file_name} 2 \n")
    split, about, _ = choose_split(cache, tmp_path, 1, made_in=tmp_path, test=False)
    assert sorted(split["train"] + split["validation"]) == sorted(cache.videos)
    assert (split["test"], about["split"]) == ([], 1)
    with pytest.raises(UserError, match="lacks 12 videos of the lists: leap/film9_"):
        choose_split(cache, tmp_path, 1, made_in=tmp_path)


@pytest.mark.slow
def test_a_half_trial_counts_nowhere_and_its_ticket_is_given_out_again(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    half = open_study(sweep, {}).ask()
    half.set_user_attr("ticket", 0)
    sweep.scratch(half.number).mkdir()
    study = open_study(sweep, {})
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]  # the table's values wait again
    assert (missing_tickets(study, 1), sweep.scratch(half.number).exists()) == ([0], False)
    do(sweep, 0)
    assert [(trial.number, trial.user_attrs["ticket"]) for trial in finished(study)] == [(1, 0)]
    assert missing_tickets(open_study(sweep, {}), 1) == []
    assert len(study.trials) == 2  # the table's values do not wait a third time


def test_a_trial_that_diverges_is_one_that_was_stopped_and_counts(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep", learning_rate=1e38, batch_size=2)
    study = open_study(sweep, {})
    do(sweep, 0)
    assert [trial.state.name for trial in finished(study)] == ["PRUNED"]
    assert not list(sweep.output.glob("trial-*"))


def test_another_sweep_is_not_gone_on_with(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    open_study(sweep, {"model": "softmax", "epochs": 2})
    with pytest.raises(UserError, match="is a sweep with epochs=2, now epochs=3 is asked for; give it"):
        open_study(sweep, {"model": "softmax", "epochs": 3})


def test_without_optuna_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(program, "optuna", None)
    with pytest.raises(UserError, match="needs Optuna, which is not installed: pip install optuna"):
        program.main()


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_never_looks_for_test_videos(cache_folder, tmp_path):
    """Two workers; the parent is killed in the middle. The lists name test videos that the cache does not have."""
    lists, output = tmp_path / "lists", tmp_path / "sweep"
    lists.mkdir()
    for name in FeatureCache(cache_folder).videos:
        class_name, file_name = name.split("/")
        with (lists / f"{class_name}_test_split1.txt").open("a") as file:
            file.write(f"{file_name} 1 \nfilm9_{file_name} 2 \n")
    arguments = ("--features", cache_folder, "--splits", lists, "--output", output, "--model=softmax", "--epochs=2",
                 "--clip_length=6", "--folds=2", "--trials=6", "--workers=2")  # fmt: skip
    command = [sys.executable, "-m", "experiments.sweep", *map(str, arguments)]
    killed = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def states():
        if not (output / "sweep.md").exists() and not (output / "study.db").exists():
            return []
        try:
            storage = f"sqlite:///{output / 'study.db'}"
            return [trial.state.name for trial in optuna.load_study(study_name="sweep", storage=storage).trials]
        except Exception:  # the database is being made
            return []

    while not (states().count("COMPLETE") and states().count("RUNNING")):
        assert killed.poll() is None
        time.sleep(0.5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(3)  # the workers end with their parent
    counted = states().count("COMPLETE")
    time.sleep(3)
    assert states().count("COMPLETE") == counted < 6

    said = succeeds("experiments.sweep", *arguments)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{output / 'study.db'}")
    assert sorted(trial.user_attrs["ticket"] for trial in finished(study)) == list(range(6))
    assert {"COMPLETE", "FAIL"} <= set(states()) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "softmax, 6 complete trials and 0 stopped early" in said
    assert len({json.dumps(trial.params) for trial in finished(study)}) == 6
    # with the flags it trains on all training videos of the same lists
    train = ("--flagfile", output / "best.flags", "--run_dir", tmp_path / "run")
    succeeds("experiments.train", *train, "--allow_missing")
    assert len(json.loads((tmp_path / "run" / "split.json").read_text())["train"]) == 12
