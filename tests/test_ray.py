"""Extraction by the actors of a Ray cluster, on a stand-in for Ray; on Ray itself: tests/test_faults_ray.py."""

import re
import socket
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import forked
import pytest
import yaml
from test_partition import EXAMPLES, SHARD_VIDEOS, content, given_flags, stamps

from action_attention.errors import UserError
from data_prep import ray_engine
from data_prep.extract import extract
from data_prep.ray_engine import Cluster


def test_without_ray_one_sentence_names_the_extra(tmp_path, monkeypatch):
    done = forked.run(
        "data_prep.extract", "--engine=ray", "--precision=float32", f"--videos={tmp_path}", f"--features={tmp_path}/f",
        prepare=without_ray,
    )  # fmt: skip
    assert done.returncode == 1
    said = "error: --engine=ray needs Ray: pip install 'action_attention[ray]', or leave it out"
    assert done.stderr.splitlines()[-1] == said
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "f").exists()


def without_ray():
    ray_engine.find_spec = lambda name: None


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--engine=ray"], "--engine needs --precision"),
     (["--engine=ray", "--precision=float32", "--prune"], "--prune is not for workers; run it without --engine"),
     (["--engine=ray", "--precision=float32", "--partition=0/2"], "leave it out with --engine=ray")],
)  # fmt: skip
def test_flags_that_do_not_go_together(tmp_path, given, said):
    done = forked.run("data_prep.extract", f"--videos={tmp_path}", f"--features={tmp_path}/f", *given)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class InsteadOfRay:
    """What the engine uses of Ray, in this process: a call is made when its result is asked for.

    Each of `deaths`, places in the order of all calls, is an actor that dies before it does what it was called for.
    """

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause):
                self.cause = cause

    def __init__(self, machines, deaths=()):
        self.machines, self.deaths, self.calls, self.resources, self.ended = machines, {*deaths}, [], None, False

    def init(self, address, **options):
        self.address, self.options = address, options

    def shutdown(self):
        self.ended = True

    def nodes(self):
        return [{"Alive": True, "Resources": machine} for machine in self.machines]

    def remote(self, actor):
        def options(**resources):
            self.resources = resources
            return SimpleNamespace(remote=lambda *arguments: self._handle(actor(*arguments)))

        return SimpleNamespace(options=options)

    def _handle(self, actor):
        def call(method):
            return SimpleNamespace(remote=lambda *arguments: partial(self._call, getattr(actor, method), arguments))

        return SimpleNamespace(start=call("start"), make=call("make"))

    def _call(self, method, arguments):
        self.calls.append((method.__name__, *(argument.name for argument in arguments[:1])))
        if len(self.calls) - 1 in self.deaths:
            raise self.exceptions.RayError("the worker died")
        try:
            return method(*arguments)
        except Exception as error:
            raise self.exceptions.RayTaskError(error) from error

    def wait(self, references, num_returns):
        return references[:1], references[1:]

    def get(self, reference):
        return reference()


@pytest.fixture
def extracted(videos, network, tmp_path, monkeypatch):
    """Extracts by a given stand-in for Ray."""
    monkeypatch.setattr("tensorflow.config.threading.set_intra_op_parallelism_threads", lambda _: None)

    def by(ray, build=lambda: network, **options):
        monkeypatch.setattr("data_prep.ray_engine.import_module", lambda _: ray)
        cluster = Cluster(build, **options)
        return extract(videos, tmp_path / "features", network, shard_videos=SHARD_VIDEOS, cluster=cluster)

    return by


def test_whichever_actors_die_the_shards_are_those_of_one_worker(videos, network, extracted, tmp_path):
    (videos / "nod" / "notes.txt").touch()  # is passed over
    extract(videos, tmp_path / "alone", network, shard_videos=SHARD_VIDEOS)
    ray = InsteadOfRay([{"CPU": 2.0}, {"CPU": 5.0}, {}], deaths=[0, 3, 4, 5, 8])
    done = extracted(ray, cpus=2)
    (videos / "nod" / "notes.txt").unlink()
    assert content(tmp_path / "features") == content(tmp_path / "alone")
    assert (done.videos, done.rejected, ray.resources, ray.ended) == (13, 1, {"num_cpus": 2}, True)
    assert (ray.address, ray.options["include_dashboard"]) == ("local", False)
    called, died = (
        Counter(name for name, *_ in calls) for calls in (ray.calls, map(ray.calls.__getitem__, ray.deaths))
    )
    assert min(died["start"], died["make"]) > 0
    assert called == {"start": 3 + len(ray.deaths), "make": 7 + died["make"]}
    again = InsteadOfRay([{"CPU": 2.0}])
    stamped = stamps(tmp_path / "features")
    assert extracted(again).videos == 0
    assert stamps(tmp_path / "features") == stamped


def test_actors_take_a_gpu_each_where_there_are_any_and_a_given_address_is_used(extracted):
    ray = InsteadOfRay([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}])
    extracted(ray, address="auto", cpus=16)
    assert (ray.address, ray.resources) == ("auto", {"num_cpus": 8, "num_gpus": 1})
    assert "include_dashboard" not in ray.options
    assert ray.calls.count(("start",)) == 2


@pytest.mark.parametrize(
    ("machines", "deaths", "said"),
    [([{}], [], "no machine of the Ray cluster offers a core"),
     ([{"CPU": 1.0}], range(5), r"5 actors died at their start \(the worker died\)"),
     ([{"CPU": 1.0}], range(1, 10, 2), r"5 actors died of .*shard-00000\.h5 \(the worker died\); see that their")],
)  # fmt: skip
def test_a_cluster_that_cannot_do_it_is_one_sentence(extracted, tmp_path, machines, deaths, said):
    ray = InsteadOfRay(machines, deaths)
    with pytest.raises(UserError, match=said):
        extracted(ray)
    assert ray.ended
    assert not list((tmp_path / "features").glob("*.part"))


def test_an_address_where_nobody_listens_is_one_sentence_at_once(extracted, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"no Ray cluster is reached at {address} \(.*refused\); start one with"):
            extracted(InsteadOfRay([]), address=address)
    assert not list((tmp_path / "features").glob("*.part"))


def test_an_actor_whose_network_is_another_one_is_refused(extracted, network):
    said = r"the network on \S+ differs from the driver's in precision; install the same versions and weights"
    with pytest.raises(UserError, match=said):
        extracted(InsteadOfRay([{"CPU": 1.0}]), lambda: replace(network, precision="bfloat16"))


def cluster_file():
    return yaml.safe_load((EXAMPLES / "ray_cluster.yaml").read_text())


def test_the_cluster_file_starts_ray_with_a_token_without_statistics_and_dashboard_and_its_comment_the_extraction():
    cluster, text = cluster_file(), (EXAMPLES / "ray_cluster.yaml").read_text()
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    (head_stops, head), (stops, worker) = cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]
    assert head_stops == stops
    assert stops.endswith("/.venv/bin/ray stop")
    for command in (head, worker):
        assert command.startswith(f"RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 {stops.removesuffix('stop')}start ")
    assert "--include-dashboard=False" in head.split()
    comment = text.partition("cluster_name")[0].replace("\\\n#", "")
    program, _, module, *arguments = re.search(r"&& (.*?)'", comment)[1].split()
    assert (program, module) == (".venv/bin/python", "data_prep.extract")
    given = given_flags(arguments)
    assert (given.engine, given.ray_address, given["precision"].present) == ("ray", "auto", True)


def test_ray_itself_takes_the_cluster_file():
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    util.validate_config(util.prepare_config(cluster_file()))
    with pytest.raises(Exception, match="worker_start_commands"):
        util.validate_config(util.prepare_config(cluster_file() | {"worker_start_commands": []}))
