"""The command `action-attention`, and the wheel: installed elsewhere, it does all that a checkout does."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from experiments import cli

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "experiments" / "configs" / "sample_alstm.flags"


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Calls the command in an empty folder; returns the module that it would run, and its arguments."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        ran = []
        monkeypatch.setattr(sys, "argv", ["action-attention", *arguments])
        monkeypatch.setattr(cli.runpy, "run_module", lambda module, **_: ran.extend([module, *sys.argv[1:]]))
        cli.main()
        return ran

    return call


def test_every_program_is_a_module(command):
    for program, (module, _) in cli.PROGRAMS.items():
        assert command(program, "--seed=1", "--help") == [module, "--seed=1", "--help"]
        assert '\nif __name__ == "__main__":\n' in (ROOT / f"{module.replace('.', '/')}.py").read_text()


@pytest.mark.parametrize("name", ["sample_alstm", "sample_alstm.flags", "experiments/configs/sample_alstm.flags"])
def test_flag_file_of_the_package(command, name, tmp_path):
    assert command("train", f"--flagfile={name}", "--seed=1") == [
        "experiments.train",
        f"--flagfile={SAMPLE}",
        "--seed=1",
    ]
    assert command("train", "-flagfile", name)[1:] == ["-flagfile", str(SAMPLE)]
    # only of a flag file, and only where none of that name is
    assert command("train", "--run_dir", name, f"--dataset={name}")[1:] == ["--run_dir", name, f"--dataset={name}"]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert command("train", f"--flagfile={name}")[1:] == [f"--flagfile={name}"]


@pytest.mark.parametrize("argument", ["--flagfile=", "--flagfile", "--flagfile=no/sample_alstm", "--flagfile=.."])
def test_no_flag_file_of_the_package(command, argument):
    assert command("train", argument)[1:] == [argument]


def test_what_the_command_says(command, capsys):
    command("--help")
    usage = capsys.readouterr().out
    assert all(name in usage for name in (*cli.PROGRAMS, "jhmdb_alstm_searched"))
    command("--version")
    assert capsys.readouterr().out.startswith("action-attention ")
    with pytest.raises(SystemExit) as stopped:
        command()
    assert f"{stopped.value}\n" == usage  # Python prints it on stderr and exits with 1
    with pytest.raises(SystemExit, match=r"^error: unknown program 'trian'; there are download, sample, "):
        command("trian")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a command of an environment that has the wheel, and this environment's packages but for the checkout."""
    folder = tmp_path_factory.mktemp("package")
    source, environment = folder / "source", folder / "environment"
    for package in ("action_attention", "data_prep", "experiments"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip, variables = (sys.executable, "-m", "pip"), {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    variables.pop("PYTHONPATH", None)

    def run(*command, cwd=folder):
        done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("action_attention-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    run(*pip, "--python", environment / "bin" / "python", "install", "--no-deps", wheel)
    shutil.rmtree(source)
    (packages,) = environment.glob("lib/python*/site-packages")
    # a path in a .pth file: the .pth files there, one of which leads to the checkout, are not read
    (packages / "others.pth").write_text("".join(f"{sysconfig.get_path(kind)}\n" for kind in ("purelib", "platlib")))
    return lambda command, *arguments, **options: run(environment / "bin" / command, *map(str, arguments), **options)


@pytest.mark.slow
def test_the_wheel_is_complete(installed):
    code = "import action_attention, experiments; print(action_attention.__version__); print(action_attention.__file__)"
    version, file = installed("python", "-c", code).splitlines()
    assert f"\nversion = {version}\n" in (ROOT / "setup.cfg").read_text()
    packages = Path(file).parents[1]
    assert packages.name == "site-packages"
    assert installed("action-attention", "--version") == f"action-attention {version}\n"

    def files(root):
        found = (path.relative_to(root) for name in ("action_attention", "data_prep", "experiments")
                 for path in (root / name).rglob("*") if path.suffix != ".pyc" and path.is_file())  # fmt: skip
        return sorted(str(path) for path in found if path.parts[1] != "results")

    assert files(packages) == files(ROOT)
    assert "action_attention/py.typed" in files(packages)


@pytest.mark.slow
def test_the_installed_command_from_sample_to_evaluation(installed, tmp_path):
    """Outside the checkout, with the decoder's own process, and a packaged flag file."""

    def run(*arguments):
        return installed("action-attention", *arguments, cwd=tmp_path)

    run("sample", "--output=sample", "--train_clips=4", "--test_clips=1")
    small = ("--backbone=MobileNetV2", "--weights=random", "--fps=2")
    run("extract", "--videos=sample/videos", "--features=features", *small)
    small = ("--features=features", "--splits=sample/splits", "--lstm_units=8", "--epochs=1", "--seed=5")
    run("train", "--flagfile=sample_alstm", *small, "--run_dir=run")
    said = run("eval", "--run_dir=run")
    assert "| sample, split 1, 6 test videos | alstm, " in said
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (settings["clip_length"], settings["learning_rate"], settings["seed"]) == (20, 3e-4, 5)

    # python -m writes the same flags down
    module = ("-m", "experiments.train", f"--flagfile={SAMPLE}", *small, "--run_dir=again")
    installed("python", *module, cwd=tmp_path)
    flags = [(tmp_path / name / "flags.txt").read_text() for name in ("run", "again")]
    assert flags[0] == flags[1]
    assert "--clip_length=20\n" in flags[0]
