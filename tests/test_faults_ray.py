"""Extraction by Ray itself, its actors and its driver under fire, for `make faults`."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import small_network, write_video
from test_partition import EXAMPLES, SHARD_VIDEOS, content, stamps

from action_attention.untrusted import read_json
from data_prep.extract import extract
from data_prep.workers import OWNER, _started

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install '.[ray]'"),
]
KILLS = int(os.environ.get("FAULTS_KILLS", "12"))
# A module for --import, in each process: the small network, slowly, and a note of each shard that was finished
SLOW = """
import os, time
from dataclasses import replace
from conftest import small_network
from action_attention.registry import register_backbone
from action_attention.shards import ShardWriter

class Slow:
    def __init__(self, model):
        self.model, self.input_shape, self.output_shape = model, model.input_shape, model.output_shape
        self.get_weights = model.get_weights

    def predict_on_batch(self, frames):
        time.sleep(float(os.environ["SLOW_SECONDS"]))
        return self.model.predict_on_batch(frames)

def noted(writer):
    commit(writer)
    with open(os.environ["FINISHED"], "a") as file:
        file.write(f"{writer.path.name}\\n")

network, commit = small_network(), ShardWriter.commit
ShardWriter.commit = noted
slow = replace(network, name="small one", model=Slow(network.model))
register_backbone("small")(lambda weights, precision: slow)
"""
DRIVER = """
import sys
from functools import partial
from pathlib import Path
from action_attention.registry import import_modules
from data_prep.backbones import build_backbone
from data_prep.extract import extract
from data_prep.ray_engine import Cluster
import_modules(["slow"])
build = partial(build_backbone, "small", "imagenet", "float32")
cluster = Cluster(build, ("slow",), cpus=1)
extract(Path(sys.argv[1]), Path(sys.argv[2]), build(), shard_videos=int(sys.argv[3]), cluster=cluster)
"""


@pytest.fixture(scope="module")
def small():
    return replace(small_network(), name="small one")


@pytest.fixture
def environment(tmp_path):
    """Of a driver, and so of its actors; what they finish is noted in `finished.txt`."""
    (tmp_path / "slow.py").write_text(SLOW)
    path = [str(tmp_path), str(Path(__file__).parent), str(EXAMPLES.parent), *sys.path]
    added = {"PYTHONPATH": os.pathsep.join(path), "FINISHED": str(tmp_path / "finished.txt"), "SLOW_SECONDS": "0"}
    return os.environ | added | {"RAY_worker_niceness": "0"}  # by default an actor gives way to whatever else runs


@pytest.fixture
def start(environment):
    """Starts a driver; none is left running."""
    drivers = []

    def start(videos, folder):
        command = [sys.executable, "-c", DRIVER, videos, folder, str(SHARD_VIDEOS)]
        drivers.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()
        driver.wait()


def finished(tmp_path):
    file = tmp_path / "finished.txt"
    return Counter(file.read_text().split() if file.exists() else [])


def actors(folder, driver):
    """Processes, other than the driver, that hold a shard now."""
    found = set()
    for lock in folder.glob("shard-*.lock"):
        with suppress(FileNotFoundError, ValueError):
            owner = read_json(lock, OWNER)
            found |= {owner["pid"]} if _started(owner["pid"]) == owner["started"] else set()
    return sorted(found - {driver.pid})


@pytest.fixture
def cluster(environment):
    """The address of a cluster that is running already, and must still run in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={address.partition(':')[2]}", "--num-cpus=2"]
    options = ["--include-dashboard=False", "--disable-usage-stats"]
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a secret of this test, of 32 letters or more"}
    head = subprocess.Popen(command + options, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield address
    assert head.poll() is None
    head.terminate()
    head.wait()


def test_the_program_makes_the_cache_of_one_worker_on_a_cluster_of_its_own_and_on_another(
    videos, small, environment, cluster, tmp_path
):
    extract(videos, tmp_path / "alone", small)
    for name, address in (("own", []), ("other", [f"--ray_address={cluster}"])):
        command = [
            sys.executable, "-m", "data_prep.extract", "--engine=ray", "--ray_cpus=1", "--import=slow",
            "--backbone=small", "--precision=float32", f"--videos={videos}", f"--features={tmp_path}/{name}", *address,
        ]  # fmt: skip
        done = subprocess.run(
            command, env=environment, cwd=EXAMPLES.parent, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert content(tmp_path / name) == content(tmp_path / "alone")
        assert done.stdout.splitlines()[-1].startswith("1 videos could not be used")
    assert finished(tmp_path) == {"shard-00000.h5": 2}


@pytest.mark.timeout(3600)  # each driver starts Ray and imports TensorFlow anew, as does each actor
def test_actors_and_drivers_killed_at_random_moments(small, environment, start, tmp_path, fault):
    """Two of three times an actor that holds a shard, else the driver, which is then started again; SIGKILL each."""
    videos, rng, kills, rounds = tmp_path / "videos", random.Random(0), Counter(), 0
    for number in range(24):
        write_video(videos / f"class{number % 3}" / f"v{number:02}.avi", 20 + 10 * (number % 3), seed=number)
    (videos / "class0" / "w.avi").write_text("no video")
    extract(videos, tmp_path / "whole", small, shard_videos=SHARD_VIDEOS)
    environment["SLOW_SECONDS"] = "0.5"
    while kills.total() < KILLS or len(kills) < 2:
        folder, before = tmp_path / f"round{rounds}", finished(tmp_path)
        rounds += 1
        driver, seen = start(videos, folder), {}
        while driver.poll() is None:
            more, deadline = len(seen) + rng.randrange(2), time.monotonic() + 600
            while driver.poll() is None and not (len(stamps(folder)) >= more and actors(folder, driver)):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 1))
            if rng.randrange(3) and (holders := actors(folder, driver)):
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(holders), signal.SIGKILL)
                    kills["actors"] += 1
            elif driver.poll() is None:
                driver.kill()
                driver.wait()
                kills["drivers"] += 1
                driver = start(videos, folder)
            now = stamps(folder)
            assert seen.items() <= now.items(), "a finished shard was touched"
            seen = now
        assert driver.returncode == 0
        assert content(folder) == content(tmp_path / "whole")
        assert max((finished(tmp_path) - before).values()) == 1
    fault(
        "actors of Ray that hold a shard, and its driver, killed (SIGKILL) at random moments", kills.total(),
        "it goes on, the driver when it is started again; no shard is made twice to its end; the cache is that of one "
        "worker",
        f"{kills['actors']} actors, {kills['drivers']} drivers; caches: {rounds}, byte for byte those of one worker; "
        "no finished shard touched, no leftovers",
    )  # fmt: skip
