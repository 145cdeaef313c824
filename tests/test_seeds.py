"""Several seeds of one training: side by side, each finished once, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import tensorflow as tf
from forked import ROOT, run, succeeds

from action_attention.errors import UserError
from action_attention.runs import Run
from experiments import seeds as program
from experiments.seeds import find_places, parse_seeds
from tests.test_faults_training import state_of
from tests.test_training import history_of, weights_of

EPOCHS = 40


def arguments(cache_folder, run_dir, *more, epochs=EPOCHS):
    return [f"--features={cache_folder}", f"--run_dir={run_dir}", "--model=softmax", "--clip_length=6",
            "--batch_size=4", f"--epochs={epochs}", f"--patience={epochs}", *more]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [("0-4", [0, 1, 2, 3, 4]), ("0,2,5", [0, 2, 5]), ("7", [7]), ("3,0-1,9-9", [3, 0, 1, 9])]
)
def test_seeds_are_numbers_and_ranges(text, expected):
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "4-0", "0,,1", "0;1", " 0", "1.5"])
def test_other_text_is_refused(text):
    with pytest.raises(UserError, match=f"--seeds={text} must be numbers or ranges of them, such as 0-4 or 0,2,5"):
        parse_seeds(text)
    with pytest.raises(UserError, match="--seeds=0-2,1 names a seed twice"):
        parse_seeds("0-2,1")


def machine(monkeypatch, cores, gpus=0, visible=None, free=1 << 40):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(cores)})
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [None] * gpus)
    monkeypatch.setattr(program.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def cache_of(frames):
    return SimpleNamespace(cube_shape=(2, 2, 5), flow=None, videos={"a/b": SimpleNamespace(frames=frames)})


@pytest.mark.parametrize(
    ("cores", "seeds", "shares"),
    [(8, 3, [[0, 3, 6], [1, 4, 7], [2, 5]]), (2, 5, [[0], [1]]), (1, 2, [[0]]), (4, 1, [[0, 1, 2, 3]])],
)
def test_on_cpus_each_process_has_its_cores(monkeypatch, cores, seeds, shares):
    machine(monkeypatch, cores)
    assert find_places(seeds, 1, cache_of(10)) == [({}, share) for share in shares]


@pytest.mark.parametrize(
    ("gpus", "visible", "devices", "expected"),
    [(3, None, 1, ["0", "1", "2"]), (4, None, 2, ["0,1", "2,3"]), (3, None, 2, ["0,1"]), (2, "5,7", 1, ["5", "7"])],
)
def test_on_gpus_each_process_has_its_own(monkeypatch, gpus, visible, devices, expected):
    machine(monkeypatch, 8, gpus, visible)
    places = find_places(9, devices, cache_of(10))
    assert [environment for environment, _ in places] == [{"CUDA_VISIBLE_DEVICES": ids} for ids in expected]
    assert sorted(core for _, cores in places for core in cores) == [*range(8)]


@pytest.mark.parametrize(("free", "at_once"), [(1600, 4), (1599, 3), (400, 1), (399, 4)])
def test_no_more_at_once_than_memory_has_room_for_their_features(monkeypatch, free, at_once):
    """Ten frames are 400 bytes. A process keeps them in memory where that is less than half of what is free."""
    machine(monkeypatch, 4, free=2 * free)
    assert len(find_places(9, 1, cache_of(10))) == at_once


def test_a_seed_that_fails_is_named_and_the_same_command_does_what_is_missing(cache_folder, tmp_path):
    run_dir = tmp_path / "runs"
    run_dir.mkdir()
    (run_dir / "seed-2").write_text("in the way")
    command = ("experiments.train", *arguments(cache_folder, run_dir, "--seeds=0,2", epochs=1))
    done = run(*command)
    assert done.returncode == 1
    assert f"error: seed 2 of {run_dir} failed; the same command goes on with what is not finished" in done.stderr
    said = {line.split(": ", 1)[0]: line for line in done.stdout.splitlines()}
    assert "seed 0 is finished" in said
    assert "File exists" in said["seed 2 failed (exit code 1)"]
    kept = {path: path.read_bytes() for path in (run_dir / "seed-0").iterdir() if path.suffix in (".keras", ".npz")}
    assert len(kept) == 2
    (run_dir / "seed-2").unlink()
    last = succeeds(*command).splitlines()[-3:]
    assert {path: path.read_bytes() for path in kept} == kept
    folders = [run_dir / "seed-0", run_dir / "seed-2"]
    found = [100 * Run.open(folder, finished=True).about["best"]["val_video_top1"] for folder in folders]
    of_both = f"{np.mean(found):.1f}% ± {np.std(found, ddof=1):.1f} over 2 seeds"
    assert last[0] == f"{run_dir}: validation video accuracy {of_both}"
    assert last[1] == f"next: for run in {folders[0]} {folders[1]}; do make eval RUN_DIR=$run; done"
    assert last[2].strip() == f'make table RUN_DIR="{folders[0]} {folders[1]}"'
    assert "--seed=2\n" in (written := (folders[1] / "flags.txt").read_text())
    assert "--seeds" not in written


def start(cache_folder, folder):
    command = [sys.executable, "-m", "experiments.train", *arguments(cache_folder, folder, "--seeds=0-1")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell without job control has it ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    signal.signal(signal.SIGINT, before)
    return process


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eleven trainings
def test_killed_parent_killed_child_and_ctrl_c_lose_nothing(cache_folder, tmp_path):
    """What comes of it is what comes of a command that nobody disturbed."""
    run_dir, whole = tmp_path / "runs", tmp_path / "whole"

    def epochs():
        return sum(len(history_of(folder)) for folder in run_dir.glob("seed-?") if (folder / "history.json").exists())

    def at_work(process, more):
        """Its processes, when so many more epochs are finished."""
        before = epochs()
        while epochs() < before + more:
            assert process.poll() is None
            time.sleep(0.05)
        return psutil.Process(process.pid).children(recursive=True)

    def ended(children):
        _, alive = psutil.wait_procs(children, timeout=60)
        return not alive

    process = start(cache_folder, run_dir)
    children = at_work(process, 3)
    process.kill()
    process.communicate()
    assert ended(children)

    process = start(cache_folder, run_dir)
    child = next(
        each for each in at_work(process, 3) if each.ppid() == process.pid and "spawn_main" in " ".join(each.cmdline())
    )
    child.kill()
    said, complained = process.communicate(timeout=500)
    assert process.returncode == 1
    (seed,) = [line.split()[1] for line in said.splitlines() if line.endswith("was killed (signal 9)")]
    assert f"error: seed {seed} of {run_dir} failed" in complained
    assert said.count("is finished") == 1

    process = start(cache_folder, run_dir)
    children = at_work(process, 1)
    os.killpg(process.pid, signal.SIGINT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; the same command" in complained
    assert "Traceback" not in complained
    assert ended(children)

    for folder in (run_dir, whole):
        process = start(cache_folder, folder)
        _, complained = process.communicate(timeout=500)
        assert process.returncode == 0, complained
    for seed in range(2):
        ours, expected = run_dir / f"seed-{seed}", whole / f"seed-{seed}"
        assert weights_of(ours) == weights_of(expected)
        assert state_of(ours) == state_of(expected)
        numbers = [epoch["epoch"] for epoch in history_of(ours)]
        assert numbers == [*range(numbers[0], numbers[0] + EPOCHS)]  # each once
        assert history_of(ours) == history_of(expected)
    # and what that seed does by itself, on the same split
    alone = arguments(cache_folder, tmp_path / "alone", "--seed=1", f"--splits={run_dir / 'splits.csv'}")
    succeeds("experiments.train", *alone)
    weights = [Run.open(folder).model().get_weights() for folder in (run_dir / "seed-1", tmp_path / "alone")]
    for ours, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
