"""The Makefile: what a user gives reaches the program as it was given, or is refused; `make setup` is safe."""

import configparser
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.terminals import on_a_terminal

ROOT = Path(__file__).parents[1]
VARIABLES = re.findall(r"^([A-Z_]+) *\?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
# the flag that a target makes of each variable
FLAGS = {
    "download": {"OUTPUT": "output", "ARCHIVES": "archive"},
    "audit": {"VIDEOS": "videos", "SPLITS": "splits", "SPLIT": "split", "OUTPUT": "output"},
    "extract": {"VIDEOS": "videos", "FEATURES": "features", "BACKBONE": "backbone"},
    "inspect": {"FEATURES": "features"},
    "train": {"FEATURES": "features", "SPLITS": "splits", "SPLIT": "split", "MODEL": "model", "VIDEOS": "videos",
              "RUN_DIR": "run_dir"},
    "sweep": {"FEATURES": "features", "SPLITS": "splits", "SPLIT": "split", "MODEL": "model", "OUTPUT": "output"},
    "svm": {"FEATURES": "features", "SPLITS": "splits", "SPLIT": "split", "RUN_DIR": "run_dir"},
    "eval": {"RUN_DIR": "run_dir", "FEATURES": "features", "VIDEOS": "videos", "ANNOTATIONS": "annotations"},
    "fuse": {"RUN_DIR": "run_dir", "OUTPUT": "output"},
    "table": {"RUN_DIR": "run_dir", "OUTPUT": "output"},
    "report": {"RUN_DIR": "run_dir", "REPORT": "output", "VIDEOS": "videos"},
    "predict": {"RUN_DIR": "run_dir", "VIDEO": "video", "OUTPUT": "output"},
    "serve": {"RUN_DIR": "run_dir"},
    "export": {"FORMAT": "format", "RUN_DIR": "run_dir", "OUTPUT": "output"},
    "tensorboard": {"RUNS": "logdir"},
    "bench": {"OUTPUT": "output", "VIDEOS": "videos", "FEATURES": "features"},
    "fuzz": {"SECONDS": "seconds"},
}  # fmt: skip
OTHERS = {
    "help": (), "setup": (), "test": ("ARGS",), "test-slow": ("ARGS",), "faults": ("ARGS",), "lint": (), "docs": (),
    "demo": ("DEMO", "BACKBONE"), "constraints": ("ARGS",), "clean": ("DEMO",),
}  # fmt: skip
GENERAL = ("PYTHON", "VENV")
ODD = """it's "odd"  $HOME $(error x) $$ 100% `id` \\ é;&|<*?,)(!~="""
# stands in for every program: writes down how it was called
RECORDER = '#!/bin/sh\nprintf "%s\\0" "$#" "$@" >> calls\n'
# says a version, makes "virtual environments" of itself, and writes down what pip is asked for
INTERPRETER = """#!/bin/sh
case "$1 $2" in
"-c "*) {says};;
"-m venv") mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python";;
"-m pip") shift 2; echo "$*" >> pip;;
esac
"""
NEEDS = "action_attention needs 3.10 to 3.13: make setup PYTHON=python3.11"


@pytest.fixture
def checkout(tmp_path):
    """A folder with what make reads, and a python that only writes down its arguments."""
    return checkout_in(tmp_path / "checkout")


def checkout_in(folder):
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    script(folder / ".venv" / "bin" / "python", RECORDER)
    return folder


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def interpreter(path, version):
    """A fake Python of this version; None makes one that does not start."""
    return script(path, INTERPRETER.format(says="exit 1" if version is None else f"echo {version}"))


def make(folder, *goals, environment=(), **variables):
    """`make` as a user types it; what make was told to run these tests with is not to reach it."""
    return subprocess.run(
        ["make", *goals, *(f"{name}={value}" for name, value in variables.items())],
        cwd=folder, env=users_environment() | dict(environment), capture_output=True, text=True, check=False,
    )  # fmt: skip


def users_environment():
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", *VARIABLES}
    return {name: value for name, value in os.environ.items() if name not in outer}


def calls_of(folder, *goals, **given):
    """The arguments of each program that `make -o setup` ran; it must succeed."""
    record = folder / "calls"
    record.unlink(missing_ok=True)
    done = make(folder, "-o", "setup", *goals, **given)
    assert done.returncode == 0, done.stderr
    words, calls = iter(record.read_text().split("\0")[:-1]), []
    for count in words:
        calls.append([next(words) for _ in range(int(count))])
    return calls


def refusal(folder, *goals, **given):
    """The sentence with which make stopped before any program ran."""
    (folder / "calls").unlink(missing_ok=True)
    done = make(folder, "-o", "setup", *goals, **given)
    assert done.returncode == 2
    assert not (folder / "calls").exists()
    (sentence,) = re.findall(r"^Makefile:\d+: \*\*\* (.*)\.  Stop\.$", done.stderr, re.MULTILINE)
    return sentence


def odd_values(folder, target):
    """A value with every punctuation for each variable of the target; lists and RUNS need what is there."""
    values = {name: f"{name} {ODD}" for name in FLAGS[target]}
    for name in ("RUN_DIR", "ARCHIVES", "RUNS"):
        if name in values:
            (folder / values[name]).mkdir(exist_ok=True)
    return values


@pytest.mark.parametrize("target", FLAGS)
def test_what_is_given_reaches_the_program_as_it_was_given(checkout, target):
    values = odd_values(checkout, target)
    expected = sorted(f"--{flag}={values[name]}" for name, flag in FLAGS[target].items())
    for way in (values, {"environment": values}):
        ((*arguments, last),) = calls_of(checkout, target, ARGS="--last='a b'", **way)
        assert last == "--last=a b"  # ARGS is text of the shell, and stands last, so that it wins
        assert sorted(argument for argument in arguments if re.match("--.*=", argument)) == expected


@pytest.mark.parametrize("target", FLAGS)
def test_the_flags_are_those_of_the_program(checkout, target):
    (arguments,) = calls_of(checkout, target, **odd_values(checkout, target))
    if target == "tensorboard":
        return
    file = Path(arguments[0]) if target == "fuzz" else Path(f"{arguments[1].replace('.', '/')}.py")
    source = (ROOT / file).read_text() + (ROOT / "experiments" / "options.py").read_text()
    for flag in FLAGS[target].values():
        assert re.search(rf'(DEFINE_\w+|add_argument)\(\s*"(--)?{flag}"', source), flag


@pytest.mark.parametrize("target", [*FLAGS, *OTHERS])
def test_what_a_target_does_not_take_is_refused(checkout, target):
    taken = {*GENERAL, "ARGS", *FLAGS[target]} if target in FLAGS else {*GENERAL, *OTHERS[target]}
    taken |= {"MODEL", "SPLIT"} if target in ("eval", "table", "report", "predict", "serve", "export") else set()
    for name in {*VARIABLES, "FEATURE"} - taken:
        sentence = f"make {target}: {name} would change nothing there; `make help` says what each target takes"
        assert refusal(checkout, target, **{name: "x"}) == sentence
    # the environment is not only for make
    assert make(checkout, "-n", "-o", "setup", target, environment=dict.fromkeys(VARIABLES, ".")).returncode == 0


def test_several_goals_take_what_any_of_them_takes(checkout):
    extracted, trained = calls_of(checkout, "extract", "train", VIDEOS="v", MODEL="softmax", SPLITS="")
    assert extracted == ["-m", "data_prep.extract", "--videos=v", "--features=features"]
    assert trained == ["-m", "experiments.train", "--features=features", "--split=1", "--model=softmax", "--videos=v",
                       "--run_dir=runs/softmax-split1"]  # fmt: skip
    assert refusal(checkout, "extract", "train", RUNS="x").startswith("make extract train: RUNS would change nothing")


def test_defaults(checkout):
    runs = "--run_dir=runs/alstm-split1"
    expected = {
        "download": ["--output=data/hmdb51"],
        "audit": ["--videos=data/hmdb51/videos", "--splits=data/hmdb51/splits", "--split=1"],
        "extract": ["--videos=data/hmdb51/videos", "--features=features"],
        "inspect": ["--features=features", "--verify"],
        "train": ["--features=features", "--split=1", "--model=alstm", runs],
        "sweep": ["--features=features", "--split=1", "--model=alstm", "--output=runs/sweep-alstm-split1"],
        "svm": ["--features=features", "--split=1", "--run_dir=runs/svm-split1"],
        "eval": [runs],
        "table": [runs],
        "report": [runs, "--output=runs/alstm-split1/report"],
        "bench": ["--output=bench.json"],
    }
    for target, flags in expected.items():
        ((_, _, *arguments),) = calls_of(checkout, target)
        assert arguments == flags
    assert calls_of(checkout, "predict", VIDEO="v") == [
        ["-m", "experiments.predict", "--pretrained=jhmdb21", "--video=v"]
    ]
    assert calls_of(checkout, "serve") == [["-m", "experiments.serve", "--pretrained=jhmdb21"]]
    assert calls_of(checkout, "export", FORMAT="onnx") == [
        ["-m", "experiments.export", "--pretrained=jhmdb21", "--format=onnx", "--output=exported/onnx"]
    ]
    assert refusal(checkout, "export") == (
        "make export: say which: make export FORMAT=onnx, saved_model, litert or package"
    )
    assert calls_of(checkout, "fuzz") == [["tests/fuzz.py", "--seconds=600"]]
    # the default folder of HMDB-51 is for HMDB-51: eval and report know where their run's videos were
    (checkout / "data" / "hmdb51" / "videos").mkdir(parents=True)
    assert calls_of(checkout, "eval") == [["-m", "experiments.eval", runs]]


@pytest.mark.parametrize("target", ["train", "sweep", "svm"])
def test_splits(checkout, target):
    """Only without any lists is a split made: where the default is not there, or SPLITS is empty."""

    def passed(**given):
        (arguments,) = calls_of(checkout, target, **given)
        return [argument for argument in arguments if argument.startswith("--split")]

    assert passed() == passed(SPLITS="") == ["--split=1"]
    assert passed(SPLITS="typo.csv") == ["--split=1", "--splits=typo.csv"]
    assert passed(environment={"SPLITS": "typo.csv"}) == ["--split=1", "--splits=typo.csv"]
    # which of the lists was asked for, so that they must be there
    assert passed(SPLIT=2) == ["--split=2", "--splits=data/hmdb51/splits"]
    (checkout / "data" / "hmdb51" / "splits").mkdir(parents=True)
    assert passed() == ["--split=1", "--splits=data/hmdb51/splits"]
    assert passed(SPLITS="") == ["--split=1"]
    sentence = f"make {target}: SPLIT is one of SPLITS, which is empty; leave it out"
    assert refusal(checkout, target, SPLITS="", SPLIT=2) == sentence


def test_the_default_run_directory_is_of_model_and_split(checkout):
    assert calls_of(checkout, "eval", MODEL="softmax", SPLIT=3)[0][2:] == ["--run_dir=runs/softmax-split3"]
    # where RUN_DIR is given, they would change nothing
    assert refusal(checkout, "eval", RUN_DIR="r", MODEL="softmax").startswith("make eval: MODEL would change nothing")
    assert "--run_dir=runs/svm-split1" in calls_of(checkout, "svm", environment={"MODEL": "softmax"})[0]


@pytest.mark.parametrize("target", ["table", "report", "serve"])
def test_several_runs(checkout, target):
    def runs(**given):
        (arguments,) = calls_of(checkout, target, **given)
        return [argument.removeprefix("--run_dir=") for argument in arguments if "run_dir=" in argument]

    assert runs(RUN_DIR="a/b it's c") == ["a/b", "it's", "c"]
    (checkout / "a/b it's c").mkdir(parents=True)
    assert runs(RUN_DIR="a/b it's c") == ["a/b it's c"]
    assert runs(ARGS="--run_dir=mine") == ["mine"]
    assert runs(ARGS="--run_dir=mine", RUN_DIR="yours") == ["yours", "mine"]
    if target == "table":
        assert runs(ARGS="--results=F") == []
        assert runs(ARGS="--results=F", RUN_DIR="a") == ["a"]
        assert runs(ARGS="--results=F", MODEL="softmax") == ["runs/softmax-split1"]


def test_the_pretrained_model_predicts_unless_a_run_is_given(checkout):
    def passed(**given):
        ((_, _, *arguments),) = calls_of(checkout, "predict", VIDEO="v", **given)
        return [argument for argument in arguments if argument != "--video=v"]

    assert passed(OUTPUT="o") == ["--pretrained=jhmdb21", "--output=o"]
    assert passed(OUTPUT="") == ["--pretrained=jhmdb21"]
    assert passed(RUN_DIR="r") == passed(environment={"VIDEO": "v", "RUN_DIR": "r"}) == ["--run_dir=r"]
    assert passed(MODEL="softmax") == ["--run_dir=runs/softmax-split1"]
    assert passed(SPLIT=2, OUTPUT="o") == ["--run_dir=runs/alstm-split2", "--output=o"]
    assert passed(ARGS="--pretrained=other") == ["--pretrained=other"]
    assert passed(ARGS="--run_dir=mine") == ["--run_dir=mine"]
    assert passed(ARGS="--run_dir=mine", RUN_DIR="r") == ["--run_dir=r", "--run_dir=mine"]


def test_the_report_stands_in_the_first_run(checkout):
    def output(**given):
        (arguments,) = calls_of(checkout, "report", **given)
        (found,) = [argument.removeprefix("--output=") for argument in arguments if "--output=" in argument]
        return found

    assert output(RUN_DIR="a b") == "a/report"
    (checkout / "a b").mkdir()
    assert output(RUN_DIR="a b") == "a b/report"
    assert output(RUN_DIR="a b", REPORT="it's here") == "it's here"


def test_archives_are_a_list(checkout):
    def archives(given):
        (arguments,) = calls_of(checkout, "download", ARCHIVES=given)
        return [argument.removeprefix("--archive=") for argument in arguments if "--archive=" in argument]

    assert archives("a.rar it's.zip") == ["a.rar", "it's.zip"]
    (checkout / "my a.rar").touch()
    assert archives("my a.rar") == ["my a.rar"]


def test_a_newline_is_a_character_like_others(checkout):
    video = "two\nlines\n'$x"
    (arguments,) = calls_of(checkout, "predict", VIDEO=video, RUN_DIR=video)
    assert arguments[2:] == [f"--run_dir={video}", f"--video={video}"]


def test_a_virtual_environment_and_a_demo_with_every_punctuation(checkout):
    (checkout / ".venv").rename(checkout / ODD)
    (checkout / ODD / "runs" / "softmax" / "old").mkdir(parents=True)
    calls = calls_of(checkout, "demo", VENV=ODD, DEMO=ODD)
    models = ("softmax", "alstm", "recommended")
    assert [call[1] for call in calls] == [
        "data_prep.sample", "data_prep.extract", *3 * ("experiments.train", "experiments.eval"), "experiments.table",
    ]  # fmt: skip
    assert calls[0][2:] == [f"--output={ODD}/sample"]
    assert calls[1][-1] == "--backbone=efficientnet_lite0"
    assert calls_of(checkout, "demo", VENV=ODD, DEMO=ODD, BACKBONE=ODD)[1][-1] == f"--backbone={ODD}"
    assert calls[2][2:] == ["--flagfile=experiments/configs/sample_softmax.flags", f"--features={ODD}/features",
                            f"--splits={ODD}/sample/splits", f"--run_dir={ODD}/runs/softmax"]  # fmt: skip
    assert calls[-1][2:] == [f"--run_dir={ODD}/runs/{model}" for model in models]
    assert not (checkout / ODD / "runs" / "softmax").exists()  # the demo makes its runs anew
    (checkout / "demo").mkdir()
    assert make(checkout, "clean", VENV=ODD).returncode == 0
    assert not (checkout / ODD).exists()
    assert not (checkout / "demo").exists()
    assert (checkout / "constraints.txt").exists()


@pytest.mark.parametrize(
    ("target", "name"),
    [("train", "RUN_DIR"), ("train", "FEATURES"), ("table", "RUN_DIR"), ("report", "REPORT"), ("extract", "VIDEOS"),
     ("clean", "DEMO"), ("clean", "VENV"), ("demo", "DEMO"), ("tensorboard", "RUNS"), ("train", "VENV")],
)  # fmt: skip
def test_what_must_have_a_value_is_refused_without_one(checkout, target, name):
    assert refusal(checkout, target, **{name: ""}) == (
        f"make {target}: {name} is empty; give it a value or leave it out"
    )


def test_no_video_and_no_runs(checkout):
    assert refusal(checkout, "predict") == "make predict: say which video: make predict VIDEO=FILE"
    sentence = "make tensorboard: RUNS=typo is not there; say which folder holds the runs"
    assert refusal(checkout, "tensorboard", RUNS="typo") == sentence


def test_tensorboard_shows_the_newer_of_your_runs_and_the_demos(checkout):
    def shown():
        ((*_, logdir),) = calls_of(checkout, "tensorboard")
        return logdir

    sentence = "make tensorboard: RUNS=runs is not there; say which folder holds the runs"
    assert refusal(checkout, "tensorboard") == sentence
    for newer in ("demo/runs", "runs", "demo/runs"):
        (checkout / newer).mkdir(parents=True, exist_ok=True)
        for age, folder in enumerate((newer, *{"runs", "demo/runs"} - {newer})):
            if (checkout / folder).exists():
                os.utime(checkout / folder, (1e9 - age, 1e9 - age))
        assert shown() == f"--logdir={newer}"


def test_on_a_terminal_help_fits_it(checkout):
    """Every word is there that is there in a pipe."""
    lines = on_a_terminal(["make", "help"], checkout, users_environment()).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(lines).split() == make(checkout, "help").stdout.split()


def test_help_lists_every_target_and_what_it_takes(checkout):
    lines = make(checkout).stdout.splitlines()
    assert make(checkout, "help").stdout.splitlines() == lines
    about = dict(line.removeprefix("  make ").split(maxsplit=1) for line in lines)
    assert about.keys() == {*FLAGS, *OTHERS}
    for target, names in {**FLAGS, **OTHERS}.items():
        assert not {*names} - {*re.findall("[A-Z_]+", about[target])}


# The virtual environment


def setup(folder, **variables):
    """Standard output and error of a `make setup` that must succeed, and what pip was asked for."""
    (folder / "pip").unlink(missing_ok=True)
    done = make(folder, "setup", **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "pip").read_text().splitlines() if (folder / "pip").exists() else []


def stopped(folder, **variables):
    """The one sentence of a `make setup` that must fail."""
    done = make(folder, "setup", **variables)
    assert done.returncode == 2
    sentence, last = done.stderr.splitlines()
    assert last.startswith("make: *** [Makefile:")
    return sentence.removeprefix("make setup: ")


@pytest.fixture
def bare(checkout):
    """A checkout whose virtual environment is not made yet."""
    shutil.rmtree(checkout / ".venv")
    return checkout


def test_setup_installs_what_is_pinned_and_again_when_that_changes(bare):
    python = interpreter(bare / "my pythons" / "python", "3.12")
    said, installed = setup(bare, PYTHON=python)
    assert said == "make setup: installs into .venv what constraints.txt pins\n"
    quiet = "install --quiet --disable-pip-version-check"
    assert installed == [
        f"{quiet} --require-hashes --only-binary=:all: --requirement constraints.txt",
        f"{quiet} --no-deps --no-build-isolation --editable .",
    ]
    assert setup(bare, PYTHON=python) == setup(bare) == ("", [])
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        os.utime(bare / ".venv" / ".installed", (1e9, 1e9))
        for other in ("setup.cfg", "pyproject.toml", "constraints.txt"):
            os.utime(bare / other, (1e9, 2e9 if other == name else 5e8))
        assert setup(bare)[1] == installed
    # pip failed: the next make tries again
    (bare / ".venv" / ".installed").unlink()
    assert setup(bare)[1] == installed


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.14", "3.1", "4.0", "nonsense"])
def test_an_interpreter_of_another_version_makes_nothing(bare, version):
    python = interpreter(bare / "python", version)
    assert stopped(bare, PYTHON=python) == f"{python} is Python {version}; {NEEDS}"
    assert not (bare / ".venv").exists()


def test_an_interpreter_that_is_not_there_or_does_not_start_makes_nothing(bare):
    assert stopped(bare, PYTHON="python3.99") == f"python3.99 was not found; {NEEDS}"
    python = interpreter(bare / "it's python", None)
    assert stopped(bare, PYTHON=python) == f"{python} does not start; {NEEDS}"
    assert not (bare / ".venv").exists()


def test_the_bounds_are_those_of_the_package(bare):
    settings = (bare / "setup.cfg").read_text()
    assert "\npython_requires = >=3.10, <3.14\n" in settings
    (bare / "setup.cfg").write_text(settings.replace(">=3.10, <3.14", ">=3.8, <3.12"))
    for version in ("3.7", "3.12"):
        python = interpreter(bare / version, version)
        assert stopped(bare, PYTHON=python).endswith(" needs 3.8 to 3.11: make setup PYTHON=python3.11")
    setup(bare, PYTHON=interpreter(bare / "3.8", "3.8"))
    assert re.search(r"Python\s3\.10\sto\s3\.13\b", (ROOT / "README.md").read_text())


@pytest.mark.parametrize(
    ("version", "why"),
    [("3.9", "is of Python 3.9"), ("3.14", "is of Python 3.14"), ("3.11", "is of Python 3.11"),
     (None, "is broken (its python does not start, or has no pip)")],
)  # fmt: skip
def test_a_virtual_environment_that_is_broken_or_of_another_version_is_made_anew(bare, version, why):
    python = interpreter(bare / "python", "3.13")
    (bare / ".venv" / "lib").mkdir(parents=True)
    for name in ("pyvenv.cfg", ".installed", "lib/old"):
        (bare / ".venv" / name).touch()
    interpreter(bare / ".venv" / "bin" / "python", version)
    said, installed = setup(bare, PYTHON=python)
    assert said.splitlines()[0] == f"make setup: .venv {why}; it is made anew, of Python 3.13"
    assert len(installed) == 2
    assert sorted(path.name for path in (bare / ".venv").iterdir()) == [".installed", "bin", "pyvenv.cfg"]


def test_a_virtual_environment_stays_unless_another_python_is_asked_for(bare):
    setup(bare, PYTHON=interpreter(bare / "python3.11", "3.11"))
    kept = bare / ".venv" / "kept"
    kept.touch()
    # whatever python3 is: it was not asked for
    path = f"{interpreter(bare / 'bin' / 'python3', '3.13').parent}:{os.environ['PATH']}"
    assert make(bare, "setup", environment={"PATH": path}).returncode == 0
    # and a bad one that is asked for leaves it alone
    assert stopped(bare, PYTHON=interpreter(bare / "old", "3.9")).endswith(NEEDS)
    assert kept.exists()
    assert "is of Python 3.11" in setup(bare, PYTHON="python3", environment={"PATH": path})[0]
    assert not kept.exists()


@pytest.mark.parametrize("name", ["data", "it's data"])
def test_what_is_no_virtual_environment_is_never_removed(bare, name):
    (bare / name).mkdir()
    python = interpreter(bare / "python", "3.11")
    (bare / name / "mine").touch()
    assert stopped(bare, PYTHON=python, VENV=name) == (
        f"{name} is there, but is no virtual environment; remove it, or say where one may be made: VENV=..."
    )
    assert [path.name for path in (bare / name).iterdir()] == ["mine"]
    (bare / name / "mine").unlink()
    assert len(setup(bare, PYTHON=python, VENV=name)[1]) == 2  # an empty folder may become one


def test_the_pins_are_whole():
    """Everything that the package, its tests and its build need, in one version for each Python, with hashes."""
    text = (ROOT / "constraints.txt").read_text().replace("\\\n", " ")
    pins = [shlex.split(line) for line in text.splitlines() if not line.startswith("#")]
    for first, *rest in pins:
        assert re.fullmatch(r"[a-z0-9-]+==[^=]+", first)
        hashes = [word for word in rest if word.startswith("--hash=")]
        assert hashes
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
    named = {first.partition("==")[0] for first, *_ in pins}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    needed = settings["options"]["install_requires"] + settings["options.extras_require"]["dev"]
    names = {name.lower() for name in re.findall("^[A-Za-z0-9-]+", needed, re.MULTILINE)}
    assert len(names) > 20
    assert not names - named
    (backend,) = re.findall(r'^requires = \["(\w+)>=', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert backend in names
