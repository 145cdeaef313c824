"""Files that somebody sent: shards, runs, models and states that lie, settings that no machine holds, memory that runs
out. Each is refused with one sentence, within a small part of the memory that it asks for, or it works."""

import copy
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from action_attention import evaluation, model_file, training
from action_attention.errors import UserError
from action_attention.evaluation import evaluate, predict_videos
from action_attention.features import FeatureCache
from action_attention.localization import Actor
from action_attention.memory import weight_shapes
from action_attention.runs import Run
from action_attention.training import train
from data_prep.splits import read_lists
from experiments import report, table
from tests import hostile
from tests.test_faults_training import fails_with_one_sentence, start, tree
from tests.test_training import ABOUT, config, edit, make_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MEGABYTE = 1 << 20


def one_sentence(error):
    assert isinstance(error, UserError), repr(error)
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """A run of softmax, evaluated, with an annotated actor."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config("softmax", epochs=1))
    cache = FeatureCache(cache_folder)

    def left_half(name):
        cells = np.zeros((cache.videos[name].frames, *cache.cube_shape[:2]))
        cells[:, :, :3] = 1
        return Actor(cells, cells)

    assert "above_permuted_ci95" in evaluate(folder, cache, read_actor=left_half)["localization"]["mass"]
    cache.close()
    return folder


def test_shards_that_read_elsewhere_or_say_what_cannot_be(tmp_path, fault):
    folder, tried = hostile.make_cache(tmp_path / "whole"), 0
    changes = {what: (change, "") for what, change in hostile.hostile_shards(folder).items()}
    for what, (change, reason) in (changes | hostile.bad_tables(folder)).items():
        copied = tmp_path / str(tried)
        shutil.copytree(folder, copied)
        hostile.tamper(copied / "shard-00000.h5", change)
        started = time.monotonic()
        with pytest.raises(UserError) as raised:
            hostile.read_all(copied)
        assert f"{copied}/shard-00000.h5 is damaged ({reason}" in one_sentence(raised.value), what
        assert time.monotonic() - started < 2, what
        tried += 1
    for name in ("shard-00000.h5", "index.json"):
        for put in (
            os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(tmp_path / "pipe"),
        ):  # fmt: skip
            copied = tmp_path / str(tried)
            shutil.copytree(folder, copied)
            (copied / name).unlink()
            put(copied / name)
            with pytest.raises(UserError, match=r"is damaged|holds no feature cache"):
                FeatureCache(copied)
            tried += 1
    fault(
        "Shards with links, virtual datasets or other files' bytes in them; pipes; devices; tables that cannot be",
        tried, "refused by name within two seconds; no other file is read", f"{tried} refused",
    )  # fmt: skip


def test_features_that_are_not_finite(run_dir, cache_folder, split, tmp_path, fault):
    tried = 0
    for number, value in enumerate((np.nan, np.inf, -np.inf)):
        cache = FeatureCache(hostile.with_nan(cache_folder, tmp_path / str(number), value))
        for call in (
            lambda cache: evaluate(run_dir, cache),
            lambda cache, run=tmp_path / f"run-{number}": train(config("softmax"), cache, split, run, about=ABOUT),
            lambda cache: cache.read(split["test"][0]),
        ):
            with pytest.raises(UserError, match=r"has features in \S+ that are not finite; delete that file and run"):
                call(cache)
            tried += 1
        cache.close()
    fault(
        "Features that are not finite behind valid checksums (train, eval, reading)", tried,
        "refused by the video's name, with the remedy", f"{tried} refused",
    )  # fmt: skip


NAMES = ["../outside/x.mp4", "/etc/passwd", "..", ".", "wave/..", "wave/.", "a/b/c", "wave/x\0.mp4", "", "wave/",
         "\ud800/x.mp4"]  # fmt: skip


def test_names_that_lead_elsewhere(run_dir, cache_folder, tmp_path, fault):
    tried, cache = 0, FeatureCache(cache_folder)
    for number, name in enumerate(NAMES):
        run = edit(run_dir, tmp_path / str(number))
        lists = json.loads((run / "split.json").read_text())
        (run / "split.json").write_text(json.dumps({**lists, "test": [*lists["test"], name]}))
        with pytest.raises(UserError, match=r"split\.json is damaged \(.*(expected <class>/<file>|must be text)"):
            evaluate(run, cache)
        (run / "split.json").write_text(json.dumps(lists))
        tried += 1
        if name.isprintable() and name:
            rows = (run / "eval" / "test" / "predictions.csv").read_text().splitlines()
            first = rows[1].split(",", 1)
            rows[1] = f"{name},{first[1]}"
            (run / "eval" / "test" / "predictions.csv").write_text("\n".join(rows))
            with pytest.raises(UserError, match=r"do not fit together \(expected <class>/<file> as video, found"):
                Run.open(run).predictions()
            (tmp_path / "mine.csv").write_text(f"video,subset\n{name},train\n")
            with pytest.raises(UserError, match=r"mine\.csv, line 2: expected <class>/<file> as video, found"):
                read_lists(tmp_path / "mine.csv")
            tried += 2
    cache.close()
    fault(
        "Names of videos with .., absolute, without a class, with NUL, in split.json, predictions.csv and lists", tried,
        "refused where they are read", f"{tried} refused",
    )  # fmt: skip


# Reads each of a list of files as its name says; prints the sentence and by how much the process's peak grew.
READS = """
import json, resource, sys
import data_prep.quiet_tensorflow
from pathlib import Path
from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.runs import Run
from action_attention.training import train
from tests.test_training import config
cache, split = FeatureCache(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text())
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def read(folder):
    if folder.name.startswith("model"):
        Run.open(folder).model()
    elif folder.name.startswith("state"):
        train(config("softmax", epochs=2), cache, split, folder, resume=True)
    else:
        Run.open(folder).predictions()
said = {}
for number, folder in enumerate(map(Path, sys.argv[4:])):
    before = peak()
    try:
        read(folder)
        said[folder.name] = ["", 0]
    except UserError as error:
        said[folder.name] = [str(error), peak() - before]
Path(sys.argv[3]).write_text(json.dumps(said))
"""
LARGE = 1 << 30


def hostile_states():
    header = hostile.npy((LARGE // 4,))

    def packed(path):
        members = hostile.members_of(path)
        name = max(members, key=lambda name: len(members[name]))
        hostile.write_members(path, {other: content for other, content in members.items() if other != name})
        hostile.bomb(path, name, header, LARGE)

    def added(path):
        hostile.bomb(path, "another.npy", header, LARGE)

    def progress(path):
        members = hostile.members_of(path)
        del members["progress.npy"]
        hostile.write_members(path, members)
        hostile.bomb(path, "progress.npy", hostile.npy((), f"<U{LARGE // 4}"), LARGE)

    def lying(path):
        members = hostile.members_of(path)
        name = max(members, key=lambda name: len(members[name]))
        hostile.write_members(path, {**members, name: hostile.npy((LARGE,))})

    def overlapping(path):
        with hostile.zipfile.ZipFile(path, "a") as archive:
            for number in range(300):
                entry = copy.copy(archive.filelist[0])
                entry.filename = f"{number}.npy"
                archive.filelist.append(entry)
            archive._didModify = True

    return {"packed": packed, "added": added, "progress": progress, "lying": lying, "overlapping": overlapping}


def hostile_frames():
    def bombed(name):
        def change(path):
            members = hostile.members_of(path)
            del members[name]
            hostile.write_members(path, members)
            hostile.bomb(path, name, hostile.npy((LARGE // 4 // 49, 7, 7)), LARGE)

        return change

    return {"attention": bombed("attention.npy"), "probabilities": bombed("probabilities.npy")}


def hostile_weights(folder):
    """Description -> change of a `.keras` file."""
    secret = folder / "secret"
    secret.write_bytes(hostile.SECRET)

    def weights(make):
        return lambda path: hostile.change_weights(path, hostile.in_place_of_a_kernel(make))

    def virtual(file, place):
        with h5py.File(folder / "stolen.h5", "w") as other:
            other["stolen"] = np.zeros((512, 3), np.float32)
        layout = h5py.VirtualLayout((512, 3), np.float32)
        layout[...] = h5py.VirtualSource(str(folder / "stolen.h5"), "stolen", (512, 3))
        file.create_virtual_dataset(place, layout)

    def in_config(**entries):
        return lambda path: hostile.change_config(path, lambda c: {**c, **entries})

    def of_cubes(*shape):
        return in_config(build_config={"input_shape": {"features": [1, 1, *shape], "mask": [1, 1]}})

    def packed(path):
        members = hostile.members_of(path)
        hostile.write_members(path, members, hostile.zipfile.ZIP_DEFLATED)

    def member(name, content):
        return lambda path: hostile.write_members(path, {**hostile.members_of(path), name: content})

    def not_hdf5(path):
        hostile.write_members(path, {**hostile.members_of(path), "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(999)})

    return {
        "external link": weights(lambda f, p: f.__setitem__(p, h5py.ExternalLink(str(secret), "/x"))),
        "soft link": weights(lambda f, p: f.__setitem__(p, h5py.SoftLink("/elsewhere"))),
        "external storage": weights(
            lambda f, p: f.create_dataset(p, (512, 3), np.float32, external=[(str(secret), 0, 512 * 3 * 4)])
        ),
        "virtual": weights(virtual),
        "packed weights": weights(
            lambda f, p: f.create_dataset(p, (LARGE // 4,), np.float32, chunks=(1 << 20,), compression="gzip")
        ),
        "never written": weights(lambda f, p: f.create_dataset(p, (1 << 40,), np.float32)),
        "texts": weights(lambda f, p: f.__setitem__(p, np.array(["x"] * 9, h5py.string_dtype()))),
        "another shape": weights(lambda f, p: f.__setitem__(p, np.zeros((600, 3), np.float32))),
        "packed parts": packed,
        "long config": member("config.json", b'{"a": "' + b"x" * (2 * MEGABYTE) + b'"}'),
        "deep config": member("config.json", b"[" * 200_000),
        "another part": member("assets/x", b"x"),
        "no HDF5": not_hdf5,
        "cubes without end": of_cubes(10**6, 10**6, 512),
        "deep cubes": of_cubes(7, 7, 10**9),
        "negative cubes": of_cubes(-7, -7, 512),
        "empty cubes": of_cubes(0, 7, 512),
        "texts for cubes": of_cubes("x", "x", "x"),
        "flat cubes": in_config(build_config={"input_shape": {"features": [1, 1], "mask": [1, 1]}}),
        "no cubes": in_config(build_config=None),
    }


def test_states_models_and_evaluations_that_would_fill_memory(run_dir, cache_folder, split, tmp_path, fault):
    (tmp_path / "split.json").write_text(json.dumps(split))
    folders = []
    for kind, file, changes in (
        ("state", "last_state.npz", hostile_states()),
        ("frames", "eval/test/frames.npz", hostile_frames()),
        ("model", "model.keras", hostile_weights(tmp_path)),
    ):
        for what, change in changes.items():
            folders.append(tmp_path / f"{kind}: {what}")
            shutil.copytree(run_dir, folders[-1])
            change(folders[-1] / file)
            assert (folders[-1] / file).stat().st_size < 16 * MEGABYTE, what
    units = tmp_path / "model: too many units"  # run.json asks for them too
    settings = {"model": "alstm", "lstm_units": 60000, "cells": 16, "glimpse": "whole", "ablate": "none"}
    run = json.loads((run_dir / "run.json").read_text())
    edit(run_dir, units, config={**run["config"], **settings})
    shutil.move(units / "run", tmp_path / "model: units")
    folders.append(tmp_path / "model: units")
    hostile.change_config(
        folders[-1] / "model.keras",
        lambda c: {**c, "registered_name": "action_attention>ALSTM", "config": {
            **c["config"], "name": "alstm", **{k: v for k, v in settings.items() if k != "model"}}},
    )  # fmt: skip
    good = tmp_path / "model good"
    shutil.copytree(run_dir, good)
    files = [cache_folder, tmp_path / "split.json", tmp_path / "said.json", good, *folders]
    done = subprocess.run([sys.executable, "-c", READS, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said.pop(good.name) == ["", 0]
    for name, (sentence, grown) in said.items():
        assert sentence, name
        assert "\n" not in sentence, name
        assert str(tmp_path / name) in sentence, sentence
        assert grown < 150 * MEGABYTE, (name, grown)  # what Keras takes for a small model is in it
    largest = max(grown for _, grown in said.values())
    fault(
        "States, model files and evaluations that unpack to gigabytes, lie about their sizes or read other files",
        len(said), "refused by name, before memory is taken for them",
        f"{len(said)} refused; the process's peak grew by at most {largest // MEGABYTE} MB",
    )  # fmt: skip


VALUES = (None, -1, 1e308, "x", [], {})


def readers_of(folder, cache, split, output):
    """File -> what reads it."""

    def reads():
        run = Run.open(folder)
        return run.config, run.made_by, run.history(), run.metrics()

    def shows():
        result = table.read_result(folder)
        return table.markdown([result]), table.localization([result])

    def reports():
        report.make_report(report.read_runs([folder], "test"), None, output, 0)

    def evaluates():  # which reads the model first
        evaluate(folder, cache)

    def resumes():
        Run.open(folder)  # as it does itself, later
        train(config("softmax", epochs=1), cache, split, folder, about=ABOUT, resume=True)

    everything = (reads, shows, reports, evaluates, resumes)
    return {
        "run.json": everything, "split.json": everything, "history.json": (reads, reports),
        "eval/test/metrics.json": (reads, shows, reports), "last_state.npz": (resumes,),
    }  # fmt: skip


def documents_of(folder):
    """File -> the JSON document in it, and what the file holds if that is another one."""
    members = hostile.members_of(folder / "last_state.npz")

    def as_json(document):
        return json.dumps(document).encode()

    def as_state(document):
        progress, file = io.BytesIO(), io.BytesIO()
        np.save(progress, np.array(json.dumps(document)))
        hostile.write_members(file, {**members, "progress.npy": progress.getvalue()})
        return file.getvalue()

    names = ("run.json", "split.json", "history.json", "eval/test/metrics.json")
    documents = {name: (json.loads((folder / name).read_text()), as_json) for name in names}
    progress = json.loads(str(np.load(io.BytesIO(members["progress.npy"]))))
    return documents | {"last_state.npz": (progress, as_state)}


def test_any_value_in_the_files_of_a_run(run_dir, cache_folder, split, tmp_path, monkeypatch, fault):
    """Each value of each JSON document, one at a time, becomes each of `VALUES`: it works, or it is one sentence."""
    cache, folder = FeatureCache(cache_folder), tmp_path / "run"
    shutil.copytree(run_dir, folder)
    whole, known, worked, refused, wrong = tree(folder), {}, 0, 0, []

    def once(call, key):
        """What takes the time and is the same for the same videos, or cubes: it is done once for each."""

        def kept(*arguments):
            of = call, key(*arguments)
            if of not in known:
                known[of] = call(*arguments)
            return known[of]

        return kept

    monkeypatch.setattr(evaluation, "predict_videos", once(predict_videos, lambda _, clips, __: tuple(clips.videos)))
    monkeypatch.setattr(evaluation, "confusion_png", lambda *_: b"")
    for module in (training, model_file):
        monkeypatch.setattr(module, "weight_shapes", once(weight_shapes, lambda _, cube_shape: cube_shape))
    readers = readers_of(folder, cache, split, tmp_path / "report")

    def works(name, content):
        """Whether all that reads the file works with that content."""
        (folder / name).write_bytes(content)
        said = []
        for call in readers[name]:
            try:
                call()
            except UserError as error:
                said.append(one_sentence(error))
            except Exception as error:
                wrong.append((call.__name__, repr(error)[:300]))
        for path, now in tree(folder).items():
            if path not in whole:
                (folder / path).unlink()
            elif whole[path] != now:
                (folder / path).write_bytes(whole[path])
        return not said

    for name, (document, as_file) in documents_of(folder).items():
        assert works(name, as_file(document))
        for place in hostile.each_value(document):
            for value in VALUES:
                before = len(wrong)
                ended = works(name, as_file(hostile.with_value(document, place, value)))
                worked, refused = worked + ended, refused + (not ended)
                wrong[before:] = [(name, place, value, *each) for each in wrong[before:]]
    cache.close()
    assert wrong == []
    assert refused > 500
    assert worked > 100
    fault(
        "Each value in run.json, split.json, history.json, metrics.json and a state's progress replaced by null, -1, "
        "1e308, text, a list, an object (open, model, eval, table, report, --resume)",
        refused + worked, "it works, or one sentence says what is wrong", f"{worked} worked, {refused} refused",
    )  # fmt: skip


def test_settings_that_no_machine_holds(cache_folder, tmp_path, fault):
    run_dir, tried = tmp_path / "run", 0
    for arguments, sentence in (
        (["--lstm_units=60000"], r"alstm with lstm_units=60000.* would need at least \d+\.\d GB for its weights and"),
        (["--lstm_units=20000", "--cells=16"], r"cells=16.* would need at least \d+\.\d GB for its weights and"),
        (["--model=conv_alstm", "--lstm_units=60000"], r"conv_alstm with lstm_units=60000.*GB are free; make these"),
        (["--learning_rate=inf"], r"learning_rate must be a number at least 0, finite\. Received: inf"),
        (["--weight_decay=inf"], r"weight_decay must be a number at least 0, finite\. Received: inf"),
        (["--learning_rate=nan"], r"learning_rate"),
    ):
        command = ["-m", "experiments.train", f"--features={cache_folder}", f"--run_dir={run_dir}", *arguments]
        process = start(*command)
        _, complained = process.communicate(timeout=120)
        assert process.returncode == 1, complained
        assert "Traceback" not in complained
        assert re.search(sentence, complained), (arguments, complained)
        assert not (run_dir / "run.json").exists()
        tried += 1
    for flag in ("--clip_length=100000000", "--lstm_units=1000000000", "--cells=200", "--batch_size=1000000000",
                 "--seed=-1", "--seed=99999999999", "--patience=0"):  # fmt: skip
        process = start("-m", "experiments.train", f"--features={cache_folder}", f"--run_dir={tmp_path / 'no'}", flag)
        _, complained = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"flag {flag}: " in complained
        assert "Traceback" not in complained
        assert not (tmp_path / "no").exists()
        tried += 1
    fault(
        "Settings that cannot be built or are no numbers: units, cells, lengths, batches, rates, seeds", tried,
        "refused at once, with what they would need or what is allowed", f"{tried} refused",
    )  # fmt: skip


# Files may not grow from the moment that the first epoch's videos were predicted: the curves are what is written next.
FULL_CURVES = """
import resource, runpy, sys
import data_prep.quiet_tensorflow
from action_attention import training
predict_videos = training.predict_videos
def predict(*arguments):
    predicted = predict_videos(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return predicted
training.predict_videos = predict
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
ADDRESS_SPACE = """
import data_prep.quiet_tensorflow, psutil
from experiments import train
print(psutil.Process().memory_info().vms)
"""


def test_memory_or_disk_that_runs_out_in_training(cache_folder, tmp_path, fault):
    common = [f"--features={cache_folder}", "--lstm_units=4", "--clip_length=6", "--batch_size=4", "--epochs=2"]
    sentence = fails_with_one_sentence("-c", FULL_CURVES, "-", *common, f"--run_dir={tmp_path / 'full'}")
    assert "cannot be written to (" in sentence
    assert "File too large" in sentence
    assert not (tmp_path / "full" / "last_state.npz").exists()
    done = subprocess.run([sys.executable, "-c", ADDRESS_SPACE], cwd=ROOT, capture_output=True, check=True)
    needed = int(done.stdout)
    tried = 1
    for more in (300 << 20, 600 << 20):
        limit = partial(resource.setrlimit, resource.RLIMIT_AS, (needed + more, needed + more))
        started = time.monotonic()
        sentence = fails_with_one_sentence(
            "-m", "experiments.train", *common, f"--run_dir={tmp_path / str(more)}", preexec_fn=limit
        )
        assert "(ulimit -v) leaves 0." in sentence
        assert "raise it" in sentence
        assert time.monotonic() - started < 60
        tried += 1
    fault(
        "Too small a limit on memory (ulimit -v); a disk that is full while TensorBoard's curves are written", tried,
        "one sentence, and an end", f"{tried} sentences",
    )  # fmt: skip
