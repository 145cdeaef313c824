"""The feature cache: a backbone's cubes of every sampled frame of every video, in HDF5 shards that explain themselves.

A cache is a folder of `shard-NNNNN.h5` files, `index.json` and `rejects.json`; the two JSON files only repeat what the
shards say, and name the files beside the videos that were passed over. A shard holds
- dataset `features`: float16 `(frames, height, width, channels)`, a video's frames contiguous;
- dataset `videos`: one row per video, fields `VIDEO_FIELDS`; dataset `rejects`: videos that could not be used, and why;
- since 0.2, dataset `remarks`: videos that are used but doubtful, and why; dataset `hashes`: a perceptual hash of each
  frame, uint8 `(frames, 32)` (`data_prep/duplicates.py`);
- since 0.3, dataset `motion`: float16 `(frames, height, width)`, how much moves at each location (`data_prep/flow.py`);
- attributes: `SETTINGS` (what made the features; all shards of a cache agree on them), `features_sha256`, `software`;
  since 0.3 `stream` too, if it is not `rgb`;
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
import resource
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from threading import RLock
from types import SimpleNamespace
from typing import Any, ClassVar

import h5py
import hdf5plugin
import numpy as np

from action_attention.errors import UserError
from action_attention.files import check_name, check_plain, file_sha256, written_whole
from action_attention.untrusted import attribute, check_whole, check_written, complaint, own_dataset, read_json, rows

SCHEMA_VERSION = 1
CHUNK_FRAMES = 8
HASH_BYTES = 32
HEAD_BYTES = 512  # HDF5's smallest user block
RESERVED_BYTES = 4 << 20  # chunks that are being filled, their index, the tables
H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# gzip is read by every h5py; zstd needs hdf5plugin and reads more than twice as fast.
FILTERS = {"zstd": dict(hdf5plugin.Zstd(clevel=1)), "gzip": {"compression": "gzip", "compression_opts": 4}}
SETTINGS = ("schema_version", "backbone", "weights", "weights_sha256", "precision", "preprocessing", "resize", "fps")
STREAMS = ["rgb", "flow"]
MIRRORED = "mirrored"  # folder of a flow cache that holds the cache of the stream mirrored_flow
SETTING_TYPES: dict[str, Any] = {
    **{name: {"schema_version": int, "fps": float}.get(name, str) for name in SETTINGS},
    "stream?": {*STREAMS, "mirrored_flow"},
}  # fmt: skip
INDEX = {"settings": dict, "source": str, "complete": bool, "shards": [{"file": str}], "passed_over?": {str: str}}
# so many shards stay open, those that were read last: opening one takes a third of the time of reading a clip
OPEN_SHARDS = max(4, min(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def with_stream(settings: dict[str, Any]) -> dict[str, Any]:
    """A cache's settings with its stream, which those of frames do not name."""
    return {"stream": "rgb", **settings}


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
REASON_FIELDS = np.dtype([("name", h5py.string_dtype()), ("reason", h5py.string_dtype())])


class DamagedError(UserError):
    """A shard that is not what was written."""

    def __init__(self, path: Path, reason: object):
        super().__init__(
            f"{path} is damaged ({reason}); run the same extraction again, which redoes only what is broken"
        )


class ShardWriter:
    """Writes one shard to a temporary file, `part`; `commit` makes it durable and gives it its final name.

    Raises OSError, and leaves no temporary file, where it cannot be written.
    """

    def __init__(
        self, path: Path, cube_shape: tuple, settings: dict, software: dict, compression: str = "zstd",
        part: Path | None = None,
    ):  # fmt: skip
        self.path, self._part = path, part or path.with_suffix(".part")
        self._file: h5py.File = None
        # an append may write a chunk anew elsewhere, since it was not full, and one more that will not be full
        self._reserve = max(RESERVED_BYTES, 3 * CHUNK_FRAMES * 2 * math.prod(cube_shape))
        self._videos, self._rejects, self._remarks = list[tuple](), list[tuple](), list[tuple]()
        self._hashes, self._motion, self._sha256 = list[np.ndarray](), list[np.ndarray](), hashlib.sha256()
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

    def append(self, cubes: np.ndarray, hashes: np.ndarray | None = None) -> None:
        """Adds frames of the video that `add_video` or `reject` will name.

        Args:
            cubes: float16 `(n, height, width, channels)`.
            hashes: the frames' perceptual hashes, uint8 `(n, HASH_BYTES)`; a shard has those of all frames or none.
        """
        cubes = np.ascontiguousarray(cubes, np.float16)
        rows = self.rows
        with self._writing(cubes.nbytes):
            self._features.resize(rows + len(cubes), axis=0)
            self._features[rows:] = cubes
        self._sha256.update(cubes.data)
        if hashes is not None:
            self._hashes.append(hashes)

    def add_video(self, video: Video, remarks: Iterable[str] = (), motion: np.ndarray | None = None) -> None:
        """The frames since the last video are this one's, which says its `first_row` here whatever it said before.

        `motion` are its motion maps, float16 `(frames, height, width)`; a shard has those of all videos or none.
        """
        if motion is not None:
            self._motion.append(motion)
        self._videos.append(astuple(replace(video, first_row=self._kept[0])))
        self._remarks += [(video.name, remark) for remark in remarks]
        self._kept = self.rows, self._sha256.copy()

    def reject(self, name: str, reason: str) -> None:
        """Notes a video that cannot be used and drops its cubes, if it gave some."""
        self._rejects.append((name, reason))
        rows, sha256 = self._kept
        if rows < self.rows:
            with self._writing():
                self._features.resize(rows, axis=0)
            self._sha256 = sha256.copy()
            if self._hashes:
                self._hashes = [np.concatenate(self._hashes)[:rows]]

    def commit(self) -> None:
        hashes = np.concatenate([np.zeros((0, HASH_BYTES), np.uint8), *self._hashes])
        motion = np.concatenate([np.zeros((0, *self._features.shape[1:3]), np.float16), *self._motion])
        if len(motion) not in (0, rows := self.rows):
            self.discard()
            raise ValueError(f"a shard has motion maps of all frames or none. Received: {len(motion)} of {rows}")
        size = 1024 * len(self._videos + self._rejects + self._remarks) + hashes.nbytes + motion.nbytes
        with self._writing(size):
            self._file.attrs["features_sha256"] = self._sha256.hexdigest()
            self._file["videos"] = np.array(self._videos, VIDEO_FIELDS)
            self._file["rejects"] = np.array(self._rejects, REASON_FIELDS)
            self._file["remarks"] = np.array(self._remarks, REASON_FIELDS)
            if len(hashes) == self.rows:
                self._file["hashes"] = hashes
            if len(motion) == self.rows:
                self._file["motion"] = motion
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
    """One complete shard, whose bytes and tables were checked. Features are read from the file, which need not be open.

    Raises:
        DamagedError: it is not what was written, or not a file that holds all of it.
        UserError: it is of another schema.
        OSError: the system does not let it be read.
    """

    # file and features, of the whole process; the one that was read last comes last
    _open: ClassVar[OrderedDict["Shard", tuple[h5py.File, h5py.Dataset]]] = OrderedDict()
    _lock = RLock()  # HDF5 itself works for one thread at a time

    def __init__(self, path: Path):
        self.path = path
        try:
            check_plain(path)
        except UserError as error:
            raise DamagedError(path, "it is not a plain file") from error
        self._state = _state(path)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        self.has_head = not head.startswith(H5_SIGNATURE)
        if self.has_head and head != _head(path):
            raise DamagedError(path, "its bytes are not those that were written")
        try:
            with h5py.File(path, "r") as file:
                self._read_tables(file)
        except UserError:
            raise
        except Exception as error:  # HDF5 stumbles over damage in many ways
            raise DamagedError(path, error) from error

    def _read_tables(self, file: h5py.File) -> None:
        """All but the features. Raises ValueError, or whatever HDF5 raises, if it is not as `ShardWriter` writes it."""
        if (schema := attribute(file, "schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{self.path} has feature-cache schema {schema}, this version reads {SCHEMA_VERSION}; extract again "
                "into another folder"
            )
        self.settings = {key: attribute(file, key) for key in (*SETTINGS, *({"stream"} & file.attrs.keys()))}
        self.sha256, self.compression = attribute(file, "features_sha256"), attribute(file, "compression")
        self.software = attribute(file, "software")  # JSON
        texts = {"features_sha256": self.sha256, "compression": self.compression, "software": self.software}
        if wrong := complaint(self.settings | texts, SETTING_TYPES | dict.fromkeys(texts, str)):
            raise ValueError(wrong)
        if not 0 < self.settings["fps"] < math.inf:
            raise ValueError(f"fps is {self.settings['fps']}")
        self.videos = [_checked(Video(*row)) for row in rows(file, "videos")]
        self.rejects = dict(rows(file, "rejects"))
        self.remarks: dict[str, list[str]] = {}
        for name, remark in rows(file, "remarks") if file.id.links.exists(b"remarks") else ():
            self.remarks.setdefault(name, []).append(remark)
        for name in (*self.rejects, *self.remarks):
            check_name(name)
        (name, times), *_ = Counter(video.name for video in self.videos).most_common(1) or [("", 1)]
        if times > 1:
            raise ValueError(f"{name!r} stands in it {times} times")
        features = check_written(own_dataset(file, "features"))
        first_rows = [0, *accumulate(video.frames for video in self.videos)]
        self.frames, self.cube_shape = first_rows.pop(), features.shape[1:]
        shape = (self.frames, *self.cube_shape)
        holds = (features.shape, features.dtype, len(shape), 0 in self.cube_shape) == (shape, np.float16, 4, False)
        if not holds or [video.first_row for video in self.videos] != first_rows:
            raise ValueError("its table of videos")
        self._has_hashes, self.has_motion = (file.id.links.exists(name) for name in (b"hashes", b"motion"))
        if self._has_hashes:
            hashes = check_whole(own_dataset(file, "hashes"))
            if (hashes.shape, hashes.dtype) != ((self.frames, HASH_BYTES), np.uint8):
                raise ValueError("its hashes")
        if self.has_motion:
            motion = check_whole(own_dataset(file, "motion"))
            if (motion.shape, motion.dtype) != ((self.frames, *self.cube_shape[:2]), np.float16):
                raise ValueError("its motion maps")
            if not (are_finite(motion[...]) and motion[...].min(initial=0) >= 0):
                raise ValueError("its motion maps hold what is no length")

    @contextmanager
    def _reading(self) -> Iterator[tuple[h5py.File, h5py.Dataset]]:
        """The file and its features. Raises DamagedError if it is another file than the one that was checked."""
        with Shard._lock:
            if self not in Shard._open:
                while len(Shard._open) >= OPEN_SHARDS:
                    Shard._open.popitem(last=False)[1][0].close()
                if _state(self.path) != self._state:
                    raise DamagedError(self.path, "it has changed since it was opened")
                file = h5py.File(self.path, "r")
                Shard._open[self] = file, file["features"]
            Shard._open.move_to_end(self)
            yield Shard._open[self]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Features of its frames `start` to `stop`, float16 `(frames, height, width, channels)`."""
        with self._reading() as (_, features):
            return features[start:stop]

    def frame_hashes(self, video: Video) -> np.ndarray | None:
        """A video's perceptual hashes, uint8 `(frames, HASH_BYTES)`; None in shards of before version 0.2."""
        if not self._has_hashes:
            return None
        with self._reading() as (file, _):
            return file["hashes"][video.first_row : video.first_row + video.frames]

    def motion(self, video: Video) -> np.ndarray | None:
        """A video's motion maps, float16 `(frames, height, width)`; None in shards that have none."""
        if not self.has_motion:
            return None
        with self._reading() as (file, _):
            return file["motion"][video.first_row : video.first_row + video.frames]

    def compute_sha256(self) -> str:
        """Reads all features and returns the sha256 that `sha256` must equal; empty if they cannot be read."""
        digest = hashlib.sha256()
        try:
            for row in range(0, self.frames, 32 * CHUNK_FRAMES):
                digest.update(self.read(row, row + 32 * CHUNK_FRAMES).data)
        except (OSError, RuntimeError):  # the filter noticed the damage first
            return ""
        return digest.hexdigest()

    def close(self) -> None:
        with Shard._lock:
            if self in Shard._open:
                Shard._open.pop(self)[0].close()


class FeatureCache:
    """A feature cache, opened for reading.

    Attributes:
        settings: what made the features (`SETTINGS`).
        cube_shape: a frame's features, (height, width, channels).
        videos: name `<class>/<file>` -> `Video`, in extraction order.
        rejects: name -> reason, for videos that could not be used.
        remarks: name -> what is doubtful about a video.
        passed_over: path -> reason, for files beside the videos that were not taken for videos.
        fingerprint: sha256 over the settings and every shard's name and features; of names and files of videos it
            knows nothing (`runs.files_digest`).
        flow: the cache of the same videos' optical flow, or None (`pair`).

    Raises:
        UserError: the folder is no cache, a shard is damaged, missing or of another extraction, or the index disagrees.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index_file = self.folder / "index.json"
        if not index_file.is_file():
            raise UserError(f"{folder} holds no feature cache (no index.json); make one with `make extract`")
        try:
            index = read_json(index_file, INDEX)
            listed = {entry["file"]: entry for entry in index["shards"]} | {"its settings": index["settings"]}
            self.complete, self.source = index["complete"], index["source"]
            self.passed_over = index.get("passed_over", {})
        except ValueError as error:
            remedy = "run the same extraction again to rebuild it"
            raise UserError(f"{index_file} is damaged ({error}); {remedy}") from error
        self.shards = open_shards(shard_paths(self.folder))
        self.settings = self.shards[0].settings if self.shards else {}
        self.cube_shape: Any = self.shards[0].cube_shape if self.shards else ()
        found = {shard.path.name: _index_entry(shard) for shard in self.shards} | {"its settings": self.settings}
        wrong = sorted(str(name) for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        if wrong:
            raise UserError(f"{index_file} and the shards disagree on {', '.join(wrong)}; run the extraction again")
        self._place = {video.name: (shard, video) for shard in self.shards for video in shard.videos}
        self.videos = {name: video for name, (_, video) in self._place.items()}
        self.rejects = {name: reason for shard in self.shards for name, reason in shard.rejects.items()}
        self.remarks = {name: remarks for shard in self.shards for name, remarks in shard.remarks.items()}
        checksums = sorted((shard.path.name, shard.sha256) for shard in self.shards)
        identity = json.dumps([self.settings, checksums], sort_keys=True)
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self.flow: FeatureCache | None = None
        self._refusal: UserError | None = None

    def pair(self, flow: "FeatureCache") -> "FeatureCache":
        """Puts the same videos' optical flow beside these features of their frames, as `flow`; returns this cache.

        Raises UserError unless the two differ in nothing but the stream and the backbone.
        """
        for cache, stream in ((self, "rgb"), (flow, "flow")):
            if (there := with_stream(cache.settings)["stream"]) != stream:
                raise UserError(
                    f"{cache.folder} has features of the stream {there}, {stream} belongs here; --features takes those "
                    "of frames, --flow_features those of `make extract ARGS=--stream=flow`"
                )
        for what, ours, theirs in (
            ("fps", self.settings["fps"], flow.settings["fps"]),
            ("rows and columns of cubes", self.cube_shape[:2], flow.cube_shape[:2]),
        ):
            if ours != theirs:
                raise UserError(f"{self.folder} has {what} {ours}, {flow.folder} has {theirs}; extract both alike")
        files = [_files(cache) for cache in (self, flow)]
        names = sorted(files[0].keys() | files[1].keys())
        if differ := [name for name in names if files[0].get(name) != files[1].get(name)]:
            raise UserError(
                f"{self.folder} and {flow.folder} differ in {len(differ)} videos: {', '.join(differ[:10])}; extract "
                "both from the same folder of videos"
            )
        self.flow = flow
        return self

    def open_mirrored(self) -> "FeatureCache":
        """The flow of the same videos, turned left to right. Raises UserError unless all of it is there."""
        there = self.folder / MIRRORED
        if not (there / "index.json").is_file():
            raise UserError(
                f"{self.folder} has no flow of the mirrored videos, which --mirror needs; add it with "
                f'`make extract FEATURES={self.folder} ARGS="--stream=flow --mirrored"`, or give --nomirror'
            )
        mirrored = FeatureCache(there)
        if mirrored.settings != self.settings | {"stream": "mirrored_flow"} or _files(mirrored) != _files(self):
            raise UserError(
                f"{there} was not made from the videos and settings of {self.folder}; delete it, then extract again"
            )
        return mirrored

    @property
    def cube_shapes(self) -> list[tuple[int, int, int]]:
        """Of the frames' features, and of their flow's if there are any."""
        return [self.cube_shape, *([self.flow.cube_shape] if self.flow else [])]

    @property
    def is_flow(self) -> bool:
        return with_stream(self.settings)["stream"] == "flow"

    @property
    def frames(self) -> int:
        return sum(video.frames for video in self.videos.values())

    @property
    def file_bytes(self) -> int:
        return sum(shard.path.stat().st_size for shard in self.shards)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Features of frames `start` to `stop` of a video, float16 `(frames, height, width, channels)`.

        Raises UserError if they are damaged or not finite.
        """
        shard, video = self._place[name]
        stop = video.frames if stop is None else min(stop, video.frames)
        try:
            cubes = shard.read(video.first_row + start, video.first_row + stop)
            if not are_finite(cubes):
                raise UserError(
                    f"{name!r} has features in {shard.path} that are not finite; delete that file and run the same "
                    "extraction again"
                )
        except (UserError, OSError) as error:
            self._refusal = error if isinstance(error, UserError) else DamagedError(shard.path, error)
            raise self._refusal from error
        return cubes

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises what `read` raised in here, where somebody else has made another error of it, as `tf.data` does."""
        caches = [cache for cache in (self, self.flow) if cache]
        for cache in caches:
            cache._refusal = None
        try:
            yield
        except Exception as error:
            for cache in caches:
                if cache._refusal and not isinstance(error, UserError):
                    raise cache._refusal from error
            raise

    def frame_hashes(self, name: str) -> np.ndarray | None:
        """Perceptual hashes of a video's frames, bool `(frames, 256)`; None in a cache of before version 0.2."""
        shard, video = self._place[name]
        hashes = shard.frame_hashes(video)
        return None if hashes is None else np.unpackbits(hashes, axis=1).astype(bool)

    @property
    def has_motion(self) -> bool:
        """Whether motion maps of all videos are there."""
        return bool(self.shards) and all(shard.has_motion for shard in self.shards)

    def read_motion(self, name: str) -> np.ndarray:
        """A video's motion maps, float16 `(frames, height, width)`: percent of the frame's longer side that its
        locations move against the camera until the next frame. Raises UserError where the cache has none."""
        shard, video = self._place[name]
        motion = shard.motion(video)
        if motion is None:
            raise UserError(
                f"{shard.path} holds no motion maps; add them with `make extract FEATURES={self.folder} "
                "ARGS=--motion_only`, which does not run the network again"
            )
        return motion

    def verify(self) -> Iterator[tuple[Path, bool]]:
        """Recomputes every shard's checksum; yields its path and whether it holds."""
        for shard in self.shards:
            yield shard.path, shard.compute_sha256() == shard.sha256

    def close(self) -> None:
        for shard in self.shards:
            shard.close()


def _files(cache: FeatureCache) -> dict[str, tuple[int, str]]:
    return {name: (video.frames, video.file_sha256) for name, video in cache.videos.items()}


class ArrayFeatures:
    """Features that are in memory already, from whatever network; `clips.Clips` takes them in place of a cache.

    Args:
        arrays: name `<class>/<name>` -> features `(frames, height, width, channels)`, kept in float16.
        motion: the same names -> motion maps `(frames, height, width)`, for models that take them.
        flow: the same names -> features of optical flow, for models that take them.

    Raises:
        UserError: there are none, or their cubes differ in shape.
    """

    folder = "the dictionary of features"

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        motion: dict[str, np.ndarray] | None = None,
        flow: dict[str, np.ndarray] | None = None,
    ):
        self._motion, self.has_motion = motion or {}, bool(motion)
        self.flow = ArrayFeatures(flow) if flow else None
        self.is_flow = False  # or nobody said so
        self._arrays = {name: np.asarray(array, np.float16) for name, array in arrays.items()}
        shapes = {array.shape[1:] if array.size else () for array in self._arrays.values()} or {()}
        self.cube_shape, *others = shapes
        if others or len(self.cube_shape) != 3:
            raise UserError(f"features must be (frames, height, width, channels) of one cube. Received cubes: {shapes}")
        self.videos = {name: SimpleNamespace(frames=len(array)) for name, array in self._arrays.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As `FeatureCache.read`."""
        return self._arrays[name][start:stop]

    def read_motion(self, name: str) -> np.ndarray:
        """As `FeatureCache.read_motion`."""
        if name not in self._motion:
            raise UserError(f"{name} has no motion maps, which this model takes; give them with its features")
        return self._motion[name]


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.h5"))


def open_shards(paths: Iterable[Path]) -> list[Shard]:
    """Shards of one cache, in order. Raises UserError if one is damaged or they are not of one kind."""
    shards = [Shard(path) for path in paths]
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


def write_index(
    folder: Path, shards: list[Shard], source: Path, complete: bool, passed_over: dict[str, str] | None = None
) -> None:
    """(Re)writes `index.json` and `rejects.json` from the shards; each file is replaced as a whole.

    `passed_over` are files below `source` that were not taken for videos: path -> why; `rejects.json` names them too.
    """
    rejects = {name: reason for shard in shards for name, reason in shard.rejects.items()}
    write_json(folder / "rejects.json", rejects | (passed_over or {}))
    write_json(folder / "index.json", index_of(shards, source, complete, passed_over))


def index_of(
    shards: list[Shard], source: Path, complete: bool, passed_over: dict[str, str] | None = None
) -> dict[str, Any]:
    """What an index says (`INDEX`)."""
    index = {"settings": shards[0].settings if shards else {}, "source": str(source), "complete": complete}
    return index | {"shards": [_index_entry(shard) for shard in shards], "passed_over": passed_over or {}}


def write_json(path: Path, content: object, part: Path | None = None) -> None:
    """Replaces `path` as a whole, so that a reader never sees half a file."""
    with written_whole(path, part) as whole:
        whole.write_text(json.dumps(content, indent=2) + "\n")


def listed_shards(folder: Path) -> dict[str, str]:
    """File name -> `features_sha256` of the shards that the index lists; empty if it cannot be read."""
    try:
        index = read_json(folder / "index.json", {"shards": [{"file": str, "features_sha256": str}]})
        return {entry["file"]: entry["features_sha256"] for entry in index["shards"]}
    except (OSError, ValueError):
        return {}


def are_finite(cubes: np.ndarray) -> bool:
    """Whether no float16 is NaN or infinite; told from its bits, which takes a twentieth of NumPy's own test.

    Such numbers are at least 0x7C00 with the sign bit 0, at least 0xFC00 with it.
    """
    return bool(cubes.view(np.int16).max(initial=0) < 0x7C00 and cubes.view(np.uint16).max(initial=0) < 0xFC00)


def _index_entry(shard: Shard) -> dict:
    return {
        "file": shard.path.name, "videos": len(shard.videos), "frames": shard.frames,
        "features_sha256": shard.sha256,
    }  # fmt: skip


def _head(path: Path) -> bytes:
    """What stands before a shard's HDF5 content."""
    text = f"sha256 of all bytes after the first {HEAD_BYTES}: {file_sha256(path, HEAD_BYTES)}\n"
    return text.encode().ljust(HEAD_BYTES, b"\0")


def _checked(video: Video) -> Video:
    """A video of a shard's table. Raises ValueError if it is none."""
    for field in fields(video):
        value = getattr(video, field.name)
        if type(value) is not field.type or (field.type is float and not math.isfinite(value)):
            raise ValueError(f"{video.name!r:.200} has {field.name}={value!r:.50}")
    check_name(video.name)
    if video.frames < 1:
        raise ValueError(f"{video.name!r} has frames={video.frames}")
    return video


def _state(path: Path) -> tuple:
    """What tells a file from another one that takes its place."""
    there = path.stat()
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns
