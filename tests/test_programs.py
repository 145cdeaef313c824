"""The programs as a user runs them: all stages on a small sample, and what they say to mistakes."""

import ast
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES
from forked import ROOT, run, succeeds

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.extract import extract
from data_prep.sample import make_sample
from data_prep.splits import read_lists
from experiments import options, table

PACKAGES = ("action_attention", "data_prep", "experiments")
# what runs code that a file or a name may hold
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "enable_unsafe_deserialization"}
UNSAFE_ARGUMENTS = {("allow_pickle", True), ("safe_mode", False), ("shell", True)}


def actor_share(sample, tags):
    """The actor's mean share of the frame in the test videos' even frames, from the boxes alone."""
    boxes = json.loads((sample / "boxes.json").read_text())
    of_videos = [np.array(boxes[name])[::2] for name, tag in tags.items() if tag == 2]
    return np.mean([np.prod(corners[:, 2:] - corners[:, :2], axis=1).mean() for corners in of_videos]) / (320 * 240)


def test_from_sample_to_table(tmp_path):
    sample, features, run_dir = tmp_path / "sample", tmp_path / "features", tmp_path / "run"
    make_sample(sample, train_clips=3, test_clips=1, frames=8)
    said = succeeds("data_prep.extract", "--videos", sample / "videos", "--features", features, "--weights", "random")
    assert "extracted 24 videos (0 rejected), 96 frames" in said
    said = succeeds("data_prep.inspect", "--features", features, "--verify")
    assert "24 videos of 6 classes, 96 frames, 1 shards" in said
    assert "verified: all 1 shards hold what was written" in said

    flagfile = f"--flagfile={ROOT / 'experiments/configs/sample_alstm.flags'}"
    small = ("--lstm_units=8", "--epochs=1", "--seed=5")
    succeeds("experiments.train", flagfile, "--features", features, "--splits", sample / "splits", *small,
             "--run_dir", run_dir)  # fmt: skip
    said = succeeds("experiments.eval", "--run_dir", run_dir)
    metrics = json.loads((run_dir / "eval" / "test" / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["videos"], metrics["weights"]) == ("sample", 6, "random")
    assert "| sample, split 1, 6 test videos | alstm, lstm_units=8" in said
    assert f" | 1 | {metrics['video_top1']:.1%} | " in said
    assert "VGG16 WITH RANDOM WEIGHTS: these accuracies mean nothing." in said
    # the sample's boxes lie beside its videos
    pointing, mass = (metrics["localization"][key] for key in ("pointing", "mass"))
    assert metrics["localization"]["videos"] == 6
    assert f" | 1 | {pointing['attention']:.1%} | " in said
    assert mass["uniform"] == pytest.approx(actor_share(sample, read_lists(sample / "splits", 1)))

    # the flags that a run wrote down make the same run
    succeeds("experiments.train", f"--flagfile={run_dir / 'flags.txt'}", "--run_dir", tmp_path / "again")
    for name in ("split.json", "flags.txt"):
        assert (run_dir / name).read_text() == (tmp_path / "again" / name).read_text()
    best = [json.loads((folder / "run.json").read_text())["best"] for folder in (run_dir, tmp_path / "again")]
    assert best[0] == best[1]

    boxes = json.loads((sample / "boxes.json").read_text())
    left_out = next(name for name in boxes if name in json.loads((run_dir / "split.json").read_text())["test"])
    boxes.pop(left_out)
    (tmp_path / "some.json").write_text(json.dumps(boxes))
    said = succeeds("experiments.eval", "--run_dir", tmp_path / "again", "--annotations", tmp_path / "some.json")
    assert "4 of 24 frames have no annotated actor and do not count; videos that have none in any frame" in said
    metrics = json.loads((tmp_path / "again" / "eval" / "test" / "metrics.json").read_text())
    assert metrics["localization"]["without_annotation"] == [left_out]
    assert "per_class" in metrics["localization"]  # which would fill the file of many runs' results
    results = tmp_path / "results.json"
    both = ("--run_dir", run_dir, "--run_dir", tmp_path / "again")
    said = succeeds("experiments.table", *both, "--output", results)
    assert " | 2 | " in said
    assert succeeds("experiments.table", "--results", results) == said

    said = succeeds("experiments.report", *both, "--output", tmp_path / "report")
    assert "index.html: 2 runs, overlays of 6 videos" in said
    assert table.RANDOM_WEIGHTS in (tmp_path / "report" / "index.html").read_text()
    assert len(list((tmp_path / "report" / "overlays").glob("run[12]/000??.mp4"))) == 12


@pytest.mark.parametrize(
    ("module", "arguments", "sentence"),
    [
        ("data_prep.extract", ("--weights=random", "--videos={}/absent", "--features={}/f"), "is not a folder; give"),
        ("data_prep.extract", ("--weights={}/absent.h5", "--videos={}", "--features={}/f"), "is not a file; give"),
        ("data_prep.inspect", ("--features={}",), "holds no feature cache"),
        ("data_prep.hmdb51", ("--output={}", "--archive={}/absent.rar"), "absent.rar is not a file; give an archive"),
        ("data_prep.audit", ("--videos={}", "--splits={}"), "holds no lists <class>_test_split1.txt"),
        ("experiments.eval", ("--run_dir={}",), "holds no training run"),
        ("experiments.report", ("--run_dir={}", "--output={}/report"), "holds no training run"),
        ("experiments.table", ("--run_dir={}", "surplus"), "unknown argument 'surplus'"),
        ("experiments.calibrate", ("--run_dir={}", "--from={}", "--from={}/b"), "holds no training run"),
        ("experiments.export", ("--run_dir={}", "--format=package", "--output={}/a"), "holds no training run"),
        ("experiments.predict", ("--video={}",), "neither is given"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_no_traceback(module, arguments, sentence, tmp_path):
    done = run(module, *(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "flag", ["--dropout=1.5", "--channel_dropout=-0.1", "--learning_rate=-1", "--batch_size=0", "--epochs=0"]
)
def test_a_hyper_parameter_out_of_its_range_is_refused_by_its_name(flag, tmp_path):
    done = run("experiments.train", f"--features={tmp_path}", f"--run_dir={tmp_path / 'run'}", flag)
    assert done.returncode == 1
    assert f"flag {flag}: " in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_lists_that_name_videos_the_cache_lacks_are_refused_unless_allowed(cache_folder, tmp_path):
    lines = [f"film{film}_nod_f_nm_1.avi {1 + film % 2} \n" for film in range(6)]
    (tmp_path / "nod_test_split1.txt").write_text("".join(lines))
    arguments = ("--features", cache_folder, "--splits", tmp_path, "--run_dir", tmp_path / "run", "--model=softmax",
                 "--validation=none", "--epochs=1", "--clip_length=4")  # fmt: skip
    done = run("experiments.train", *arguments)
    assert done.returncode == 1
    assert "lacks 2 videos of the lists: nod/film4_nod_f_nm_1.avi, nod/film5_nod_f_nm_1.avi; extract" in done.stderr
    assert not (tmp_path / "run").exists()
    succeeds("experiments.train", *arguments, "--allow_missing")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert {name: len(videos) for name, videos in split.items()} == {"train": 2, "validation": 0, "test": 2}
    missing = {"videos": 2, "first": ["nod/film4_nod_f_nm_1.avi", "nod/film5_nod_f_nm_1.avi"]}
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["missing"], about["split"]) == (missing, "1 without 2 missing videos")


def test_a_csv_split_and_what_becomes_of_copies_on_both_sides(network, videos, tmp_path, capsys, monkeypatch):
    root, lists = tmp_path / "videos", tmp_path / "mine.csv"
    names = [f"{name}/film{film}_{name}_f_nm_{n}.avi" for n, name in enumerate(CLASSES) for film in range(4)]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / name, root / name)
    shutil.copy(root / names[3], root / names[0])  # the first test video's bytes are trained on
    extract(root, tmp_path / "features", network)
    subsets = ["train", "train", "validation", "test"]
    lists.write_text("video,subset\n" + "".join(f"{name},{subsets[n % 4]}\n" for n, name in enumerate(names)))
    args = SimpleNamespace(splits=lists, split=1, dataset=None, allow_missing=False)
    monkeypatch.setattr(options.flags, "FLAGS", args)
    cache = FeatureCache(tmp_path / "features")
    for policy, kept in (("allow", 6), ("drop_train", 5)):
        args.duplicates = policy
        split, about = options.split_as_flagged(cache, tmp_path, seed=0)
        assert {subset: len(videos) for subset, videos in split.items()} == {"train": kept, "validation": 3, "test": 3}
        assert (names[0] in split["train"]) == (policy == "allow")
        without = "" if policy == "allow" else " without 1 copies"
        assert (about["split"], about["validation"]) == (f"mine.csv{without}", "mine.csv")
        assert about["duplicates"] == {"videos": 1, "policy": policy, "first": [(names[0], names[3])]}
        said = f"WARNING: 1 videos have the same bytes as a held-out one, such as {names[0]}; "
        assert capsys.readouterr().err.startswith(said + {"allow": "kept", "drop_train": "left out"}[policy])
    args.duplicates = "error"
    with pytest.raises(UserError, match=r"1 videos have the same bytes .*; --duplicates=allow keeps them, drop_train"):
        options.split_as_flagged(cache, tmp_path, seed=0)


def dangerous_calls(source: str) -> list[str]:
    """Imports, calls and arguments of a source text that would run what a file or a name holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            # `model.compile`, `re.compile` are other things
            if name in UNSAFE_CALLS and (name != "compile" or isinstance(node.func, ast.Name)):
                found.append(name)
            if ast.unparse(node.func) == "torch.load":  # unpickles
                found.append("torch.load")
            for argument in node.keywords:
                unknown = not isinstance(argument.value, ast.Constant)
                for key, unsafe in UNSAFE_ARGUMENTS:
                    if argument.arg == key and (unknown or argument.value.value is unsafe):
                        found.append(key)
    return found


def dangerous_files():
    """Source file -> what in it would run what a file or a name holds."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): calls for path in files if (calls := dangerous_calls(path.read_text()))}


def test_no_code_of_ours_runs_what_a_file_holds():
    """The one unpickler knows a few harmless names only (test_pytorch_file.py)."""
    assert dangerous_files() == {"data_prep/backbones/pytorch_file.py": ["pickle"]}
    tree = ast.parse((ROOT / "data_prep/backbones/pytorch_file.py").read_text())
    uses = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {use for use in uses if use.startswith("pickle.")} == {"pickle.Unpickler"}
    for source in ("import pickle", "from yaml import load", "eval('1')", "os.system(x)", "compile(x, y, z)",
                   "np.load(x, allow_pickle=True)", "load_model(x, safe_mode=y)", "run(x, shell=True)",
                   "torch.load(x)"):  # fmt: skip
        assert len(dangerous_calls(source)) == 1
    assert dangerous_calls("model.compile(); np.load(x, allow_pickle=False); run(x, shell=False)") == []


def print_settings() -> None:
    """The program prints the settings that were given, a preset's among them, and ends."""
    apply = options.apply_preset

    def apply_and_print():
        apply()
        print(json.dumps([options.flags.FLAGS.model, options.given_settings()]))
        sys.exit()

    options.apply_preset = apply_and_print


def test_a_preset_sets_what_was_not_given():
    def given(*arguments):
        done = run("experiments.train", "--features=f", "--run_dir=r", *arguments, prepare=print_settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    model, settings = given("--preset=recommended", "--lstm_units=32", "--nomirror")
    lines = (ROOT / "experiments/configs/recommended.flags").read_text().splitlines()
    of_file = dict(line.removeprefix("--").partition("=")[::2] for line in lines if line.startswith("--"))
    assert model == of_file.pop("model")
    assert settings.keys() == of_file.keys()
    assert (settings["lstm_units"], settings["mirror"]) == (32, False)
    for name, value in of_file.items():
        if name not in ("lstm_units", "mirror"):
            assert str(settings[name]).lower() in (value, "true", str(float(value or 0)) if value[:1].isdigit() else "")
    assert "min_steps" not in given("--preset=recommended", "--epochs=2")[1]  # which would overrule what was given
    assert given("--lstm_units=32") == ["alstm", {"lstm_units": 32}]
    model, settings = given("--preset=rank_pool", "--heads=1")
    assert (model, settings["heads"], settings["centre_prior"]) == ("rank_pool", 1, True)


def test_flags_and_flag_files_of_older_versions_mean_what_they_meant(tmp_path):
    def given(*lines):
        (tmp_path / "old.flags").write_text("\n".join(lines))
        asked = f"--flagfile={tmp_path / 'old.flags'}", "--features=f", "--run_dir=r"
        done = run("experiments.train", *asked, prepare=print_settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[1]

    assert given("--model=conv_alstm", "--initial=clip", "--rescale") == {
        "first_states": "clip", "mean_one_attention": True,
    }  # fmt: skip
    assert given("--model=conv_alstm", "--norescale") == {"mean_one_attention": False}
    for old, new in (("initial", "first_states"), ("carry", "cell_state"), ("none", "none")):
        assert given(f"--ablate={old}") == given(f"--ablate={new}") == {"ablate": new}
    done = run("experiments.train", "--features=f", "--run_dir=r", "--ablate=nothing", prepare=print_settings)
    assert "flag --ablate=nothing: value should be one of <none|first_states|cell_state>" in done.stderr
    told = run("experiments.train", "--help").stdout
    assert "--first_states" in told
    assert "--initial" not in told
