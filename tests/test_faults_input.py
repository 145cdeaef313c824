"""What does not belong together, and what was made to do harm: pairings, archives, model files, names."""

import csv
import io
import json
import lzma
import os
import pickle
import re
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import data_prep.extract as extraction
from action_attention import evaluation
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import FeatureCache
from action_attention.registry import Config
from action_attention.runs import Run
from action_attention.tables import SETTINGS
from action_attention.training import new_model, train
from data_prep import hmdb51, pipeline
from data_prep.backbones import build_backbone
from data_prep.hmdb51 import unpack
from data_prep.recognizer import Recognizer
from data_prep.splits import read_lists
from experiments import options, report
from tests import test_report
from tests.browsers import CHROMIUM, chromium
from tests.conftest import CLASSES, write_video
from tests.test_hmdb51 import pack, rar, tree
from tests.test_programs import PACKAGES, dangerous_files
from tests.test_training import ABOUT, config, edit, history_of, make_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CUBE = (7, 7, 512)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    return make_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config(epochs=1))


# Wrong pairings


def test_features_of_another_kind(run_dir, videos, network, tmp_path, monkeypatch, fault):
    """Caches and runs that differ in one of `SETTINGS`; only the label of the weights does not matter."""
    original, name, refused = pipeline.cache_settings, next(iter(read_names(run_dir))), 0
    for key in (key for key in SETTINGS if key not in ("weights", "schema_version")):
        other = 10.0 if key == "fps" else "another"
        monkeypatch.setattr(pipeline, "cache_settings", lambda *a, k=key, v=other: {**original(*a), k: v})
        extraction.extract(videos, tmp_path / key, network, fps=15.0, names=[name])
        cache = FeatureCache(tmp_path / key)
        with pytest.raises(UserError, match=rf"has {key}={other}, but .* was trained with {key}=.*; give the cache"):
            evaluate(run_dir, cache)
        cache.close()
        refused += 1
    monkeypatch.setattr(pipeline, "cache_settings", original)
    run = json.loads((run_dir / "run.json").read_text())
    for key in original(network, 15.0).keys() - {"weights", "fps"}:
        about = {**run["cache"], "settings": {**run["cache"]["settings"], key: "another"}}
        with pytest.raises(UserError, match=rf"features with {key}=another, but now they have {key}=.*; give the same"):
            Recognizer(Run.open(edit(run_dir, tmp_path / f"run-{key}", cache=about)), network=network)
        refused += 1
    fault(
        "A cache of other weights, precision, preprocessing, size or frame rate than the model's (eval, predict)",
        refused, "refused, with what differs and the remedy", f"{refused} refused",
    )  # fmt: skip


def read_names(run_dir):
    return json.loads((run_dir / "split.json").read_text())["test"]


def test_lists_that_name_what_the_cache_lacks(cache, tmp_path, capsys, monkeypatch, fault):
    tried = 0
    for missing in (1, 9, 25):
        folder = tmp_path / str(missing)
        folder.mkdir()
        for class_name in CLASSES:
            there = [name.split("/")[1] for name in sorted(cache.videos) if name.startswith(f"{class_name}/")]
            lines = [f"{name} {1 + number % 2} \n" for number, name in enumerate(there)]
            gone = [f"gone{n:02}_{class_name}_0.avi 1 \n" for n in range(missing)] if class_name == "nod" else []
            (folder / f"{class_name}_test_split1.txt").write_text("".join(lines + gone))
        args = SimpleNamespace(splits=folder, split=1, dataset=None, allow_missing=False, duplicates="allow")
        first = ", ".join(f"nod/gone{n:02}_nod_0.avi" for n in range(min(missing, 10)))
        monkeypatch.setattr(options.flags, "FLAGS", args)
        with pytest.raises(UserError) as raised:
            options.split_as_flagged(cache, tmp_path, 0)
        assert f"lacks {missing} videos of the lists: {first}; extract them, or train without them by" in str(
            raised.value
        )
        args.allow_missing = True
        split, about = options.split_as_flagged(cache, tmp_path, 0, "none")
        assert f"WARNING: {cache.folder} lacks {missing} videos of the lists: {first}; they are left out" in (
            capsys.readouterr().err
        )
        assert about["missing"]["videos"] == missing
        assert not any("gone" in name for names in split.values() for name in names)
        tried += 1
    fault(
        "Splits that name videos that the cache lacks", tried,
        "refused, with how many and the first ten; --allow_missing goes on without them and says so",
        f"{tried} refused, {tried} trained without them when asked to",
    )  # fmt: skip


def test_classes_that_disagree(run_dir, cache, videos, network, split, tmp_path, fault):
    refused = 0
    without = {**split, "train": [name for name in split["train"] if not name.startswith("nod")]}
    with pytest.raises(UserError, match="no training videos of nod, although it tests them; correct it"):
        train(config(), cache, without, tmp_path / "new", about=ABOUT)
    assert not (tmp_path / "new").exists()
    refused += 1
    renamed = tmp_path / "videos"
    for name in read_names(run_dir):
        target = renamed / name.replace("nod/", "wave/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / name, target)
    extraction.extract(renamed, tmp_path / "features", network)
    other = FeatureCache(tmp_path / "features")
    with pytest.raises(UserError, match=r"lacks 2 videos that are asked for: nod/"):
        evaluate(run_dir, other)
    refused += 1
    copy = edit(run_dir, tmp_path / "names")
    lists = json.loads((copy / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps({**lists, "test": sorted(other.videos)}))
    with pytest.raises(UserError, match="holds different files under the names of the test videos than"):
        evaluate(copy, other)
    with pytest.raises(UserError, match="the model knows no class wave; its classes are leap, nod, spin"):
        Clips(other, sorted(other.videos), ["leap", "nod", "spin"], clip_length=4)
    refused += 1
    other.close()
    for classes in (["leap", "nod"], ["leap", "nod", "spin", "wave"]):
        with pytest.raises(UserError, match=rf"it has classes=3, run\.json says classes={len(classes)}; put back"):
            evaluate(edit(run_dir, tmp_path / str(len(classes)), classes=classes), cache)
        refused += 1
    fault(
        "Classes that disagree (split, cache, model, run)", refused, "refused, naming the class or the number",
        f"{refused} refused",
    )  # fmt: skip


def test_resuming_with_something_else(run_dir, cache, split, videos, network, tmp_path, fault):
    before, refused = tree(run_dir), 0
    others = {
        "model": "softmax", "mixed_precision": True, "mirror": True, "schedule": "cosine", "vote": "mean", "cells": 2,
        "normalize": "sqrt_l2", "motion": "difference", "clip_stride": 2, "ablate": "cell_state", "dropout": 0.25,
        "glimpse": "quarters", "scores": "location", "motion_prior": True, "centre_prior": True, "beside": "mean",
        "fusion": "early",
    }  # fmt: skip
    settings = config(epochs=1).flat()
    for name, there in settings.items():
        if name in ("epochs", "patience"):
            continue
        value = others.get(name) or there * 2 + 1
        if name in ("heads", "temperature"):
            with pytest.raises(UserError, match=rf"{name} is for scores=location"):
                Config.read({**settings, name: value})
            refused += 1
            continue
        asked = config(value, epochs=1) if name == "model" else Config.read({**settings, name: value})
        sentence = (
            "takes the frames' optical flow too" if name == "fusion" else rf"was trained with {name}=.*, now {name}="
        )
        with pytest.raises(UserError, match=sentence):
            train(asked, cache, split, run_dir, resume=True)
        refused += 1
    for subset in split:
        with pytest.raises(UserError, match=rf"has other {subset} videos than are asked for now \(1 differ\)"):
            train(config(epochs=1), cache, {**split, subset: split[subset] + ["nod/new.avi"]}, run_dir, resume=True)
        refused += 1
    extraction.extract(videos, tmp_path / "features", network, fps=10.0)
    other = FeatureCache(tmp_path / "features")
    with pytest.raises(UserError, match=r"was trained on other features than .*; give it the same cache"):
        train(config(epochs=1), other, split, run_dir, resume=True)
    other.close()
    refused += 1
    assert tree(run_dir) == before
    fault(
        "--resume with another setting, other videos, other features", refused,
        "refused, naming what differs; the run stays as it is", f"{refused} refused, not a byte changed",
    )  # fmt: skip


def load(folder):
    return Run.open(folder).model()


def rewrite_keras(path, change):
    """A `.keras` file with another `config.json`."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["config.json"] = json.dumps(change(json.loads(members["config.json"]))).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_runs_of_other_versions(run_dir, cache, split, tmp_path, fault):
    refused, made_by = 0, r"made (it|by).*git"

    def check(sentence, call, *arguments, **keywords):
        nonlocal refused
        with pytest.raises(UserError, match=sentence) as raised:
            call(*arguments, **keywords)
        assert "\n" not in str(raised.value)
        refused += 1

    newer = edit(run_dir, tmp_path / "newer", schema_version=3)
    check(rf"schema 3, this version reads up to 2; use the version that {made_by}", evaluate, newer, cache)
    check(rf"schema 3.*{made_by}", train, config(epochs=1), cache, split, newer, resume=True)
    settings = json.loads((run_dir / "run.json").read_text())["config"]
    unknown = edit(run_dir, tmp_path / "unknown", config={**settings, "wings": 2})
    check(rf"does not know \(wings\).*{made_by}", train, config(epochs=1), cache, split, unknown, resume=True)
    # model files
    model = edit(run_dir, tmp_path / "model")
    rewrite_keras(model / "model.keras", lambda c: {**c, "config": {**c["config"], "wings": 2}})
    check(rf"cannot be read as a model of this version, with Keras .*{made_by}", load, model)
    rewrite_keras(model / "model.keras", lambda c: {**c, "config": {}, "registered_name": "action_attention>Winged"})
    check(rf"cannot be read as a model of this version, with Keras .*{made_by}", load, model)
    for other in (config("softmax"), config(lstm_units=8), config(dropout=0.25), config(cells=2)):
        new_model(other, 3, CUBE).save(model / "model.keras")
        check(r"is not this run's model: it has .*, run\.json says .*; put back", load, model)
    # states
    state = edit(run_dir, tmp_path / "state")
    with np.load(state / "last_state.npz") as saved:
        arrays = dict(saved)
    names = sorted(arrays.keys() - {"progress"})
    fewer = {name: array for name, array in arrays.items() if name != names[3]}
    by_position = {f"variable_{number:03}": arrays[name] for number, name in enumerate(names)}  # as of version 0.1
    by_position["progress"] = arrays["progress"]
    for damage in (fewer, {**arrays, "another": np.zeros(3)}, {**arrays, names[0]: np.zeros((2, 2))},
                   {**arrays, "progress": np.array("{}")}, by_position):  # fmt: skip
        np.savez(state / "last_state.npz", **damage)
        check(rf"last_state\.npz is damaged or of another version.*{made_by}", train, config(epochs=2), cache, split,
              state, resume=True)  # fmt: skip
    whole = (run_dir / "last_state.npz").read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (state / "last_state.npz").write_bytes(whole[:cut])
        check(r"last_state\.npz is damaged", train, config(epochs=2), cache, split, state, resume=True)
    (state / "last_state.npz").write_bytes(whole)
    assert train(config(epochs=2), cache, split, state, about=ABOUT, resume=True)["epochs"] == 2
    assert history_of(state)[:1] == history_of(run_dir)
    fault(
        "A run, model or state of another version, of another run, or damaged", refused,
        "one sentence with the versions and the remedy, never a traceback", f"{refused} refused",
    )  # fmt: skip


# Hostile files


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def hostile_models(canary):
    """Name -> function that writes a model file which makes the canary if it is trusted."""

    def of_lambda(path):
        code = f"lambda x: (__import__('pathlib').Path({str(canary)!r}).touch(), x)[1]"
        layer = keras.layers.Lambda(eval(code), output_shape=(2,))
        keras.Sequential([keras.Input((2,)), layer]).save(path)
        canary.unlink(missing_ok=True)

    def of_config(**config):
        def write(path):
            new_model(Config.of("softmax"), 3, CUBE).save(path)
            rewrite_keras(path, lambda _: config)

        return write

    def of_part(**part):
        def write(path):
            new_model(Config.of("softmax"), 3, CUBE).save(path)
            rewrite_keras(path, lambda c: {**c, "config": {**c["config"], "dtype": part}})

        return write

    def of_pickle(path):
        path.write_bytes(pickle.dumps(Canary(canary)))

    def of_h5(path):
        of_lambda(path.with_suffix(".h5"))
        path.with_suffix(".h5").rename(path)

    def of_npz(path):
        new_model(Config.of("softmax"), 3, CUBE).save(path)
        weights = io.BytesIO()
        np.savez(weights, a=np.array([Canary(canary)], object))
        with zipfile.ZipFile(path) as archive:
            names = {name: archive.read(name) for name in archive.namelist() if "weights" not in name}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {**names, "model.weights.npz": weights.getvalue()}.items():
                archive.writestr(name, data)

    command = {"args": ["touch", str(canary)]}
    return {
        "Lambda layer": of_lambda,
        "Lambda layer in HDF5": of_h5,
        "class of subprocess": of_config(module="subprocess", class_name="Popen", config=command, registered_name=None),
        "function os.system": of_config(module="os", class_name="function", config="system", registered_name="system"),
        "builtin exec": of_config(module="builtins", class_name="function", config="exec", registered_name="exec"),
        "lambda as an object": of_config(class_name="__lambda__", config={"value": ["AA==", None, None]}),
        "saved graph": of_config(
            module="keras.layers", class_name="TFSMLayer", config={"filepath": str(canary.parent)}, registered_name=None
        ),
        "download": of_config(
            module="keras.utils", class_name="function", config="get_file", registered_name="get_file"
        ),
        "class of subprocess as a dtype": of_part(
            module="subprocess", class_name="Popen", config=command, registered_name=None
        ),
        "pickle": of_pickle,
        "pickle in its weights": of_npz,
    }


def test_model_and_array_files_that_carry_code(run_dir, cache, split, tmp_path, fault):
    canary, refused = tmp_path / "canary", 0
    hostile_models(canary)["Lambda layer"](tmp_path / "works.keras")
    keras.saving.load_model(tmp_path / "works.keras", safe_mode=False)(np.zeros((1, 2), np.float32))
    assert canary.exists()  # it does harm where it is trusted
    canary.unlink()
    copy = edit(run_dir, tmp_path / "copy")
    for write in hostile_models(canary).values():
        write(copy / "model.keras")
        with pytest.raises(UserError, match=r"cannot be read as a model|is not this run's model"):
            load(copy)
        refused += 1
    shutil.copy(run_dir / "model.keras", copy)
    code = np.array([Canary(canary)], object)
    with np.load(run_dir / "last_state.npz") as saved:
        variable = min(set(saved.files) - {"progress"})
    for name in ("progress", variable):
        with np.load(run_dir / "last_state.npz") as saved:
            np.savez(copy / "last_state.npz", **{**saved, name: code})
        with pytest.raises(UserError, match=r"last_state\.npz is damaged or of another version \(Object arrays cannot"):
            train(config(epochs=2), cache, split, copy, resume=True)
        refused += 1
    (copy / "last_state.npz").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match=r"last_state\.npz is damaged"):
        train(config(epochs=2), cache, split, copy, resume=True)
    frames = copy / "eval" / "test" / "frames.npz"
    for name in ("attention", "probabilities"):
        with np.load(run_dir / "eval" / "test" / "frames.npz") as saved:
            np.savez(frames, **{**saved, name: code})
        with pytest.raises(UserError, match="do not fit together"):
            Run.open(copy).predictions()
    frames.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="do not fit together"):
        Run.open(copy).predictions()
    weights = tmp_path / "vgg.h5"
    weights.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(UserError, match="holds no weights of VGG16"):
        build_backbone(weights=str(weights))
    refused += 5
    assert not canary.exists()
    np.load(frames, allow_pickle=True)
    assert canary.exists()  # and so does this
    fault(
        "Model, state, evaluation and weights files that carry code (Lambda, named functions, pickle)", refused,
        "refused; nothing in a file is ever run", f"{refused} refused, none ran",
    )  # fmt: skip


def test_no_code_of_ours_trusts_a_file(fault):
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert dangerous_files() == {"data_prep/backbones/pytorch_file.py": ["pickle"]}  # whose every name is checked
    fault(
        "Our own code: pickle, allow_pickle, safe_mode=False, eval, exec, shell=True and their like", len(files),
        "none but one unpickler, for PyTorch's files, that knows five harmless names",
        f"{len(files)} files parsed, no other found",
    )  # fmt: skip


# Archives

LONG = "x" * 300
OUTSIDE = [
    "/etc/wave/a.avi", "//server/wave/a.avi", "wave/../../a.avi", "..\\wave\\a.avi", "C:\\wave\\a.avi", "c:/wave/a.avi",
    "\\\\server\\wave\\a.avi", "../wave_test_split1.txt", "videos/../../../a.avi", "..",
]  # fmt: skip
HARMLESS = [
    "wave/new\nline.avi", "wave/$(touch canary);`touch canary`.avi", "wave/quo'te\"s.avi", "wave/%d%s.avi",
    "wave/-rf.avi", "<script>alert(1)</script>.avi", "=cmd|calc/a.avi", "ünï/\u202eiva.avi", "wave/~.avi",
    "w ave/ .avi", "...x/a.avi",
]  # fmt: skip


def patched_zip(path, files, method=zipfile.ZIP_STORED, **changes):
    """A ZIP one of whose members has other attributes than it should."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return path


def replaced(path, old, new, count=-1):
    path.write_bytes(path.read_bytes().replace(old, new, count))
    return path


def hostile_archives(folder):
    """Description -> archive; all that must be refused."""
    good = {"wave/good.avi": b"1"}
    for kind in ("zip", "rar"):
        for number, name in enumerate(OUTSIDE):
            yield f"{name!r} in {kind}", pack(folder / f"out{number}.{kind}", {**good, name: b"2"})
        inner = pack(folder / f"inner.{kind}", {"../../a.avi": b"2"}).read_bytes()
        yield f"nested in {kind}", pack(folder / f"nested.{kind}", {**good, f"wave.{kind}": inner})
        deep = b"1"
        for level in range(5):
            deep = pack(folder / f"level{level}.{kind}", {f"{level}.{kind}": deep, **good}).read_bytes()
        yield f"too deep in {kind}", folder / f"level4.{kind}"
        yield f"too long a name in {kind}", pack(folder / f"long.{kind}", {f"wave/{LONG}.avi": b"1"})
        yield f"bomb in {kind}", pack(folder / f"bomb.{kind}", {f"wave/{n}.avi": bytes(1000) for n in range(60)})
        yield f"two for one place in {kind}", pack(folder / f"two.{kind}", {"a/w/x.avi": b"12", "b/w/x.avi": b"21"})
        flipped = pack(folder / f"flipped.{kind}", {"wave/a.avi": b"payload" * 9})
        yield f"wrong checksum in {kind}", replaced(flipped, b"payload", b"pAyload", 1)
        cut = pack(folder / f"cut.{kind}", {"wave/a.avi": b"payload" * 9})
        cut.write_bytes(cut.read_bytes()[:50])
        yield f"cut {kind}", cut
    for what, mode in (
        ("link", stat.S_IFLNK),
        ("device", stat.S_IFCHR),
        ("pipe", stat.S_IFIFO),
        ("socket", stat.S_IFSOCK),
    ):
        yield (
            what,
            patched_zip(folder / f"{what}.zip", {"wave/a.avi": b"/etc/passwd"}, external_attr=(mode | 0o777) << 16),
        )
    yield "link in rar", rar(folder / "link.rar", {"wave/a.avi": b"/etc/passwd"}, stat.S_IFLNK | 0o777)
    yield (
        "link to a folder, and a file in it",
        patched_zip(
            folder / "through.zip", {"wave": b"/tmp", "wave/a.avi": b"2"}, external_attr=(stat.S_IFLNK | 0o777) << 16
        ),
    )
    bomb = patched_zip(folder / "zeros.zip", {"wave/a.avi": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    yield "compressed zeros", bomb
    lying = folder / "lying.zip"
    shutil.copy(bomb, lying)
    yield "bomb that announces less", replaced(lying, struct.pack("<I", 10**6), struct.pack("<I", 60))
    yield (
        "encrypted",
        replaced(
            pack(folder / "secret.zip", good), b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
        ),
    )
    yield (
        "unknown compression",
        replaced(
            pack(folder / "method.zip", good),
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00",
            b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63",
        ),
    )
    yield "name that is not UTF-8", replaced(pack(folder / "utf8.zip", {"wave/é.avi": b"1"}), "é".encode(), b"\xff\xff")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = patched_zip(folder / f"garbage{method}.zip", {"wave/a.avi": os.urandom(200)}, method)
        data = bytearray(path.read_bytes())
        data[70:90] = b"\xff" * 20
        path.write_bytes(data)
        yield f"garbage in method {method}", path
    for name, content in (
        ("page.zip", b"<html>"),
        ("empty.zip", b""),
        ("magic.rar", b"Rar!"),
        ("magic.zip", b"PK\x03\x04"),
    ):
        (folder / name).write_bytes(content)
        yield name, folder / name
    (folder / "lzma.zip").write_bytes(lzma.compress(b"x"))
    yield "another kind of archive", folder / "lzma.zip"


def test_hostile_archives(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(hmdb51, "UNPACKED_BYTES", 50_000)
    archives, sandbox = tmp_path / "archives", tmp_path / "sandbox"
    archives.mkdir()
    refused, harmless = [], 0
    for what, path in hostile_archives(archives):
        sandbox.mkdir()
        with pytest.raises((UserError, OSError)) as raised:
            unpack(path, sandbox / "new")
        assert (
            path.name in str(raised.value)
            or LONG in str(raised.value)
            or "wave." in str(raised.value)
            or "deep" in what
        )
        if not isinstance(raised.value, UserError):  # the file system's own refusal of a name
            assert "File name too long" in str(raised.value)
        assert {Path(name).name for name in tree(sandbox)} <= {"good.avi", "x.avi"}, what
        assert not any(part.is_symlink() for part in sandbox.rglob("*")), what
        if "'" in what:  # names that point outside are seen before anything is written
            assert tree(sandbox) == {}, what
        assert all(name.startswith("new/videos/") for name in tree(sandbox)), what
        refused.append(what)
        shutil.rmtree(sandbox)
    for kind in ("zip", "rar"):
        for number, name in enumerate(HARMLESS):
            unpack(pack(archives / f"odd{number}.{kind}", {name: b"content"}), sandbox)
            (found,) = tree(sandbox)
            assert Path(found).name == name.split("/")[-1]
            assert Path(found).parts[0] == "videos"
            assert found.count("/") == 2
            harmless += 1
            shutil.rmtree(sandbox)
    assert len(set(refused)) == len(refused) >= 30
    assert {path.name for path in tmp_path.iterdir()} == {"archives"}
    assert not (ROOT / "canary").exists()
    fault(
        "Archives, ZIP and RAR: absolute names, .., links, devices, bombs, lies, damage", len(refused),
        "refused by name; nothing outside of the dataset's folder is written", f"{len(refused)} refused",
    )  # fmt: skip
    fault(
        "Names in archives with shell characters, newlines, quotes, HTML", harmless, "unpacked under that very name",
        f"{harmless} unpacked",
    )  # fmt: skip


# Names

NAMES = [
    "new\nline.avi", "carriage\rreturn.avi", "quo'te\"s,;|.avi", "$(touch canary)`touch canary`;&.avi", "%d%s%n{}.avi",
    "-rf.avi", "=1+1.avi", "<img src=x onerror=window.owned=1>.avi", "script><script>window.owned=1<!--.avi",
    "\u202egnol.avi", "\u2028\x85\x0b sep.avi", " space .avi", "\\u003c{{data}}.avi", "&lt;b&gt;&amp;.avi",
    "javascript:window.owned=1.avi",
]  # fmt: skip
# the last one's name and that of a file above make a closing script tag
HOSTILE_CLASSES = ["<img src=x onerror=window.owned=1>", r"$\frac$ _a^", 'new\nline, "quote"', "{{data}} <"]


def test_names_come_back_from_csv_files_and_never_run_in_the_report(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(test_report, "FILES", NAMES)
    folder = test_report.make_run(tmp_path / "run", 1, videos=len(NAMES) * 4, classes=HOSTILE_CLASSES)
    names = [row["video"] for row in test_report.rows_of(folder)]
    assert {name.split("/", 1)[1] for name in names} >= {NAMES[0], NAMES[-1]}
    assert [prediction.name for prediction in Run.open(folder).predictions()] == names
    tags = {name: 1 + number % 2 for number, name in enumerate(sorted(set(names)))}
    with (tmp_path / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("video", "subset"), *((name, ("train", "test")[tag - 1]) for name, tag in tags.items())]
        )
    assert read_lists(tmp_path / "split.csv") == tags
    assert evaluation.confusion_png(np.eye(4), HOSTILE_CLASSES)[:4] == b"\x89PNG"

    report.make_report(report.read_runs([folder], "test"), None, tmp_path / "report", 0)
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    data = page.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["classes"] == HOSTILE_CLASSES
    assert [video["name"] for video in json.loads(data)["videos"]] == sorted(set(names))
    browser_says = "no browser here"
    if CHROMIUM:
        with chromium() as browser:
            shown, said = browser.new_page(), []
            shown.on("pageerror", lambda error: said.append(str(error)))
            shown.on("dialog", lambda dialog: said.append(dialog.message))
            shown.goto((tmp_path / "report" / "index.html").as_uri())
            shown.wait_for_timeout(500)
            assert shown.evaluate("window.owned") is None
            assert shown.locator("main img").count() == 0
            assert said == []
        browser_says = "none ran in Chromium"
    tried = len(NAMES) + len(HOSTILE_CLASSES)
    fault(
        "Class and file names with HTML, scripts, quotes, newlines, shell and format characters: CSV, report, pictures",
        tried, "they come back as they were, and are text in the report", f"{tried} came back; {browser_says}",
    )  # fmt: skip


PREDICTS = """
import json, os, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
from absl import flags
from conftest import small_network
from action_attention.errors import UserError
from data_prep import recognizer
from experiments import predict
recognizer.build_backbone = lambda *_: small_network()
predict.define_flags()
said = {}
for number, path in enumerate(sorted(Path(os.fsencode(sys.argv[3]).decode("utf-8", "surrogateescape")).iterdir())):
    output = Path(sys.argv[4]) / str(number)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["predict", f"--run_dir={sys.argv[2]}", f"--video={path}", f"--output={output}", "--nogif"])
    try:
        predict.main()
        about = json.loads((output / f"{path.stem}_prediction.json").read_text())
        said[ascii(path.name)] = [about["video"] == str(path), sorted(p.suffix for p in output.iterdir())]
    except UserError as error:
        said[ascii(path.name)] = str(error)
Path(sys.argv[5]).write_text(json.dumps(said))
"""


def test_predict_of_files_with_any_name(run_dir, tmp_path, fault):
    folder, survived, rejected = tmp_path / "videos", 0, 0
    for number, name in enumerate(NAMES):
        write_video(folder / "plain.avi", 12, seed=number)
        (folder / "plain.avi").rename(folder / name)
    for name in (b"latin-\xe9.avi", b"\xff\xfe.avi"):
        write_video(folder / "plain.avi", 12)
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((folder / "plain.avi").read_bytes())
        (folder / "plain.avi").unlink()
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", PREDICTS, ROOT, run_dir, folder, tmp_path / "out", tmp_path / "said.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    for name, result in json.loads((tmp_path / "said.json").read_text()).items():
        if isinstance(result, str):
            assert re.search(r"the name of b'.*' is not UTF-8; rename the file or its folder", result), result
            assert "\\udc" in name
            rejected += 1
        else:
            assert result == [True, [".json", ".mp4"]], name
            survived += 1
    assert (survived, rejected) == (len(NAMES), 2)
    assert not list(tmp_path.rglob("canary"))
    fault(
        "Predicting files whose names have newlines, quotes, shell characters, bytes that are not UTF-8",
        survived + rejected, "they work, or one sentence names the file", f"{survived} worked, {rejected} rejected",
    )  # fmt: skip
