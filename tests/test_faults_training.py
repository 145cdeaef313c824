"""Training that is killed, runs out of disk or diverges: real processes, and what they leave."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from action_attention.evaluation import evaluate
from action_attention.features import FeatureCache
from tests.test_training import curves_of, history_of, weights_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
EPOCHS = 30
COMMON = ["--clip_length=6", "--batch_size=4", "--learning_rate=1e-2", f"--patience={EPOCHS}"]
KILLS = {"alstm": 5, "conv_alstm": 5}  # at random moments

# Kills itself the `count`-th time that it gets to `place`; a file that is being written is cut in half then.
KILLED_AT = """
import os, runpy, signal, sys
from pathlib import Path
import numpy as np
import data_prep.quiet_tensorflow
import keras, tensorflow as tf
from action_attention import training

place, count = sys.argv[1], int(sys.argv[2])
seen = 0

def here(name, path=None):
    global seen
    seen += name == place
    if name == place and seen == count:
        if path:
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

def after(owner, function, name, of=lambda *arguments: None):
    original = getattr(owner, function)
    def wrapped(*arguments, **keywords):
        result = original(*arguments, **keywords)
        here(name, of(*arguments))
        return result
    setattr(owner, function, wrapped)

after(training, "predict_videos", "validation")
after(training.RunState, "on_train_batch_end", "a step")
after(training.Curves, "on_epoch_end", "curves on disk")
after(keras.Model, "save", "half of model.keras", lambda model, path, **rest: path)
after(np, "savez", "half of last_state.npz", lambda path, **rest: path)
replace = Path.replace
def replaced(self, target):
    here(f"before {target.name}")
    replace(self, target)
    here(f"after {target.name}")
Path.replace = replaced
sys.argv[:] = sys.argv[3:]
sys.path.insert(0, "")
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
# In this order each is reached in turn by one run of six epochs, the first of which is always the best so far.
PLACES = [
    ("half of model.keras", 1), ("half of last_state.npz", 1), ("before last_state.npz", 1), ("before model.keras", 1),
    ("after model.keras", 1), ("before history.json", 1), ("after history.json", 2), ("a step", 1), ("validation", 1),
    ("curves on disk", 1), ("half of last_state.npz", 2), ("after last_state.npz", 1), ("after run.json", 1),
    ("before run.json", 2),
]  # fmt: skip


def arguments(cache_folder, run_dir, model, *more, epochs=EPOCHS):
    units = [] if model == "softmax" else ["--lstm_units=4"]
    return [f"--features={cache_folder}", f"--run_dir={run_dir}", f"--model={model}", f"--epochs={epochs}", *COMMON,
            *units, *more]  # fmt: skip


def start(*command, **settings):
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings,
    )  # fmt: skip


def succeeds(*command, **settings):
    process = start(*command, **settings)
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    return said


def fails_with_one_sentence(*command, **settings):
    process = start(*command, **settings)
    _, complained = process.communicate(timeout=300)
    assert process.returncode == 1, complained
    assert "Traceback" not in complained
    (line,) = [line for line in complained.splitlines() if line.startswith("error: ")]
    return line


def tree(folder):
    """Content of all files but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }  # fmt: skip


def state_of(run_dir):
    """All variables (weights, optimizer, seeds), and what was kept of the best epoch, bit for bit."""
    with np.load(run_dir / "last_state.npz") as saved:
        variables = {name: saved[name].tobytes() for name in saved.files if name != "progress"}
        return variables, json.loads(str(saved["progress"]))["best"]


def assert_the_same_run(run_dir, whole, cache_folder):
    """Weights, state, history, curves and what evaluation says: bit for bit; and no file more or less."""
    assert weights_of(run_dir) == weights_of(whole)
    assert state_of(run_dir) == state_of(whole)
    assert history_of(run_dir) == history_of(whole)
    curves = curves_of(run_dir)
    assert curves == curves_of(whole)
    steps = [step for step, _ in curves["train/epoch_loss"]]
    assert steps == list(range(1, len(steps) + 1)) == [epoch["epoch"] for epoch in history_of(whole)]
    names = [{p.name for p in folder.iterdir() if p.name != "eval"} for folder in (run_dir, whole)]
    assert names[0] == names[1]
    for name in ("split.json", "flags.txt"):
        assert (run_dir / name).read_bytes() == (whole / name).read_bytes()
    said = [json.loads((folder / "run.json").read_text()) for folder in (run_dir, whole)]
    assert said[0].pop("seconds") > 0 < said[1].pop("seconds")
    assert said[0] == said[1]
    cache = FeatureCache(cache_folder)
    assert evaluate(run_dir, cache) == evaluate(whole, cache)
    cache.close()


def epochs_of(run_dir):
    """The epochs that a run has finished so far."""
    path = run_dir / "history.json"
    return json.loads(path.read_text()) if path.exists() else []


def test_killed_again_and_again_at_random_moments(cache_folder, tmp_path, fault):
    rng, kills, epochs_cut = random.Random(4), 0, []
    for model, wanted in KILLS.items():
        whole, run_dir = tmp_path / f"{model}-whole", tmp_path / model
        succeeds("-m", "experiments.train", *arguments(cache_folder, whole, model))
        seconds = [epoch["seconds"] for epoch in epochs_of(whole)]
        command = ("-m", "experiments.train", *arguments(cache_folder, run_dir, model, "--resume"))
        for number in range(wanted):
            process = start(*command)
            # after so many epochs, the first time in the first one, at any moment of the next
            epochs = number * (EPOCHS // wanted - rng.randrange(1, 3))
            while len(epochs_of(run_dir)) < epochs or not (run_dir / "run.json").exists():
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(rng.uniform(0, seconds[-1] / EPOCHS if epochs else seconds[0]))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += process.returncode == -signal.SIGKILL
            epochs_cut.append(len(epochs_of(run_dir)))
        assert epochs_cut[-1] < EPOCHS
        succeeds(*command)
        assert_the_same_run(run_dir, whole, cache_folder)
    assert kills == sum(KILLS.values())
    assert len(set(epochs_cut)) > 2  # not all in one epoch
    fault(
        "Training killed (SIGKILL) at random moments, again and again", kills,
        "--resume ends with the run that was never stopped, bit for bit on CPU; at most the epoch in hand is lost",
        f"{len(KILLS)} of {len(KILLS)} runs: same weights, optimizer, metrics, history and TensorBoard curves; "
        "no temporary files",
    )  # fmt: skip


def test_killed_between_and_within_all_files_that_an_epoch_writes(cache_folder, tmp_path, fault):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    succeeds("-m", "experiments.train", *arguments(cache_folder, whole, "alstm", epochs=6))
    more = arguments(cache_folder, run_dir, "alstm", "--resume", epochs=6)
    for place, count in PLACES:
        process = start("-c", KILLED_AT, place, count, "-", *more)
        _, complained = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, (place, complained)
    succeeds("-m", "experiments.train", *more)
    assert_the_same_run(run_dir, whole, cache_folder)
    fault(
        "Training killed (SIGKILL) within and between the files that an epoch writes", len(PLACES),
        "the files still fit together, and --resume ends with the run that was never stopped",
        f"{len(PLACES)} places, one after the other in one run: the same bits, curves and best model",
    )  # fmt: skip


def test_a_finished_run_is_never_overwritten_without_being_asked(cache_folder, tmp_path, fault):
    run_dir = tmp_path / "run"
    succeeds("-m", "experiments.train", *arguments(cache_folder, run_dir, "softmax", epochs=2))
    succeeds("-m", "experiments.eval", f"--run_dir={run_dir}")
    (run_dir / "eval" / "test" / "mine.txt").write_text("a note")
    before, tried = tree(run_dir), 0
    again = arguments(cache_folder, run_dir, "softmax", epochs=2)
    for more in ((), ("--model=alstm",)):
        assert "already holds a run; give another --run_dir, or --resume" in fails_with_one_sentence(
            "-m", "experiments.train", *again, *more
        )
        tried += 1
    for more in ("--seed=1",):
        assert "was trained with" in fails_with_one_sentence("-m", "experiments.train", *again, "--resume", more)
        tried += 1
    make = ["make", "-o", "setup", "train", f"VENV={tmp_path / 'venv'}", f"FEATURES={cache_folder}", "SPLITS=",
            f"RUN_DIR={run_dir}"]  # fmt: skip
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
    env = {key: value for key, value in os.environ.items() if key not in outer} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "Traceback" not in done.stderr
    assert tree(run_dir) == before
    tried += 1
    # resuming a finished run, and evaluating again, leave what is not theirs
    succeeds("-m", "experiments.train", *again, "--resume")
    succeeds("-m", "experiments.eval", f"--run_dir={run_dir}", "--subset=validation")
    after = tree(run_dir)
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if name.startswith("eval/validation/")
    }
    fault(
        "A command that would overwrite a finished run (train, make train, eval)", tried + 2,
        "a finished run is not overwritten without being asked; eval writes its own outputs only",
        f"{tried} refused with one sentence, not a byte changed; --resume and another eval left the rest alone",
    )  # fmt: skip


# The loss is not a number from one step on, as if by overflow.
DIVERGES_AT = """
import runpy, sys
import data_prep.quiet_tensorflow
import tensorflow as tf
from action_attention import clips
epoch, step = int(sys.argv[1]), int(sys.argv[2])
load, calls = clips.Clips.shuffled_batches, []
def shuffled_batches(self, batch_size, seed, epochs, **rest):
    first = (epoch - epochs.start) * self.steps(batch_size) + step
    def spoil(number, batch):
        inputs, targets = batch
        factor = tf.where(number == first, tf.constant(float("nan"), tf.float16), tf.constant(1, tf.float16))
        return {**inputs, "features": inputs["features"] * factor}, targets
    return load(self, batch_size, seed, epochs, **rest).enumerate().map(spoil)
clips.Clips.shuffled_batches = shuffled_batches
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, "")
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def test_a_loss_that_is_not_a_number_stops_at_its_step(cache_folder, tmp_path, fault):
    whole, tried = tmp_path / "whole", 0
    succeeds("-m", "experiments.train", *arguments(cache_folder, whole, "alstm", "--batch_size=2", epochs=3))
    for epoch, step in ((0, 0), (1, 2)):
        run_dir = tmp_path / f"{epoch}-{step}"
        command = arguments(cache_folder, run_dir, "alstm", "--batch_size=2", epochs=3)
        sentence = fails_with_one_sentence("-c", DIVERGES_AT, epoch, step, *command)
        kept = f"keeps the state of epoch {epoch}" if epoch else "holds no state yet"
        assert (
            f"the loss is nan in epoch {epoch + 1}, step {step + 1}; {run_dir} {kept}, train anew with a smaller"
            in sentence
        )
        assert (run_dir / "last_state.npz").exists() == (run_dir / "model.keras").exists() == bool(epoch)
        succeeds("-m", "experiments.train", *command, "--resume")  # the cause is gone
        assert_the_same_run(run_dir, whole, cache_folder)
        tried += 1
    fault(
        "A loss that is not a number", tried,
        "training stops at that step and names it, with exit code 1, and keeps the last good state",
        f"{tried} of {tried}: epoch and step named; with the cause gone, --resume ended with an undisturbed run's bits",
    )  # fmt: skip


def test_a_disk_that_is_full_keeps_the_state_before(cache_folder, tmp_path, fault):
    """On a file system of its own, filled up to what a part of the next epoch's files takes; where mounting is not
    allowed, by a limit on the size of files."""
    whole, volume = tmp_path / "whole", tmp_path / "volume"
    succeeds("-m", "experiments.train", *arguments(cache_folder, whole, "alstm", epochs=4))
    state = (whole / "last_state.npz").stat().st_size
    model = (whole / "model.keras").stat().st_size
    volume.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", volume], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    refused = []
    try:
        # so much room after two epochs that this fails: the start; the model; the end of the state after it
        for room in (0, model // 2, state - 4096 + model * mounted)[not mounted :]:
            run_dir = volume / f"run-{room}"
            succeeds("-m", "experiments.train", *arguments(cache_folder, run_dir, "alstm", epochs=2))
            before = tree(run_dir)
            if mounted:
                with (volume / "fill").open("wb") as fill:
                    os.posix_fallocate(fill.fileno(), 0, shutil.disk_usage(volume).free - room)
            command = ("-m", "experiments.train", *arguments(cache_folder, run_dir, "alstm", "--resume", epochs=4))
            limit = {"preexec_fn": partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))}
            sentence = fails_with_one_sentence(*command, **({} if mounted else limit))
            reason = "No space left on device" if mounted else "File too large"
            assert f"cannot be written to ({reason})" in sentence
            assert "make room, then the same command with --resume goes on" in sentence
            refused.append(room)
            after = tree(run_dir)
            assert not [name for name in after if ".part" in name]
            for name in ("last_state.npz", "history.json", "flags.txt", "split.json"):
                assert after[name] == before[name]
            (volume / "fill").unlink(missing_ok=True)
            succeeds(*command)
            assert weights_of(run_dir) == weights_of(whole)
            assert state_of(run_dir) == state_of(whole)
            assert curves_of(run_dir) == curves_of(whole)
    finally:
        if mounted:
            subprocess.run(["umount", volume], check=True)
    fault(
        f"A disk that is full ({'a small volume' if mounted else 'a limit on files'}) while a run directory is written",
        len(refused),
        "one sentence; the state of the epoch before is whole; goes on when there is room",
        f"{len(refused)} of {len(refused)} resumed to the undisturbed run's bits and curves",
    )  # fmt: skip
