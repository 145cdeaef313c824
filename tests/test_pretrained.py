"""A run becomes a small folder that predicts by its name: the same numbers, nothing of the machine, nothing is run."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_network, write_video

import action_attention as aa
from action_attention import model_file, packages, runs
from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.memory import weight_shapes
from action_attention.runs import Run
from action_attention.training import new_model, train
from data_prep import recognizer as recognizer_module
from data_prep.sample import CLASSES as OF_SAMPLE
from experiments import predict, report, table
from experiments.calibrate import calibrate_run
from experiments.package import card, package
from tests import hostile
from tests.test_training import ABOUT, config, make_validated_run

ROOT = Path(__file__).parents[1]
TEXTS = {"data": "tiny videos", "licence": "Apache-2.0", "limits": "Uniform colours only."}
PARTS = sorted(packages.PARTS)
MAX_BYTES = 6_000_000  # everybody who installs this software downloads it, and git keeps each version of it for ever
# with weights of every kind: single numbers, heads, a motion prior
SETTINGS = {"scores": "location", "heads": 2, "motion_prior": True, "temperature": 0.0, "beside": "mean", "epochs": 1}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """Evaluated and calibrated."""
    folder = make_validated_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config(**SETTINGS))
    calibrate_run(folder, [folder])
    return folder


@pytest.fixture(scope="module")
def packaged(run_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packaged") / "tiny"
    package(Run.open(run_dir), folder, **TEXTS)
    return folder


@pytest.fixture
def installed(packaged, tmp_path, monkeypatch):
    """A copy that this package brings by the name `tiny`; nothing is in the current folder."""
    folder = tmp_path / "installed" / "tiny"
    shutil.copytree(packaged, folder)
    monkeypatch.setattr(runs, "PRETRAINED", folder.parent)
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: small_network())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def edit(folder, name="run.json", **entries):
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **entries}))


def test_a_packaged_model_says_what_the_run_says_in_float16(run_dir, packaged, cache):
    assert sorted(path.name for path in packaged.iterdir()) == PARTS
    assert sum(path.stat().st_size for path in packaged.iterdir()) < MAX_BYTES
    run, pretrained = Run.open(run_dir), Run.open(packaged, pretrained=True)
    expected, model = run.model(), pretrained.model()
    with np.load(packaged / "model.npz") as arrays:
        assert list(arrays.files) == list(model_file.by_path(expected.weights))
        assert "alstm/core/attention/conv_x/kernel" in arrays.files
        assert [arrays[name].shape for name in arrays.files if name.endswith("gamma")] == [()]
        assert {str(arrays[name].dtype) for name in arrays.files} == {"float16"}
    expected.set_weights([weight.astype(np.float16).astype(np.float32) for weight in expected.get_weights()])
    random = np.random.default_rng(0)
    motion = random.random((2, 6, *cache.cube_shape[:2])).astype(np.float32)
    inputs = {"features": random.random((2, 6, *cache.cube_shape)).astype(np.float32), "motion": motion,
              "mask": np.ones((2, 6), bool)}  # fmt: skip
    for key in ("logits", "attention"):
        np.testing.assert_allclose(model(inputs)[key], expected(inputs)[key], atol=1e-6)
    assert pretrained.config == run.config
    assert pretrained.classes == run.classes
    assert pretrained.features == run.features
    assert pretrained.calibration() == run.calibration()


def test_a_run_of_a_model_that_takes_motion_maps_is_read_back(run_dir, cache):
    """Counting its weights, and its `.keras` file, took no motion maps."""
    config = Run.open(run_dir).config
    counted = weight_shapes(lambda: new_model(config, 3), cache.cube_shape)
    assert counted == [tuple(weight.shape) for weight in Run.open(run_dir).model().weights]


def test_a_package_is_the_same_bytes_each_time_and_says_nothing_of_the_machine(run_dir, packaged, tmp_path):
    package(Run.open(run_dir), tmp_path / "tiny", **TEXTS)
    for name in PARTS:
        assert (tmp_path / "tiny" / name).read_bytes() == (packaged / name).read_bytes()
    about, written = (Run.open(folder, pretrained=True).about for folder in (packaged, run_dir))
    assert about["cache"]["cube_shape"] == written["cache"]["cube_shape"] == [7, 7, 512]
    text = "".join((packaged / name).read_text() for name in PARTS if name != "model.npz")
    for trace in (*written["machine"].split(", "), written["cache"]["folder"], str(run_dir), "/tmp", str(ROOT)):
        assert trace in json.dumps(written) or trace.startswith("/")
        assert trace not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_a_run_of_before_cube_shape_was_written_down_is_packaged_too(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    cache = json.loads((run_dir / "run.json").read_text())["cache"]
    edit(tmp_path / "run", cache={key: value for key, value in cache.items() if key != "cube_shape"})
    package(Run.open(tmp_path / "run"), tmp_path / "tiny", **TEXTS)
    assert json.loads((tmp_path / "tiny" / "run.json").read_text())["cache"]["cube_shape"] == [7, 7, 512]


def test_the_card_says_what_was_measured(run_dir, monkeypatch):
    run = Run.open(run_dir)
    metrics, calibration = run.metrics(), run.calibration()
    accuracies = {"leap": 0.5, "nod": 0.25, "spin": 1.0, "jump": 0.5, "hop": 0.0}
    per_class = {name: {"accuracy": value, "videos": 4} for name, value in accuracies.items()}
    metrics |= {"video_top1": 0.5, "video_top1_ci95": [0.25, 0.75], "per_class": per_class}
    aim = {"attention": 0.4, "attention_ci95": None, "uniform": 0.1, "centre": 0.3}
    metrics["localization"] = {"videos": 7, "pointing": aim, "mass": {**aim, "attention": 0.2}}
    text = card(runs.PRETRAINED / "tiny", run, run.model(), metrics, calibration, **TEXTS)
    for line in (
        "# tiny", "    python -m experiments.predict --pretrained=tiny --video=clip.mp4", "| data | tiny videos |",
        "| licence | Apache-2.0 |", "Best: spin 100% of 4, jump 50% of 4, leap 50% of 4.",
        "Worst: hop 0% of 4, nod 25% of 4, leap 50% of 4.", "Uniform colours only.",
        "- Frames whose largest location is on the actor: 40.0% (uniform attention 10.0%, centre of the frame 30.0%)",
        "- Attention on the actor: 20.0% (uniform attention 10.0%, centre of the frame 30.0%)",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert f"50.0% of the videos (tiny, split 1, {metrics['videos']} test videos; 95 % interval 25.0% to 75.0%)" in text
    (command,) = re.findall(r"^    python -m experiments\.train (.*)", text, re.MULTILINE)
    assert sorted(command.split()) == [
        "--batch_size=4", "--beside=mean", "--clip_length=6", "--epochs=1", "--heads=2", "--learning_rate=0.001",
        "--lstm_units=4", "--model=alstm", "--motion_prior", "--scores=location", "--temperature=0.0",
    ]  # fmt: skip
    fitted = f"fitted on {calibration['videos']} validation videos of 1 run. Judged on"
    assert f"Temperature {calibration['temperature']:.3f}, {fitted}" in text
    monkeypatch.chdir(runs.PRETRAINED)
    assert card(Path("tiny"), run, run.model(), metrics, calibration, **TEXTS) == text
    del metrics["localization"]
    elsewhere = card(Path("far/my own.zip"), run, run.model(), metrics, calibration, **TEXTS)
    assert "actor" not in elsewhere
    assert elsewhere.startswith("# my own\n")
    assert "\n    python -m experiments.predict --run_dir='my own.zip' --video=clip.mp4\n" in elsewhere


def test_a_run_that_is_not_evaluated_calibrated_or_of_float16_is_not_packaged(run_dir, tmp_path, monkeypatch):
    copy, folder = tmp_path / "run", tmp_path / "tiny"
    shutil.copytree(run_dir, copy)
    huge = aa.build_model("softmax", 3, cube_shape=(1, 1, 2))
    huge.classifier.kernel.assign(np.full((2, 3), 1e5))
    monkeypatch.setattr(Run, "model", lambda _: huge)
    with pytest.raises(UserError, match=r"cannot be packaged: float16 cannot hold its \S*classifier/kernel; train it"):
        package(Run.open(copy), folder, **TEXTS)
    (copy / "calibration.json").unlink()
    with pytest.raises(UserError, match=r"has no calibration\.json; make it with `python -m experiments\.calibrate "):
        package(Run.open(copy), folder, **TEXTS)
    shutil.rmtree(copy / "eval" / "test")
    with pytest.raises(UserError, match=r"metrics\.json does not exist; make it with `make eval"):
        package(Run.open(copy), folder, **TEXTS)
    assert not folder.exists()


def test_what_needs_lists_of_videos_says_that_a_pretrained_model_has_none(packaged, cache, split):
    calls = (
        lambda: Run.open(packaged), lambda: evaluate(packaged, cache), lambda: table.read_result(packaged),
        lambda: report.read_runs([packaged], "test"), lambda: calibrate_run(packaged, [packaged]),
        lambda: train(config(**SETTINGS), cache, split, packaged, about=ABOUT, resume=True),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(UserError) as raised:
            call()
        assert str(raised.value) == (
            f"{packaged} is a pretrained model, which can only predict: it has no lists of videos to train on, "
            "evaluate or report; make a run of your own with `make train`"
        )
    assert sorted(path.name for path in packaged.iterdir()) in (PARTS, [".lock", *PARTS])
    (packaged / ".lock").unlink(missing_ok=True)


def test_a_run_without_its_lists_is_no_pretrained_model(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "split.json").unlink()
    with pytest.raises(UserError, match="holds no training run"):
        Run.open(tmp_path / "run", pretrained=True)


# Files that somebody sent


def first_array(members):
    return next(iter(members))


HOSTILE = {
    "another shape": lambda m: m | {first_array(m): hostile.npy((3, 3), "<f2", bytes(18))},
    "another type": lambda m: m | {first_array(m): hostile.npy((512, 128), "<f4", bytes(4 * 512 * 128))},
    "one array less": lambda m: dict(list(m.items())[1:]),
    "one array more": lambda m: m | {"more.npy": hostile.npy((1,), "<f2", bytes(2))},
    "another order": lambda m: dict(reversed(m.items())),
    "another name": lambda m: {("x.npy" if name == first_array(m) else name): array for name, array in m.items()},
    "a header that lies": lambda m: m | {first_array(m): hostile.npy((1 << 40,), "<f2")},
    "a pickle": lambda m: m | {first_array(m): hostile.npy((1,), "|O", b"cos\nsystem\n(S'touch canary'\ntR.")},
    "NaN": lambda m: m | {first_array(m): m[first_array(m)][:-2] + b"\xff\xff"},
}


@pytest.mark.parametrize("what", [*HOSTILE, "packed", "a bomb", "no archive", "a pipe"])
def test_weights_that_somebody_spoilt_are_refused_with_one_sentence(what, packaged, tmp_path, monkeypatch):
    folder = tmp_path / "tiny"
    shutil.copytree(packaged, folder)
    path = folder / "model.npz"
    members = hostile.members_of(path)
    if what in HOSTILE:
        hostile.write_members(path, HOSTILE[what](members))
    elif what == "packed":
        hostile.write_members(path, members, hostile.zipfile.ZIP_DEFLATED)
    elif what == "a bomb":
        hostile.bomb(path, "bomb.npy", hostile.npy((1 << 27,), "<f2"), 1 << 28)
    else:
        path.unlink()
        os.mkfifo(path) if what == "a pipe" else path.write_bytes(b"PK nothing")
    if what not in ("another name", "NaN"):  # whose weights are of the right shapes
        monkeypatch.setattr(model_file, "build_model", lambda *a, cube_shape=None, **k: (
            pytest.fail("made") if cube_shape else aa.build_model(*a, **k)))  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        Run.open(folder, pretrained=True).model()
    assert "\n" not in str(raised.value)
    unread = "cannot be read as a model of this version, with Keras .*: use that, or get the pretrained model again"
    assert re.search(rf"model\.npz (is a link, a pipe or a device; .*|{unread})$", str(raised.value))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"lstm_units": 60000}, r"it does not hold the \d{11} weights, in float16, of the settings in run\.json"),
        ({"model": "conv_alstm"}, "it does not hold the "),
    ],
)
def test_settings_of_other_weights_are_refused_before_one_is_made(packaged, tmp_path, entries, sentence):
    shutil.copytree(packaged, tmp_path / "tiny")
    written = json.loads((packaged / "run.json").read_text())["config"]
    edit(tmp_path / "tiny", config={**written, **entries})
    with pytest.raises(UserError, match=sentence):
        Run.open(tmp_path / "tiny", pretrained=True).model()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ([0, 7, 512], r"it is for cubes \(0, 7, 512\)"),
        ([1 << 20, 1 << 20, 1], "it is for cubes"),
        ([7, 7, 4], "it does not hold the"),
        ([7, 7], r"run\.json or split\.json is damaged \(cache\.cube_shape must have 3 entries\)"),
        (None, r"run\.json or split\.json is damaged \(cache\.cube_shape must be a list\)"),
    ],
)
def test_a_cube_shape_that_cannot_be_is_refused(packaged, tmp_path, shape, sentence):
    shutil.copytree(packaged, tmp_path / "tiny")
    cache = json.loads((packaged / "run.json").read_text())["cache"]
    edit(tmp_path / "tiny", cache={**cache, "cube_shape": shape})
    with pytest.raises(UserError, match=sentence):
        Run.open(tmp_path / "tiny", pretrained=True).model()
    edit(tmp_path / "tiny", cache={key: value for key, value in cache.items() if key != "cube_shape"})
    with pytest.raises(UserError, match=r"is damaged \(cache\.cube_shape is missing\)"):
        Run.open(tmp_path / "tiny", pretrained=True)


# By name


def test_a_pretrained_model_is_loaded_by_its_name_unless_a_folder_has_it(installed, run_dir, videos):
    assert aa.load("tiny").run.folder == installed
    result = aa.load("tiny").predict(next(iter((videos / "nod").glob("*.avi"))))
    assert result.calibration == json.loads((installed / "calibration.json").read_text())
    shutil.copytree(run_dir, "tiny")
    assert aa.load("tiny").run.folder == Path("tiny")
    assert aa.load(installed).run.folder == installed


@pytest.mark.parametrize("name", ["huge", "x" * 300])
def test_an_unknown_name_lists_the_pretrained_models(installed, name, monkeypatch):
    end = "a run of your own is given by its directory"
    shutil.copytree(installed, installed.with_name("other"))
    with pytest.raises(UserError, match=f"^there is no pretrained model {name}: there are other, tiny; {end}$"):
        aa.load(name)
    monkeypatch.setattr(runs, "PRETRAINED", Path("nowhere"))
    with pytest.raises(UserError, match=f"^there is no pretrained model {name}: this installation has none; {end}$"):
        aa.load(name)
    with pytest.raises(UserError, match=r"^runs/huge holds no training run \(No such file"):
        aa.load("runs/huge")


def test_a_model_of_the_sample_dataset_warns(installed, monkeypatch):
    warnings = []
    monkeypatch.setattr(recognizer_module.logging, "warning", warnings.append)
    aa.load("tiny")
    edit(installed, dataset="sample")  # but its classes are others: somebody's own data by that name
    aa.load("tiny")
    assert warnings == []
    edit(installed, classes=list(OF_SAMPLE[:3]))
    aa.load("tiny")
    assert warnings == [
        "this model was trained on drawn cartoons (the sample dataset); what it says of real video means nothing"
    ]


@pytest.fixture
def predicted(installed, tmp_path, monkeypatch, capsys):
    """Runs the program on a clip; gives the JSON, its lines and what it says on stderr."""
    write_video(tmp_path / "clip.avi", 12)
    monkeypatch.setattr(predict, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=signal.SIGTERM))

    def call(output=None, **given):
        nothing = dict.fromkeys(("run_dir", "pretrained", "label", "vote", "weights", "overlay", "realtime", "seconds"))
        flags = {"heatmap": "absolute", "gif": False, "json": True, "boxes": False, **nothing}
        flags |= {"video": [str(tmp_path / "clip.avi")], "output": output}
        monkeypatch.setattr(predict.flags, "FLAGS", SimpleNamespace(**{**flags, **given}))
        predict.main()
        said = capsys.readouterr()
        written = Path(said.out.splitlines()[-1])
        return written, json.loads(written.read_text()), said.out.splitlines(), said.err

    return call


OLD_KEYS = {"video", "video_sha256", "run_dir", "model", "label", "vote", "fps", "top5", "attention_entropy", "frames"}


def test_predict_by_a_pretrained_model(installed, predicted):
    """The output lies here, not in the package; below the threshold it gives no answer."""
    before = sorted(installed.iterdir())
    edit(installed, "calibration.json", threshold=0.0)
    path, about, lines, said = predicted(pretrained="tiny")
    assert path == Path("predictions/clip_prediction.json")
    assert about.keys() == OLD_KEYS | {"answer", "confidence", "calibrated", "segments"}
    best = about["top5"][0]
    assert (about["answer"], about["calibrated"]) == (best["class"], True)
    assert about["confidence"] == pytest.approx(best["probability"], abs=1e-6)
    percent = f"{int(100 * best['probability'])} %"
    assert f"{best['class']} (confidence {percent})" in lines
    assert [line for line in lines if "mean over the frames, calibrated; most votes decide" in line]
    assert "cartoons" not in said

    edit(installed, "calibration.json", threshold=0.995)
    _, unsure, lines, _ = predicted(run_dir=str(installed), output="out")
    assert unsure == {**about, "answer": None, "segments": [{**about["segments"][0], "action": None}]}
    guess = f"best guess: {best['class']}, {percent}; below 99.5 % I do not decide"
    assert f"none of my 3 actions with confidence ({guess})" in lines
    assert sorted(path.name for path in Path("out").iterdir()) == ["clip_prediction.json", "clip_prediction.mp4"]
    assert sorted(installed.iterdir()) == before


def test_every_frames_confidence_is_calibrated(installed, predicted, monkeypatch, tmp_path):
    """In the JSON and above the picture, as the video's is."""
    drawn, draw = [], recognizer_module.draw_overlays

    def drawing(*given, calibrated, **more):
        drawn.append(calibrated)
        return draw(*given, calibrated=calibrated, **more)

    monkeypatch.setattr(recognizer_module, "draw_overlays", drawing)
    edit(installed, "calibration.json", temperature=3.0)
    _, about, _, _ = predicted(pretrained="tiny")
    result = aa.load("tiny").predict(tmp_path / "clip.avi")
    flat = result.probabilities ** (1 / 3)
    expected = flat / flat.sum(axis=1, keepdims=True)
    assert not np.allclose(expected, result.probabilities, atol=1e-3)
    np.testing.assert_allclose([frame["confidence"] for frame in about["frames"]], expected.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(drawn, [expected], atol=1e-5)


def test_predict_by_a_run_without_calibration(installed, predicted, run_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    (copy / "calibration.json").unlink()
    edit(copy, dataset="sample", classes=list(OF_SAMPLE[:3]))
    path, about, lines, said = predicted(run_dir=str(copy))
    assert path == copy / "predictions" / "clip_prediction.json"
    assert about["calibrated"] is False
    assert f"{about['answer']} (confidence {int(100 * about['confidence'])} %, not calibrated)" in lines
    assert [line for line in lines if "mean over the frames; most votes decide" in line]
    assert f"WARNING: {recognizer_module.CARTOONS}\n" in said


def test_predict_takes_a_run_or_a_pretrained_model(installed, predicted):
    for given, count in (({}, "neither is"), ({"run_dir": "a", "pretrained": "tiny"}, "both are")):
        with pytest.raises(UserError) as raised:
            predicted(**given)
        assert str(raised.value) == f"give --run_dir, a run of yours, or --pretrained (tiny); {count} given"
    with pytest.raises(UserError, match=r"^there is no pretrained model \.\./tiny: there are tiny; a run of your own"):
        predicted(pretrained="../tiny")


def test_what_this_package_brings_is_whole():
    """Each pretrained model has its four files, can be read, and is in the wheel."""
    for name in runs.pretrained_names():
        assert sorted(path.name for path in (runs.PRETRAINED / name).iterdir()) == PARTS
        run = Run.open(runs.PRETRAINED / name, pretrained=True)
        assert run.model().cube_shape == tuple(run.about["cache"]["cube_shape"])
        assert 0 < run.calibration()["threshold"] < 1
        assert sum(path.stat().st_size for path in run.folder.iterdir()) <= MAX_BYTES
    assert "\n    pretrained/*/*\n" in (ROOT / "setup.cfg").read_text()
