"""The feature cache: what is written is what is read, and what does not match is refused."""

import json
import shutil

import h5py
import numpy as np
import pytest

from action_attention.errors import UserError
from action_attention.features import FILTERS, FeatureCache, Shard, ShardWriter, Video, write_index

SETTINGS = {
    "schema_version": 1, "backbone": "VGG16 block5_pool", "weights": "random", "weights_sha256": "0" * 64,
    "precision": "float32", "preprocessing": "p", "resize": "224x224 bilinear", "fps": 15.0,
}  # fmt: skip


def sparse_cubes(frames, seed=0):
    """Like pool5: 90 % zeros, values up to 400."""
    random = np.random.default_rng(seed)
    shape = (frames, 7, 7, 512)
    return (random.uniform(0, 400, shape) * (random.random(shape) < 0.1)).astype(np.float16)


def write_shard(path, lengths, settings=SETTINGS, compression="zstd", prefix="v"):
    writer = ShardWriter(path, settings, {"numpy": "2"}, compression)
    for index, frames in enumerate(lengths):
        file_name, row, source = f"{prefix}{index}.avi", writer.rows, 2 * frames
        video = Video("wave", file_name, row, frames, 30.0, 15.0, source, source, 320, 240, 9, "")
        writer.append(sparse_cubes(frames, index))
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
    writer = ShardWriter(path, SETTINGS, {})
    writer.append(sparse_cubes(3))
    assert not path.exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_found_and_named(folder):
    path = folder / "shard-00000.h5"
    with h5py.File(path) as file:
        chunk = file["features"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(content)
    assert dict(FeatureCache(folder).verify()) == {path: False, folder / "shard-00001.h5": True}


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
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(UserError, match="schema 99, this version reads 1"):
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
