"""One extraction by many workers, on any machines that see one folder: the cache is the one that one worker would make.

Shard k holds the names [64 k, 64 k + 64) of the sorted list of all videos, and worker I of N makes the shards k with
k mod N = I. So a shard depends on nothing but the list: not on N, on who made it, on when, or on who was killed before.
`partition.json` holds the list and the settings that all workers must have; `index-I-of-N.json` says what a worker made
until the last one makes `index.json` of them all (`merge`). `workers.Worker` keeps two from making the same shard.
"""

import re
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from absl import logging

from action_attention.errors import UserError
from action_attention.features import (
    INDEX,
    index_of,
    listed_shards,
    open_shards,
    shard_paths,
    with_stream,
    write_index,
    write_json,
    write_tables,
)
from action_attention.files import locked
from action_attention.shards import Shard
from action_attention.untrusted import read_json
from data_prep.pipeline import Pipeline
from data_prep.resume import check_resumable, whole_shards, writing
from data_prep.workers import POLL_SECONDS, Worker

PLAN_FILE = "partition.json"
PLAN = {"settings": dict, "shard_videos": int, "videos": [str]}


@dataclass(frozen=True)
class Partition:
    """Worker `index` of `count`, the first being 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> "Partition":
        """Of `I/N`; of `/N`, where the environment of a Slurm array or an indexed Kubernetes job knows I; of `auto`,
        where Slurm knows both. Raises UserError if the text or the environment is not such."""
        if match := re.fullmatch(r"([0-9]*)/([1-9][0-9]*)", text):
            index, count = match.groups()
        elif text == "auto":
            index, count = "", environment.get("SLURM_ARRAY_TASK_COUNT", "")
        else:
            raise UserError(f"--partition={text} must be I/N, 0/4 for the first of four workers, or /N or auto")
        number = int(index) if index else _number(text, environment)
        if not count:
            raise UserError("--partition=auto finds a worker's number, but not how many there are; give --partition=/N")
        if not 0 <= number < int(count):
            raise UserError(
                f"--partition={number}/{count}: {count} workers have the numbers 0 to {int(count) - 1}; "
                "give one of these, or submit an array without gaps"
            )
        return cls(number, int(count))


def _number(text: str, environment: Mapping[str, str]) -> int:
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            first, step = environment.get("SLURM_ARRAY_TASK_MIN", 0), environment.get("SLURM_ARRAY_TASK_STEP", 1)
            return (int(environment["SLURM_ARRAY_TASK_ID"]) - int(first)) // int(step)
        return int(environment["JOB_COMPLETION_INDEX"])
    except (KeyError, ValueError, ZeroDivisionError):
        raise UserError(
            f"--partition={text} takes the worker's number from a Slurm array or an indexed Kubernetes job, and this "
            "is neither; give it: --partition=0/4"
        ) from None


def work(
    partition: Partition, folder: Path, pipeline: Pipeline, names: list[str], passed_over: dict[str, str],
    shard_videos: int,
) -> str:  # fmt: skip
    """Makes this worker's shards, and the index if all others are there; returns what it did in a sentence.

    Raises UserError: the other workers have another list of videos or other settings, or a shard is not of this list.
    """
    wanted, source = shards_of(folder, names, shard_videos), pipeline.videos.resolve()
    mine = {path: group for k, (path, group) in enumerate(wanted.items()) if k % partition.count == partition.index}
    with Worker(folder) as worker:
        worker.sweep()
        agree(worker, pipeline, names, shard_videos)
        shards = whole_of(mine, folder, pipeline)
        index = folder / f"index-{partition.index:05}-of-{partition.count:05}.json"

        def write(complete: bool) -> None:
            said, tables = [shards[path] for path in sorted(shards)], _tables_of(index)
            sha256 = write_tables(tables, said, worker.part(f"{tables.name}-")) if complete else ""
            write_json(index, index_of(said, source, complete, passed_over, sha256), worker.part(f"{index.name}-"))

        with writing(folder, shards):
            made = 0
            with closing(make_missing(worker, mine, shards, pipeline)) as new_shards:
                for _ in new_shards:
                    made += 1
                    write(False)
            said = f"worker {partition} made {made} of its {len(mine)} shards now"
            if not _is_merged(folder, wanted, shards.values()):
                write(True)
                if missing := wanted.keys() - shard_paths(folder):
                    return f"{said}; the cache lacks {len(missing)} of {len(wanted)}, which other workers make"
                _merge(worker, wanted, shards.values())
    return f"{said}; all {len(wanted)} of the cache are there, and its index is made"


def shards_of(folder: Path, names: list[str], shard_videos: int) -> dict[Path, list[str]]:
    """The names that each shard of a list is to hold."""
    return {
        folder / f"shard-{number:05}.h5": names[first : first + shard_videos]
        for number, first in enumerate(range(0, len(names), shard_videos))
    }


def whole_of(mine: dict[Path, list[str]], folder: Path, pipeline: Pipeline) -> dict[Path, Shard]:
    """Those of the shards `mine` that are there, checked. Raises UserError if they are not of this extraction."""
    there = whole_shards([path for path in mine if path.exists()])
    check_resumable(there, pipeline.settings, pipeline.videos, folder)
    _check_names(there, mine, pipeline.videos)
    return {shard.path: shard for shard in there}


def make_missing(
    worker: Worker, mine: dict[Path, list[str]], shards: dict[Path, Shard], pipeline: Pipeline
) -> Generator[Shard, None, None]:
    """Adds to `shards` those of `mine` that are missing, until none is; yields each one that is made here.

    A shard that another worker is making is waited for, and made here if that one dies.
    """
    while todo := {path: group for path, group in mine.items() if path not in shards}:
        claimed = deque[Path]()
        free, paths = _claims(worker, todo, claimed), _paths(worker, claimed)
        if first := next(free, None):
            with closing(pipeline.make(list(todo.values()), chain([first], free), paths)) as new_shards:
                for shard in new_shards:
                    worker.release(shard.path.stem)
                    shards[shard.path] = shard
                    yield shard
        shards |= {path: Shard(path) for path in todo if path not in shards and path.exists()}
        if left := [path.name for path in mine if path not in shards]:
            logging.log_every_n_seconds(logging.INFO, "waits for %s, which another worker makes", 60, left[0])
            time.sleep(POLL_SECONDS)


def _claims(worker: Worker, todo: dict[Path, list[str]], claimed: deque[Path]) -> Iterator[list[str]]:
    """The groups of shards that nobody makes, claimed one after the other as they are asked for."""
    for path, group in todo.items():
        if worker.claim(path.stem):
            if path.exists():  # made by another worker just now
                worker.release(path.stem)
            else:
                claimed.append(path)
                yield group


def _paths(worker: Worker, claimed: deque[Path]) -> Iterator[tuple[Path, Path | None]]:
    while claimed:
        path = claimed.popleft()
        yield path, worker.part(f"{path.stem}-")


def agree(worker: Worker, pipeline: Pipeline, names: list[str], shard_videos: int) -> None:
    """Raises UserError unless this worker has the list and the settings of the first one, who writes them down."""
    folder, settings, videos = worker.folder, pipeline.settings, pipeline.videos
    worker.wait_for("plan")
    if not (folder / PLAN_FILE).exists():
        _check_names(whole_shards(shard_paths(folder)), shards_of(folder, names, shard_videos), videos)
        write_json(folder / PLAN_FILE, {"settings": settings, "shard_videos": shard_videos, "videos": names})
    worker.release("plan")
    plan = _read_plan(folder)
    there = with_stream(plan["settings"]) | {"shard_videos": plan["shard_videos"]}
    for key, value in (with_stream(settings) | {"shard_videos": shard_videos}).items():
        if there.get(key) != value:
            raise UserError(
                f"the workers on {folder} have {key}={there.get(key)}, this one has {key}={value}; give all of them "
                "the same settings, or another --features folder"
            )
    if plan["videos"] != names:
        new, gone = sorted({*names} - {*plan["videos"]}), sorted({*plan["videos"]} - {*names})
        said = [
            f"{len(which)} {what} ({', '.join(which[:5])})" for what, which in (("new", new), ("gone", gone)) if which
        ]
        raise UserError(
            f"the videos of {videos} are not those that the workers on {folder} began with: {', '.join(said)}; put it "
            f"as it was, or go on without --partition"
        )


def _check_names(shards: Iterable[Shard], wanted: dict[Path, list[str]], videos: Path) -> None:
    for shard in shards:
        group = wanted.get(shard.path, [])
        if {*(video.name for video in shard.videos), *shard.rejects} != {*group}:
            place = f"the videos {group[0]} to {group[-1]}" if group else "any"
            raise UserError(
                f"{shard.path} does not hold {place} of {videos}, as a worker's would; extract without --partition, or "
                "into another --features folder"
            )


def _read_plan(folder: Path) -> dict[str, Any]:
    file = folder / PLAN_FILE
    try:
        return read_json(file, PLAN)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {PLAN_FILE}, as extract --partition makes it; there is nothing to merge"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); delete it and run the workers again") from error


def _is_merged(folder: Path, wanted: Collection[Path], shards: Iterable[Shard]) -> bool:
    """Whether `index.json` lists all that is wanted, which is there, and these shards' features, and nothing is new."""
    try:
        index = read_json(folder / "index.json", INDEX | {"shards": [{"file": str, "features_sha256": str}]})
    except (FileNotFoundError, ValueError):
        return False
    listed = {entry["file"]: entry["features_sha256"] for entry in index["shards"]}
    same = listed.keys() == {path.name for path in wanted} and not {*wanted}.difference(shard_paths(folder))
    same = same and all(listed[shard.path.name] == shard.sha256 for shard in shards)
    return same and index["complete"] and not _indexes(folder)


def _indexes(folder: Path) -> list[Path]:
    return sorted(folder.glob("index-*-of-*.json"))


def _tables_of(index: Path) -> Path:
    """What the shards of one worker's index say of themselves."""
    return index.with_name(f"{index.stem}.jsonl")


def merge(folder: Path) -> None:
    """Makes the one index of what workers made; again and again, if you like.

    Raises UserError if workers shared no list there, a shard is missing, or one is not of the list.
    """
    plan = _read_plan(folder)
    wanted = shards_of(folder, plan["videos"], plan["shard_videos"])
    if missing := [path.name for path in wanted if not path.exists()]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(wanted)} shards, {missing[0]} first; run the workers again, which "
            "make only these"
        )
    busy = f"another extraction is writing to {folder}; wait for it or stop it"
    with locked(folder, busy, shared=True), Worker(folder) as worker, writing(folder, wanted):
        _merge(worker, wanted, None)


def _merge(worker: Worker, wanted: dict[Path, list[str]], made: Iterable[Shard] | None) -> None:
    """One worker at a time; nothing is left to do if another merged the shards that were `made` here meanwhile.

    Each worker checked its own shards and said what they hold, so only those that none speaks for are opened.
    """
    folder = worker.folder
    worker.wait_for("merge")
    if made is None or not _is_merged(folder, wanted, made):
        indexes = _indexes(folder)
        try:
            said = {path: read_json(path, INDEX) for path in indexes or [folder / "index.json"]}
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"an index in {folder} is missing or damaged ({error}); run the workers again") from error
        known = {
            shard.path: shard
            for path, index in said.items()
            for shard in listed_shards(_tables_of(path), index.get("tables_sha256", ""))
        }
        shards = open_shards(shard_paths(folder), known)
        _check_names(shards, wanted, folder)
        passed_over = {name: why for index in said.values() for name, why in index.get("passed_over", {}).items()}
        finish(worker, shards, Path(next(iter(said.values()))["source"]), dict(sorted(passed_over.items())))
    worker.sweep()
    worker.release("merge")


def finish(worker: Worker, shards: list[Shard], source: Path, passed_over: dict[str, str]) -> None:
    """Makes the index of all shards, in place of the workers' own."""
    write_index(worker.folder, shards, source, True, passed_over)
    _remove_indexes(worker.folder)


def _remove_indexes(folder: Path) -> None:
    for path in _indexes(folder):
        _tables_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def take_over(folder: Path, busy: str) -> None:
    """Removes what workers left, for one that works alone. Raises UserError with the text `busy` if one is alive."""
    if not ((folder / PLAN_FILE).exists() or any(folder.glob("worker-*.part"))):
        return
    with Worker(folder) as worker:
        if worker.others():
            raise UserError(busy)
        worker.sweep()
    (folder / PLAN_FILE).unlink(missing_ok=True)
    _remove_indexes(folder)
