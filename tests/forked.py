"""Programs as `python -m` runs them, each in a process of its own with its own flags, streams and exit code.

They are forked from a process that has imported TensorFlow already, so that no test waits for that.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

ROOT = Path(__file__).parents[1]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["data_prep.quiet_tensorflow", "keras", "cv2"])


def run(
    module: str, *arguments: object, folder: Path = ROOT, prepare: Callable[[], None] | None = None
) -> CompletedProcess[str]:
    """What `python -m module arguments ...` gave, started in a folder; `prepare()` is called in its process before."""
    with tempfile.TemporaryDirectory() as streams:
        files = [str(Path(streams, name)) for name in ("stdout", "stderr")]
        process = _context.Process(target=_run, args=(module, list(map(str, arguments)), folder, files, prepare))
        process.start()
        process.join()
        said = [Path(file).read_text() for file in files]
    return CompletedProcess([module, *arguments], process.exitcode, *said)


def succeeds(module: str, *arguments: object, folder: Path = ROOT) -> str:
    """What a program printed that must end with 0."""
    done = run(module, *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returned, called in a process of its own, whose flags are no others'."""
    with ProcessPoolExecutor(1, mp_context=_context) as pool:
        return pool.submit(function, *arguments).result()


def _run(module: str, arguments: list[str], folder: Path, files: list[str], prepare: Callable[[], None] | None) -> None:
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv[1:] = arguments
    if prepare:
        prepare()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
