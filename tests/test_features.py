"""The feature cache: what is written is what is read, and what does not match is refused."""

import errno
import json
import os
import shutil

import h5py
import numpy as np
import pytest

from action_attention.errors import UserError
from action_attention.features import ArrayFeatures, FeatureCache, write_index, write_json
from action_attention.shards import FILTERS, HEAD_BYTES, DamagedError, Shard, ShardWriter
from action_attention.tables import Video

SETTINGS = {
    "schema_version": 1, "backbone": "VGG16 block5_pool", "weights": "random", "weights_sha256": "0" * 64,
    "precision": "float32", "preprocessing": "p", "resize": "224x224 bilinear", "fps": 15.0,
}  # fmt: skip


CUBE = (7, 7, 512)


def sparse_cubes(frames, seed=0, cube=CUBE):
    """Like pool5: 90 % zeros, values up to 400."""
    random = np.random.default_rng(seed)
    shape = (frames, *cube)
    return (random.uniform(0, 400, shape) * (random.random(shape) < 0.1)).astype(np.float16)


def write_shard(path, lengths, settings=SETTINGS, compression="zstd", prefix="v", cube=CUBE):
    writer = ShardWriter(path, cube, settings, {"numpy": "2"}, compression)
    for index, frames in enumerate(lengths):
        file_name, row, source = f"{prefix}{index}.avi", writer.rows, 2 * frames
        video = Video("wave", file_name, row, frames, 30.0, 15.0, source, source, 320, 240, 9, "")
        writer.append(sparse_cubes(frames, index, cube))
        writer.add_video(video)
    writer.commit()


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path / "shard-00000.h5", [3, 11, 20])
    write_shard(tmp_path / "shard-00001.h5", [5], prefix="w")
    write_index(tmp_path, [Shard(path) for path in sorted(tmp_path.glob("*.h5"))], tmp_path, complete=True)
    return tmp_path


@pytest.mark.parametrize("compression", sorted(FILTERS))
def test_round_trip_is_exact_and_small(tmp_path, compression):
    write_shard(tmp_path / "shard-00000.h5", [3, 11, 20], compression=compression)
    shard = Shard(tmp_path / "shard-00000.h5")
    write_index(tmp_path, [shard], tmp_path, complete=True)
    cache = FeatureCache(tmp_path)
    for index, frames in enumerate([3, 11, 20]):
        np.testing.assert_array_equal(cache.read(f"wave/v{index}.avi"), sparse_cubes(frames, index))
    np.testing.assert_array_equal(cache.read("wave/v1.avi", 4, 9), sparse_cubes(11, 1)[4:9])
    assert cache.frames == 34
    assert cache.file_bytes < 34 * 7 * 7 * 512 * 2 / 3
    assert shard.compute_sha256() == shard.sha256


def test_gzip_shards_need_no_plugin(tmp_path):
    write_shard(tmp_path / "shard-00000.h5", [3], compression="gzip")
    with h5py.File(tmp_path / "shard-00000.h5") as file:
        assert file["features"].compression == "gzip"


def test_a_shard_has_its_final_name_only_once_committed(tmp_path):
    path = tmp_path / "shard-00000.h5"
    writer = ShardWriter(path, CUBE, SETTINGS, {})
    writer.append(sparse_cubes(3))
    assert not path.exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def flip(path, offset, bit=4):
    content = bytearray(path.read_bytes())
    content[offset] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 40, 511, 512, 700, 3000, 0.5, 0.999])
def test_a_flipped_bit_anywhere_is_found_and_named(folder, place):
    path = folder / "shard-00000.h5"
    flip(path, int(place if place >= 1 else place * path.stat().st_size))
    cache = FeatureCache(folder)
    np.testing.assert_array_equal(cache.read("wave/w0.avi"), sparse_cubes(5))
    for _ in range(2):
        with pytest.raises(DamagedError, match=r"shard-00000\.h5 is damaged .* run the same extraction again"):
            cache.read("wave/v1.avi")
    assert dict(cache.verify()) == {path: False, folder / "shard-00001.h5": True}
    (folder / "shards.jsonl").unlink()  # as in a cache of before version 0.3, all of which is checked when it is opened
    with pytest.raises(DamagedError, match=r"shard-00000\.h5 is damaged .* run the same extraction again"):
        FeatureCache(folder)


def test_shards_of_earlier_versions_which_have_no_head_are_read_and_verified(folder):
    path = folder / "shard-00000.h5"
    shard = Shard(path)
    videos, sha256 = shard.videos, shard.compute_sha256()
    shard.close()
    path.write_bytes(path.read_bytes()[HEAD_BYTES:])
    cache = FeatureCache(folder)
    assert (cache.shards[0].videos, cache.shards[0].compute_sha256()) == (videos, sha256)
    np.testing.assert_array_equal(cache.read("wave/v1.avi"), sparse_cubes(11, 1))
    cache.close()
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(1)
        offset = chunk.byte_offset + chunk.size // 2
    flip(path, offset)
    cache = FeatureCache(folder)
    assert dict(cache.verify()) == {path: False, folder / "shard-00001.h5": True}
    cache.close()


def test_cubes_of_a_rejected_video_are_dropped(tmp_path):
    def write(path, bad):
        writer = ShardWriter(path, CUBE, SETTINGS, {})
        for index in range(3):
            if bad:
                writer.append(sparse_cubes(13, 7))
                writer.append(sparse_cubes(2, 8))
                writer.reject(f"wave/bad{index}.avi", "the decoder crashed")
            video = Video("wave", f"v{index}.avi", writer.rows, 5, 30.0, 15.0, 10, 10, 320, 240, 9, "")
            writer.append(sparse_cubes(5, index))
            writer.add_video(video)
        if bad:
            writer.append(sparse_cubes(3, 9))
            writer.reject("wave/last.avi", "the decoder crashed")
        writer.commit()
        return Shard(path)

    clean, mixed = write(tmp_path / "clean.h5", False), write(tmp_path / "mixed.h5", True)
    assert mixed.videos == clean.videos
    assert sorted(mixed.rejects) == ["wave/bad0.avi", "wave/bad1.avi", "wave/bad2.avi", "wave/last.avi"]
    np.testing.assert_array_equal(mixed.read(0, mixed.frames), clean.read(0, clean.frames))
    assert mixed.sha256 == clean.sha256 == mixed.compute_sha256()


@pytest.mark.parametrize("failing_write", [1, 2, 3])
def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, failing_write):
    """No room is left at the n-th reservation: two of appended cubes, one of the tables."""
    reserve, writes = os.posix_fallocate, []

    def full(*arguments):
        writes.append(arguments)
        if len(writes) == failing_write:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(*arguments)

    monkeypatch.setattr("action_attention.shards.os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*shard-00000\.h5'"):
        write_shard(tmp_path / "shard-00000.h5", [3, 4])
    assert list(tmp_path.iterdir()) == []


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    def full(path, text):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "a.json", {"old": 1})
    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert [(path.name, json.loads(path.read_text())) for path in tmp_path.iterdir()] == [("a.json", {"old": 1})]


@pytest.mark.parametrize("keep", [0, 100, 5000, -100])
def test_a_truncated_shard_is_refused_by_name(folder, keep):
    path = folder / "shard-00000.h5"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"shard-00000\.h5 is damaged .* run the same extraction again"):
        FeatureCache(folder)


def test_a_missing_shard_is_refused_by_name(folder):
    (folder / "shard-00001.h5").unlink()
    with pytest.raises(UserError, match=r"index\.json and the shards disagree on shard-00001\.h5"):
        FeatureCache(folder)


def test_shards_of_two_extractions_are_refused(folder):
    write_shard(folder / "shard-00002.h5", [4], {**SETTINGS, "fps": 10.0}, prefix="x")
    with pytest.raises(UserError, match="other settings"):
        FeatureCache(folder)
    shutil.copy(folder / "shard-00001.h5", folder / "shard-00002.h5")
    with pytest.raises(UserError, match=r"wave/w0\.avi is in .*00001.* and in .*00002"):
        FeatureCache(folder)


def test_another_schema_is_refused(folder):
    write_shard(folder / "shard-00000.h5", [3], {**SETTINGS, "schema_version": 99})
    with pytest.raises(UserError, match="schema 99, this version reads 1"):
        FeatureCache(folder)


@pytest.mark.parametrize("key", ["videos", "frames", "features_sha256"])
def test_an_edited_index_is_refused_by_the_shard_it_lies_about(folder, key):
    index = json.loads((folder / "index.json").read_text())
    index["shards"][1][key] = 8
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"index\.json and the shards disagree on shard-00001\.h5; run"):
        FeatureCache(folder)
    index["settings"]["fps"] = 25.0
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="disagree on its settings, shard-00001"):
        FeatureCache(folder)


def test_no_cache_and_a_broken_index_say_what_to_do(folder, tmp_path_factory):
    with pytest.raises(UserError, match="holds no feature cache"):
        FeatureCache(tmp_path_factory.mktemp("empty"))
    (folder / "index.json").write_text(json.dumps({"shards": 3}))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        FeatureCache(folder)


def test_fingerprint_tells_features_apart(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    assert FeatureCache(folder).fingerprint == FeatureCache(other).fingerprint
    write_shard(other / "shard-00001.h5", [6], prefix="w")
    write_index(other, [Shard(path) for path in sorted(other.glob("*.h5"))], other, complete=True)
    assert FeatureCache(folder).fingerprint != FeatureCache(other).fingerprint


def test_cubes_of_any_shape_are_stored_and_read(tmp_path):
    write_shard(tmp_path / "shard-00000.h5", [3, 11], cube=(5, 6, 24))
    write_index(tmp_path, [Shard(tmp_path / "shard-00000.h5")], tmp_path, complete=True)
    cache = FeatureCache(tmp_path)
    assert cache.cube_shape == (5, 6, 24)
    np.testing.assert_array_equal(cache.read("wave/v1.avi", 4, 9), sparse_cubes(11, 1, (5, 6, 24))[4:9])


def test_room_is_reserved_for_what_hdf5_writes_anew_of_large_cubes(tmp_path, monkeypatch):
    """An append may move the chunk that it fills and start another: so much is reserved beside the cubes themselves."""
    reserved = []
    monkeypatch.setattr("action_attention.shards.os.posix_fallocate", lambda *arguments: reserved.append(arguments))
    cube = (48, 48, 256)  # 1.2 MB; 9.4 MB a chunk
    writer = ShardWriter(tmp_path / "shard-00000.h5", cube, SETTINGS, {})
    noise = np.random.default_rng(0).integers(0, 2**16, (9, *cube), np.uint16).view(np.float16)  # nothing packs it
    for frames in (7, 9, 1):
        size = writer._file.id.get_filesize()
        writer.append(noise[:frames])
        assert reserved[-1][1:] >= (0, size + (frames + 2 * 8) * noise[0].nbytes)
        assert reserved[-1][2] >= writer._file.id.get_filesize()
    writer.discard()


def test_motion_maps_of_some_videos_only_are_not_written(tmp_path):
    writer = ShardWriter(tmp_path / "shard-00000.h5", (2, 2, 4), SETTINGS, {})
    for row, motion in ((0, np.zeros((3, 2, 2), np.float16)), (3, None)):
        writer.append(sparse_cubes(3, cube=(2, 2, 4)))
        writer.add_video(Video("wave", f"{row}.avi", row, 3, 30.0, 15.0, 6, 6, 320, 240, 9, ""), motion=motion)
    with pytest.raises(ValueError, match="Received: 3 of 6"):
        writer.commit()
    assert not list(tmp_path.iterdir())


def test_shards_with_other_cubes_are_refused(folder):
    write_shard(folder / "shard-00002.h5", [4], prefix="x", cube=(5, 6, 24))
    sentence = r"shard-00002\.h5 has cubes \(5, 6, 24\), .*shard-00000\.h5 has \(7, 7, 512\); remove one"
    with pytest.raises(UserError, match=sentence):
        FeatureCache(folder)


@pytest.mark.parametrize("arrays", [{}, {"a/b": np.zeros((3, 4, 5))}, {"a/b": np.zeros((0, 2, 2, 4))},
                                    {"a/b": np.zeros((3, 2, 2, 4)), "a/c": np.zeros((3, 2, 3, 4))}])  # fmt: skip
def test_arrays_that_are_no_features_are_refused(arrays):
    with pytest.raises(UserError, match="features must be"):
        ArrayFeatures(arrays)
