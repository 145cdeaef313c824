"""One extraction by the actors of a Ray cluster, one task a shard: `extract --engine=ray`.

Ray says who makes which shard, and what died is started anew. What is done is told by the files alone, and made as by
the workers of `data_prep/partition.py`: Ray carries the names of a shard's videos there, and what the shard says of
itself back. So a dead actor costs the shard in its hands, and a dead driver those in all hands.
"""

import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import data_prep.quiet_tensorflow  # isort: skip  # noqa: F401 - before TensorFlow
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from action_attention.errors import UserError, first_line
from action_attention.registry import import_modules
from action_attention.shards import Shard
from action_attention.tables import Tables
from data_prep.backbones import Backbone
from data_prep.partition import agree, finish, make_missing, shards_of, whole_of
from data_prep.pipeline import Pipeline, Summary, warn_of
from data_prep.resume import writing
from data_prep.terminal import BAR
from data_prep.workers import Worker

TRIES = 5  # actors that a shard, or the start of one, may cost
OBJECT_STORE_BYTES = 100 << 20  # nearly the least that Ray takes; names need less


@dataclass(frozen=True)
class Cluster:
    """Where to run, and what makes the network there.

    Attributes:
        build: makes the network.
        modules: to be imported before.
        address: of a running cluster; None for one on this machine, which ends with the extraction.
        cpus: cores of each actor; those of the largest machine if it has fewer.
    """

    build: Callable[[], Backbone]
    modules: tuple[str, ...] = ()
    address: str | None = None
    cpus: int = 4


class Maker:
    """An actor, a process that holds the network; `pipeline` are the arguments of `Pipeline` beside that."""

    def __init__(self, cluster: Cluster, settings: dict, pipeline: dict[str, Any], cpus: int):
        self.cluster, self.settings, self.arguments, self.cpus = cluster, settings, pipeline, cpus

    def start(self) -> None:
        """Builds the network. Raises UserError if it is not the driver's."""
        tf.config.threading.set_intra_op_parallelism_threads(self.cpus)
        import_modules(self.cluster.modules)
        self.pipeline = Pipeline(network=self.cluster.build(), **self.arguments)
        if differ := [name for name, value in self.pipeline.settings.items() if value != self.settings.get(name)]:
            raise UserError(
                f"the network on {os.uname().nodename} differs from the driver's in {', '.join(differ)}; install the "
                "same versions and weights on all machines"
            )

    def make(self, path: Path, group: list[str]) -> tuple[Tables, Summary]:
        """What the shard of these names says, which is made unless it is there, and what that took."""
        self.pipeline.summary, shards = Summary(), dict[Path, Shard]()
        with Worker(path.parent) as worker, writing(path.parent, shards):
            shards |= whole_of({path: group}, path.parent, self.pipeline)
            with closing(make_missing(worker, {path: group}, shards, self.pipeline)) as made:
                for _ in made:
                    pass
        return shards[path].tables, self.pipeline.summary


def work(
    cluster: Cluster, folder: Path, pipeline: Pipeline, names: list[str], passed_over: dict[str, str], shard_videos: int
) -> None:
    """Makes all shards that are missing, and the index.

    Raises UserError: Ray is not installed or not reached, other workers have another list of videos or other settings,
    a shard is not of this list, or its actors die again and again.
    """
    folder, source, summary = folder.resolve(), pipeline.videos.resolve(), pipeline.summary
    arguments = {name: getattr(pipeline, name) for name in ("fps", "stream", "compression", "decode_timeout")}
    wanted = shards_of(folder, names, shard_videos)
    with Worker(folder) as worker, _connected(cluster.address) as ray:
        worker.sweep()
        agree(worker, pipeline, names, shard_videos)
        room, resources = _room(ray, cluster.cpus)
        count = min(room, len(wanted))
        maker, shards = ray.remote(Maker).options(**resources), dict[Path, Shard]()

        def new() -> Any:
            return maker.remote(cluster, pipeline.settings, arguments | {"videos": source}, resources["num_cpus"])

        with (
            writing(folder, shards),
            tqdm(total=len(names), bar_format=BAR, disable=None, dynamic_ncols=True) as progress,
        ):
            for path, (tables, done) in _results(ray, new, count, wanted):
                shards[path] = Shard(path, tables)
                summary.add(done)
                progress.update(len(wanted[path]))
                progress.set_postfix_str(f"{summary.frames} frames, {count} actors")
                if done.videos:  # made just now
                    for video in tables.videos:
                        warn_of(video.name, video, "", tables.remarks.get(video.name, ()))
                    for name, reason in tables.rejects.items():
                        warn_of(name, None, reason, ())
            summary.network_seconds /= count
            worker.wait_for("merge")
            finish(worker, [shards[path] for path in wanted], source, passed_over)
            worker.sweep()
            worker.release("merge")


def check_installed() -> None:
    """Raises UserError unless Ray is."""
    if not find_spec("ray"):
        raise UserError("--engine=ray needs Ray: pip install 'action_attention[ray]', or leave it out")


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray, connected. Raises UserError if it cannot be."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    ray, address = import_module("ray"), address or os.environ.get("RAY_ADDRESS")
    own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}  # for a cluster that is started here
    try:
        if address and ":" in address:  # Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", log_to_driver=False, logging_level="error", **({} if address else own))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster is reached at {address or 'this machine'} ({first_line(error)}); start one with `ray "
            "start --head`, and give its --ray_address, and RAY_AUTH_MODE=token in the environment if it has a token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, cpus: int) -> tuple[int, dict[str, int]]:
    """How many actors the cluster has room for, and what each takes of it: a GPU if there are any, else cores."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    cpus = min(cpus, max(cores, default=0))
    if not cpus:
        raise UserError("no machine of the Ray cluster offers a core; start one with `ray start --num-cpus`")
    if gpus := int(sum(machine.get("GPU", 0) for machine in machines)):
        return gpus, {"num_cpus": cpus, "num_gpus": 1}
    return sum(number // cpus for number in cores), {"num_cpus": cpus}


def _results(
    ray: Any, new: Callable[[], Any], actors: int, wanted: dict[Path, list[str]]
) -> Iterator[tuple[Path, tuple[Tables, Summary]]]:
    """What `Maker.make` gives for each shard, as it comes. An actor that died is replaced, its shard is tried again.

    A shard goes only to an actor that has started: a replacement may wait for a machine that never comes.
    """
    todo, left, tries, running = deque(wanted.items()), len(wanted), Counter[Path | None](), dict[Any, tuple]()

    def start() -> None:
        actor = new()
        running[actor.start.remote()] = actor, None

    for _ in range(actors):
        start()
    while left:
        (reference,), _ = ray.wait([*running], num_returns=1)
        actor, task = running.pop(reference)
        path = task[0] if task else None
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else error from None
        except ray.exceptions.RayError as error:
            tries[path] += 1
            said = f"{tries[path]} actors died {f'of {path}' if path else 'at their start'} ({first_line(error)})"
            if tries[path] == TRIES:
                raise UserError(f"{said}; see that their machines have memory, and Ray's logs") from error
            logging.warning("%s; another one is tried", said)
            todo.extendleft([task] if task else [])
            start()
            continue
        tries.pop(path, None)
        if path:
            left -= 1
            yield path, result
        if todo:
            task = todo.popleft()
            running[actor.make.remote(*task)] = actor, task
