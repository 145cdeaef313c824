"""Extraction by many workers: whoever makes what, when, and however often killed, it is the cache that one makes."""

import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import forked
import pytest
import yaml
from absl import flags
from conftest import small_network, write_video

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.shards import ShardWriter
from data_prep.extract import define_flags, extract
from data_prep.partition import PLAN_FILE, Partition, merge
from data_prep.workers import Worker
from experiments.cli import PROGRAMS

SHARD_VIDEOS = 2  # seven shards of the thirteen files


@pytest.fixture(scope="module")
def alone(videos, network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    (videos / "nod" / "notes.txt").touch()
    extract(videos, folder, network, shard_videos=SHARD_VIDEOS)
    yield folder
    (videos / "nod" / "notes.txt").unlink()


def part(videos, folder, network, index, count, **options):
    """What worker `index` of `count` does."""
    return extract(videos, folder, network, shard_videos=SHARD_VIDEOS, partition=Partition(index, count), **options)


def content(folder: Path) -> dict[str, bytes]:
    """Every byte of a cache, and the names of everything else but the list that workers agree on and the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (PLAN_FILE, ".lock")}


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*.h5")}


@pytest.mark.parametrize("order", [(0,), (0, 1, 2), (2, 0, 1), (8, 7, 6, 5, 4, 3, 2, 1, 0)], ids=str)
def test_in_any_order_any_number_of_workers_make_the_cache_of_one(videos, alone, network, tmp_path, order):
    for index in order:
        assert not (tmp_path / "index.json").exists()
        done = part(videos, tmp_path, network, index, len(order))
    assert done.share.endswith("all 7 of the cache are there, and its index is made")
    assert content(tmp_path) == content(alone)
    before = stamps(tmp_path)
    for index in order:
        assert part(videos, tmp_path, network, index, len(order)).videos == 0
    assert stamps(tmp_path) == before
    assert content(tmp_path) == content(alone)


def test_each_worker_makes_every_nth_shard_and_says_what_is_missing(videos, alone, network, tmp_path):
    done = part(videos, tmp_path, network, 1, 3)
    assert sorted(stamps(tmp_path)) == ["shard-00001.h5", "shard-00004.h5"]
    assert done.share == "worker 1/3 made 2 of its 2 shards now; the cache lacks 5 of 7, which other workers make"
    with pytest.raises(UserError, match=r"lacks 5 of 7 shards, shard-00000\.h5 first; run the workers again"):
        merge(tmp_path)


def test_stopped_after_any_video_and_interleaved_as_chance_has_it(videos, alone, network, tmp_path):
    """Three workers, each time another one for one to three videos; then two do what is left."""
    rng, stops = random.Random(0), 0

    def stop_after(number):
        left = iter(range(number))

        def on_end(_):
            if next(left, None) is None:
                raise KeyboardInterrupt

        return on_end

    for turn in range(100):
        count = 3 if turn < 6 else 2
        try:
            part(videos, tmp_path, network, rng.randrange(count), count, on_end=stop_after(rng.randrange(1, 4)))
        except KeyboardInterrupt:
            stops += 1
        assert not [*tmp_path.glob("*.part"), *tmp_path.glob("shard-*.lock")]
        if (tmp_path / "index.json").exists():
            break
    assert turn > 6
    assert stops > 3
    assert content(tmp_path) == content(alone)


def worker(videos: Path, folder: Path, index: int, count: int, seconds: float) -> None:
    """A process of a worker that rests after each video, and notes which shards it finished."""
    commit = ShardWriter.commit

    def noted(writer):
        commit(writer)
        with (folder.parent / "finished.txt").open("a") as file:
            file.write(f"{writer.path.name}\n")

    ShardWriter.commit = noted
    part(videos, folder, small_network(), index, count, on_end=lambda _: time.sleep(seconds))


def start(*arguments):
    process = forked._context.Process(target=worker, args=arguments)
    process.start()
    return process


def finished(folder: Path) -> Counter:
    file = folder.parent / "finished.txt"
    return Counter(file.read_text().split() if file.exists() else [])


def wait_until(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_killed_in_the_middle_of_a_shard_changes_nothing(videos, alone, network, tmp_path):
    folder = tmp_path / "features"
    process = start(videos, folder, 0, 2, 0.3)
    wait_until(lambda: stamps(folder) and list(folder.glob("shard-*.part")), process)
    process.kill()
    process.join()
    before = stamps(folder)
    assert list(folder.glob("shard-*.lock"))
    for index in (1, 0):
        part(videos, folder, network, index, 2)
    assert before.items() <= stamps(folder).items()
    assert content(folder) == content(alone)
    assert set(finished(folder)) <= {*before}


def test_a_shard_that_a_twin_makes_is_waited_for(videos, alone, network, tmp_path):
    with Worker(tmp_path) as twin:
        assert twin.claim("shard-00002")

        def finish():
            while len(stamps(tmp_path)) < 6:
                time.sleep(0.01)
            shutil.copy(alone / "shard-00002.h5", tmp_path / "x")
            (tmp_path / "x").rename(tmp_path / "shard-00002.h5")
            twin.release("shard-00002")

        thread = threading.Thread(target=finish)
        thread.start()
        done = part(videos, tmp_path, network, 0, 1)
        thread.join()
        assert done.videos == 11
    assert content(tmp_path) == content(alone)


def test_two_twins_make_each_shard_once_and_one_goes_on_where_the_other_died(videos, alone, network, tmp_path):
    folder = tmp_path / "features"
    twins = [start(videos, folder, 0, 1, 0.2) for _ in range(2)]
    wait_until(lambda: len(stamps(folder)) > 1, twins[0])
    twins[0].kill()
    for process in twins:
        process.join()
    assert [process.exitcode for process in twins] == [-signal.SIGKILL, 0]
    assert content(folder) == content(alone)
    assert max(finished(folder).values()) == 1


def test_merging_again_changes_nothing_and_a_lost_index_is_made_again(videos, alone, network, tmp_path):
    for index in (0, 1):
        part(videos, tmp_path, network, index, 2)
    for _ in range(2):
        merge(tmp_path)
        assert content(tmp_path) == content(alone)
    printed = forked.succeeds("data_prep.inspect", f"--features={tmp_path}", "--merge", "--verify")
    assert "verified: all 7 shards hold what was written" in printed
    (tmp_path / "index.json").unlink()
    part(videos, tmp_path, network, 1, 2)
    assert content(tmp_path) == content(alone)
    with pytest.raises(UserError, match=rf"{alone} holds no partition\.json, .*; there is nothing to merge"):
        merge(alone)


def test_a_list_of_videos_that_changes_under_the_workers_is_refused(videos, network, tmp_path):
    mine, features = tmp_path / "videos", tmp_path / "features"
    shutil.copytree(videos, mine)
    part(mine, features, network, 0, 2)
    before = stamps(features)
    (mine / "nod" / "junk.avi").rename(mine / "nod" / "moved.avi")
    write_video(mine / "spin" / "new.avi", 8)
    said = r"began with: 2 new \(nod/moved\.avi, spin/new\.avi\), 1 gone \(nod/junk\.avi\); put it as it was"
    for index in (0, 1):
        with pytest.raises(UserError, match=said):
            part(mine, features, network, index, 2)
    assert stamps(features) == before
    extract(mine, features, network, shard_videos=SHARD_VIDEOS)  # as the sentence says
    assert {"nod/moved.avi", "spin/new.avi"} <= {*FeatureCache(features).videos, *FeatureCache(features).rejects}


def test_workers_with_other_settings_are_refused(videos, network, tmp_path):
    part(videos, tmp_path, network, 0, 2)
    with pytest.raises(UserError, match=r"have fps=15\.0, this one has fps=10\.0; give all of them the same settings"):
        part(videos, tmp_path, network, 1, 2, fps=10.0)


def test_one_goes_on_where_workers_stopped_and_workers_where_one_did(videos, alone, network, tmp_path):
    part(videos, tmp_path, network, 1, 3)
    extract(videos, tmp_path, network, shard_videos=SHARD_VIDEOS)
    assert content(tmp_path) == content(alone)
    assert not (tmp_path / PLAN_FILE).exists()
    for number in (0, 3, 4):
        (tmp_path / f"shard-{number:05}.h5").unlink()
    for index in (1, 0):
        part(videos, tmp_path, network, index, 2)
    assert content(tmp_path) == content(alone)


def test_shards_that_are_numbered_as_they_came_are_not_for_workers(videos, network, tmp_path):
    mine, features = tmp_path / "videos", tmp_path / "features"
    shutil.copytree(videos, mine)
    extract(mine, features, network, shard_videos=SHARD_VIDEOS)
    write_video(mine / "nod" / "a.avi", 8)
    said = r"shard-00002\.h5 does not hold the videos nod/a\.avi to .*; extract without --partition"
    with pytest.raises(UserError, match=said):
        part(mine, features, network, 0, 7)
    assert extract(mine, features, network, shard_videos=SHARD_VIDEOS).videos == 1


def test_one_that_works_alone_and_workers_keep_each_other_out(videos, network, tmp_path):
    busy = r"another extraction is writing to"
    with Worker(tmp_path), pytest.raises(UserError, match=busy):
        extract(videos, tmp_path, network)
    assert not stamps(tmp_path)


def test_a_damaged_shard_is_made_again_by_its_worker(videos, alone, network, tmp_path):
    for index in (0, 1):
        part(videos, tmp_path, network, index, 2)
    path = tmp_path / "shard-00003.h5"
    path.write_bytes(path.read_bytes()[:-1000])
    part(videos, tmp_path, network, 1, 2)
    (tmp_path / "shard-00003.h5.damaged").unlink()
    assert content(tmp_path) == content(alone)


def test_the_last_worker_takes_what_the_others_said_and_opens_none_of_their_shards(videos, alone, network, tmp_path):
    """So damage that came since is found by the first read, and mended by the worker whose shard it is."""
    part(videos, tmp_path, network, 0, 2)
    path = tmp_path / "shard-00002.h5"
    path.write_bytes(bytes(path.stat().st_size))
    part(videos, tmp_path, network, 1, 2)
    assert {**content(tmp_path), path.name: b""} == {**content(alone), path.name: b""}
    cache = FeatureCache(tmp_path)
    with pytest.raises(UserError, match=r"shard-00002\.h5 is damaged .*; run the same extraction again"):
        cache.read(cache.shards[2].videos[0].name)
    assert part(videos, tmp_path, network, 0, 2).videos == SHARD_VIDEOS
    (tmp_path / "shard-00002.h5.damaged").unlink()
    assert content(tmp_path) == content(alone)


def test_a_worker_that_was_frozen_finds_its_work_taken_over_and_finishes_nothing(videos, alone, network, tmp_path):
    def taken_over(_):
        for file in [*tmp_path.glob("worker-*.part"), *tmp_path.glob("shard-*.part")]:  # as a sweep does
            file.unlink()

    with pytest.raises(UserError, match=r"was taken for dead; run the same command again"):
        part(videos, tmp_path, network, 0, 1, on_end=taken_over)
    assert not stamps(tmp_path)
    for lock in tmp_path.glob("shard-*.lock"):  # left as they are: they may be another's by now
        lock.unlink()
    part(videos, tmp_path, network, 0, 1)
    assert content(tmp_path) == content(alone)


def test_workers_need_no_flock(videos, alone, network, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Worker(tmp_path), pytest.raises(OSError, match="No locks available"):
        extract(videos, tmp_path, network)
    for index in (1, 0):
        part(videos, tmp_path, network, index, 2)
    assert content(tmp_path) == content(alone)


SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3",
         "SLURM_ARRAY_TASK_STEP": "2"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "environment", "meant"),
    [("0/1", {}, (0, 1)), ("2/3", SLURM, (2, 3)), ("auto", SLURM, (2, 4)), ("/9", SLURM, (2, 9)),
     ("auto", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}, (0, 1)),
     ("/5", {"JOB_COMPLETION_INDEX": "4"}, (4, 5))],
)  # fmt: skip
def test_which_worker_this_is(text, environment, meant):
    assert Partition.parse(text, environment) == Partition(*meant)


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [("3", {}, "must be I/N"), ("1/0", {}, "must be I/N"), ("-1/2", {}, "must be I/N"), ("2/2", {}, "0 to 1"),
     ("auto", {}, "is neither; give it"), ("/4", {}, "is neither; give it"), ("/2", SLURM, "an array without gaps"),
     ("/4", {"JOB_COMPLETION_INDEX": "x"}, "is neither"),
     ("auto", {"JOB_COMPLETION_INDEX": "1"}, "give --partition=/N")],
)  # fmt: skip
def test_which_worker_this_is_cannot_be_known(text, environment, said):
    with pytest.raises(UserError, match=said):
        Partition.parse(text, environment)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--partition=0/2"], "--partition needs --precision"),
     (["--partition=0/2", "--prune"], "--prune is not for workers"),
     (["--partition=0/2", "--motion_only"], "--motion_only is not for workers"),
     (["--partition=auto", "--precision=float32"], "give it: --partition=0/4")],
)  # fmt: skip
def test_flags_that_workers_cannot_have_together(tmp_path, flags, said):
    done = forked.run("data_prep.extract", f"--videos={tmp_path}", f"--features={tmp_path}/features", *flags)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


EXAMPLES = Path(__file__).parents[1] / "examples"


def given_flags(arguments: list[str]) -> flags.FlagValues:
    """What the flags of the extraction are, as it parses these arguments."""
    given = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", given)
        for define in ("string", "bool", "float", "integer", "enum"):
            of_flags = getattr(flags, f"DEFINE_{define}")
            patch.setattr(flags, f"DEFINE_{define}", partial(of_flags, flag_values=given))
        define_flags()
    assert given(["extract", *arguments]) == ["extract"]
    return given


def test_the_kubernetes_file_is_an_indexed_job_whose_flags_fit_it():
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["metadata"].keys() == {"name"}
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert 0 < spec["parallelism"] <= spec["completions"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure")  # a Job allows no other
    (container,) = pod["containers"]
    assert {"name", "image", "command", "args"} <= container.keys()
    program, name = container["command"]
    assert (program, PROGRAMS[name][0]) == ("action-attention", "data_prep.extract")
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounted.keys()
    given = given_flags(container["args"])
    assert all(Path(path).is_relative_to(mounted["media"]) for path in (given.videos, given.features))
    assert given["precision"].present
    last = {"JOB_COMPLETION_INDEX": str(spec["completions"] - 1)}
    assert Partition.parse(given.partition, last) == Partition(spec["completions"] - 1, spec["completions"])


def test_the_script_for_slurm_is_well_formed_and_passes_its_arguments_on(tmp_path):
    script = EXAMPLES / "slurm.sbatch"
    checker = ["shellcheck", script] if shutil.which("shellcheck") else ["bash", "-n", script]
    subprocess.run(checker, check=True)
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", script, "--videos=my videos", "--precision=float32"], check=True, text=True,
                          capture_output=True, env=os.environ | {"PYTHON": str(python)})  # fmt: skip
    assert done.stdout.splitlines() == [
        "-m", "data_prep.extract", "--partition=auto", "--videos=my videos", "--precision=float32"]  # fmt: skip


@pytest.mark.slow
def test_an_array_of_slurms_variables_extracts_by_the_script(videos, tmp_path):
    """The script as Slurm starts it, a network of its own, and an array from 4 to 6."""
    (tmp_path / "small.py").write_text(
        "from dataclasses import replace\nfrom conftest import small_network\n"
        "from action_attention.registry import register_backbone\n"
        "register_backbone('small')(lambda weights, precision: replace(small_network(), name='small one'))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), *sys.path])
    shutil.copytree(videos, tmp_path / "videos")
    for number in range(140):  # a list of three shards
        (tmp_path / "videos" / "nod" / f"junk{number}.avi").write_text("no video")
    arguments = ["--import=small", "--backbone=small", "--precision=float32", f"--videos={tmp_path}/videos"]
    printed = []
    for task in ("5", "6", "4"):
        slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "4"}
        environment = os.environ | slurm | {"PYTHONPATH": path, "PYTHON": sys.executable}
        command = ["bash", EXAMPLES / "slurm.sbatch", *arguments, f"--features={tmp_path}/features"]
        done = subprocess.run(
            command, cwd=EXAMPLES.parent, env=environment, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines()[-1].partition(": ")[2])
    assert [line.partition(";")[0] for line in printed] == [
        f"worker {index}/3 made 1 of its 1 shards now" for index in (1, 2, 0)
    ]
    assert printed[-1].endswith("all 3 of the cache are there, and its index is made")
    extract(tmp_path / "videos", tmp_path / "alone", replace(small_network(), name="small one"))
    assert content(tmp_path / "features") == content(tmp_path / "alone")
