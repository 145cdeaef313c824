"""Training and evaluation on a tiny cache: what a run directory holds, repeatability, resuming, what is refused."""

import csv
import errno
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from action_attention import evaluation, training
from action_attention.clips import Clips, class_names
from action_attention.errors import UserError
from action_attention.evaluation import evaluate, predict_videos
from action_attention.features import FeatureCache
from action_attention.files import locked
from action_attention.models import build_model
from action_attention.registry import Config, find_model, model_names
from action_attention.runs import Run, state_variables
from action_attention.settings import kind
from action_attention.training import train
from data_prep.splits import make_split, make_tags
from data_prep.videos import frame_reader

FOUR = {"epochs": 4, "learning_rate": 1e-2}
ABOUT = {"dataset": "tiny", "split": 1, "validation": "source"}


def config(model="alstm", **overrides):
    units = {"lstm_units": 4} if "lstm_units" in find_model(model).fields else {}
    return Config.of(
        model, **{"clip_length": 6, "batch_size": 4, **units, "learning_rate": 1e-3, "epochs": 2, **overrides}
    )


def make_run(folder, cache_folder, split, made):
    """A run directory of a config, trained and evaluated."""
    cache = FeatureCache(cache_folder)
    train(made, cache, split, folder, about=ABOUT)
    evaluate(folder, cache)
    cache.close()
    return folder


def make_validated_run(folder, cache_folder, split, config):
    """Evaluated on its validation videos, too."""
    make_run(folder, cache_folder, split, config)
    cache = FeatureCache(cache_folder)
    evaluate(folder, cache, "validation")
    cache.close()
    return folder


def weights_of(run_dir):
    return [weight.tobytes() for weight in Run.open(run_dir).model().get_weights()]


def history_of(run_dir):
    return [
        {key: value for key, value in epoch.items() if key != "seconds"}
        for epoch in json.loads((run_dir / "history.json").read_text())
    ]


def curves_of(run_dir):
    """Everything in TensorBoard's files but the wall times, as its own reader has it."""
    curves = {}
    for folder in sorted((run_dir / "logs").iterdir()):
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        events.Reload()
        for tag in events.Tags()["tensors"]:
            values = events.Tensors(tag)
            of_start = tag == "_hparams_/session_start_info"  # which holds a wall time
            curves[f"{folder.name}/{tag}"] = [
                (value.step, None if of_start else value.tensor_proto.SerializeToString()) for value in values
            ]
    return curves


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache_folder, split, videos):
    """A run of two epochs, evaluated."""
    run_dir, cache = tmp_path_factory.mktemp("runs") / "run", FeatureCache(cache_folder)
    read = frame_reader(videos, 15.0)
    run = train(config(), cache, split, run_dir, about=ABOUT, read_frames=read)
    return run_dir, run, evaluate(run_dir, cache, "test", read_frames=read)


def test_the_table_of_hyper_parameters_is_the_default():
    """reference: the tutorial's table."""
    table = {"batch_size": 16, "clip_length": 30, "dropout": 0.5, "weight_decay": 0, "learning_rate": 1e-4}
    alstm, conv = Config.of("alstm").flat(), Config.of("conv_alstm").flat()
    assert alstm.items() >= {**table, "lstm_units": 512, "attention_penalty": 0.5}.items()
    assert conv.items() >= {**table, "lstm_units": 256, "attention_penalty": 0}.items()
    assert Config.of("conv_alstm", lstm_units=8, dropout=None).settings.lstm_units == 8


def test_a_run_directory_explains_itself(finished, cache_folder):
    run_dir, run, _ = finished
    written = json.loads((run_dir / "run.json").read_text())
    assert written == json.loads(json.dumps(run))
    assert written["classes"] == ["leap", "nod", "spin"]
    assert written["cache"]["fingerprint"] == FeatureCache(cache_folder).fingerprint
    assert written["config"]["lstm_units"] == 4
    assert {"git", "versions", "machine", "best", "seconds", "dataset", "split", "validation"} <= written.keys()
    split = json.loads((run_dir / "split.json").read_text())
    assert {subset: len(names) for subset, names in split.items()} == written["videos"]
    assert [epoch["epoch"] for epoch in history_of(run_dir)] == [1, 2]
    assert list((run_dir / "logs").rglob("events.out.tfevents.*"))
    assert not list(run_dir.rglob("*.part*"))


def test_tensorboard_has_losses_apart_accuracies_rate_and_pictures(finished):
    curves = curves_of(finished[0])
    losses = {f"train/epoch_{name}" for name in ("loss", "logits_loss", "attention_loss")}
    assert {*losses, "train/epoch_learning_rate"} <= curves.keys()
    of_videos = {"validation/epoch_video_top1", "validation/epoch_cross_entropy"}
    assert {*of_videos, "validation/confusion", "validation/attention/nod"} <= curves.keys()
    assert all([step for step, _ in curves[name]] == [1, 2] for name in losses | of_videos)
    assert len(curves["validation/_hparams_/session_start_info"]) == 1


def test_tensorboard_shows_pictures_at_their_size_and_a_run_by_its_name(finished):
    """Its cards are 350 pixels wide: a wider picture would be made smaller, and its text could not be read."""
    events = EventAccumulator(str(finished[0] / "logs" / "validation"), size_guidance={"tensors": 0})
    events.Reload()
    pictures = [tag for tag in events.Tags()["tensors"] if tag.startswith("attention/")]
    assert pictures == [f"attention/{name}" for name in finished[1]["classes"]]
    for tag in pictures:
        (first,) = events.Tensors(tag)
        width, height, png = first.tensor_proto.string_val
        assert (first.step, int(width)) == (1, evaluation.CARD_WIDTH)
        drawn = tf.image.decode_png(png).numpy()
        assert drawn.shape == (int(height), int(width), 3)
        upper, lower = np.split(drawn, 2)
        assert (upper != lower).any()  # two frames of the video, each with its header and its legend
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.group_name == f"{finished[0].name} ({finished[0].parent})"
    assert start.hparams["lstm_units"].number_value == 4


def test_a_run_without_validation_is_in_hparams_too(cache, split, tmp_path):
    everything = {**split, "train": split["train"] + split["validation"], "validation": []}
    train(config("softmax", epochs=1), cache, everything, tmp_path / "run", about=ABOUT)
    assert len(curves_of(tmp_path / "run")["train/_hparams_/session_start_info"]) == 1


def test_a_run_of_a_version_that_counted_epochs_from_0_reads_and_resumes_as_one_that_counts_from_1(
    whole, cache, split, tmp_path
):
    run_dir = tmp_path / "run"
    train(config(**{**FOUR, "epochs": 2}), cache, split, run_dir, about=ABOUT)
    history, written = Run(run_dir).history(), Run.open(run_dir).about
    assert ([epoch["epoch"] for epoch in history], written["best"]["epoch"]) == ([1, 2], 2)

    def earlier(entry):
        return {**entry, "epoch": entry["epoch"] - 1}

    old = {**written, "best": earlier(written["best"])}
    del old["schema_version"]
    (run_dir / "run.json").write_text(json.dumps(old))
    (run_dir / "history.json").write_text(json.dumps([earlier(epoch) for epoch in history]))
    with np.load(run_dir / "last_state.npz") as state:
        arrays = dict(state)
    progress = json.loads(str(arrays["progress"]))
    progress |= {"history": [earlier(epoch) for epoch in history], "best": earlier(progress["best"])}
    np.savez(run_dir / "last_state.npz", **{**arrays, "progress": np.array(json.dumps(progress))})

    assert (Run(run_dir).history(), Run.open(run_dir).about) == (history, written)
    run = train(config(**FOUR), cache, split, run_dir, about=ABOUT, resume=True)
    assert (history_of(run_dir), weights_of(run_dir)) == (history_of(whole), weights_of(whole))
    assert run["best"]["epoch"] == 4


def test_evaluation_agrees_with_its_files(finished, cache):
    run_dir, run, metrics = finished
    output = run_dir / "eval" / "test"
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert {"dataset", "split", "subset", "model", "seed", "videos", "vote"} <= metrics.keys()
    assert {"video_top1", "video_top1_ci95", "video_top5", "clip_top1", "frame_top1"} <= metrics.keys()
    assert {"macro_f1", "per_class"} <= metrics.keys()
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["videos"] == run["videos"]["test"]
    assert np.mean([int(row["right"]) for row in rows]) == pytest.approx(metrics["video_top1"])
    assert [int(row["frames"]) for row in rows] == [cache.videos[row["video"]].frames for row in rows]
    assert (output / "confusion.png").read_bytes()[:4] == (output / "attention.png").read_bytes()[:4] == b"\x89PNG"


def test_predictions_come_back_from_the_files(finished, cache, split):
    """Every frame's attention and probabilities, as the model gave them, in float32."""
    run_dir, run, _ = finished
    clips = Clips(cache, split["test"], run["classes"], 6)
    given, read = predict_videos(Run.open(run_dir).model(), clips, 4), Run.open(run_dir).predictions("test")
    assert [(p.name, p.label) for p in read] == [(p.name, p.label) for p in given]
    for ours, theirs in zip(read, given, strict=True):
        assert ours.attention.dtype == ours.probabilities.dtype == np.float32
        np.testing.assert_allclose(ours.attention, theirs.attention, rtol=1e-5)
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)


def test_predictions_that_are_absent_or_do_not_fit_are_refused(finished, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    folder = run_dir / "eval" / "test"
    with pytest.raises(UserError, match=r"holds no frames\.npz.*make eval RUN_DIR=\S+ ARGS=.--subset=train"):
        Run.open(run_dir).predictions("train")
    lines = (folder / "predictions.csv").read_text().splitlines()
    for damage in (lines[:-1], lines[:1], [line.replace("nod", "swim") for line in lines]):
        (folder / "predictions.csv").write_text("\n".join(damage))
        with pytest.raises(UserError, match=r"do not fit together .*make them again with `make eval"):
            Run.open(run_dir).predictions()
    (folder / "predictions.csv").write_text("\n".join(lines))
    whole = (folder / "frames.npz").read_bytes()
    for damage in (whole[: len(whole) // 2], b"PK", b""):
        (folder / "frames.npz").write_bytes(damage)
        with pytest.raises(UserError, match="do not fit together"):
            Run.open(run_dir).predictions()


def test_the_entropy_of_an_evaluation_is_the_mean_over_videos(cache, split, tmp_path, monkeypatch):
    """A model that has no attention weighs uniformly: 1. Every video weighs the same, every frame of a video too."""
    run_dir = tmp_path / "run"
    train(config("softmax", epochs=1), cache, split, run_dir, about=ABOUT)
    assert evaluate(run_dir, cache)["entropy"] == pytest.approx(1, abs=1e-6)

    def predict(*arguments):
        first, second, *others = predict_videos(*arguments)
        first.attention[:] = second.attention[0] = np.eye(1, 49).reshape(7, 7)  # one location: 0
        return [first, second, *others]

    monkeypatch.setattr("action_attention.evaluation.predict_videos", predict)
    expected = (len(split["test"]) - 1 - 1 / cache.videos[split["test"][1]].frames) / len(split["test"])
    assert evaluate(run_dir, cache)["entropy"] == pytest.approx(expected, abs=1e-6)
    assert Run.open(run_dir).metrics()["entropy"] == pytest.approx(expected, abs=1e-6)


def test_a_pictures_heatmap_is_chosen_for_an_evaluation(finished, cache, videos, tmp_path):
    """The page's and the programs' default is the absolute scale."""
    run_dir, pictures = tmp_path / "run", {}
    shutil.copytree(finished[0], run_dir)
    for name in ({}, {"heatmap": "absolute"}, {"heatmap": "tutorial"}):
        evaluate(run_dir, cache, "test", read_frames=frame_reader(videos, 15.0), **name)
        pictures[name.get("heatmap", "")] = (run_dir / "eval" / "test" / "attention.png").read_bytes()
    assert pictures[""] == pictures["absolute"] != pictures["tutorial"]


def test_an_evaluation_that_dies_leaves_no_frames_of_an_earlier_one(finished, cache, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    monkeypatch.setattr("action_attention.evaluation.confusion_png", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(run_dir, cache, "test")
    with pytest.raises(UserError, match=r"holds no frames\.npz"):
        Run.open(run_dir).predictions("test")


def test_the_best_epoch_is_chosen_on_validation_videos_and_kept(finished, cache, split):
    """The saved model gives the validation accuracy that the log reports for its epoch."""
    run_dir, run, _ = finished
    again = evaluate(run_dir, cache, "validation")
    assert again["video_top1"] == pytest.approx(run["best"]["val_video_top1"])
    assert again["cross_entropy"] == pytest.approx(run["best"]["val_cross_entropy"], rel=1e-4)
    best = max(history_of(run_dir), key=lambda epoch: (epoch["val_video_top1"], -epoch["val_cross_entropy"]))
    assert run["best"]["epoch"] == best["epoch"]


@pytest.mark.parametrize("model", [name for name in model_names() if not find_model(name).settings().takes_flow])
def test_a_seed_repeats_a_run_bit_for_bit(model, cache, split, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        train(config(model, epochs=1, seed=seed), cache, split, tmp_path / name, about=ABOUT)
    assert history_of(tmp_path / "one") == history_of(tmp_path / "two") != history_of(tmp_path / "other")
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "two") != weights_of(tmp_path / "other")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache_folder):
    """A run of four epochs that nothing stopped; the last two are the best so far when they are done."""
    run_dir, cache = tmp_path_factory.mktemp("runs") / "whole", FeatureCache(cache_folder)
    split = make_split(make_tags(sorted(cache.videos), 0), "source", 0)
    assert train(config(**FOUR), cache, split, run_dir, about=ABOUT)["best"]["epoch"] == 4
    return run_dir


# in validation, before anything is written; after TensorBoard's files, before the state; after the state, before the
# model of it has its name (the state of the last epoch's, too: nothing but that is left to do then)
@pytest.mark.parametrize(
    ("owner", "function", "call", "epochs_kept"),
    [
        (training, "predict_videos", 3, 2),
        (training.np, "savez", 3, 2),
        (training.RunState, "_settle", 3, 3),
        (training.RunState, "_settle", 4, 4),
    ],
)
def test_a_run_that_stops_anywhere_resumes_to_the_same_result(
    owner, function, call, epochs_kept, whole, cache, split, tmp_path, monkeypatch
):
    original, calls = getattr(owner, function), []

    def stops(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, function, stops)
    with pytest.raises(KeyboardInterrupt):
        train(config(**FOUR), cache, split, tmp_path, about=ABOUT)
    with np.load(tmp_path / "last_state.npz") as state:
        assert len(json.loads(str(state["progress"]))["history"]) == epochs_kept
    with pytest.raises(UserError, match="is in training or was stopped in it; go on with --resume"):
        evaluate(tmp_path, cache)
    keras.utils.set_random_seed(99)  # nothing that the process drew before may matter
    train(config(**FOUR), cache, split, tmp_path, about=ABOUT, resume=True)
    assert history_of(tmp_path) == history_of(whole)
    assert weights_of(tmp_path) == weights_of(whole)
    assert curves_of(tmp_path) == curves_of(whole)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_full_disk_is_one_sentence_and_the_state_before_is_whole(whole, cache, split, tmp_path, monkeypatch):
    save, calls = np.savez, []

    def fills(path, **arrays):
        calls.append(1)
        save(path, **arrays)
        if len(calls) == 3:
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", fills)
    with pytest.raises(UserError, match=r"cannot be written to \(No space left on device\); .* make room, then"):
        train(config(**FOUR), cache, split, tmp_path, about=ABOUT)
    assert not list(tmp_path.rglob("*.part*"))
    train(config(**FOUR), cache, split, tmp_path, about=ABOUT, resume=True)
    assert (history_of(tmp_path), weights_of(tmp_path)) == (history_of(whole), weights_of(whole))


def test_a_run_directory_is_for_one_process(whole, cache, split):
    with locked(whole, "this one is first"), pytest.raises(UserError, match="another training is at work in"):
        train(config(**FOUR), cache, split, whole, about=ABOUT, resume=True)


def test_training_stops_when_validation_no_longer_improves(cache, split, tmp_path):
    run = train(config(learning_rate=0.0, epochs=10, patience=2), cache, split, tmp_path / "run", about=ABOUT)
    assert (run["epochs"], run["best"]["epoch"]) == (3, 1)


def test_without_validation_the_last_epoch_is_kept(cache, split, tmp_path):
    everything = {**split, "train": split["train"] + split["validation"], "validation": []}
    run = train(config(), cache, everything, tmp_path / "run", about={**ABOUT, "validation": "none"})
    assert run["best"]["epoch"] == 2
    with pytest.raises(UserError, match="has no validation videos"):
        evaluate(tmp_path / "run", cache, "validation")


def test_few_clips_are_trained_on_for_more_epochs(cache, split, tmp_path):
    split = {**split, "validation": []}
    steps = Clips(cache, split["train"], class_names(split["train"]), 6).steps(4)
    more = {"few": {"epochs": 1, "min_steps": 2 * steps + 1}, "many": {"epochs": 3, "min_steps": 3 * steps}}
    for name, settings in more.items():
        run = train(config(schedule="cosine", **settings), cache, split, tmp_path / name, about=ABOUT)
        assert run["epochs"] == 3
    assert weights_of(tmp_path / "few") == weights_of(tmp_path / "many")


def test_a_calibration_goes_with_the_model_that_it_is_of(cache, split, tmp_path):
    everything = {**split, "train": split["train"] + split["validation"], "validation": []}
    calibration = tmp_path / "calibration.json"
    for epochs, stays in ((1, False), (1, True), (2, False)):  # made, as it was, a better model
        train(config(epochs=epochs), cache, everything, tmp_path, about=ABOUT, resume=calibration.exists())
        assert calibration.exists() == stays
        calibration.write_text("{}")


def test_a_run_is_not_overwritten_and_not_resumed_as_another(finished, cache, split):
    run_dir = finished[0]
    before = (run_dir / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"already holds a run; .*--resume"):
        train(config(), cache, split, run_dir)
    with pytest.raises(UserError, match=r"trained with dropout=0\.5, now dropout=0\.1"):
        train(config(dropout=0.1), cache, split, run_dir, resume=True)
    fewer = {**split, "test": split["test"][1:]}
    with pytest.raises(UserError, match=r"has other test videos than are asked for now \(1 differ\); resume with the"):
        train(config(), cache, fewer, run_dir, resume=True)
    cache.fingerprint = "other"
    with pytest.raises(UserError, match="was trained on other features than"):
        train(config(), cache, split, run_dir, resume=True)
    assert (run_dir / "run.json").read_bytes() == before


def test_a_split_that_tests_what_it_does_not_train_is_refused_before_it_trains(cache, split, tmp_path):
    without = {**split, "train": [name for name in split["train"] if not name.startswith("nod")]}
    with pytest.raises(UserError, match="no training videos of nod, although it tests them"):
        train(config(), cache, without, tmp_path / "run", about=ABOUT)
    assert not (tmp_path / "run").exists()


def edit(run_dir, tmp_path, **entries):
    """A copy of a run whose `run.json` says something else."""
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    written = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**written, **entries}))
    return copy


def test_a_run_of_a_newer_version_is_refused_with_the_version_that_made_it(finished, cache, split, tmp_path):
    run_dir = edit(finished[0], tmp_path, schema_version=3, git="abcdef0123456789", versions={"keras": "9.1"})
    sentence = (
        r"is a run of schema 3, this version reads up to 2; use the version that made it: git abcdef012345, keras 9"
    )
    with pytest.raises(UserError, match=sentence):
        evaluate(run_dir, cache)
    with pytest.raises(UserError, match=sentence):
        train(config(), cache, split, run_dir, about=ABOUT, resume=True)


def test_a_state_or_setting_of_another_version_is_refused(finished, cache, split, tmp_path):
    run_dir = edit(finished[0], tmp_path, config={**finished[1]["config"], "wings": 2})
    with pytest.raises(
        UserError, match=r"settings that this version does not know \(wings\); resume it with the version"
    ):
        train(config(), cache, split, run_dir, about=ABOUT, resume=True)
    run_dir = edit(finished[0], tmp_path / "2")
    with np.load(run_dir / "last_state.npz") as state:
        arrays = dict(state)
    for name, value in (("dropout/seed", np.zeros(3)), ("another", np.zeros(3)), ("progress", np.array("{}"))):
        np.savez(run_dir / "last_state.npz", **{**arrays, name: value})
        with pytest.raises(UserError, match=r"last_state\.npz is damaged or of another version .*; train again with"):
            train(config(epochs=3), cache, split, run_dir, about=ABOUT, resume=True)
    assert "best" in json.loads((run_dir / "run.json").read_text())


def test_a_model_that_is_not_the_runs_is_refused(finished, cache, tmp_path):
    model = training.new_model(config("softmax"), 3, cache.cube_shape)
    run_dir = edit(finished[0], tmp_path)
    model.save(run_dir / "model.keras")
    with pytest.raises(
        UserError, match=r"not this run's model: it has name=softmax, run\.json says name=alstm; put back"
    ):
        Run.open(run_dir).model()
    run_dir = edit(finished[0], tmp_path / "2", classes=["leap", "nod"])
    with pytest.raises(UserError, match=r"it has classes=3, run\.json says classes=2"):
        Run.open(run_dir).model()
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(run_dir / "model.keras")
    with pytest.raises(UserError, match=r"it has name=None, run\.json says name=alstm"):
        Run.open(run_dir).model()


@pytest.mark.parametrize(
    ("model", "setting", "value", "of"),
    [
        ("softmax", "cells", 2, "alstm, conv_alstm, motion_conv_alstm, avg_lstm, max_lstm"),
        ("max_lstm", "glimpse", "quarters", "alstm, avg_lstm"),
        ("alstm", "head", "pool", "conv_alstm, motion_conv_alstm"),
        ("conv_alstm", "ablate", "cell_state", "alstm, avg_lstm, max_lstm"),
    ],
)
def test_a_setting_is_for_the_models_that_have_it(model, setting, value, of):
    """Elsewhere only a default may be given, which says nothing: flag files of several models hold it."""
    with pytest.raises(UserError, match=f"^--{setting}={value} is for {of}, not for {model}$"):
        Config.of(model, **{setting: value})
    first = of.split(", ")[0]
    assert Config.of(first, **{setting: value}).flat()[setting] == value
    assert setting not in Config.of(model, **{setting: Config.of(first).flat()[setting]}).flat()


@pytest.mark.parametrize("model", model_names())
def test_a_config_comes_back_from_what_a_run_writes_down(model):
    """Also beside the settings of other models, which version 0.1 wrote down for each."""
    config = config_of_nothing_usual(model)
    flat = json.loads(json.dumps(config.flat()))
    assert Config.read(flat) == Config.read({"glimpse": 3, "head": None, "lstm_units": 5, **flat}) == config


def config_of_nothing_usual(model):
    """Every setting has another value than its default."""
    values = {}
    for name, field in find_model(model).fields.items():
        number = field.default if type(field.default) in (int, float) and field.default else 1
        of_kind = {bool: not field.default, float: number / 2, int: number + 1}
        choices = [choice for choice in field.metadata["choices"] if choice != field.default]
        values[name] = choices[0] if choices else of_kind.get(kind(field), field.default)
    return Config.of(model, **(values | {"glimpse": "whole"} if "heads" in values else values))  # which heads need


@pytest.mark.parametrize(
    ("model", "old", "new"),
    [
        ("conv_alstm", {"initial": "clip", "rescale": True}, {"first_states": "clip", "mean_one_attention": True}),
        ("motion_conv_alstm", {"initial": "zeros"}, {"first_states": "zeros"}),
        ("alstm", {"ablate": "initial"}, {"ablate": "first_states"}),
        ("max_lstm", {"ablate": "carry"}, {"ablate": "cell_state"}),
    ],
)
def test_the_names_that_settings_had_in_older_versions_still_count(model, old, new):
    now = Config.of(model, **new)
    assert Config.of(model, **old) == now != Config.of(model)
    assert Config.read({"model": model, **old}) == now
    assert not old.items() & now.flat().items()
    assert build_model(model, 3, **old).settings == now.settings
    kept = build_model(model, 3).get_config()
    kept = {key: value for key, value in kept.items() if key not in new} | old  # as an older version's file has it
    assert type(build_model(model, 3)).from_config(kept).settings == now.settings


def test_a_state_is_kept_by_names_that_do_not_depend_on_what_the_process_made_before(cache):
    """Two layers of equal shape cannot change places unseen, and a second model's layers are called as the first's."""

    def names():
        model = training.new_model(config(cells=2, channel_dropout=0.1), 3, cache.cube_shape)
        training.compile_model(model, config(), 1)
        model.optimizer.build(model.trainable_variables)
        return [name for name in state_variables(model)]

    first = names()
    assert first == names()
    assert len(first) == len(set(first))
    assert {"alstm/core/attention/mlp2/kernel", "alstm/core/lstm2/recurrent_kernel", "adam/iteration"} < set(first)
    assert {"core_dropout/seed", "channel_dropout/seed", "dropout/seed"} < set(first)
    assert not [name for name in first if "#" in name]  # no two are called alike


def test_a_state_without_names_is_refused(finished, cache, split, tmp_path):
    run_dir = edit(finished[0], tmp_path)
    with np.load(run_dir / "last_state.npz") as state:
        progress, arrays = state["progress"], [state[name] for name in state.files if name != "progress"]
    np.savez(run_dir / "last_state.npz", progress=progress, **{f"variable_{n:03}": v for n, v in enumerate(arrays)})
    with pytest.raises(UserError, match=r"\(its arrays have no names, as those of version 0\.1\); train again with"):
        train(config(epochs=3), cache, split, run_dir, about=ABOUT, resume=True)


def test_a_run_of_a_version_that_knew_fewer_settings_resumes_with_their_defaults(finished, cache, split, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    written = json.loads((run_dir / "run.json").read_text())
    for setting in ("cells", "glimpse", "motion", "normalize"):
        del written["config"][setting]
    (run_dir / "run.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="trained with cells=1, now cells=2"):
        train(config(cells=2), cache, split, run_dir, about=ABOUT, resume=True)
    assert train(config(epochs=3), cache, split, run_dir, about=ABOUT, resume=True)["epochs"] == 3


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(cache, split, tmp_path):
    with pytest.raises(
        UserError, match=r"the loss is nan in epoch 1, step 2; .* holds no state yet, train anew with a"
    ):
        train(config(learning_rate=1e39), cache, split, tmp_path / "run", about=ABOUT)
    assert not (tmp_path / "run" / "last_state.npz").exists()
    # the only step of the epoch: its loss is that of the weights before it
    with pytest.raises(UserError, match="the last step of epoch 1 left weights that are not finite"):
        train(config(learning_rate=1e39, batch_size=99), cache, split, tmp_path / "one", about=ABOUT)
    assert not (tmp_path / "one" / "last_state.npz").exists()


def test_features_made_otherwise_are_refused(finished, cache):
    cache.settings = {**cache.settings, "fps": 10.0}
    with pytest.raises(UserError, match=r"has fps=10\.0, but .* was trained with fps=15\.0"):
        evaluate(finished[0], cache, "test")


def test_a_damaged_model_or_run_is_one_sentence(finished, tmp_path, cache):
    with pytest.raises(UserError, match="holds no training run"):
        evaluate(tmp_path, cache)
    run_dir = edit(finished[0], tmp_path)
    (run_dir / "model.keras").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot be read as a model of this version.* it was made by git"):
        Run.open(run_dir).model()
    for damage in ("", "[]", '{"config": 3}', "nothing"):
        (run_dir / "run.json").write_text(damage)
        with pytest.raises(UserError, match=r"run\.json or split\.json is damaged .*; train again"):
            evaluate(run_dir, cache)


def test_a_class_may_be_called_like_a_formula():
    assert evaluation.confusion_png(np.eye(2), ["$x", r"$\frac$ _a^ <b>"])[:4] == b"\x89PNG"


def test_overlapping_clips_count_every_frame_once(finished, cache, split):
    """With stride 1 most frames stand in several clips; there is still one prediction a frame."""
    run_dir, run, _ = finished
    clips = Clips(cache, split["test"], run["classes"], 6, 1)
    assert len(clips) > len(split["test"])
    for prediction in predict_videos(Run.open(run_dir).model(), clips, 4):
        assert len(prediction.probabilities) == len(prediction.attention) == cache.videos[prediction.name].frames
        np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1)
        np.testing.assert_allclose(prediction.attention.sum(axis=(1, 2)), 1, rtol=1e-5)
