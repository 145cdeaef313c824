"""What somebody adds from outside of the project, and what they call from Python, by the public names."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest

import action_attention as aa
from action_attention import registry
from action_attention.features import FeatureCache
from action_attention.runs import Run
from data_prep.sample import make_sample
from data_prep.splits import read_groups, read_lists, write_lists
from data_prep.videos import read_frames

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(module, *arguments, imported=True):
    """A program, started in the folder of the user's own module."""
    return forked.run(module, *(["--import=own_model"] if imported else []), *arguments, folder=EXAMPLES)


def succeeds(module, *arguments):
    return forked.succeeds(module, "--import=own_model", *arguments, folder=EXAMPLES)


def refused(module, *arguments, imported=True):
    """The one sentence of a program that ends with 1."""
    done = run(module, *arguments, imported=imported)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The outside model on features of the outside backbone: the sample dataset, features and a run."""
    folder = tmp_path_factory.mktemp("own")
    make_sample(folder / "sample", train_clips=3, test_clips=1, frames=8)
    succeeds("data_prep.extract", "--backbone=tiles", "--videos", folder / "sample" / "videos",
             "--features", folder / "features")  # fmt: skip
    succeeds("experiments.train", "--model=sharp_pool", "--sharpness=3", "--epochs=2", "--clip_length=4",
             "--learning_rate=0.1", "--features", folder / "features", "--splits", folder / "sample" / "splits",
             "--run_dir", folder / "runs" / "first")  # fmt: skip
    succeeds("experiments.eval", "--run_dir", folder / "runs" / "first")
    return folder


def test_a_model_and_a_backbone_from_outside_go_through_every_program(own, tmp_path):
    cache, run_dir = FeatureCache(own / "features"), own / "runs" / "first"
    assert (cache.cube_shape, cache.settings["backbone"], cache.settings["resize"]) == (
        (5, 6, 24), "tiles mean", "60x60 bilinear",
    )  # fmt: skip
    written = Run.open(run_dir)
    assert written.about["config"]["sharpness"] == 3.0
    assert "import" not in written.flags_file.read_text()  # nothing that a file names is imported
    metrics, predictions = written.metrics(), written.predictions()
    assert metrics["model"] == "sharp_pool"
    assert {prediction.attention.shape[1:] for prediction in predictions} == {(5, 6)}
    pointing = metrics["localization"]["pointing"]  # localised on its own grid: every frame's actor is in the boxes
    assert metrics["localization"]["frames"] == sum(len(prediction.attention) for prediction in predictions)
    assert 0 <= pointing["attention"] <= 1
    assert metrics["localization"]["mass"]["uniform"] == pytest.approx(pointing["uniform"])
    assert "| sharp_pool, learning_rate=0.1, sharpness=3.0 |" in succeeds("experiments.table", "--run_dir", run_dir)

    video = next(iter((own / "sample" / "videos").glob("*/*")))
    said = succeeds("experiments.predict", "--run_dir", run_dir, "--video", video, "--output", tmp_path)
    assert ", sharp_pool\n" in said
    frames = json.loads((tmp_path / f"{video.stem}_prediction.json").read_text())["frames"]
    assert np.shape([frame["attention"] for frame in frames]) == (len(frames), 5, 6)
    said = succeeds("experiments.report", "--run_dir", run_dir, "--output", tmp_path / "report")
    assert f"overlays of {metrics['videos']} videos" in said


def test_without_the_module_that_registers_them_it_is_said_which_names_are_unknown(own, tmp_path):
    run_dir, video = own / "runs" / "first", next(iter((own / "sample" / "videos").glob("*/*")))
    assert re.search(
        r"is a run of sharp_pool, which is not among the models here \(alstm, .*; --import=MODULE brings the module",
        refused("experiments.predict", "--run_dir", run_dir, "--video", video, "--output", tmp_path, imported=False),
    )
    assert "there is no backbone tiles" in refused(
        "data_prep.extract", "--backbone=tiles", "--videos", own, "--features", tmp_path / "f", imported=False
    )
    assert "--import=absent: Python finds no module absent; start in its folder, or put it on PYTHONPATH" in refused(
        "experiments.table", "--import=absent", "--run_dir", run_dir
    )


def test_a_flag_file_imports_nothing(own, tmp_path):
    (tmp_path / "own.flags").write_text("--import=own_model\n")
    sentence = refused("experiments.table", f"--flagfile={tmp_path}/own.flags", "--run_dir", own, imported=False)
    assert "--import stands in a flag file, and nothing that a file names is run" in sentence


def test_names_that_are_taken_are_refused():
    with pytest.raises(aa.UserError, match=r"registers the model alstm, but action_attention\.models"):
        aa.register_model("alstm", aa.ModelSettings)(type("Other", (aa.ActionModel,), {"__module__": __name__}))


@pytest.fixture
def own_registry(monkeypatch):
    """What registers itself here is not known to the tests that follow."""
    for of_all in ("_models", "_backbones"):
        monkeypatch.setattr(registry, of_all, dict(getattr(registry, of_all)))


@pytest.fixture
def recognizer(own, own_registry, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    __import__("own_model")
    yield aa.load(own / "runs" / "first")
    del sys.modules["own_model"]


def test_a_file_and_its_frames_give_the_same_answer_and_that_of_evaluation(recognizer, own):
    evaluated = recognizer.run.predictions("test")[0]
    path = own / "sample" / "videos" / evaluated.name
    of_file = recognizer.predict(path)
    of_frames = recognizer.predict(read_frames(path, 1000.0), fps=30)
    for result in (of_file, of_frames):
        np.testing.assert_allclose(result.probabilities, evaluated.probabilities, atol=1e-4)
        np.testing.assert_allclose(result.attention, evaluated.attention, atol=1e-4)
        assert result.fps == pytest.approx(15)
    assert of_file.top5 == of_frames.top5
    assert sum(row["votes"] for row in of_file.top5) == pytest.approx(1)


@pytest.mark.parametrize(
    ("video", "fps", "sentence"),
    [
        ("absent.mp4", None, "absent.mp4 is not a file; give a video file"),
        (np.zeros((4, 48, 64, 3), np.uint8), None, r"frames need their rate: predict\(frames, fps=30\)"),
        (np.zeros((4, 48, 64, 3), np.float32), 30, r"uint8 \(n, height, width, 3\), RGB\. Received: float32 \(4, 48"),
        (np.zeros((48, 64, 3), np.uint8), 30, r"Received: uint8 \(48, 64, 3\)"),
        (np.zeros((0, 48, 64, 3), np.uint8), 30, r"Received: uint8 \(0, 48, 64, 3\)"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(recognizer, video, fps, sentence):
    with pytest.raises(aa.UserError, match=sentence):
        recognizer.predict(video, fps)


def run_python(page):
    """The names that all Python of a page leaves, run in one go in the current folder."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names = {"__name__": "page"}
    exec(compile("\n".join(blocks), page, "exec"), names)
    return names


def test_every_page_with_python_is_run_here():
    pages = [page for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if "```python" in page.read_text()]
    assert {page.name for page in pages} == {"README.md", "extend.md", "guide.md"}


@pytest.fixture
def folder_with_a_run(recognizer, own, tmp_path, monkeypatch):
    """The current folder, with runs/first and clip.mp4."""
    (tmp_path / "runs").mkdir()
    shutil.copytree(own / "runs" / "first", tmp_path / "runs" / "first")
    shutil.copy(next(iter((own / "sample" / "videos").glob("*/*"))), tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readmes_python_runs(folder_with_a_run):
    result = run_python("README.md")["result"]
    assert (folder_with_a_run / "out.mp4").stat().st_size > 1000
    assert len(result.attention) == len(result.probabilities)


def test_the_guides_python_runs(folder_with_a_run):
    names = run_python("docs/guide.md")
    assert names["maps"].shape == (names["seconds"] * 15, 5, 6)
    assert np.isfinite(names["history"].history["loss"]).all()

    model, cubes = names["stream"], names["cubes"]
    whole = {"features": cubes, "mask": np.ones(cubes.shape[:2], bool)}
    at_once, _ = model.step(whole, model.first_states(names["window"]))  # the steps say what all frames at once say
    for name, of_last in names["outputs"].items():
        np.testing.assert_allclose(of_last[:, 0], at_once[name][:, -1], atol=1e-5)


def test_the_model_and_the_lists_of_the_page_on_adding_your_own(own_registry, tmp_path, monkeypatch):
    tags = {f"sit_down/film{n}_sit_down_f_cm_np1_fr_med_{n}.avi": 1 + n % 2 for n in range(6)}
    write_lists(tmp_path / "splits", tags)
    monkeypatch.chdir(tmp_path)
    run_python("docs/extend.md")

    assert read_lists(tmp_path / "jhmdb_split1.csv") == tags
    groups = read_groups(tmp_path / "jhmdb_split1.csv")
    assert groups == {name: f"film{n}" for n, name in enumerate(tags)}

    cubes = np.zeros((1, 3, 2, 4, 8), np.float32)
    cubes[:, [0, 1, 2], [0, 1, 1], [3, 0, 2]] = 5  # large at another location of each frame
    model = aa.build_model("energy_lstm", classes=2, lstm_units=4)
    maps = np.array(model({"features": cubes, "mask": np.ones((1, 3), bool)})["attention"])[0]
    assert [np.unravel_index(each.argmax(), each.shape) for each in maps] == [(0, 3), (1, 0), (1, 2)]


def test_the_page_of_settings_is_what_the_settings_say():
    made = run("experiments.options", imported=False)
    assert (ROOT / "docs" / "settings.md").read_text() == made.stdout, "make it again"


def test_importing_the_package_costs_no_tensorflow():
    code = "import sys, action_attention; print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="action_attention has no wings; it has ActionModel"):
        _ = aa.wings
