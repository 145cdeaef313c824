"""The sweep: it sees no test video, every trial counts once however it was stopped, and what it leaves can be used."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from forked import ROOT, succeeds
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.datasets import choose_split
from data_prep.splits import validation_folds
from data_prep.workers import SILENT_SECONDS, Worker
from experiments import sweep as program
from experiments.sweep import JOURNAL, Sweep, begin, finish, finished, missing_tickets, open_study, work, write_results

optuna = pytest.importorskip("optuna")
SMALL = {"clip_length": 6, "batch_size": 8}


def a_sweep(cache_folder, output, **given):
    (output / "workers").mkdir(parents=True, exist_ok=True)
    cache = FeatureCache(cache_folder)
    folds = validation_folds({"train": sorted(cache.videos), "validation": []}, 2, 0)
    cache.close()
    return Sweep(cache_folder, output, {"split": 1}, "softmax", {**SMALL, **given}, folds, True, epochs=2, seed=0)


def load(output):
    backend = optuna.storages.journal.JournalFileBackend(str(output / JOURNAL))
    return optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))


def states(study):
    return [trial.state.name for trial in study.trials]


def tickets(study):
    return sorted(trial.user_attrs["ticket"] for trial in finished(study))


def settings(flagfile: Path) -> dict:
    return dict(re.fullmatch("--(.+?)=(.*)", line).groups() for line in flagfile.read_text().splitlines()[1:])


def test_a_sweep_tries_the_table_and_leaves_a_table_flags_and_hparams(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    study = open_study(sweep, {"model": "softmax"})
    work(sweep, 2)
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
    assert sorted(path.name for path in sweep.output.iterdir()) == [
        "best.flags", "logs", "study.journal", "sweep.md", "workers"
    ]  # fmt: skip
    assert not list(sweep.workers.iterdir())
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


@pytest.mark.parametrize("said", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_a_dead_worker_left_counts_nowhere_and_its_ticket_is_given_out_again(cache_folder, tmp_path, said):
    """Of a worker on another machine, which died before or after it said which ticket its trial has."""
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    study = open_study(sweep, {})
    half = study.ask()
    if said:
        half.set_user_attr("ticket", 0)
    sweep.scratch(half.number).mkdir()
    dead = {"name": "host-7-012345", "machine": "another", "pid": 7, "started": "1"}
    for name in ("worker-host-7-012345.part", "ticket-0.lock"):
        (sweep.workers / name).write_text(json.dumps(dead))
        os.utime(sweep.workers / name, (long_ago := time.time() - SILENT_SECONDS - 60, long_ago))
    assert states(open_study(sweep, {})) == ["RUNNING"]  # it might live
    work(sweep, 1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert (tickets(study), missing_tickets(study, 2)) == ([0], [1])
    assert study.trials[1].params == study.trials[1].system_attrs["fixed_params"]  # the table's values, once more
    assert not sweep.scratch(half.number).exists()
    assert not list(sweep.workers.iterdir())
    assert states(open_study(sweep, {})) == ["FAIL", "COMPLETE"]  # and not a third time


def test_a_worker_that_was_thought_dead_and_is_not_counts_once(cache_folder, tmp_path, monkeypatch):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    open_study(sweep, {})
    monkeypatch.setattr(program, "run_trial", lambda *_: 0.5)
    with Worker(sweep.workers) as first, Worker(sweep.workers) as second:
        ours, theirs = load(sweep.output), load(sweep.output)
        slow = begin(ours, sweep, first, 0)
        other = begin(theirs, sweep, second, 1)  # another ticket: nothing is set aside
        assert states(ours) == ["RUNNING", "RUNNING"]
        again = begin(theirs, sweep, second, 0)
        assert states(ours)[:2] == ["FAIL", "RUNNING"]
        with pytest.raises(UserError, match=r"trial 0 was without a sign of life .* another worker runs it again"):
            finish(ours, slow, sweep, None)
        for trial in (again, other):
            finish(theirs, trial, sweep, None)
        assert begin(ours, sweep, first, 0) is None  # it is finished
    assert tickets(load(sweep.output)) == [0, 1]


def test_half_a_line_at_the_end_of_the_journal_goes_and_damage_before_is_named(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    open_study(sweep, {"model": "softmax"})
    path = sweep.output / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 5, "tri')
    assert states(open_study(sweep, {"model": "softmax"})) == ["WAITING"]
    assert path.read_bytes().startswith(whole)
    path.write_bytes(whole.replace(b'"op_code"', b'"op_code', 1))
    with pytest.raises(UserError, match=r"study.journal is damaged \(.*\); give another --output"):
        open_study(sweep, {"model": "softmax"})


def test_a_sweep_of_an_earlier_version_is_named(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep")
    (sweep.output / "study.db").touch()
    with pytest.raises(UserError, match=r"study.db is the sweep of an earlier version; use that version"):
        open_study(sweep, {})


def test_a_trial_that_diverges_is_one_that_was_stopped_and_counts(cache_folder, tmp_path):
    sweep = a_sweep(cache_folder, tmp_path / "sweep", learning_rate=1e38, batch_size=2)
    study = open_study(sweep, {})
    work(sweep, 1)
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


def start(arguments):
    command = [sys.executable, "-m", "experiments.sweep", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def of(output):
    """The states of the trials so far."""
    try:
        return states(load(output)) if (output / JOURNAL).exists() else []
    except KeyError:  # the study is being made
        return []


@pytest.mark.slow
def test_of_two_sweeps_in_one_folder_one_is_killed_and_the_other_does_its_trials_too(cache_folder, tmp_path):
    """The lists name test videos that the cache does not have."""
    lists, output = tmp_path / "lists", tmp_path / "sweep"
    lists.mkdir()
    for name in FeatureCache(cache_folder).videos:
        class_name, file_name = name.split("/")
        with (lists / f"{class_name}_test_split1.txt").open("a") as file:
            file.write(f"{file_name} 1 \nfilm9_{file_name} 2 \n")
    arguments = ("--features", cache_folder, "--splits", lists, "--output", output, "--model=softmax", "--epochs=2",
                 "--clip_length=6", "--folds=2", "--trials=6")  # fmt: skip
    killed, other = (start(arguments) for _ in range(2))
    while not (trials := of(output)).count("COMPLETE") or trials.count("RUNNING") < 2:
        assert killed.poll() is other.poll() is None
        time.sleep(0.2)
    os.kill(killed.pid, signal.SIGKILL)  # its worker ends with it
    killed.communicate()
    said = other.communicate(timeout=500)[0].decode()
    assert other.returncode == 0
    study = load(output)
    assert tickets(study) == list(range(6))
    assert {"COMPLETE", "FAIL"} <= set(states(study)) <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "softmax, 6 complete trials and 0 stopped early" in said
    assert len({json.dumps(trial.params) for trial in finished(study)}) == 6
    assert not list(output.glob("trial-*"))
    written = (output / "sweep.md").read_bytes(), (output / "best.flags").read_bytes()
    assert succeeds("experiments.sweep", *arguments).partition("\n\n")[0] == said.partition("\n\n")[0]
    assert written == ((output / "sweep.md").read_bytes(), (output / "best.flags").read_bytes())
    assert tickets(load(output)) == list(range(6))
    assert not list((output / "workers").iterdir())
    # with the flags it trains on all training videos of the same lists
    train = ("--flagfile", output / "best.flags", "--run_dir", tmp_path / "run")
    succeeds("experiments.train", *train, "--allow_missing")
    assert len(json.loads((tmp_path / "run" / "split.json").read_text())["train"]) == 12
