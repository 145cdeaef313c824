"""Caches of many shards: what is opened, held and read does not grow with what is not asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import h5py
import numpy as np
import pytest
from test_features import CUBE, SETTINGS, flip, sparse_cubes

from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.features import FeatureCache, write_index
from action_attention.files import file_sha256
from action_attention.shards import CHUNK_FRAMES, Shard, ShardWriter
from action_attention.tables import Tables, Video
from tests import hostile

VIDEOS = 60  # of a shard
ROOT = Path(__file__).parents[1]
START = """
import json, re, sys, time
from pathlib import Path
from action_attention.clips import Clips, class_names
from action_attention.features import FeatureCache

def kilobytes(what):
    return int(re.search(rf"{what}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

opened, seconds = [], -time.process_time()
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
before = kilobytes("VmRSS")
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
cache = FeatureCache(Path(sys.argv[1]))
clips = Clips(cache, list(cache.videos), class_names(list(cache.videos)), 30, in_memory=False, motion=True)
opened, seconds = [name for name in opened if name.startswith(sys.argv[1])], seconds + time.process_time()
said = {"videos": len(cache.videos), "clips": len(clips), "opened": sorted(Path(name).name for name in opened)}
print(json.dumps(said | {"seconds": seconds, "bytes": 1024 * (kilobytes("VmHWM") - before)}))
"""


def make_large(folder: Path, shards: int) -> None:
    """A cache as its index tells of it, with names as long as HMDB-51's. Its shards are zeros: none can be opened."""
    listed = []
    for number in range(shards):
        path = folder / f"shard-{number:05}.h5"
        with path.open("wb") as file:
            file.truncate(20_000_000)
        videos = [
            Video(f"class{n % 51:02}", f"A_Film_Of_1987_and_its_scene_{number:06}_f_cm_np1_fr_med_{n}.avi", 45 * n, 45,
                  30.0, 15.0, 90, 90, 320, 240, 300_000 + n, f"{number * VIDEOS + n:064x}")
            for n in range(VIDEOS)
        ]  # fmt: skip
        said = Tables(20_000_000, SETTINGS, CUBE, f"{number:064x}", "zstd", "{}", videos, {}, {}, True, True)
        listed.append(Shard(path, said))
    write_index(folder, listed, folder, complete=True)


def start(folder: Path) -> dict:
    """A process that opens a cache and cuts the clips of all its videos."""
    command = [sys.executable, "-c", START, folder]
    return json.loads(subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout)


def test_a_large_cache_opens_three_times_two_files_however_many_shards_it_has(tmp_path):
    said = []
    for shards in (5, 500):
        (tmp_path / str(shards)).mkdir()
        make_large(tmp_path / str(shards), shards)
        said.append(start(tmp_path / str(shards)))
    assert [each["videos"] for each in said] == [5 * VIDEOS, 500 * VIDEOS]
    assert [each["clips"] for each in said] == [2 * each["videos"] for each in said]
    assert said[0]["opened"] == said[1]["opened"] == ["index.json", "shards.jsonl", "shards.jsonl"]
    cache = FeatureCache(tmp_path / "5")
    with pytest.raises(UserError, match=r"shard-00003\.h5 is damaged .*; run the same extraction again"):
        cache.read(cache.shards[3].videos[0].name)


@pytest.mark.slow
def test_three_hundred_thousand_videos(tmp_path, capsys):
    """Files opened are as many as for fifty shards; memory is bounded by the videos. The seconds are only printed."""
    said = {}
    for shards in (50, 500, 5000):
        (tmp_path / str(shards)).mkdir()
        make_large(tmp_path / str(shards), shards)
        said[shards] = start(tmp_path / str(shards))
    with capsys.disabled():
        print(
            "\n| shards | videos | files opened | processor time | memory | of each video |\n|---|---|---|---|---|---|"
        )
        for shards, each in said.items():
            print(f"| {shards} | {each['videos']} | {len(each['opened'])} | {each['seconds']:.2f} s "
                  f"| {each['bytes'] / 1e6:.0f} MB | {each['bytes'] / each['videos']:.0f} B |")  # fmt: skip
    assert said[50]["opened"] == said[5000]["opened"]
    assert said[5000]["bytes"] < 3000 * said[5000]["videos"]


def read_bytes() -> int:
    """That this process asked the system for so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_clip_reads_the_chunks_that_hold_it_and_no_more(tmp_path):
    """In a shuffled order over three shards, after each of them was checked: the bytes of at most five chunks of eight
    frames for a clip of thirty, of videos of three hundred."""
    for number in range(3):
        writer = ShardWriter(tmp_path / f"shard-{number:05}.h5", CUBE, SETTINGS, {})
        for n in range(2):
            writer.append(sparse_cubes(300, 10 * number + n))
            writer.add_video(Video("wave", f"{number}{n}.avi", 0, 300, 30.0, 15.0, 600, 600, 320, 240, 9, ""))
        writer.commit()
    write_index(tmp_path, [Shard(path) for path in sorted(tmp_path.glob("*.h5"))], tmp_path, complete=True)
    cache = FeatureCache(tmp_path)
    clips = Clips(cache, list(cache.videos), ["wave"], 30, stride=13, in_memory=False)
    for name in cache.videos:
        cache.read(name, 0, 1)
    sizes = {shard.path: chunk_sizes(shard.path) for shard in cache.shards}
    for index in np.random.default_rng(0).permutation(len(clips)):
        clip = clips.clips[index]
        shard, video = cache._place[clip.video]
        first, last = (video.first_row + clip.start + frame for frame in (0, clip.frames - 1))
        chunks = sizes[shard.path][first // CHUNK_FRAMES : last // CHUNK_FRAMES + 1]
        assert len(chunks) <= 5
        before = read_bytes()
        clips.load(np.array([index]))
        assert read_bytes() - before <= sum(chunks) + 10_000
    cache.close()


def chunk_sizes(path: Path) -> list[int]:
    """Bytes of each chunk of a shard's features, as HDF5 tells them."""
    with h5py.File(path) as file:
        features = file["features"].id
        return [features.get_chunk_info(number).size for number in range(features.get_num_chunks())]


def rewritten(**changes):
    """The list with other values in its first line, and an index that says its checksum: anybody can compute that."""

    def change(folder):
        first, *rest = (folder / "shards.jsonl").read_text().splitlines()
        said = json.loads(first)
        lines = [json.dumps(said | {name: make(said[name]) for name, make in changes.items()}), *rest]
        (folder / "shards.jsonl").write_text("".join(f"{line}\n" for line in lines))
        index = json.loads((folder / "index.json").read_text())
        index["tables_sha256"] = file_sha256(folder / "shards.jsonl")
        (folder / "index.json").write_text(json.dumps(index))

    return change


def first_video(place, value):
    """A change of one field of the first video's row."""
    return rewritten(videos=lambda rows: [[*rows[0][:place], value, *rows[0][place + 1 :]], *rows[1:]])


def a_pipe(folder):
    (folder / "shards.jsonl").unlink()
    os.mkfifo(folder / "shards.jsonl")


UNTRUSTED = {
    "absent": lambda folder: (folder / "shards.jsonl").unlink(),
    "a pipe": a_pipe,
    "cut": lambda folder: os.truncate(folder / "shards.jsonl", 300),
    "another folder's file": rewritten(file=lambda name: f"../cache/{name}"),
    "another size": rewritten(file_bytes=lambda size: size + 1),
    "more frames than bytes": first_video(3, 10**12),
    "no frames": first_video(3, 0),
    "a name that leads elsewhere": first_video(1, ".."),
    "a row too short": rewritten(videos=lambda rows: [row[:-1] for row in rows]),
    "no settings": rewritten(settings=lambda _: {}),
    "other settings than the other shard": rewritten(settings=lambda settings: settings | {"precision": "bfloat16"}),
    "flat cubes": rewritten(cube_shape=lambda _: [7, 7]),
    "a video twice": rewritten(videos=lambda rows: [rows[0], *rows[:-1]]),
    "no JSON": rewritten(sha256=lambda _: None),
}


@pytest.mark.parametrize("what", UNTRUSTED)
def test_a_list_that_cannot_be_is_not_used(tmp_path, what):
    """The shards speak for themselves then, as in a cache of before version 0.3, and all are checked at once."""
    folder = hostile.make_cache(tmp_path / "cache")
    UNTRUSTED[what](folder)
    cache = FeatureCache(folder)
    assert [video.frames for video in cache.videos.values()] == [3, 5, 4]
    np.testing.assert_array_equal(cache.read("wave/v1.avi"), sparse_cubes(5, 1, hostile.CUBE))
    flip(folder / "shard-00001.h5", 700)
    with pytest.raises(UserError, match=r"shard-00001\.h5 is damaged .*; run the same extraction again"):
        FeatureCache(folder)


@pytest.mark.parametrize(
    "change",
    [first_video(9, 321), first_video(11, "f" * 64), rewritten(remarks=lambda _: {"wave/v0.avi": ["doubtful"]})],
)
def test_a_list_that_says_something_else_than_the_shard_is_noticed_at_the_first_read(tmp_path, change):
    folder = hostile.make_cache(tmp_path / "cache")
    change(folder)
    cache = FeatureCache(folder)
    assert cache.read("wave/w0.avi").shape == (4, *hostile.CUBE)
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard-00000\.h5 is damaged \(it is not the one that the index"):
            cache.read("wave/v0.avi")


def test_damage_is_named_once_it_is_read_in_training_too(tmp_path, cache_folder):
    """Through `tf.data`, from features, or from motion maps, with the index's list; and `--verify` names it at once."""
    shutil.copytree(cache_folder, tmp_path / "cache")
    damaged = tmp_path / "cache" / "shard-00001.h5"
    flip(damaged, damaged.stat().st_size // 2)
    cache = FeatureCache(tmp_path / "cache")
    for motion in (False, True):
        clips = Clips(cache, list(cache.videos), ["leap", "nod", "spin"], 4, in_memory=False, motion=motion)
        with (
            pytest.raises(UserError, match=r"shard-00001\.h5 is damaged .*; run the same extraction again"),
            cache.reading(),
        ):
            for _ in clips.shuffled_batches(4, 0, range(1)):
                pass
    done = forked.run("data_prep.inspect", f"--features={tmp_path}/cache", "--verify")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: damaged by their checksums: {damaged}; run the same extraction again, which redoes only them\n"
    )
