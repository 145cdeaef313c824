"""Files that somebody sent, numbers that cannot be: refused with one sentence, and nothing else is touched."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from action_attention import memory, training
from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import FeatureCache, write_index
from action_attention.files import check_name, check_plain, check_tree, locked
from action_attention.memory import check_memory, enough_memory, weight_shapes
from action_attention.model_file import load_keras
from action_attention.models import build_model
from action_attention.registry import Config, model_names
from action_attention.runs import Run, files_digest
from action_attention.settings import Training
from action_attention.shards import DamagedError, Shard, ShardWriter
from action_attention.tables import Video, are_finite
from action_attention.training import new_model, train
from action_attention.untrusted import check_arrays, complaint, parse_json, read_npz
from data_prep.splits import read_lists
from tests import hostile
from tests.test_features import SETTINGS
from tests.test_models import CUBE, MODEL_NAMES
from tests.test_training import ABOUT, config, edit, make_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return hostile.make_cache(tmp_path / "cache")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """A run of softmax, which is made quickly."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config("softmax", epochs=1))


# Shards


@pytest.mark.parametrize("what", ["external link for features", "virtual dataset for features",
                                  "external storage for features", "soft link for videos"])  # fmt: skip
def test_a_shard_that_reads_other_files_is_refused(folder, what):
    hostile.tamper(folder / "shard-00000.h5", hostile.hostile_shards(folder)[what])
    with pytest.raises(DamagedError, match=r"shard-00000\.h5 is damaged \(it.*\); run the same extraction again"):
        hostile.read_all(folder)


@pytest.mark.parametrize("what", ["the same video twice", "no frames", "file name '..'", "an array for fps"])
def test_a_table_that_cannot_be_is_refused_by_name(folder, what):
    change, reason = hostile.bad_tables(folder)[what]
    hostile.tamper(folder / "shard-00000.h5", change)
    with pytest.raises(DamagedError) as raised:
        hostile.read_all(folder)
    assert f"shard-00000.h5 is damaged ({reason}" in str(raised.value)


@pytest.mark.parametrize("name", ["shard-00001.h5", "index.json"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=r"is not a plain file|holds no feature cache \(no index\.json\)"):
        FeatureCache(folder)


def test_a_shard_that_changes_after_it_was_checked_is_not_read(folder):
    """Nor one that changes after the cache was opened and before it is checked."""
    (folder / "shards.jsonl").unlink()
    checked = FeatureCache(folder)
    hostile.make_cache(folder)
    cache = FeatureCache(folder)
    shutil.copy(folder / "shard-00001.h5", folder / "other")
    (folder / "other").replace(folder / "shard-00000.h5")
    with pytest.raises(DamagedError, match="has changed since it was opened"):
        checked.read("wave/v0.avi")
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"shard-00000\.h5 is damaged \(it is not the one that the index"):
            cache.read("wave/v0.avi")
    assert cache.read("wave/w0.avi").shape == (4, *hostile.CUBE)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_told_by_their_bits(value):
    cubes = np.array([0, -0.0, 65504, -65504, 6e-8], np.float16)
    assert are_finite(cubes)
    assert are_finite(cubes[:0])
    assert not are_finite(np.append(cubes, np.float16(value)))


def test_features_that_are_not_finite_are_named_wherever_they_are_read(run_dir, cache_folder, split, tmp_path):
    """Also through `tf.data`, which makes an error of its own of whatever it meets."""
    cache = FeatureCache(hostile.with_nan(cache_folder, tmp_path / "nan"))
    name = split["test"][0]
    sentence = rf"'{name}' has features in \S+shard-00000\.h5 that are not finite; delete that file and run the same"
    assert cache.read(name, 0, 1).shape[0] == 1  # the last frame is the bad one
    with pytest.raises(UserError, match=sentence):
        cache.read(name)
    with pytest.raises(UserError, match=sentence):
        evaluate(run_dir, cache)
    with pytest.raises(UserError, match=r"has features in .* that are not finite"):
        train(config("softmax"), cache, split, tmp_path / "run", about=ABOUT)


# Names and files


@pytest.mark.parametrize(
    "name", ["a/..", "a/.", "../a", "./a", "/a", "a/", "/", "a", "a/b/c", "/etc/passwd", "../outside/x.mp4", "a/b\0",
             "\ud800/a", "a/\udcff", "", None, 3]
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_no_video(name):
    with pytest.raises(ValueError, match="expected <class>/<file> as video, found"):
        check_name(name)


def test_any_other_name_is_one():
    for name in ("a/b", "a/..b", "..a/b", "a/...", ".../a", "a/b\n", "a/ ", "ünï/\u202eiva.avi", r"a\b/c\d", "-/~"):
        check_name(name)


def test_lists_that_name_what_is_elsewhere_are_refused(tmp_path):
    for name in ("../x.avi", "..", "a\0.avi", "/x.avi"):
        (tmp_path / "wave_test_split1.txt").write_text(f"{name} 1 \n")
        with pytest.raises(UserError, match=r"wave_test_split1\.txt, line 1: expected <class>/<file> as video, found"):
            read_lists(tmp_path)
    for name in ("../x.avi", "./x.avi", "wave/..", "/x.avi", "wave/../x.avi"):
        (tmp_path / "mine.csv").write_text(f"video,subset\n{name},train\n")
        with pytest.raises(UserError, match=r"mine\.csv, line 2: expected <class>/<file> as video, found"):
            read_lists(tmp_path / "mine.csv")


def test_a_lock_that_is_a_link_or_a_pipe_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    for put in (lambda lock: lock.symlink_to(victim), os.mkfifo):
        folder = tmp_path / put.__name__
        folder.mkdir()
        put(folder / ".lock")
        with pytest.raises(UserError, match=r"\.lock is not a plain file; remove it"), locked(folder, "busy"):
            pass
    assert not victim.exists()


def test_what_is_no_plain_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "link to a pipe").symlink_to(tmp_path / "pipe")
    check_plain(tmp_path / "file")
    check_plain(tmp_path / "link")
    for path in (tmp_path / "pipe", tmp_path / "link to a pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a plain file; remove it"):
            check_plain(path)


def test_a_run_with_a_link_in_it_is_refused_before_anything_is_written_through_it(run_dir, cache, split, tmp_path):
    """What `--resume` cuts off curves, or `eval` writes, would else be cut off and written elsewhere."""
    victim = tmp_path / "victim"
    for place in ("logs/train/events.out.tfevents.1", "eval/test/metrics.json", "history.json.part", "eval/train"):
        copy = tmp_path / place.replace("/", "-")
        shutil.copytree(run_dir, copy)
        (copy / place).unlink(missing_ok=True)
        (copy / place).parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(b"precious")
        (copy / place).symlink_to(victim)
        for call in (
            lambda run: train(config("softmax", epochs=2), cache, split, run, about=ABOUT, resume=True),
            lambda run: evaluate(run, cache),
            Run.open,
        ):
            with pytest.raises(UserError, match=f"{place} is a link, a pipe or a device; remove it"):
                call(copy)
        assert victim.read_bytes() == b"precious"
    check_tree(run_dir)


# What is read of a run


@pytest.mark.parametrize(
    ("value", "wanted", "says"),
    [
        (3, int, ""),
        (3, float, ""),
        (True, int, "it must be a whole number"),
        (2**70, int, "it must be a whole number"),
        (2**70, float, "it must be a number"),
        (3.0, int, "it must be a whole number"),
        ("a", str, ""),
        ("\ud800", str, "it must be text"),
        (None, (float, None), ""),
        ("a", (float, None), "it must be a number"),
        ("a", {"b", "c"}, "it must be one of b, c"),
        ([], {"b", "c"}, "it must be one of b, c"),
        ([1, "a"], [int], "1 must be a whole number"),
        ([1], [int, int], "must have 2 entries"),
        ({"a": {"b": [1, None]}}, {"a": {"b": [int]}}, "a.b.1 must be a whole number"),
        ({}, {"a": int}, "a is missing"),
        ({}, {"a?": int}, ""),
        ({"a": 1, "more": None}, {"a?": int}, ""),
        ({"a": 1, "b": "x"}, {str: int}, "b must be a whole number"),
        ([], {"a": int}, "it must be an object"),
    ],
)  # fmt: skip
def test_a_value_is_as_wanted_or_its_place_is_told(value, wanted, says):
    assert complaint(value, wanted).strip() == says


def test_json_that_is_nested_without_end_is_refused():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000, list)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"cache": 3}, r"\(cache must be an object\)"),
        ({"classes": ["a", 3]}, r"\(classes\.1 must be text\)"),
        ({"git": -1}, r"\(git must be text\)"),
        ({"best": {"epoch": "x"}}, r"\(best\.epoch must be a whole number\)"),
        ({"seconds": None}, r"\(seconds must be a number\)"),
    ],
)
def test_a_run_with_a_wrong_type_says_where(run_dir, tmp_path, entries, sentence):
    with pytest.raises(UserError, match=rf"run\.json or split\.json is damaged {sentence}; train again elsewhere$"):
        Run.open(edit(run_dir, tmp_path, **entries))


@pytest.mark.parametrize("value", [-1, 1e308, "x", []])
def test_a_setting_of_a_run_that_cannot_be_is_refused(run_dir, tmp_path, value):
    settings = json.loads((run_dir / "run.json").read_text())["config"]
    copy = edit(run_dir, tmp_path, config={**settings, "batch_size": value})
    with pytest.raises(UserError, match=r"run\.json is damaged \(batch_size must be a whole number at least 1,"):
        _ = Run.open(copy).config


def test_a_numpy_file_is_what_its_headers_say_and_no_larger_than_itself(tmp_path):
    path, good = tmp_path / "a.npz", np.arange(6, dtype=np.float32).reshape(2, 3)
    np.savez(path, a=good, text=np.array("é"))
    arrays = read_npz(path, lambda headers: headers["a"] == ((2, 3), np.float32) or pytest.fail("header"))
    np.testing.assert_array_equal(arrays["a"], good)
    assert str(arrays["text"]) == "é"
    np.savez_compressed(path, a=good)
    with pytest.raises(ValueError, match="its parts are packed or overlap"):
        read_npz(path)
    for shape, content in (((1 << 40,), b""), ((2,), bytes(4)), ((1,), bytes(8)), ((-1, -2), bytes(8))):
        hostile.write_members(path, {"a.npy": hostile.npy(shape, content=content)})
        with pytest.raises(ValueError, match=r"a\.npy is not of the size that it says"):
            read_npz(path)
    hostile.write_members(path, {"a.npy": hostile.npy((1,), "|O", bytes(8))})
    with pytest.raises(ValueError, match="Object arrays cannot be read"):
        read_npz(path)


def test_a_model_file_is_compared_with_the_run_before_anything_is_built(run_dir, tmp_path, monkeypatch):
    copy = edit(run_dir, tmp_path)
    hostile.change_config(copy / "model.keras", lambda c: {**c, "config": {**c["config"], "dropout": 0.25}})
    monkeypatch.setattr("action_attention.model_file.ModelFile.build", lambda self: pytest.fail("built"))
    with pytest.raises(UserError, match=r"not this run's model: it has dropout=0\.25, run\.json says dropout=0\.5"):
        Run.open(copy).model()


def test_a_model_file_says_weights_that_it_does_not_hold(tmp_path, monkeypatch):
    """Refused by its settings, since what they ask for is not there, without a single weight being made."""
    model = build_model("alstm", 3, cube_shape=CUBE, lstm_units=4)
    model.save(tmp_path / "model.keras")
    change = {"config": lambda c: {**c, "lstm_units": 60000}, "build_config": lambda c: c}
    hostile.change_config(tmp_path / "model.keras", lambda c: {**c, **{key: of(c[key]) for key, of in change.items()}})
    with pytest.raises(ValueError, match=r"its settings are those of 18\d{9} weights, it holds \d+$"):
        load_keras(tmp_path / "model.keras")


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_model_of_a_run_comes_back_with_its_precision(cache, tmp_path, mixed_precision):
    model = new_model(config(mixed_precision=mixed_precision), 3, cache.cube_shape)
    model.save(tmp_path / "model.keras")
    again = load_keras(tmp_path / "model.keras")
    assert again.dtype_policy.name == model.dtype_policy.name == ("mixed_bfloat16" if mixed_precision else "float32")
    assert again.get_config() == model.get_config()
    for ours, theirs in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# The files that a run was made with


def test_other_files_by_the_same_names_are_refused(run_dir, cache, split, tmp_path):
    written = json.loads((run_dir / "run.json").read_text())["cache"]["files"]
    assert written.keys() == {"train", "validation", "test"}
    assert written["test"] == files_digest(cache, split["test"][::-1])
    other = dict(cache.videos)
    name = split["test"][0]
    other[name] = type(other[name])(**{**vars(other[name]), "file_sha256": "0" * 64})
    cache.videos = other
    copy = edit(run_dir, tmp_path)
    with pytest.raises(
        UserError, match=r"holds different files under the names of the test videos than .*; give --features"
    ):
        evaluate(copy, cache)
    with pytest.raises(UserError, match=r"was trained on other files of the test videos than .*; give it the same"):
        train(config("softmax", epochs=1), cache, split, copy, about=ABOUT, resume=True)
    evaluate(copy, cache, "validation")
    about = json.loads((run_dir / "run.json").read_text())["cache"]
    evaluate(edit(run_dir, tmp_path / "old", cache={k: v for k, v in about.items() if k != "files"}), cache)


# Memory and settings


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_weights_are_counted_without_being_made(name):
    keras.utils.set_random_seed(3)
    before = random.getstate()
    counted = weight_shapes(lambda: build_model(name, 5), CUBE)
    assert random.getstate() == before
    assert counted == [tuple(weight.shape) for weight in build_model(name, 5, cube_shape=CUBE).weights]


def test_a_model_that_no_machine_holds_is_refused_before_it_is_made(cache, split, tmp_path):
    asked = config(lstm_units=65536, cells=16)
    started = memory.psutil.Process().memory_info().rss
    with pytest.raises(UserError) as raised:
        train(asked, cache, split, tmp_path / "run", about=ABOUT)
    # 16 cells of 4 U (2 U + 1), but the lowest reads D, U = 65536; held five times
    assert str(raised.value).startswith(
        "alstm with lstm_units=65536, cells=16, clip_length=6, batch_size=4 would need at least "
    )
    said = float(str(raised.value).split("at least ")[1].split()[0])
    cells = 4 * 65536 * (512 + 1 + 65536) + 15 * 4 * 65536 * (2 * 65536 + 1)
    assert 1 < said / (5 * 4 * cells / 1e9) < 1.1
    assert " GB are free; make these settings smaller" in str(raised.value)
    assert memory.psutil.Process().memory_info().rss - started < 1 << 28
    assert not (tmp_path / "run").exists()


def test_the_memory_of_a_batch_has_a_closed_form(monkeypatch):
    weights, asked = [(512, 4), (4,)], Config.of("softmax", batch_size=65536, clip_length=10)
    # cubes 16 bytes a number, one number of the kernel's four columns 4 bytes: 100 clips of 10 frames
    for_batch = 100 * 10 * (7 * 7 * 512 * 16 + 4 * 4)
    for_weights = 5 * 4 * (512 * 4 + 4)
    monkeypatch.setattr(memory, "free_memory", lambda: for_batch + for_weights)
    check_memory(asked, weights, [(7, 7, 512)], 100, trained=True)
    monkeypatch.setattr(memory, "free_memory", lambda: for_batch + for_weights - 1)
    with pytest.raises(UserError, match=r"^softmax with clip_length=10, batch_size=65536 .* 0\.4 GB for a batch of 10"):
        check_memory(asked, weights, [(7, 7, 512)], 100, trained=True)
    both, flow = [(7, 7, 512), (7, 7, 16)], 100 * 10 * 7 * 7 * 16 * 16
    monkeypatch.setattr(memory, "free_memory", lambda: for_batch + for_weights + flow - 1)
    with pytest.raises(UserError, match=r"cubes \(7, 7, 512\) and \(7, 7, 16\)"):
        check_memory(asked, weights, both, 100, trained=True)
    monkeypatch.setattr(memory, "free_memory", lambda: for_batch + for_weights + flow)
    check_memory(asked, weights, both, 100, trained=True)


@pytest.mark.parametrize("error", [MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")])
def test_memory_that_runs_out_is_one_sentence(error):
    sentence = "^memory ran out while it was tried; end other programs, or make --batch_size"
    with pytest.raises(UserError, match=sentence), enough_memory("it was tried"):
        raise error


def test_too_small_an_address_space_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(memory, "_address_space", lambda: 0.5e9)
    with pytest.raises(UserError, match=r"leaves 0\.5 GB, and TensorFlow's threads take 1\.1 GB; raise it$"):
        memory.check_address_space()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.inf), ("learning_rate", -math.inf), ("learning_rate", math.nan),
        ("learning_rate", 10**400), ("attention_penalty", math.inf), ("seed", -1), ("seed", 2**32), ("patience", 0),
        ("clip_length", 10**8), ("batch_size", 10**9), ("epochs", 10**30),
    ],
)  # fmt: skip
def test_a_number_that_is_no_setting_is_refused(name, value):
    with pytest.raises(UserError, match=rf"^{name} must be a (whole )?number at least .*\. Received: "):
        Training(**{name: value})


@pytest.mark.parametrize("model", model_names())
def test_what_cannot_be_built_or_decays_without_end_is_refused(model):
    for name, value in (("weight_decay", math.inf), ("dropout", math.nan), ("lstm_units", 10**9), ("cells", 200)):
        if name in Config.of(model).flat():
            with pytest.raises(UserError, match=rf"^{name} must be a .*number at least "):
                Config.of(model, **{name: value})


# Curves


class Full:
    """A writer of curves on a disk that is full."""

    def flush(self):
        raise tf.errors.ResourceExhaustedError(None, None, "{{function_node f}} /x; No space left on device\nmore")

    def as_default(self, step):
        return tf.summary.create_noop_writer().as_default(step)


def test_curves_that_cannot_be_written_are_one_sentence(tmp_path):
    curves = training.Curves(Run(tmp_path), {"train": Full()})
    curves.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    curves.model.compile("adam", "mse")
    with pytest.raises(UserError, match=r"cannot be written to \(/x; No space left on device\); what it holds of the"):
        curves.on_epoch_end(0, {"loss": 1.0})


def test_curves_that_are_damaged_end_where_the_damage_is(run_dir, tmp_path):
    """A record that says it is as long as memory, or holds something else, is cut off; those before stay."""
    (whole,) = (run_dir / "logs" / "train").glob("events*")
    content, path = whole.read_bytes(), tmp_path / "events"
    assert training._size_until(whole, 2) == len(content)
    assert training._size_until(whole, 1) < len(content)
    endless, no_event = (1 << 60).to_bytes(8, "little") + bytes(100), (4).to_bytes(8, "little") + b"\xff" * 12
    for tail in (endless, no_event, b"\1"):
        path.write_bytes(content + tail)
        assert training._size_until(path, 2) == len(content)


# Many shards

MANY = """
import random, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from action_attention.features import FeatureCache
from action_attention.shards import Shard
cache = FeatureCache(Path(sys.argv[1]))
names = list(cache.videos) * 3
random.Random(0).shuffle(names)
def read(name):
    number = int(name.split("/v")[1].split("_")[0])
    return bool((cache.read(name) == number).all())
with ThreadPoolExecutor(8) as threads:
    right = sum(threads.map(read, names))
print(right, len(names), all(holds for _, holds in cache.verify()), len(Shard._open))
cache.close()
print(len(Shard._open))
"""


def test_more_shards_than_a_process_may_open_are_read_by_several_threads(tmp_path):
    shards = []
    for number in range(200):
        writer = ShardWriter(tmp_path / f"shard-{number:05}.h5", hostile.CUBE, SETTINGS, {}, "gzip")
        writer.append(np.full((3, *hostile.CUBE), number, np.float16))
        writer.add_video(Video("wave", f"v{number}_0.avi", 0, 3, 30.0, 15.0, 6, 6, 320, 240, 9, ""))
        writer.commit()
        shards.append(Shard(writer.path))
    write_index(tmp_path, shards, tmp_path, complete=True)
    command = ["bash", "-c", 'ulimit -n 64; exec "$0" "$@"', sys.executable, "-c", MANY, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["600", "600", "True", "16", "0"]


def test_hdf5_links_in_weights_are_not_followed(tmp_path):
    """Not even to a pipe, which would be waited for."""
    os.mkfifo(tmp_path / "pipe")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/good"] = np.zeros(3, np.float32)
        assert check_arrays(file) == 3
        file["group/bad"] = h5py.ExternalLink(str(tmp_path / "pipe"), "/x")
        with pytest.raises(ValueError, match="its group/bad is a link"):
            check_arrays(file)
