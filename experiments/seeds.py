"""`train --seeds`: one training with several seeds, side by side, each in a process and a folder of its own.

`RUN_DIR/seed-0`, ... are the runs, `RUN_DIR/seed-0.log`, ... what their processes said.
"""

import math
import os
import re
import runpy
import sys
from collections import deque
from multiprocessing import connection
from pathlib import Path

import numpy as np
import psutil
import tensorflow as tf

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.runs import Run
from data_prep.terminal import say
from experiments.processes import Process, own_cores, processes

Place = tuple[dict[str, str], list[int]]  # environment and cores of a process


def parse_seeds(text: str) -> list[int]:
    """Of numbers and ranges with commas between: 0-4, or 0,2,5. Raises UserError if it is not that."""
    seeds = list[int]()
    for part in text.split(","):
        match = re.fullmatch("([0-9]+)(?:-([0-9]+))?", part)
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise UserError(f"--seeds={text} must be numbers or ranges of them, such as 0-4 or 0,2,5")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if len({*seeds}) < len(seeds):
        raise UserError(f"--seeds={text} names a seed twice")
    return seeds


def find_places(seeds: int, devices: int, cache: FeatureCache) -> list[Place]:
    """Where as many seeds as this machine has room for run at once: on `devices` GPUs each, or on a share of the cores.

    No more on CPUs than there are cores, or than can have the features in memory if one can: each decides by itself
    whether it takes them there (`Clips`), when the others have not taken theirs yet.
    """
    there = [str(number) for number, _ in enumerate(tf.config.list_physical_devices("GPU"))]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(there)).split(",")[: len(there)]
    environments = [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + devices])}
        for first in range(0, len(gpus) - devices + 1, devices)
    ] or [{} for _ in os.sched_getaffinity(0)]
    streams = [cache, *([cache.flow] if cache.flow else [])]
    features = sum(
        2 * math.prod(stream.cube_shape) * video.frames for stream in streams for video in stream.videos.values()
    )
    fit = psutil.virtual_memory().available // (2 * features)
    at_once = min(seeds, len(environments), fit or seeds)
    return list(zip(environments, own_cores(at_once), strict=False))


def train_seeds(seeds: list[int], run_dir: Path, arguments: list[str], places: list[Place]) -> None:
    """Runs `experiments.train` with these arguments once for each seed; a seed that is finished stays as it is.

    Raises UserError in the end if one of them failed.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    waiting, free, running, failed = deque(seeds), list(places), dict[Process, tuple[int, Place]](), list[str]()
    with processes() as start:
        while waiting or running:
            while waiting and free:
                seed, place = waiting.popleft(), free.pop(0)
                os.environ.update(place[0])  # before TensorFlow is imported there
                own = [*arguments, "--seeds=", f"--seed={seed}", f"--run_dir={_folder(run_dir, seed)}", "--resume"]
                running[start(_train, own, _log(run_dir, seed), place[1])] = seed, place
                say(f"seed {seed} begins; {_log(run_dir, seed)} says how it goes")
            connection.wait([process.sentinel for process in running])
            for process in [process for process in running if process.exitcode is not None]:
                seed, place = running.pop(process)
                free.append(place)
                say(f"seed {seed} {_outcome(process.exitcode, _log(run_dir, seed))}")
                if process.exitcode:
                    failed.append(str(seed))
    if failed:
        raise UserError(
            f"seed{'s' if failed[1:] else ''} {', '.join(failed)} of {run_dir} failed; the same command goes on with "
            "what is not finished"
        )


def summary(seeds: list[int], run_dir: Path, validation: str) -> str:
    """What the seeds have in common, and the commands that come next."""
    runs = [_folder(run_dir, seed) for seed in seeds]
    found = [Run.open(run, finished=True).about["best"].get("val_video_top1") for run in runs]
    lines = []
    if None not in found:
        spread = f" ± {100 * np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
        lines.append(f"{run_dir}: {validation} video accuracy {np.mean(found):.1%}{spread} over {len(found)} seeds")
    lines.append(f"next: for run in {' '.join(map(str, runs))}; do make eval RUN_DIR=$run; done")
    lines.append(f'      make table RUN_DIR="{" ".join(map(str, runs))}"')
    return "\n".join(lines)


def _folder(run_dir: Path, seed: int) -> Path:
    return run_dir / f"seed-{seed}"


def _log(run_dir: Path, seed: int) -> Path:
    return run_dir / f"seed-{seed}.log"


def _outcome(exit_code: int | None, log: Path) -> str:
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    if not exit_code:
        return "is finished: " + said[-1].partition("; next")[0]
    if exit_code < 0:
        return f"was killed (signal {-exit_code})"
    errors = [line for line in said[-5:] if line.startswith("error: ")]  # before it are those of earlier tries
    return f"failed (exit code {exit_code}): {(errors or said or ['it said nothing'])[-1]}"


def _train(arguments: list[str], log: Path, cores: list[int]) -> None:
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.sched_setaffinity(0, cores)
    sys.argv[1:] = arguments
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
