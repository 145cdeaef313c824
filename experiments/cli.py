"""The installed command: `action-attention PROGRAM --flags ...` runs a program as `python -m` runs its module."""

import runpy
import sys
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import action_attention

PROGRAMS = {
    "download": ("data_prep.hmdb51", "get HMDB-51"),
    "sample": ("data_prep.sample", "render the sample dataset"),
    "audit": ("data_prep.audit", "check a split before anything is trained on it"),
    "extract": ("data_prep.extract", "videos -> feature cache"),
    "quantize": ("data_prep.quantize", "a backbone -> the same in int8"),
    "inspect": ("data_prep.inspect", "print and check a feature cache"),
    "train": ("experiments.train", "feature cache -> run directory"),
    "sweep": ("experiments.sweep", "search hyper-parameters on validation videos"),
    "svm": ("experiments.svm", "the control without a network"),
    "eval": ("experiments.eval", "evaluate a run"),
    "fuse": ("experiments.fuse", "average what several runs say of the same videos"),
    "table": ("experiments.table", "one table of evaluated runs"),
    "report": ("experiments.report", "one page with playing overlays"),
    "tensorboard": ("experiments.tensorboard", "curves and pictures of runs"),
    "predict": ("experiments.predict", "what a video shows and where the model looks"),
    "serve": ("experiments.serve", "a page to drop a video on, or use the webcam"),
    "calibrate": ("experiments.calibrate", "make a run say how sure it may be"),
    "export": ("experiments.export", "a model for other programs, or to pass on"),
    "settings": ("experiments.options", "list the settings of all models"),
}
CONFIGS = Path(__file__).parent / "configs"
USAGE = "\n".join([
    "action-attention PROGRAM --flags ...; PROGRAM --help lists the flags\n",
    *(f"  {name:10}{about}" for name, (_, about) in PROGRAMS.items()),
    "\ntrain --flagfile=NAME reads the settings of a result, outside a checkout too; NAMEs:",
    fill(", ".join(sorted(file.stem for file in CONFIGS.glob("*.flags"))), 100),
])  # fmt: skip


def main() -> None:
    program, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if program in ("--help", "-h", "--version"):
        print(USAGE if program != "--version" else f"action-attention {action_attention.__version__}")
    elif program in PROGRAMS:
        # runpy puts the module's file in place of argv[0], as -m does: the flags of the program are found by it
        sys.argv[1:] = [_packaged(before, argument) for before, argument in pairwise(["", *arguments])]
        runpy.run_module(PROGRAMS[program][0], run_name="__main__", alter_sys=True)
    else:
        sys.exit(f"error: unknown program {program!r}; there are {', '.join(PROGRAMS)}" if program else USAGE)


def _packaged(before: str, argument: str) -> str:
    """The argument; of a flag file that is not there, but among the configs of this package, the one that is."""
    flag, equals, name = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if (flag or before) not in ("--flagfile", "-flagfile") or Path(name).is_file():
        return argument
    here = (CONFIGS / name, CONFIGS / f"{name}.flags", CONFIGS.parents[1] / name)
    return next((f"{flag}{equals}{file}" for file in here if file.is_file()), argument)
