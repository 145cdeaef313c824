"""The feature cache: a backbone's cubes of every sampled frame of every video, in HDF5 shards that explain themselves.

A cache is a folder of `shard-NNNNN.h5` files, `index.json` and `rejects.json`; the two JSON files only repeat what the
shards say. A shard holds
- dataset `features`: float16 `(frames, height, width, channels)`, a video's frames contiguous;
- dataset `videos`: one row per video, fields `VIDEO_FIELDS`; dataset `rejects`: videos that could not be used, and why;
- attributes: `SETTINGS` (what made the features; all shards of a cache agree on them), `features_sha256`, `software`;
- before all that, in what HDF5 calls the user block, a line of text: the sha256 of the bytes after it. It is checked
  before HDF5 sees them, because a flipped bit in HDF5's own structures can crash it. Older shards have none.

Chunk and filter were chosen by `python -m experiments.benchmark --stages=filters` on 400 real J-HMDB cubes of VGG16,
figures in `experiments/results/benchmark.json`: zstd level 1 is the smallest (1/6.8 of raw float16) and reads 2.4 times
as fast as gzip; chunks of 8 frames read nearly as fast as larger ones, and waste less when a clip is read.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from action_attention.errors import UserError
from action_attention.files import file_sha256

SCHEMA_VERSION = 1
CHUNK_FRAMES = 8
HEAD_BYTES = 512  # HDF5's smallest user block
RESERVED_BYTES = 4 << 20  # chunks that are being filled, their index, the tables
H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# gzip is read by every h5py; zstd needs hdf5plugin and reads more than twice as fast.
FILTERS = {"zstd": dict(hdf5plugin.Zstd(clevel=1)), "gzip": {"compression": "gzip", "compression_opts": 4}}
SETTINGS = ("schema_version", "backbone", "weights", "weights_sha256", "precision", "preprocessing", "resize", "fps")


@dataclass(frozen=True)
class Video:
    """One video of a cache. `frames` counts sampled frames; rows `first_row` to `first_row + frames` of its shard."""

    class_name: str
    file_name: str
    first_row: int
    frames: int
    source_fps: float
    sampled_fps: float
    announced_frames: int
    decoded_frames: int
    width: int
    height: int
    file_bytes: int
    file_sha256: str

    @property
    def name(self) -> str:
        return f"{self.class_name}/{self.file_name}"

    @property
    def is_short(self) -> bool:
        """True where fewer frames were decoded than the file announced, by more than encoders are usually off."""
        return self.decoded_frames < 0.9 * self.announced_frames - 1


_H5_TYPES: dict[Any, Any] = {str: h5py.string_dtype(), int: np.int64, float: np.float64}
VIDEO_FIELDS = np.dtype([(field.name, _H5_TYPES[field.type]) for field in fields(Video)])
REJECT_FIELDS = np.dtype([("name", h5py.string_dtype()), ("reason", h5py.string_dtype())])


class DamagedError(UserError):
    """A shard that is not what was written."""

    def __init__(self, path: Path, reason: object):
        super().__init__(
            f"{path} is damaged ({reason}); run the same extraction again, which redoes only what is broken"
        )


class ShardWriter:
    """Writes one shard to a temporary file; `commit` makes it durable and gives it its final name.

    Raises OSError, and leaves no temporary file, where it cannot be written.
    """

    def __init__(self, path: Path, cube_shape: tuple, settings: dict, software: dict, compression: str = "zstd"):
        self.path, self._part = path, path.with_suffix(".part")
        self._file: h5py.File = None
        # an append may write a chunk anew elsewhere, since it was not full, and one more that will not be full
        self._reserve = max(RESERVED_BYTES, 3 * CHUNK_FRAMES * 2 * math.prod(cube_shape))
        self._videos, self._rejects, self._sha256 = list[tuple](), list[tuple](), hashlib.sha256()
        with self._writing():
            self._file = h5py.File(self._part, "w", userblock_size=HEAD_BYTES)
            self._file.attrs.update({"schema_version": SCHEMA_VERSION} | settings)
            self._file.attrs.update(software=json.dumps(software), compression=compression)
            self._features = self._file.create_dataset(
                "features", (0, *cube_shape), np.float16, chunks=(CHUNK_FRAMES, *cube_shape),
                maxshape=(None, *cube_shape), **FILTERS[compression],
            )  # fmt: skip
        self._kept = 0, self._sha256.copy()

    @property
    def rows(self) -> int:
        return len(self._features)

    def append(self, cubes: np.ndarray) -> None:
        """Adds float16 cubes `(n, height, width, channels)` of the video that `add_video` or `reject` will name."""
        cubes = np.ascontiguousarray(cubes, np.float16)
        rows = self.rows
        with self._writing(cubes.nbytes):
            self._features.resize(rows + len(cubes), axis=0)
            self._features[rows:] = cubes
        self._sha256.update(cubes.data)

    def add_video(self, video: Video) -> None:
        self._videos.append(astuple(video))
        self._kept = self.rows, self._sha256.copy()

    def reject(self, name: str, reason: str) -> None:
        """Notes a video that cannot be used and drops its cubes, if it gave some."""
        self._rejects.append((name, reason))
        rows, sha256 = self._kept
        if rows < self.rows:
            with self._writing():
                self._features.resize(rows, axis=0)
            self._sha256 = sha256.copy()

    def commit(self) -> None:
        with self._writing(1024 * len(self._videos + self._rejects)):
            self._file.attrs["features_sha256"] = self._sha256.hexdigest()
            self._file["videos"] = np.array(self._videos, VIDEO_FIELDS)
            self._file["rejects"] = np.array(self._rejects, REJECT_FIELDS)
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            os.truncate(self._part, size)
            with self._part.open("r+b") as file:
                file.write(_head(self._part))
                file.flush()
                os.fsync(file.fileno())
            self._part.replace(self.path)

    def discard(self) -> None:
        if self._file:
            with suppress(OSError, RuntimeError):  # what failed to be written fails again
                self._file.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, size: int = 0) -> Iterator[None]:
        """Reserves `size` bytes and what HDF5 adds of its own: it crashes the process if the disk is full."""
        try:
            if self._file:
                end = self._file.id.get_filesize()
                os.posix_fallocate(self._file.id.get_vfd_handle(), 0, end + size + self._reserve)
            yield
        except (OSError, RuntimeError) as error:  # HDF5 raises either
            self.discard()
            number = getattr(error, "errno", None) or errno.EIO
            raise OSError(number, os.strerror(number), str(self.path)) from error


class Shard:
    """One complete shard, opened for reading, after its bytes were checked.

    Raises:
        DamagedError: it is not what was written.
        UserError: it is of another schema.
        OSError: the system does not let it be read.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        self.has_head = not head.startswith(H5_SIGNATURE)
        if self.has_head and head != _head(path):
            raise DamagedError(path, "its bytes are not those that were written")
        try:
            self._file = h5py.File(path, "r")
            attributes = dict(self._file.attrs)
            if attributes.get("schema_version") != SCHEMA_VERSION:
                raise UserError(
                    f"{path} has feature-cache schema {attributes.get('schema_version')}, this version reads "
                    f"{SCHEMA_VERSION}; extract again into another folder"
                )
            self.settings = {key: _plain(attributes[key]) for key in SETTINGS}
            self.sha256 = attributes["features_sha256"]
            self.videos = [Video(*map(_plain, row)) for row in self._file["videos"][:]]
            self.rejects = {_plain(name): _plain(reason) for name, reason in self._file["rejects"][:]}
            self.features = self._file["features"]
            first_rows = [0, *accumulate(video.frames for video in self.videos)]
            self.cube_shape = self.features.shape[1:]
            shape = (first_rows.pop(), *self.cube_shape)
            holds = (self.features.shape, self.features.dtype, len(shape)) == (shape, np.float16, 4)
            if not holds or [video.first_row for video in self.videos] != first_rows:
                raise DamagedError(path, "its table of videos")
        except UserError:
            raise
        except Exception as error:  # only without a head: HDF5 stumbles over damage in many ways
            raise DamagedError(path, error) from error

    def compute_sha256(self) -> str:
        """Reads all features and returns the sha256 that `sha256` must equal; empty if they cannot be read."""
        digest = hashlib.sha256()
        try:
            for row in range(0, len(self.features), 32 * CHUNK_FRAMES):
                digest.update(self.features[row : row + 32 * CHUNK_FRAMES])
        except (OSError, RuntimeError):  # the filter noticed the damage first
            return ""
        return digest.hexdigest()

    def close(self) -> None:
        self._file.close()


class FeatureCache:
    """A feature cache, opened for reading.

    Attributes:
        settings: what made the features (`SETTINGS`).
        cube_shape: a frame's features, (height, width, channels).
        videos: name `<class>/<file>` -> `Video`, in extraction order.
        rejects: name -> reason, for videos that could not be used.
        fingerprint: sha256 over the settings and every video's place and features; two caches with the same
            fingerprint give the same features.

    Raises:
        UserError: the folder is no cache, a shard is damaged, missing or of another extraction, or the index disagrees.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise UserError(f"{folder} holds no feature cache (no index.json); make one with `make extract`")
        try:
            index = json.loads(index_file.read_text())
            listed = {entry["file"]: entry for entry in index["shards"]} | {"its settings": index["settings"]}
            self.complete, self.source = bool(index["complete"]), index["source"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{index_file} is damaged; run the same extraction again to rebuild it") from error
        self.shards = open_shards(self.folder)
        self.settings = self.shards[0].settings if self.shards else {}
        self.cube_shape: Any = self.shards[0].cube_shape if self.shards else ()
        found = {shard.path.name: _index_entry(shard) for shard in self.shards} | {"its settings": self.settings}
        wrong = sorted(str(name) for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        if wrong:
            raise UserError(f"{index_file} and the shards disagree on {', '.join(wrong)}; run the extraction again")
        self._place = {video.name: (shard, video) for shard in self.shards for video in shard.videos}
        self.videos = {name: video for name, (_, video) in self._place.items()}
        self.rejects = {name: reason for shard in self.shards for name, reason in shard.rejects.items()}
        checksums = sorted((shard.path.name, shard.sha256) for shard in self.shards)
        identity = json.dumps([self.settings, checksums], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    @property
    def frames(self) -> int:
        return sum(video.frames for video in self.videos.values())

    @property
    def file_bytes(self) -> int:
        return sum(shard.path.stat().st_size for shard in self.shards)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Features of frames `start` to `stop` of a video, float16 `(frames, height, width, channels)`."""
        shard, video = self._place[name]
        stop = video.frames if stop is None else min(stop, video.frames)
        try:
            return shard.features[video.first_row + start : video.first_row + stop]
        except OSError as error:
            raise DamagedError(shard.path, error) from error

    def verify(self) -> Iterator[tuple[Path, bool]]:
        """Recomputes every shard's checksum; yields its path and whether it holds."""
        for shard in self.shards:
            yield shard.path, shard.compute_sha256() == shard.sha256

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


class ArrayFeatures:
    """Features that are in memory already, from whatever network; `clips.Clips` takes them in place of a cache.

    Args:
        arrays: name `<class>/<name>` -> features `(frames, height, width, channels)`, kept in float16.

    Raises:
        UserError: there are none, or their cubes differ in shape.
    """

    folder = "the dictionary of features"

    def __init__(self, arrays: dict[str, np.ndarray]):
        self._arrays = {name: np.asarray(array, np.float16) for name, array in arrays.items()}
        shapes = {array.shape[1:] if array.size else () for array in self._arrays.values()} or {()}
        self.cube_shape, *others = shapes
        if others or len(self.cube_shape) != 3:
            raise UserError(f"features must be (frames, height, width, channels) of one cube. Received cubes: {shapes}")
        self.videos = {name: SimpleNamespace(frames=len(array)) for name, array in self._arrays.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As `FeatureCache.read`."""
        return self._arrays[name][start:stop]


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.h5"))


def open_shards(folder: Path) -> list[Shard]:
    """All complete shards below `folder`, in order. Raises UserError if one is damaged or they are not of one kind."""
    shards = [Shard(path) for path in shard_paths(folder)]
    seen: dict[str, Shard] = {}
    for shard in shards:
        if shard.settings != shards[0].settings:
            raise UserError(f"{shard.path} was extracted with other settings than {shards[0].path}; remove one of them")
        if shard.cube_shape != shards[0].cube_shape:
            shapes = f"{shard.path} has cubes {shard.cube_shape}, {shards[0].path} has {shards[0].cube_shape}"
            raise UserError(f"{shapes}; remove one of them")
        for video in shard.videos:
            if seen.setdefault(video.name, shard) is not shard:
                raise UserError(f"{video.name} is in {seen[video.name].path} and in {shard.path}; remove one of them")
    return shards


def write_index(folder: Path, shards: list[Shard], source: Path, complete: bool) -> None:
    """(Re)writes `index.json` and `rejects.json` from the shards; each file is replaced as a whole."""
    index = {"settings": shards[0].settings if shards else {}, "source": str(source), "complete": complete}
    index["shards"] = [_index_entry(shard) for shard in shards]
    write_json(folder / "rejects.json", {name: reason for shard in shards for name, reason in shard.rejects.items()})
    write_json(folder / "index.json", index)


def write_json(path: Path, content: object) -> None:
    """Replaces `path` as a whole, so that a reader never sees half a file."""
    part = path.with_suffix(path.suffix + ".part")
    try:
        part.write_text(json.dumps(content, indent=2) + "\n")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def listed_shards(folder: Path) -> dict[str, str]:
    """File name -> `features_sha256` of the shards that the index lists; empty if it cannot be read."""
    try:
        index = json.loads((folder / "index.json").read_text())
        return {entry["file"]: entry["features_sha256"] for entry in index["shards"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _index_entry(shard: Shard) -> dict:
    return {
        "file": shard.path.name, "videos": len(shard.videos), "frames": len(shard.features),
        "features_sha256": shard.sha256,
    }  # fmt: skip


def _head(path: Path) -> bytes:
    """What stands before a shard's HDF5 content."""
    text = f"sha256 of all bytes after the first {HEAD_BYTES}: {file_sha256(path, HEAD_BYTES)}\n"
    return text.encode().ljust(HEAD_BYTES, b"\0")


def _plain(value: Any) -> Any:
    """A Python value from what h5py returns."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
