"""A model in other formats computes what Keras does and says what it needs; what cannot be is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import small_network

from action_attention import exports
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.models import build_model
from action_attention.runs import Run
from action_attention.training import new_model
from data_prep import recognizer as recognizer_module
from data_prep.extract import extract
from data_prep.recognizer import Recognizer
from data_prep.sample import make_sample
from data_prep.splits import make_split, read_lists
from experiments import export as program
from experiments.calibrate import calibrate_run
from experiments.export import export
from tests import forked
from tests.test_models import CUBE
from tests.test_training import config, make_run, make_validated_run

ROOT = Path(__file__).parents[1]
NEEDS = exports.NEEDED["onnx"]
OF_MOTION = {"scores": "location", "heads": 2, "motion_prior": True, "epochs": 1}
# of TensorFlow's own interpreter, which spares the tests a package
pytestmark = pytest.mark.filterwarnings("ignore:\\s*Warning. tf.lite.Interpreter is deprecated:UserWarning")
PLAIN = ["saved_model", "litert"]  # which take nothing more than this package


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """Of a model that takes motion maps, evaluated and calibrated."""
    folder = make_validated_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config(**OF_MOTION))
    calibrate_run(folder, [folder])
    return folder


@pytest.fixture
def backbone(monkeypatch):
    """The network that the run's features came from, wherever a backbone is built."""
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: small_network())


def inputs_of(run, cache, clips=slice(None)):
    """Of a run's test clips, as its model takes them, float32."""
    settings = run.config.settings
    of_test = Clips(
        cache, run.split["test"], run.classes, run.config.training.clip_length, motion=settings.takes_motion
    )
    features, mask, _, *motion = of_test.load(np.arange(len(of_test))[clips])
    given = {"features": features.astype(np.float32), "mask": mask}
    return given | ({"motion": motion[0].astype(np.float32)} if motion else {})


def ask(path, inputs):
    """What a file gives, by the runtime of its format."""
    if path.is_dir():
        outputs = tf.saved_model.load(path).signatures["serving_default"](
            **{k: tf.constant(v) for k, v in inputs.items()}
        )
        return {name: values.numpy() for name, values in outputs.items()}
    return tf.lite.Interpreter(str(path)).get_signature_runner()(**inputs)


def close(found, wanted, atol=1e-4):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_file_computes_what_the_run_does_for_any_number_of_clips_and_says_what_it_needs(
    kind, run_dir, cache, tmp_path
):
    run = Run.open(run_dir)
    export(run, kind, tmp_path / "out")
    path = {"saved_model": tmp_path / "out", "litert": tmp_path / "out" / "model.tflite"}[kind]
    model, inputs = run.model(), inputs_of(run, cache)
    assert len(inputs["mask"]) > 2
    assert not inputs["mask"].all()  # a clip is shorter
    for some in (slice(None), slice(1)):
        given = {name: values[some] for name, values in inputs.items()}
        close(ask(path, given), {name: np.asarray(values) for name, values in model(given).items()})
    about, calibration = exports.read_about(path), json.loads((run_dir / "calibration.json").read_text())
    assert {name: each["shape"] for name, each in about["inputs"].items()} == {
        "features": [None, 6, 7, 7, 512], "mask": [None, 6], "motion": [None, 6, 7, 7],
    }  # fmt: skip
    assert {name: each["shape"] for name, each in about["outputs"].items()} == {
        "logits": [None, 6, 3], "attention": [None, 6, 7, 7],
    }  # fmt: skip
    assert about["inputs"]["mask"]["dtype"] == "bool"
    assert "against the camera" in about["inputs"]["motion"]["meaning"]
    assert (about["part"], about["frames"], about["fps"], about["vote"]) == ("clip", 6, 15.0, "mode")
    assert (about["model"], about["classes"]) == ("alstm", run.classes)
    assert about["calibration"] == {key: calibration[key] for key in ("temperature", "threshold")}
    assert about["made_by"].startswith("action_attention ")
    (made,) = about["features"]
    assert made == {"stream": "rgb"} | {key: run.features[key] for key in (
        "backbone", "weights", "weights_sha256", "preprocessing", "resize")}  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_with_the_backbone_in_front_frames_give_what_their_features_give(kind, run_dir, backbone, tmp_path):
    run, network = Run.open(run_dir), small_network()
    export(run, kind, tmp_path / "out", frames=4, with_backbone=True)
    path = tmp_path / "out" / ("" if kind == "saved_model" else "model.tflite")
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (4, 224, 224, 3), np.uint8)
    motion, mask = random.random((4, 7, 7)).astype(np.float32), np.array([True, True, True, False])
    of_model = {"features": network(frames), "mask": mask, "motion": motion}
    wanted = run.model()({name: values[None] for name, values in of_model.items()})
    close(
        ask(path, {"frames": frames, "mask": mask, "motion": motion}),
        {name: np.asarray(values)[0] for name, values in wanted.items()},
    )
    about = exports.read_about(path)
    assert {name: (each["shape"], each["dtype"]) for name, each in about["inputs"].items()} == {
        "frames": ([4, 224, 224, 3], "uint8"), "mask": ([4], "bool"), "motion": ([4, 7, 7], "float32"),
    }  # fmt: skip
    assert about["outputs"]["logits"]["shape"] == [4, 3]


@pytest.mark.parametrize("kind", PLAIN)
def test_initial_and_step_give_frame_by_frame_what_the_clip_gives(kind, run_dir, cache, tmp_path):
    run = Run.open(run_dir)
    export(run, kind, tmp_path / "out", "step")
    initial, step = (tmp_path / "out" / f"{name}{exports.SUFFIXES[kind]}" for name in ("initial", "step"))
    inputs = inputs_of(run, cache)
    inputs = {name: values[inputs["mask"].all(axis=1)] for name, values in inputs.items()}  # steps are of real frames
    states, of_steps = ask(initial, {name: inputs[name] for name in ("features", "mask")}), []
    for t in range(6):
        outputs = ask(step, {name: inputs[name][:, t : t + 1] for name in ("features", "motion")} | states)
        states = {name: outputs.pop(f"next_{name}") for name in states}
        of_steps.append(outputs)
    found = {name: np.concatenate([each[name] for each in of_steps], axis=1) for name in of_steps[0]}
    close(found, {name: np.asarray(values) for name, values in run.model()(inputs).items()})
    assert exports.read_about(step)["inputs"].keys() == {"features", "motion", "state_0", "state_1"}
    assert exports.read_about(initial)["outputs"]["state_1"]["shape"] == [None, 4]


def test_a_run_of_mixed_precision_is_exported_in_float32():
    mixed = new_model(config("conv_alstm", mixed_precision=True), 3, CUBE)
    exact = exports.in_float32(mixed)
    assert (mixed.dtype_policy.name, exact.dtype_policy.name) == ("mixed_bfloat16", "float32")
    assert exact.settings == mixed.settings
    for ours, theirs in zip(exact.get_weights(), mixed.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert {layer.compute_dtype for layer in exact._flatten_layers()} == {"float32"}


@pytest.fixture
def written(tmp_path):
    """Writes a small model in a format; gives what was said, and whether anything is left."""
    model = build_model("softmax", 3, cube_shape=CUBE)

    def call(kind="saved_model", part="clip", folder=tmp_path / "out", model=model):
        with pytest.raises(UserError) as raised:
            exports.write(model, part, None, 4, kind, {}, folder)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    yield call
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_one_sentence_and_leaves_nothing(written, run_dir, monkeypatch, tmp_path):
    assert written(part="step") == ("softmax keeps no state between frames, so it has no step; leave out --part=step")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert written("onnx").startswith("--format=onnx needs onnx (")
    assert written("onnx").endswith("): pip install onnx onnxruntime tf2onnx")

    def fails(*_):
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setitem(exports.WRITERS, "litert", fails)
    assert written("litert") == (
        "--format=litert cannot hold the clip of softmax (no such operation); take another format"
    )
    monkeypatch.setitem(exports.RUNNERS, "saved_model", lambda _: lambda given: {
        "logits": np.full((2, 4, 3), 0.5), "attention": np.full((2, 4, *CUBE[:2]), 1 / 9)})  # fmt: skip
    assert written().startswith("--format=saved_model does not compute the clip of softmax as Keras does (outputs ")
    monkeypatch.setitem(exports.RUNNERS, "saved_model", lambda _: lambda given: {
        "logits": np.full((2, 4, 3), np.nan), "attention": np.full((2, 4, *CUBE[:2]), np.nan)})  # fmt: skip
    assert "(outputs nan apart)" in written()
    monkeypatch.setattr(program.keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"^--format=litert takes Keras on TensorFlow; leave KERAS_BACKEND out$"):
        export(Run.open(run_dir), "litert", tmp_path / "out")


def test_a_backbone_that_is_no_keras_network_is_refused(run_dir, monkeypatch, tmp_path):
    class OfOther:
        input_shape, output_shape = (None, 224, 224, 3), (None, 7, 7, 512)

    made = small_network()
    of_other = type(made)(**{**vars(made), "model": OfOther()})
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: of_other)
    with pytest.raises(UserError, match=r"^--with_backbone needs a Keras network, which VGG16 stand-in of .* is not;"):
        export(Run.open(run_dir), "saved_model", tmp_path / "out", with_backbone=True)


def test_a_backbone_in_bfloat16_is_exported_in_float32(run_dir, monkeypatch):
    """Whose cubes differ from the run's by rounding only."""
    made = small_network()
    coarse = type(made)(**{**vars(made), "precision": "bfloat16"})
    about = json.loads((run_dir / "run.json").read_text())
    run = Run.open(run_dir)
    run.about["cache"]["settings"] = {**about["cache"]["settings"], "precision": "bfloat16"}
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: coarse)
    asked = []
    monkeypatch.setattr(program, "build_backbone", lambda *given: (asked.append(given), made)[1])
    networks, frames = program.keras_networks(run, None), np.full((1, 224, 224, 3), 77, np.uint8)
    np.testing.assert_array_equal(np.asarray(networks["features"](frames)).astype(np.float16), made(frames))
    assert networks["features"].output.dtype == "float32"
    assert asked == [("VGG16 stand-in", "random", "float32")]


def test_an_output_folder_that_holds_something_or_cannot_be_is_refused(written, tmp_path, monkeypatch):
    full, file, link = tmp_path / "full", tmp_path / "file", tmp_path / "link"
    full.mkdir()
    (full / "precious").write_text("kept")
    file.write_text("kept")
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    for folder in (full, file, link):
        assert written(folder=folder) == f"{folder} is there already and not an empty folder; give another --output"
    below = file / "out"
    assert written(folder=below) == f"{below} cannot be written to (Not a directory); see that it can be written"
    assert file.read_text() == (full / "precious").read_text() == "kept"
    assert [path.name for path in full.iterdir()] == ["precious"]
    assert not list((tmp_path / "elsewhere").iterdir())

    def no_room(model, specs, about, path):
        (path / "half").write_text("of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(exports.WRITERS, "saved_model", no_room)
    assert written() == f"{tmp_path / 'out'} cannot be written to (No space left on device); make room"
    (empty := tmp_path / "empty").mkdir()
    assert written(folder=empty).endswith("make room")
    assert not list(empty.iterdir())


def test_the_program_writes_what_it_is_asked_for(run_dir, tmp_path):
    said = forked.succeeds(
        "experiments.export", "--run_dir", run_dir, "--format=saved_model", "--frames=3", "--output", tmp_path / "out"
    )
    assert said.startswith(f"{tmp_path / 'out'}: 0.")
    assert exports.read_about(tmp_path / "out")["frames"] == 3
    for arguments, sentence in (
        (("--run_dir", run_dir, "--format=package", "--frames=3"), "--frames does not apply to --format=package"),
        (("--run_dir", run_dir, "--format=litert", "--licence=x"), "--licence does not apply to --format=litert"),
        (("--pretrained=jhmdb21", "--format=package"), "jhmdb21 is a package already; pass it on as it is"),
    ):
        done = forked.run("experiments.export", *arguments, "--output", tmp_path / "other")
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "other").exists()


# On the sample dataset, and without TensorFlow

NO_TENSORFLOW = """
import sys
for name in ("tensorflow", "keras", "action_attention", "data_prep", "experiments"):
    sys.modules[name] = None  # to import it raises ImportError
"""
ASK_ONNX = f"""{NO_TENSORFLOW}
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["action_attention"])
given = dict(numpy.load(sys.argv[2]))
names = [output.name for output in session.get_outputs()]
numpy.savez(sys.argv[3], classes=about["classes"], **dict(zip(names, session.run(names, given))))
"""
RUN_LOADER = f"""{NO_TENSORFLOW}
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
SETTINGS = {
    "alstm": {}, "conv_alstm": {"lstm_units": 8}, "softmax": {}, "attentive_pool": {}, "conv3d": {"filters": 8},
    "late_fusion": {}, "temporal_attention": {}, "max_lstm": {},
    "rank_pool": {
        "motion_prior": True, "centre_prior": True, "heads": 2, "normalize": "sqrt_l2", "learning_rate": 3e-4,
    },
    "recommended": {"scores": "motion", "centre_prior": True, "normalize": "sqrt_l2", "temperature": 0.33},
}  # fmt: skip


@pytest.fixture(scope="module")
def of_sample(tmp_path_factory):
    """The sample dataset's folder, features and split."""
    folder = tmp_path_factory.mktemp("sample")
    make_sample(folder / "sample")
    extract(folder / "sample" / "videos", folder / "features", small_network())
    return folder, make_split(read_lists(folder / "sample" / "splits"), "source", 0)


@pytest.fixture(scope="module")
def trained(of_sample):
    """Trains and evaluates a model on the sample dataset, once."""
    folder, split = of_sample

    def call(name):
        if not (folder / name).exists():
            model = "alstm" if name == "recommended" else name
            made = config(model, **{"clip_length": 10, "epochs": 2, "learning_rate": 1e-2, **SETTINGS[name]})
            make_run(folder / name, folder / "features", split, made)
        return Run.open(folder / name)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_on_the_sample_dataset_every_format_names_the_classes_that_keras_names(name, trained, of_sample, tmp_path):
    """ONNX is run where TensorFlow cannot be imported."""
    for package in NEEDS:
        pytest.importorskip(package)
    run, cache = trained(name), FeatureCache(of_sample[0] / "features")
    assert len(run.split["test"]) == 48
    inputs = inputs_of(run, cache)
    cache.close()
    clips = [clip.video for clip in Clips(cache, run.split["test"], run.classes, 10).clips]
    wanted = {key: np.asarray(values) for key, values in run.model()(inputs).items()}
    np.savez(tmp_path / "inputs.npz", **inputs)
    for kind, suffix in exports.SUFFIXES.items():
        export(run, kind, tmp_path / kind)
        if kind != "onnx":
            found = ask(tmp_path / kind / (f"model{suffix}" if suffix else ""), inputs)
        else:
            files = [tmp_path / kind / "model.onnx", tmp_path / "inputs.npz", tmp_path / "outputs.npz"]
            subprocess.run([sys.executable, "-c", ASK_ONNX, *files], check=True, cwd=tmp_path)
            found = dict(np.load(tmp_path / "outputs.npz"))
            assert found.pop("classes").tolist() == run.classes
        close(found, wanted, atol=1e-3 if name == "rank_pool" else 1e-4)  # it scales up what changes little
        assert top1(found["logits"], inputs["mask"], clips) == top1(wanted["logits"], inputs["mask"], clips)


def top1(logits, mask, clips):
    """The class that most frames of each video's clips have."""
    of_frames = {video: [] for video in clips}
    for of_clip, real, video in zip(logits, mask, clips, strict=True):
        of_frames[video].extend(of_clip[real].argmax(axis=1))
    return {video: np.bincount(frames).argmax() for video, frames in of_frames.items()}


@pytest.mark.slow
def test_the_example_without_this_package_says_what_predict_says(trained, of_sample, backbone, tmp_path):
    """Of a model that takes motion maps: the same class for every fourth test video of the sample dataset."""
    for package in NEEDS:
        pytest.importorskip(package)
    run = trained("recommended")
    export(run, "onnx", tmp_path / "out", with_backbone=True)
    recognizer, loader = Recognizer(run), ROOT / "examples" / "onnx_loader.py"
    for name in run.split["test"][::4]:
        video = of_sample[0] / "sample" / "videos" / name
        command = [sys.executable, "-c", RUN_LOADER, loader, tmp_path / "out" / "model.onnx", video]
        said, confidence = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        result = recognizer.predict(video)
        assert said == result.top5[0]["class"]
        assert float(confidence) == pytest.approx(result.confidence, abs=0.02)
