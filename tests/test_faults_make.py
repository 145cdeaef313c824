"""Around `make`, for `make faults`: names of what is not there, odd names, bad Pythons and bad packages."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.test_make import FLAGS, NEEDS, ODD, calls_of, checkout_in, interpreter, make, odd_values, setup, stopped
from tests.test_training import config, make_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NEEDED = {"predict": {"VIDEO": "v"}, "tensorboard": {"RUNS": "."}, "export": {"FORMAT": "onnx"}}


@pytest.fixture
def bare(tmp_path):
    """What `make setup` reads, without a virtual environment."""
    folder = checkout_in(tmp_path / "checkout")
    shutil.rmtree(folder / ".venv")
    return folder


def test_variables_that_name_what_is_not_there(cache_folder, videos, split, tmp_path, monkeypatch, fault):
    """The real programs, as a user starts them; `typo` is what is not there."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    typo, run_dir = tmp_path / "typo", make_run(tmp_path / "run", cache_folder, split, config(epochs=1))
    run, data, new = {"RUN_DIR": run_dir}, {"FEATURES": cache_folder, "SPLITS": ""}, {"RUN_DIR": tmp_path / "new"}
    lists = tmp_path / "lists.csv"
    lists.write_text("video,subset\nnod/film0_nod_f_nm_1.avi,train\n")
    small = {"ARGS": "--epochs=1 --lstm_units=4 --clip_length=4"}
    tries = [
        ("download", "ARCHIVES", {"OUTPUT": tmp_path / "new"}),
        ("audit", "VIDEOS", {"SPLITS": lists}), ("audit", "SPLITS", {"VIDEOS": videos}),
        ("extract", "VIDEOS", {"FEATURES": tmp_path / "new"}), ("inspect", "FEATURES", {}),
        ("train", "FEATURES", {"SPLITS": "", **new}), ("train", "SPLITS", {"FEATURES": cache_folder, **new}),
        ("sweep", "FEATURES", {"SPLITS": "", "OUTPUT": tmp_path / "new"}),
        ("sweep", "SPLITS", {"FEATURES": cache_folder, "OUTPUT": tmp_path / "new"}),
        ("svm", "FEATURES", {"SPLITS": "", **new}), ("svm", "SPLITS", {"FEATURES": cache_folder, **new}),
        ("eval", "RUN_DIR", {}), ("eval", "FEATURES", run), ("eval", "ANNOTATIONS", run),
        ("table", "RUN_DIR", {}), ("report", "RUN_DIR", {"REPORT": tmp_path / "new"}),
        ("report", "VIDEOS", {"REPORT": tmp_path / "new", **run}), ("predict", "VIDEO", run),
        ("predict", "RUN_DIR", {"VIDEO": videos / "nod" / "film0_nod_f_nm_1.avi"}),
        ("bench", "VIDEOS", {"OUTPUT": tmp_path / "new", "FEATURES": cache_folder, "ARGS": "--stages=network"}),
    ]  # fmt: skip
    said = {}
    for target, name, others in tries:
        done = make(ROOT, "-o", "setup", target, VENV=tmp_path / "venv", **others, **{name: typo})
        sentences = re.findall("^error: .*", done.stderr, re.MULTILINE)
        if done.returncode != 2 or len(sentences) != 1 or str(typo) not in sentences[0] or "Traceback" in done.stderr:
            said[target, name] = done.stdout + done.stderr
        assert not typo.exists()
        assert not any((tmp_path / "new").glob("*.*")), (target, name)
    assert not said
    done = make(ROOT, "-o", "setup", "tensorboard", VENV=tmp_path / "venv", RUNS=typo)
    assert f"RUNS={typo} is not there" in done.stderr
    for target, others in (("train", {**data, **new, **small}), ("eval", run)):
        done = make(ROOT, "-o", "setup", target, VENV=tmp_path / "venv", **others, VIDEOS=typo)
        assert done.returncode == 0
        assert (
            f"WARNING: {typo} does not exist, so there will be no pictures; say where the videos are with --videos"
            in done.stderr
        )
    fault(
        "make variables that name what is not there", len(tries) + 3,
        "refused with one sentence that names it, or said where only pictures are missing; never another default",
        f"{len(tries) + 1} refused, 2 went on with a warning",
    )  # fmt: skip


def test_odd_characters_in_make_variables(tmp_path, fault):
    """Each variable of each target, on the command line and in the environment, by itself."""
    tried, folder = 0, checkout_in(tmp_path / "checkout")
    for target, flags in FLAGS.items():
        for name, value in odd_values(folder, target).items():
            values = NEEDED.get(target, {}) | {name: value}
            for way in (values, {"environment": values}):
                (arguments,) = calls_of(folder, target, **way)
                assert arguments.count(f"--{flags[name]}={value}") == 1, (target, name)
                tried += 1
    for name, value, target in (("DEMO", ODD, "demo"), ("VIDEO", "a\nb", "predict")):
        for call in calls_of(folder, target, **{name: value}):
            assert any(re.search(f"={re.escape(value)}(/|$)", argument) for argument in call)
        tried += 1
    (folder / ".venv").rename(folder / ODD)
    assert len(calls_of(folder, "lint", VENV=ODD)) == 3
    tried += 1
    fault(
        "paths with spaces, quotes, $, % and other characters in make variables", tried,
        "they reach the program as they are", f"{tried} reached it, on the command line and by the environment",
    )  # fmt: skip


def test_interpreters_and_broken_virtual_environments(bare, fault):
    refused = made = 0
    good = interpreter(bare / "good", "3.12")
    for existing in (False, True):
        if existing:
            setup(bare, PYTHON=good)
        before = sorted((path, path.stat().st_mtime_ns) for path in bare.rglob("*"))
        for version in ("2.7", "3.6", "3.9", "3.14", "3.15", "3.1", "4.0"):
            python = interpreter(bare.parent / version, version)
            assert stopped(bare, PYTHON=python) == f"{python} is Python {version}; {NEEDS}"
            refused += 1
        assert stopped(bare, PYTHON="python3.99") == f"python3.99 was not found; {NEEDS}"
        python = interpreter(bare.parent / "does not start", None)
        assert stopped(bare, PYTHON=python) == f"{python} does not start; {NEEDS}"
        refused += 2
        assert sorted((path, path.stat().st_mtime_ns) for path in bare.rglob("*")) == before
    venv = bare / ".venv"
    for damage in (
        lambda: interpreter(venv / "bin" / "python", "3.9"), lambda: interpreter(venv / "bin" / "python", "3.14"),
        lambda: interpreter(venv / "bin" / "python", "3.11"), lambda: interpreter(venv / "bin" / "python", None),
        (venv / "bin" / "python").unlink, lambda: shutil.rmtree(venv / "bin"),
        lambda: ((venv / "bin" / "python").unlink(), (venv / "bin" / "python").symlink_to("/nowhere/python")),
        lambda: (venv / "bin" / "python").chmod(0o644), lambda: (venv / "bin" / "python").write_bytes(b"\x7fELF"),
    ):  # fmt: skip
        damage()
        said, installed = setup(bare, PYTHON=good)
        assert re.match(
            r"make setup: \.venv is (of Python 3\.\d+|broken \(.*\)); it is made anew, of Python 3\.12\n", said
        )
        assert len(installed) == 2
        assert setup(bare, PYTHON=good) == setup(bare) == ("", [])
        made += 1
    (venv / "pyvenv.cfg").unlink()  # so it may be anything
    (venv / "bin" / "python").unlink()
    assert stopped(bare, PYTHON=good).startswith(".venv is there, but is no virtual environment; remove it, or")
    refused += 1
    fault(
        "an interpreter that is too old, too new, missing or broken; a broken .venv", refused + made,
        "the interpreter is refused before anything is made or removed; the environment is made anew, and that is said",
        f"{refused} refused, not a file changed; {made} made anew",
    )  # fmt: skip


def wheel(folder, name, text, requires=""):
    """A wheel of one module; returns the hash of its file, which is that of its content."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": text,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as file:
        for member, content in files.items():
            file.writestr(zipfile.ZipInfo(member), content)  # the time is always the same one
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_package_whose_hash_differs(bare, monkeypatch, fault):
    """The real pip, without a network; installing the package itself, the second step, is not what is tried."""
    wheels, tried = bare.parent / "wheels", 0
    wheels.mkdir()
    # of the user, whose configuration is not to matter here
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheels), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    python = bare / ".venv" / "bin" / "python"

    def imported():
        return subprocess.run([python, "-c", "import tiny"], capture_output=True, check=False).returncode == 0

    good = wheel(wheels, "tiny", "")
    pinned = f"tiny==1.0 --hash=sha256:{good}\n"
    wheel(wheels, "other", "")
    for text, requires, pins, reason in (
        ("", "", "tiny==1.0 --hash=sha256:" + "0" * 64 + "\n", "DO NOT MATCH THE HASHES"),
        ("import os", "", pinned, "DO NOT MATCH THE HASHES"),
        ("", "", "tiny==1.0\n", "Hashes are required in --require-hashes mode"),
        ("", "", pinned.replace("==", ">="), "must have their versions pinned with =="),
        ("", "Requires-Dist: other\n", None, "must have their versions pinned with =="),
    ):
        digest = wheel(wheels, "tiny", text, requires)
        (bare / "constraints.txt").write_text(pins or f"tiny==1.0 --hash=sha256:{digest}\n")
        done = make(bare, "setup", PYTHON=sys.executable)
        assert done.returncode == 2
        assert reason in done.stderr
        assert not imported()
        assert not (bare / ".venv" / ".installed").exists()
        tried += 1
    wheel(wheels, "tiny", "")
    (bare / "constraints.txt").write_text(pinned)
    make(bare, "setup", PYTHON=sys.executable)
    assert imported()  # so it was the hashes
    fault(
        "a package whose hash differs, that has none, or that nothing pins", tried,
        "refused by make setup; nothing of it is installed", f"{tried} refused; with the right hash it was installed",
    )  # fmt: skip
