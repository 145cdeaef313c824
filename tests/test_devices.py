"""Several devices learn from a batch what one learns. Here they are two logical CPUs, in a process of their own."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf
from forked import run

from action_attention.clips import Clips
from action_attention.devices import OnDevices, equal_shares, find_devices, strategy_on
from action_attention.errors import UserError
from action_attention.features import ArrayFeatures, FeatureCache
from action_attention.loss import PADDING
from action_attention.registry import Config, find_model, model_names
from action_attention.runs import Run
from action_attention.training import compile_model, new_model, train
from tests.test_faults_training import state_of
from tests.test_training import FOUR, config, history_of, weights_of

CUBE, FLOW, CLASSES = (3, 3, 8), (3, 3, 4), ["leap", "nod", "spin"]
LEARNED = {"weight_decay": 1e-2, "attention_penalty": 0.5, "learning_rate": 1e-3, "dropout": 0, "clip_length": 6}
EPOCHS, TWO = 2, ["CPU:0", "CPU:1"]
MODELS = {
    **{name: {} for name in model_names()},
    "alstm of two streams": {"model": "alstm", "fusion": "early"},
    "alstm with motion": {"model": "alstm", "scores": "location", "motion_prior": True, "centre_prior": True},
}


def two_devices():
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    tf.config.experimental.enable_op_determinism()


@pytest.fixture(scope="module")
def apart():
    """`apart(function, ...)` calls it in a process that has two devices."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.quiet_tensorflow", "keras", "cv2"])
    with ProcessPoolExecutor(1, context, two_devices) as pool:
        yield lambda *call: pool.submit(*call).result()


def ten_clips(takes_motion=True, takes_flow=True):
    """Of 2 to 8 frames in clips of six; so some are padded, and a video of more than six frames has two."""
    random = np.random.default_rng(0)
    frames = {f"{CLASSES[n % 3]}/{n}": frames for n, frames in enumerate((2, 6, 4, 8, 5, 6, 3, 7))}
    features, motion, flow = (
        {name: random.uniform(0, 2, (count, *shape)) for name, count in frames.items()}
        for shape in (CUBE, CUBE[:2], FLOW)
    )
    cache = ArrayFeatures(features, motion, flow)
    return Clips(cache, list(frames), CLASSES, 6, motion=takes_motion, flow=takes_flow)


def fitted(devices, name, settings):
    """History, weights before and after: four steps an epoch, of 3, 3, 3 and 1 clips."""
    units = {"lstm_units": 4} if "lstm_units" in find_model(name).fields else {}
    config = Config.of(name, **{**LEARNED, **units, **settings})
    clips = ten_clips(config.settings.takes_motion, config.settings.takes_flow)
    batches, steps = clips.shuffled_batches(3, 0, range(EPOCHS)), clips.steps(3)
    assert (len(clips), steps) == (10, 4)
    keras.utils.set_random_seed(0)
    with strategy_on(*TWO).scope() if devices > 1 else nullcontext():
        model = new_model(config, 3, CUBE, FLOW)
        before = model.get_weights()
        if devices > 1:
            model, batches = OnDevices(model, model), equal_shares(batches, devices)
        compile_model(model, config, steps)
    history = model.fit(batches, epochs=EPOCHS, steps_per_epoch=steps, shuffle=False, verbose=0).history
    return history, before, model.get_weights()


def largest(one, other):
    """The largest difference between lists of arrays."""
    return float(max(np.abs(np.subtract(a, b)).max() for a, b in zip(one, other, strict=True)))


def differences(name, settings):
    """Between one and two devices: of losses and metrics, of weights; and by how much a weight changed at all."""
    one, two = (fitted(devices, name, settings) for devices in (1, 2))
    (losses, before, after), (losses_of_two, before_two, after_two) = one, two
    assert losses.keys() == losses_of_two.keys() == {"loss", "logits_loss", "attention_loss", "logits_frame_top1"}
    assert largest(before, before_two) == 0
    of_losses = largest(losses.values(), [losses_of_two[key] for key in losses])
    return of_losses, largest(after, after_two), largest(before, after)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "alstm" else pytest.mark.slow) for name in MODELS]
)
def test_losses_metrics_and_weights_are_those_of_one_device(apart, name, record_property):
    """Steps that two devices cannot share alike, one that leaves a device without a clip, padded frames, attention
    penalty, weight decay: as one device has them, after several steps of Adam."""
    settings = dict(MODELS[name])
    of_losses, of_weights, learned = apart(differences, settings.pop("model", name), settings)
    record_property("differences", [of_losses, of_weights])
    assert of_losses <= 1e-5
    assert of_weights <= 1e-5
    assert learned > 1e-3


def dropped():
    """What two devices and one make of the same clips with dropout; what the devices' seeds are afterwards."""
    keras.utils.set_random_seed(0)
    strategy, config = strategy_on(*TWO), Config.of("softmax", dropout=0.5)
    alone = new_model(config, 3, CUBE)
    with strategy.scope():
        model = new_model(config, 3, CUBE)
        several = OnDevices(model, alone)
        inputs = {"features": tf.ones((2, 6, *CUBE)), "mask": tf.ones((2, 6))}
    alone.set_weights(model.get_weights())
    for one, other in zip(alone.variables, model.variables, strict=True):
        one.assign(other)

    def call():
        device = tf.distribute.get_replica_context().replica_id_in_sync_group
        return several._call_by_own_seeds(inputs, device)["logits"]

    def step():
        on_one = alone({**inputs, "mask": inputs["mask"] > 0}, training=True)["logits"]
        return [*strategy.experimental_local_results(strategy.run(call)), on_one]

    found = [step() for _ in range(2)]
    weights = {id(weight) for weight in model.weights}
    (seed,) = [variable for variable in model.variables if id(variable) not in weights]
    seeds = [np.array(each) for each in strategy.experimental_local_results(seed.value)]
    return np.array(found), seeds


def test_dropout_is_another_one_on_every_device_and_on_the_first_that_of_one(apart):
    (first, second), seeds = apart(dropped)
    for on_first, on_second, on_one in (first, second):
        np.testing.assert_array_equal(on_first, on_one)
        assert largest([on_first], [on_second]) > 0
    assert all(largest([a], [b]) > 0 for a, b in zip(first, second, strict=True))  # a step later it is another one
    np.testing.assert_array_equal(*seeds)


def trained(cache_folder, split, run_dir, config, devices):
    cache = FeatureCache(cache_folder)
    about = train(config, cache, split, run_dir, devices=TWO if devices == 2 else None, resume=True)
    cache.close()
    return about["devices"]


def test_a_run_goes_on_with_another_number_of_devices(apart, cache_folder, split, tmp_path):
    """Without dropout it is the same run; its validation videos are judged alike."""
    for name, parts in {"one": {2: 1}, "more": {1: 1, 2: 2}, "fewer": {1: 2, 2: 1}}.items():
        for epochs, devices in parts.items():
            made = config("softmax", **{**FOUR, "epochs": epochs, "dropout": 0, "batch_size": 3})
            assert apart(trained, cache_folder, split, tmp_path / name, made, devices) == devices
    one = [list(epoch.values()) for epoch in history_of(tmp_path / "one")]
    weights = Run.open(tmp_path / "one").model().get_weights()
    for other in ("more", "fewer"):
        assert largest(one, [list(epoch.values()) for epoch in history_of(tmp_path / other)]) <= 1e-5
        assert largest(weights, Run.open(tmp_path / other).model().get_weights()) <= 1e-5


@pytest.mark.slow
def test_a_run_on_two_devices_that_was_stopped_ends_with_the_same_bits(apart, cache_folder, split, tmp_path):
    for epochs, run_dir in ((2, "whole"), (1, "parts"), (2, "parts")):
        apart(trained, cache_folder, split, tmp_path / run_dir, config("softmax", epochs=epochs), 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert weights_of(parts) == weights_of(whole)
    assert state_of(parts) == state_of(whole)
    assert history_of(parts) == history_of(whole)


def test_every_device_gets_as_many_clips_and_what_is_added_counts_nothing():
    clips = ten_clips()
    for devices, size in ((2, 4), (3, 3), (4, 4), (5, 5)):
        (inputs, targets), *_ = clips.batches(3)
        (shared, of_shared, real), *_ = equal_shares(clips.batches(3), devices)
        np.testing.assert_array_equal(real, [1, 1, 1, *[0] * (size - 3)])
        for name, values in inputs.items():
            np.testing.assert_array_equal(shared[name][:3], np.array(values, shared[name].dtype.as_numpy_dtype))
            np.testing.assert_array_equal(shared[name][3:], np.repeat(shared[name][2:3], size - 3, axis=0))
        np.testing.assert_array_equal(of_shared["logits"][:3], targets["logits"])
        assert np.all(of_shared["logits"][3:] == PADDING)
        np.testing.assert_array_equal(of_shared["attention"], shared["mask"])


def test_devices_that_are_not_there_are_refused(apart, monkeypatch):
    assert find_devices("1") == find_devices("all") == []
    assert apart(find_devices, "2") == apart(find_devices, "all") == TWO
    with pytest.raises(UserError, match=r"--devices=2: this machine has 1 \(CPU:0\); take fewer, or all"):
        find_devices("2")
    for text in ("0", "-1", "two", ""):
        with pytest.raises(UserError, match=f"--devices={text} must be a number from 1, or all"):
            find_devices(text)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert find_devices("1") == []
    with pytest.raises(UserError, match="--devices=2 is for Keras on TensorFlow; on jax training takes --devices=1"):
        find_devices("2")


def test_the_program_trains_on_all_devices_and_says_so(cache_folder, tmp_path):
    arguments = (f"--features={cache_folder}", f"--run_dir={tmp_path / 'run'}", "--model=softmax", "--clip_length=6",
                 "--epochs=1", "--devices=all")  # fmt: skip
    done = run("experiments.train", *arguments, prepare=two_devices)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["devices"] == 2
    assert "devices" not in (tmp_path / "run" / "flags.txt").read_text()
