"""What a shard of the feature cache says, but its features: what made them, and its videos; in HDF5 or as JSON."""

import json
import math
from collections import Counter
from dataclasses import astuple, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from action_attention.errors import UserError
from action_attention.files import check_name
from action_attention.untrusted import attribute, check_whole, check_written, complaint, own_dataset, parse_json, rows

SCHEMA_VERSION = 1
HASH_BYTES = 32
SETTINGS = ("schema_version", "backbone", "weights", "weights_sha256", "precision", "preprocessing", "resize", "fps")
STREAMS = ["rgb", "flow"]
SETTING_TYPES: dict[str, Any] = {
    **{name: {"schema_version": int, "fps": float}.get(name, str) for name in SETTINGS},
    "stream?": {*STREAMS, "mirrored_flow"},
}  # fmt: skip


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


# a shard's tables as one line of JSON
LINE = {
    "file": str, "file_bytes": int, "settings": SETTING_TYPES, "cube_shape": [int, int, int], "sha256": str,
    "compression": str, "software": str, "videos": [list], "rejects": {str: str}, "remarks": {str: [str]},
    "has_hashes": bool, "has_motion": bool,
}  # fmt: skip
_H5_TYPES: dict[Any, Any] = {str: h5py.string_dtype(), int: np.int64, float: np.float64}
VIDEO_FIELDS = np.dtype([(field.name, _H5_TYPES[field.type]) for field in fields(Video)])
REASON_FIELDS = np.dtype([("name", h5py.string_dtype()), ("reason", h5py.string_dtype())])


@dataclass(frozen=True)
class Tables:
    """All that a shard says, but its features, hashes and motion maps; two shards that say the same are equal.

    Attributes:
        file_bytes: size of its file.
        settings: what made the features (`SETTINGS`).
        cube_shape: a frame's features, (height, width, channels).
        sha256: of the features.
        compression: a key of `FILTERS`.
        software: versions, JSON.
        videos: in the order of their rows.
        rejects: name -> reason.
        remarks: name -> what is doubtful about a video.
    """

    file_bytes: int
    settings: dict[str, Any]
    cube_shape: tuple[int, int, int]
    sha256: str
    compression: str
    software: str
    videos: list[Video]
    rejects: dict[str, str]
    remarks: dict[str, list[str]]
    has_hashes: bool
    has_motion: bool

    @classmethod
    def of(cls, file: h5py.File, path: Path) -> "Tables":
        """Raises UserError if it is of another schema; ValueError, or whatever HDF5 raises, if it is not as
        `ShardWriter` writes it."""
        if (schema := attribute(file, "schema_version")) != SCHEMA_VERSION:
            raise UserError(
                f"{path} has feature-cache schema {schema}, this version reads {SCHEMA_VERSION}; extract again into "
                "another folder"
            )
        settings = {key: attribute(file, key) for key in (*SETTINGS, *({"stream"} & file.attrs.keys()))}
        texts = {name: attribute(file, name) for name in ("features_sha256", "compression", "software")}
        if wrong := complaint(settings | texts, SETTING_TYPES | dict.fromkeys(texts, str)):
            raise ValueError(wrong)
        videos = [Video(*row) for row in rows(file, "videos")]
        remarks: dict[str, list[str]] = {}
        for name, remark in rows(file, "remarks") if file.id.links.exists(b"remarks") else ():
            remarks.setdefault(name, []).append(remark)
        has_hashes, has_motion = (file.id.links.exists(name) for name in (b"hashes", b"motion"))
        features = check_written(own_dataset(file, "features"))
        tables = cls(
            path.stat().st_size, settings, features.shape[1:], texts["features_sha256"], texts["compression"],
            texts["software"], videos, dict(rows(file, "rejects")), remarks, has_hashes, has_motion,
        )  # fmt: skip
        tables.check()
        if (features.shape, features.dtype) != ((tables.frames, *tables.cube_shape), np.float16):
            raise ValueError("its table of videos")
        _check_maps(file, tables)
        return tables

    @classmethod
    def parse(cls, line: str) -> tuple[str, "Tables"]:
        """A shard's file name, and its tables, from JSON as `to_json` gives it. Raises ValueError if it is not that."""
        said = parse_json(line, LINE)
        name = said.pop("file")
        try:
            said["videos"] = [Video(*row) for row in said["videos"]]
        except TypeError as error:
            raise ValueError("its table of videos") from error
        tables = cls(**said | {"cube_shape": tuple(said["cube_shape"])})
        tables.check()
        return name, tables

    def to_json(self, name: str) -> str:
        """One line of JSON: the tables of the shard in the file `name`."""
        return json.dumps({"file": name} | vars(self) | {"videos": [astuple(video) for video in self.videos]})

    @property
    def frames(self) -> int:
        return sum(video.frames for video in self.videos)

    def check(self) -> None:
        """Raises ValueError if no shard says such."""
        if not 0 < self.settings["fps"] < math.inf:
            raise ValueError(f"fps is {self.settings['fps']}")
        for video in self.videos:
            _check(video)
        for name in (*self.rejects, *self.remarks):
            check_name(name)
        (name, times), *_ = Counter(video.name for video in self.videos).most_common(1) or [("", 1)]
        if times > 1:
            raise ValueError(f"{name!r} stands in it {times} times")
        first_rows = [0, *accumulate(video.frames for video in self.videos)]
        # every few frames are a chunk, which takes more bytes than frames however well it packs
        holds = len(self.cube_shape) == 3 and 0 not in self.cube_shape and first_rows.pop() <= self.file_bytes
        if not holds or [video.first_row for video in self.videos] != first_rows:
            raise ValueError("its table of videos")


def _check_maps(file: h5py.File, tables: Tables) -> None:
    """Raises ValueError unless a shard's hashes and motion maps are of its frames."""
    if tables.has_hashes:
        hashes = check_whole(own_dataset(file, "hashes"))
        if (hashes.shape, hashes.dtype) != ((tables.frames, HASH_BYTES), np.uint8):
            raise ValueError("its hashes")
    if tables.has_motion:
        motion = check_whole(own_dataset(file, "motion"))
        if (motion.shape, motion.dtype) != ((tables.frames, *tables.cube_shape[:2]), np.float16):
            raise ValueError("its motion maps")
        if not (are_finite(motion[...]) and motion[...].min(initial=0) >= 0):
            raise ValueError("its motion maps hold what is no length")


def are_finite(cubes: np.ndarray) -> bool:
    """Whether no float16 is NaN or infinite; told from its bits, which takes a twentieth of NumPy's own test.

    Such numbers are at least 0x7C00 with the sign bit 0, at least 0xFC00 with it.
    """
    return bool(cubes.view(np.int16).max(initial=0) < 0x7C00 and cubes.view(np.uint16).max(initial=0) < 0xFC00)


def _check(video: Video) -> None:
    """Raises ValueError if no shard's table holds such."""
    for field in fields(video):
        value = getattr(video, field.name)
        if type(value) is not field.type or (field.type is float and not math.isfinite(value)):
            raise ValueError(f"{video.name!r:.200} has {field.name}={value!r:.50}")
    check_name(video.name)
    if video.frames < 1:
        raise ValueError(f"{video.name!r} has frames={video.frames}")
