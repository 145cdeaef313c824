"""Extraction: what is in the cache, and that stopping it at any point changes nothing."""

import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked
import h5py
import keras
import numpy as np
import pytest
from conftest import SPOILT, encode, write_frames, write_video

from action_attention import registry
from action_attention.clips import Clips
from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.registry import register_backbone
from action_attention.shards import HEAD_BYTES
from data_prep.annotations import actor_reader
from data_prep.backbones import Backbone, applications, build_backbone, vgg16
from data_prep.duplicates import frame_hash
from data_prep.extract import extract
from data_prep.pipeline import in_background
from data_prep.videos import read_frames


def content(folder: Path) -> dict:
    """Name -> features of every video, and which shard it is in."""
    cache = FeatureCache(folder)
    return {name: (cache._place[name][0].path.name, cache.read(name).tobytes()) for name in cache.videos}


def test_every_frame_of_every_video_is_in_the_cache_once(cache, videos, network):
    assert cache.complete
    for name, video in cache.videos.items():
        frames = read_frames(videos / name, 15.0, 224)
        assert video.frames == len(frames) == -(-video.decoded_frames // 2)
        padded = np.zeros((32, 224, 224, 3), np.uint8)
        padded[: len(frames)] = frames
        # batches are filled across videos: a frame's place in its batch must not matter
        np.testing.assert_array_equal(cache.read(name), network(padded)[: len(frames)])


def test_a_file_that_is_no_video_is_rejected_by_name_and_reason(cache, cache_folder):
    reason = "cannot be opened as a video: Invalid data found when processing input"
    assert json.loads((cache_folder / "rejects.json").read_text()) == {"nod/junk.avi": reason}
    assert cache.rejects.keys() == {"nod/junk.avi"}
    assert len(cache.videos) == 12


def test_a_video_that_decodes_short_is_kept_and_flagged(tmp_path, network):
    path = tmp_path / "videos" / "nod" / "a.avi"
    write_video(path, 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    extract(tmp_path / "videos", tmp_path / "features", network)
    (video,) = FeatureCache(tmp_path / "features").videos.values()
    assert video.is_short
    assert video.announced_frames == 40 > video.decoded_frames > 0


def test_extracting_again_does_nothing(cache_folder, videos, network):
    before = {path.name: path.stat().st_mtime_ns for path in cache_folder.glob("*.h5")}
    summary = extract(videos, cache_folder, network, shard_videos=5)
    assert (summary.videos, summary.frames) == (0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in cache_folder.glob("*.h5")} == before


def test_a_deleted_shard_is_made_again_and_nothing_else(tmp_path, cache_folder, videos, network):
    whole = content(cache_folder)
    extract(videos, tmp_path, network, shard_videos=5)
    (tmp_path / "shard-00001.h5").unlink()
    summary = extract(videos, tmp_path, network, shard_videos=5)
    assert summary.videos == 5
    assert content(tmp_path) == whole


def test_interrupted_at_any_video_it_resumes_to_the_same_bytes(tmp_path, cache_folder, videos, network, monkeypatch):
    """Ctrl-C arrives after the n-th video is written, for every n, in one folder."""
    whole, seen = content(cache_folder), []
    finish = sys.modules["data_prep.pipeline"]._finish_video

    def interrupted(writer, end, summary):
        if end.name not in seen:
            seen.append(end.name)
            raise KeyboardInterrupt
        finish(writer, end, summary)

    monkeypatch.setattr("data_prep.pipeline._finish_video", interrupted)
    stops = 0
    while True:
        try:
            extract(videos, tmp_path, network, shard_videos=5)
            break
        except KeyboardInterrupt:
            stops += 1
            assert not list(tmp_path.glob("*.part"))
    assert stops == 13
    assert content(tmp_path) == whole


def test_killed_extraction_resumes_to_the_same_bytes(tmp_path, videos):
    """SIGKILL of a process that extracts, as soon as its first shard is there; then it is run to the end."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom conftest import small_network\n"
        "import data_prep.extract as e, data_prep.pipeline as p\n"
        "finish = p._finish_video; p._finish_video = lambda *args: (time.sleep(0.1), finish(*args))\n"
        "e.extract(Path(sys.argv[1]), Path(sys.argv[2]), small_network(), shard_videos=2)"
    )
    command = [sys.executable, "-c", code, str(videos)]
    root = Path(__file__).parent
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, str(killed)], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (killed / "index.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in killed.glob("shard-*.h5")}
    assert 1 <= len(finished) < 7
    for folder in (killed, whole):
        subprocess.run([*command, str(folder)], cwd=root, check=True, capture_output=True)
    assert content(killed) == content(whole)
    assert not list(killed.glob("*.part"))
    for name, stamp in finished.items():
        assert (killed / name).stat().st_mtime_ns == stamp


def test_other_settings_or_changed_videos_are_refused(tmp_path, network):
    write_video(tmp_path / "videos" / "nod" / "a.avi", 8)
    extract(tmp_path / "videos", tmp_path / "features", network)
    with pytest.raises(UserError, match=r"extracted with fps=15\.0, now fps=10\.0 is asked for"):
        extract(tmp_path / "videos", tmp_path / "features", network, fps=10.0)
    write_video(tmp_path / "videos" / "nod" / "a.avi", 12)
    with pytest.raises(UserError, match=r"a\.avi has changed since it was extracted"):
        extract(tmp_path / "videos", tmp_path / "features", network)


def test_a_second_extraction_into_the_same_folder_is_refused(tmp_path, videos, network):
    import fcntl  # noqa: PLC0415

    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another extraction is writing"):
            extract(videos, tmp_path, network)


def test_damaged_shards_are_set_aside_and_made_again_and_nothing_else(tmp_path, cache_folder, videos, network):
    whole = content(cache_folder)
    shutil.copytree(cache_folder, tmp_path, dirs_exist_ok=True)
    first, second, third = sorted(tmp_path.glob("*.h5"))
    stamp = second.stat().st_mtime_ns
    first.write_bytes(first.read_bytes()[:-1000])
    # an earlier version's shard has no head: its checksum is recomputed
    data = bytearray(third.read_bytes()[HEAD_BYTES:])
    with h5py.File(third) as file:
        data[file["features"].id.get_chunk_info(0).byte_offset - HEAD_BYTES + 1000] ^= 1
    third.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00000\.h5 is damaged"):
        FeatureCache(tmp_path)
    summary = extract(videos, tmp_path, network, shard_videos=5)
    assert summary.videos == 8
    assert content(tmp_path) == whole
    assert second.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == [
        f"{first.name}.damaged",
        f"{third.name}.damaged",
    ]


def test_a_shard_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, cache_folder, videos, network, monkeypatch):
    shutil.copytree(cache_folder, tmp_path, dirs_exist_ok=True)

    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("action_attention.shards.file_sha256", refused)
    with pytest.raises(PermissionError):
        extract(videos, tmp_path, network, shard_videos=5)
    assert not list(tmp_path.glob("*.damaged"))


def test_a_shard_of_another_extraction_is_refused_by_name(tmp_path, cache_folder, videos, network):
    shutil.copytree(cache_folder, tmp_path / "features")
    write_video(tmp_path / "other" / "wave" / "x.avi", 8)
    extract(tmp_path / "other", tmp_path / "other_features", network)
    shutil.copy(tmp_path / "other_features" / "shard-00000.h5", tmp_path / "features" / "shard-00007.h5")
    with pytest.raises(UserError, match=r"shard-00007\.h5 is not in index\.json and holds wave/x\.avi, .*; remove it"):
        extract(videos, tmp_path / "features", network, shard_videos=5)


def test_a_video_that_crashes_hangs_or_exhausts_the_decoder_is_rejected_alone(tmp_path, network, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SPOILT), prepend=os.pathsep)
    folder = tmp_path / "videos" / "wave"
    names = ("a", "b-crash-at-0", "c", "d-crash-at-9", "e", "f-hang-at-5", "g", "h-exhaust-at-3", "i")
    for seed, name in enumerate(names):
        write_video(folder / f"{name}.avi", 20, seed=seed)
    extract(tmp_path / "videos", tmp_path / "features", network, decode_timeout=1)
    cache = FeatureCache(tmp_path / "features")
    assert cache.rejects == {
        "wave/b-crash-at-0.avi": "the decoder crashed (SIGSEGV)",
        "wave/d-crash-at-9.avi": "the decoder crashed (SIGSEGV)",
        "wave/f-hang-at-5.avi": "the decoder gave no frame for 1 s",
        "wave/h-exhaust-at-3.avi": "the decoder failed: out of memory",
    }
    for name in "acegi":
        padded = np.zeros((32, 224, 224, 3), np.uint8)
        padded[:10] = read_frames(folder / f"{name}.avi", 15.0, 224)
        np.testing.assert_array_equal(cache.read(f"wave/{name}.avi"), network(padded)[:10])
    assert dict(cache.verify()) == {tmp_path / "features" / "shard-00000.h5": True}


def test_a_given_name_that_is_not_utf8_is_refused(tmp_path, network):
    with pytest.raises(UserError, match=r"the name 'wave/caf\\udce9\.avi' is not UTF-8, .*; rename the file"):
        extract(tmp_path, tmp_path / "features", network, names=[os.fsdecode(b"wave/caf\xe9.avi")])


def test_ctrl_c_does_not_wait_for_a_decoder_that_hangs(tmp_path, network, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SPOILT), prepend=os.pathsep)
    write_video(tmp_path / "videos" / "wave" / "a-hang-at-5.avi", 20)
    # a shell without job control starts its background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "videos", tmp_path / "features", network, decode_timeout=600)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 60
    assert [path.name for path in (tmp_path / "features").iterdir()] == [".lock"]


def test_a_full_disk_is_one_sentence(tmp_path, cache_folder, videos, network, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("action_attention.features.write_json", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); its 1 finished shards"):
            extract(videos, tmp_path, network, shard_videos=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "shard-00000.h5"]
    extract(videos, tmp_path, network, shard_videos=5)
    assert content(tmp_path) == content(cache_folder)


def test_a_folder_that_vanishes_is_one_sentence_that_does_not_ask_for_room(tmp_path, videos, network, monkeypatch):
    def gone(path, content):
        raise OSError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr("action_attention.features.write_json", gone)
    with pytest.raises(
        UserError, match=r"its 1 finished shards are safe: its folder was removed meanwhile and run the"
    ):
        extract(videos, tmp_path, network, shard_videos=5)


def test_features_that_are_not_finite_are_rejected_by_name_and_the_others_stay(tmp_path, network):
    """The network gives NaN for frames without blue, infinity for frames without green."""
    for name, colour in (("a", (90, 90, 90)), ("b", (0, 90, 90)), ("c", (90, 90, 91)), ("d", (90, 0, 90))):
        picture = np.full((12, 48, 64, 3), colour, np.uint8)
        picture[:, :24] //= 2
        write_frames(tmp_path / "videos" / "nod" / f"{name}.avi", picture)

    def spoil(frames):
        cubes = network(frames)
        cubes[frames[..., 2].max((1, 2)) < 20, 3, 3, 7] = np.nan
        cubes[frames[..., 1].max((1, 2)) < 20, 0, 0, 0] = np.inf
        return cubes

    class Spoilt(type(network)):
        __call__ = staticmethod(spoil)

    extract(tmp_path / "videos", tmp_path / "features", Spoilt(**vars(network)))
    cache = FeatureCache(tmp_path / "features")
    reason = "its features hold NaN or more than float16 can; check the backbone's weights and precision"
    assert cache.rejects == {"nod/b.avi": reason, "nod/d.avi": reason}
    assert list(cache.videos) == ["nod/a.avi", "nod/c.avi"]
    for name, video in cache.videos.items():
        padded = np.zeros((32, 224, 224, 3), np.uint8)
        padded[:6] = read_frames(tmp_path / "videos" / name, 15.0, 224)
        np.testing.assert_array_equal(cache.read(name), network(padded)[: video.frames])
        hashes = [frame_hash(frame) for frame in padded[:6]]
        np.testing.assert_array_equal(cache.frame_hashes(name), hashes)
    assert dict(cache.verify()) == {tmp_path / "features" / "shard-00000.h5": True}


def test_weights_that_are_not_finite_are_refused(monkeypatch):
    @register_backbone("spoilt")
    def build(weights, precision):
        frames = keras.Input((8, 8, 3), dtype="uint8")
        kernel = keras.initializers.Constant(float("nan"))
        cubes = keras.layers.Conv2D(4, 1, kernel_initializer=kernel)(keras.layers.Rescaling(1.0)(frames))
        return Backbone("spoilt map", keras.Model(frames, cubes), "none", weights, "0" * 64, "float32")

    try:
        with pytest.raises(UserError, match="the weights of spoilt map hold NaN or infinity"):
            build_backbone("spoilt", "random")
    finally:
        registry._backbones.pop("spoilt")


def test_what_is_gone_renamed_new_or_edited_is_said_on_resume(tmp_path, network, caplog):
    videos, features = tmp_path / "videos", tmp_path / "features"
    for seed, name in enumerate(("a", "b", "c", "d")):
        write_video(videos / "nod" / f"{name}.avi", 20 + seed, seed=seed)
    extract(videos, features, network, shard_videos=2)
    before = content(features)
    (videos / "nod" / "a.avi").rename(videos / "nod" / "z.avi")
    (videos / "nod" / "d.avi").unlink()
    caplog.clear()
    extract(videos, features, network, shard_videos=2)
    said = "2 videos of .* are gone from .*: nod/a.avi \\(now nod/z.avi\\), nod/d.avi; without --prune, which removes"
    assert re.search(said, caplog.text)
    assert list(FeatureCache(features).videos) == [f"nod/{name}.avi" for name in "abcdz"]  # until it is asked for
    extract(videos, features, network, shard_videos=2, prune=True)
    cache = FeatureCache(features)
    assert list(cache.videos) == ["nod/b.avi", "nod/c.avi", "nod/z.avi"]
    assert all(holds for _, holds in cache.verify())
    for name in ("nod/b.avi", "nod/c.avi"):
        assert cache.read(name).tobytes() == before[name][1]
        assert cache.frame_hashes(name).shape == (cache.videos[name].frames, 256)
    assert cache.read("nod/z.avi").tobytes() == before["nod/a.avi"][1]
    cache.close()
    path = videos / "nod" / "b.avi"
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # of the same size
    with pytest.raises(UserError, match=r"b\.avi has changed since it was extracted; delete .*shard-00000.h5 and run"):
        extract(videos, features, network, shard_videos=2)


def test_pruning_a_whole_shard_away_and_one_of_rejects_only(tmp_path, network):
    videos, features = tmp_path / "videos", tmp_path / "features"
    for name in ("a", "b", "c"):
        write_video(videos / "nod" / f"{name}.avi", 8)
    (videos / "nod" / "d.avi").write_text("no video")
    extract(videos, features, network, shard_videos=2)
    for name in ("a", "b", "c"):
        (videos / "nod" / f"{name}.avi").unlink()
    write_video(videos / "nod" / "e.avi", 8)
    extract(videos, features, network, shard_videos=2, prune=True)
    cache = FeatureCache(features)
    assert (list(cache.videos), list(cache.rejects)) == (["nod/e.avi"], ["nod/d.avi"])
    assert [(path.name, holds) for path, holds in cache.verify()] == [
        ("shard-00000.h5", True),
        ("shard-00001.h5", True),
    ]


def test_doubtful_videos_and_files_that_are_passed_over_are_in_the_cache(tmp_path, network):
    encode(tmp_path / "videos" / "nod" / "still.mp4", 20, still=True)
    encode(tmp_path / "videos" / "nod" / "good.mp4", 20)
    (tmp_path / "videos" / "top.mp4").write_bytes((tmp_path / "videos" / "nod" / "good.mp4").read_bytes())
    (tmp_path / "videos" / "nod" / "notes.txt").touch()
    extract(tmp_path / "videos", tmp_path / "features", network)
    cache = FeatureCache(tmp_path / "features")
    assert cache.remarks == {"nod/still.mp4": ["all its 10 sampled frames are the same picture"]}
    assert list(cache.passed_over) == ["nod/notes.txt", "top.mp4"]
    assert json.loads((tmp_path / "features" / "rejects.json").read_text()) == cache.passed_over


def test_background_iteration_keeps_order_and_raises_where_it_is_consumed():
    def items():
        yield from range(50)
        raise OSError("disk gone")

    seen = []

    def consume():
        for item in in_background(items()):
            seen.append(item)

    with pytest.raises(OSError, match="disk gone"):
        consume()
    assert seen == list(range(50))


def test_a_backbone_of_ones_own_goes_through_to_clips_in_its_own_shapes(tmp_path, videos, monkeypatch):
    """Frames of 30 x 30 pixels, cubes of 5 x 6 x 24, in a cache that says so and on clips and grids."""
    monkeypatch.setattr("action_attention.registry._backbones", {})

    @register_backbone("tiny")
    def build(weights, precision):
        frames = keras.Input((30, 30, 3), dtype="uint8")
        pooled = keras.layers.AveragePooling2D((6, 5))(keras.layers.Rescaling(1 / 255)(frames))
        cubes = keras.layers.Dense(24, kernel_initializer=keras.initializers.RandomNormal(seed=0))(pooled)
        model = keras.Model(frames, keras.ops.cast(cubes, "float16"))
        return Backbone("tiny map", model, "none", weights, "0" * 64, "float32")

    network = build_backbone("tiny", "random")
    extract(videos, tmp_path, network, shard_videos=5)
    cache = FeatureCache(tmp_path)
    assert cache.cube_shape == (5, 6, 24)
    assert {key: cache.settings[key] for key in ("backbone", "preprocessing", "resize")} == {
        "backbone": "tiny map", "preprocessing": "none", "resize": "30x30 bilinear"}  # fmt: skip
    for name in sorted(cache.videos)[::4]:
        np.testing.assert_allclose(cache.read(name), network(read_frames(videos / name, 15.0, 30)), atol=1e-3)
    name = max(cache.videos, key=lambda n: cache.videos[n].frames)
    clips = Clips(cache, [name], [name.split("/")[0]], 6)
    ((batch, _),) = clips.batches(len(clips))
    assert batch["features"].shape == (len(clips), 6, 5, 6, 24)
    np.testing.assert_array_equal(batch["features"][0], cache.read(name, 0, 6))
    (tmp_path / "boxes.json").write_text(json.dumps({name: [[0, 0, 9, 9]] * cache.videos[name].decoded_frames}))
    actor = actor_reader(tmp_path / "boxes.json", videos, cache)(name)
    assert actor.cells.shape == actor.centres.shape == (cache.videos[name].frames, 5, 6)
    cache.close()


def cut_off(home: Path) -> None:
    """Nothing can be downloaded in this process, and nothing was."""

    def no(*_):
        raise OSError("no route to host")

    os.environ["XDG_CACHE_HOME"] = str(home)
    applications.download = vgg16.download = vgg16._from_mirror = no


@pytest.mark.parametrize("backbone", ["vgg16", pytest.param("MobileNet", marks=pytest.mark.slow)])
def test_random_weights_stand_in_only_where_imagenets_cannot_be_had(tmp_path, backbone):
    """Without a network: in a process that cannot download, with and without the flag, and with a wrong name."""
    write_video(tmp_path / "videos" / "wave" / "a.avi", 2)

    def run(*arguments):
        return forked.run("data_prep.extract", f"--videos={tmp_path}/videos", f"--features={tmp_path}/features",
                          *arguments, prepare=functools.partial(cut_off, tmp_path))  # fmt: skip

    refused = run(f"--backbone={backbone}")
    assert refused.returncode == 1
    assert "ImageNet weights could not be obtained" in refused.stderr
    assert "Traceback" not in refused.stderr
    unknown = run("--backbone=nix", "--fall_back_to_random")
    assert (unknown.returncode, "RANDOM" in unknown.stdout) == (1, False)
    assert "there is no backbone nix" in unknown.stderr
    done = run(f"--backbone={backbone}", "--fall_back_to_random")
    assert done.returncode == 0, done.stderr
    assert "RANDOM WEIGHTS ARE USED INSTEAD" in done.stdout
    cache = FeatureCache(tmp_path / "features")
    assert (cache.settings["weights"], cache.settings["backbone"].split()[0].lower()) == ("random", backbone.lower())
    assert f"1 frames, {cache.file_bytes / 1e6:.0f} MB" in done.stdout
