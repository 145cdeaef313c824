"""Shards of the feature cache: a backbone's cubes of every sampled frame of some videos, in HDF5 files that explain
themselves. A shard holds
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
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import h5py
import hdf5plugin
import numpy as np

from action_attention.errors import UserError
from action_attention.files import check_plain, file_sha256
from action_attention.tables import HASH_BYTES, REASON_FIELDS, SCHEMA_VERSION, VIDEO_FIELDS, Tables, Video

CHUNK_FRAMES = 8
HEAD_BYTES = 512  # HDF5's smallest user block
RESERVED_BYTES = 4 << 20  # chunks that are being filled, their index, the tables
H5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# gzip is read by every h5py; zstd needs hdf5plugin and reads more than twice as fast.
FILTERS = {"zstd": dict(hdf5plugin.Zstd(clevel=1)), "gzip": {"compression": "gzip", "compression_opts": 4}}
# so many shards stay open, those that were read last: opening one takes a third of the time of reading a clip
OPEN_SHARDS = max(4, min(128, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


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
    """One complete shard. Features are read from its file, which need not be open.

    Its bytes and tables are checked now, or, if its `tables` are known from elsewhere, before the first read, where it
    must say just these.

    Raises:
        DamagedError: it is not what was written, not a file that holds all of it, or says something else than `tables`.
        UserError: it is of another schema.
        OSError: the system does not let it be read.
    """

    # file and features, of the whole process; the one that was read last comes last
    _open: ClassVar[OrderedDict["Shard", tuple[h5py.File, h5py.Dataset]]] = OrderedDict()
    _lock = RLock()  # HDF5 itself works for one thread at a time

    def __init__(self, path: Path, tables: Tables | None = None):
        self.path = path
        self._state: tuple = ()  # of the file that was checked
        self.has_head = False  # if it was checked
        self.tables = tables or self._checked()

    def _checked(self) -> Tables:
        try:
            check_plain(self.path)
        except UserError as error:
            raise DamagedError(self.path, "it is not a plain file") from error
        state = _state(self.path)
        with self.path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        self.has_head = not head.startswith(H5_SIGNATURE)
        if self.has_head and head != _head(self.path):
            raise DamagedError(self.path, "its bytes are not those that were written")
        try:
            with h5py.File(self.path, "r") as file:
                tables = Tables.of(file, self.path)
        except UserError:
            raise
        except Exception as error:  # HDF5 stumbles over damage in many ways
            raise DamagedError(self.path, error) from error
        self._state = state
        return tables

    @property
    def settings(self) -> dict[str, Any]:
        return self.tables.settings

    @property
    def sha256(self) -> str:
        return self.tables.sha256

    @property
    def videos(self) -> list[Video]:
        return self.tables.videos

    @property
    def rejects(self) -> dict[str, str]:
        return self.tables.rejects

    @property
    def frames(self) -> int:
        return self.tables.frames

    @contextmanager
    def _reading(self) -> Iterator[tuple[h5py.File, h5py.Dataset]]:
        """The file and its features. Raises DamagedError if it is another file than the one that was checked."""
        with Shard._lock:
            if self not in Shard._open:
                while len(Shard._open) >= OPEN_SHARDS:
                    Shard._open.popitem(last=False)[1][0].close()
                if not self._state and self._checked() != self.tables:
                    self._state = ()
                    raise DamagedError(self.path, "it is not the one that the index lists")
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
        if not self.tables.has_hashes:
            return None
        with self._reading() as (file, _):
            return file["hashes"][video.first_row : video.first_row + video.frames]

    def motion(self, video: Video, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Motion maps of a video's frames `start` to `stop`, float16 `(frames, height, width)`, of a shard that has
        them."""
        stop = video.frames if stop is None else min(stop, video.frames)
        with self._reading() as (file, _):
            return file["motion"][video.first_row + start : video.first_row + stop]

    def compute_sha256(self) -> str:
        """Reads all features and returns the sha256 that `sha256` must equal; empty if they cannot be read."""
        digest = hashlib.sha256()
        try:
            for row in range(0, self.frames, 32 * CHUNK_FRAMES):
                digest.update(self.read(row, row + 32 * CHUNK_FRAMES).data)
        except (UserError, OSError, RuntimeError):  # the head, or the filter, noticed the damage first
            return ""
        return digest.hexdigest()

    def close(self) -> None:
        with Shard._lock:
            if self in Shard._open:
                Shard._open.pop(self)[0].close()


def _head(path: Path) -> bytes:
    """What stands before a shard's HDF5 content."""
    text = f"sha256 of all bytes after the first {HEAD_BYTES}: {file_sha256(path, HEAD_BYTES)}\n"
    return text.encode().ljust(HEAD_BYTES, b"\0")


def _state(path: Path) -> tuple:
    """What tells a file from another one that takes its place."""
    there = path.stat()
    return there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns
