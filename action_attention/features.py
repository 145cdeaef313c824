"""The feature cache: shards of one extraction (`shards.py`), and an index of them.

A cache is a folder of `shard-NNNNN.h5` files, `index.json`, `rejects.json` and, when it is complete, `shards.jsonl`.
These only repeat what the shards say, and name the files beside the videos that were passed over. From `shards.jsonl` a
cache of any size is opened without opening a shard: each one is checked before it is first read.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np

from action_attention.errors import UserError
from action_attention.files import check_plain, file_sha256, written_whole
from action_attention.shards import DamagedError, Shard
from action_attention.tables import Tables, are_finite
from action_attention.untrusted import read_json

MIRRORED = "mirrored"  # folder of a flow cache that holds the cache of the stream mirrored_flow
TABLES = "shards.jsonl"
INDEX = {
    "settings": dict, "source": str, "complete": bool, "shards": [{"file": str}], "passed_over?": {str: str},
    "tables_sha256?": str,
}  # fmt: skip


def with_stream(settings: dict[str, Any]) -> dict[str, Any]:
    """A cache's settings with its stream, which those of frames do not name."""
    return {"stream": "rgb", **settings}


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
        UserError: the folder is no cache, a shard is missing or of another extraction, or the index disagrees. Damage
            within a shard is found by the first read of it, where `shards.jsonl` lists all of them.
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
        self.shards = _listed(self.folder, index.get("tables_sha256", "")) or open_shards(shard_paths(self.folder))
        self.settings = self.shards[0].settings if self.shards else {}
        self.cube_shape: Any = self.shards[0].tables.cube_shape if self.shards else ()
        found = {shard.path.name: _index_entry(shard) for shard in self.shards} | {"its settings": self.settings}
        wrong = sorted(str(name) for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
        if wrong:
            raise UserError(f"{index_file} and the shards disagree on {', '.join(wrong)}; run the extraction again")
        self._place = {video.name: (shard, video) for shard in self.shards for video in shard.videos}
        self.videos = {name: video for name, (_, video) in self._place.items()}
        self.rejects = {name: reason for shard in self.shards for name, reason in shard.rejects.items()}
        self.remarks = {name: remarks for shard in self.shards for name, remarks in shard.tables.remarks.items()}
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
        return sum(shard.tables.file_bytes for shard in self.shards)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Features of frames `start` to `stop` of a video, float16 `(frames, height, width, channels)`.

        Raises UserError if they are damaged or not finite.
        """
        shard, video = self._place[name]
        stop = video.frames if stop is None else min(stop, video.frames)
        with self._noting(shard):
            cubes = shard.read(video.first_row + start, video.first_row + stop)
            if not are_finite(cubes):
                raise UserError(
                    f"{name!r} has features in {shard.path} that are not finite; delete that file and run the same "
                    "extraction again"
                )
        return cubes

    @contextmanager
    def _noting(self, shard: Shard) -> Iterator[None]:
        """Keeps for `reading` why a shard cannot be read."""
        try:
            yield
        except (UserError, OSError) as error:
            self._refusal = error if isinstance(error, UserError) else DamagedError(shard.path, error)
            raise self._refusal from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises what a read raised in here, where somebody else has made another error of it, as `tf.data` does."""
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
        with self._noting(shard):
            hashes = shard.frame_hashes(video)
        return None if hashes is None else np.unpackbits(hashes, axis=1).astype(bool)

    @property
    def has_motion(self) -> bool:
        """Whether motion maps of all videos are there."""
        return bool(self.shards) and all(shard.tables.has_motion for shard in self.shards)

    def read_motion(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Motion maps of frames `start` to `stop` of a video, float16 `(frames, height, width)`: percent of the frame's
        longer side that its locations move against the camera until the next frame. Raises UserError where the cache
        has none, or they are damaged."""
        self.check_motion([name])
        shard, video = self._place[name]
        with self._noting(shard):
            return shard.motion(video, start, stop)

    def check_motion(self, names: Iterable[str]) -> None:
        """Raises UserError where a video has no motion maps."""
        for shard, _ in map(self._place.__getitem__, names):
            if not shard.tables.has_motion:
                raise UserError(
                    f"{shard.path} holds no motion maps; add them with `make extract FEATURES={self.folder} "
                    "ARGS=--motion_only`, which does not run the network again"
                )

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

    def read_motion(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """As `FeatureCache.read_motion`."""
        self.check_motion([name])
        return self._motion[name][start:stop]

    def check_motion(self, names: Iterable[str]) -> None:
        """As `FeatureCache.check_motion`."""
        if lacking := [name for name in names if name not in self._motion]:
            raise UserError(f"{lacking[0]} has no motion maps, which this model takes; give them with its features")


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.h5"))


def open_shards(paths: Iterable[Path], known: Mapping[Path, Shard] = MappingProxyType({})) -> list[Shard]:
    """Shards of one cache, in order, each checked, but for those that are `known` and of the size that they should be.

    Raises UserError if one is damaged or they are not of one kind.
    """
    shards = [
        known[path] if path in known and path.stat().st_size == known[path].tables.file_bytes else Shard(path)
        for path in paths
    ]
    if wrong := _differ(shards):
        raise UserError(f"{wrong}; remove one of them")
    return shards


def _differ(shards: list[Shard]) -> str:
    """Why shards are not of one cache; empty if they are."""
    seen: dict[str, Shard] = {}
    for shard in shards:
        first, cubes = shards[0], shard.tables.cube_shape
        if shard.settings != first.settings:
            return f"{shard.path} was extracted with other settings than {first.path}"
        if cubes != first.tables.cube_shape:
            return f"{shard.path} has cubes {cubes}, {first.path} has {first.tables.cube_shape}"
        for video in shard.videos:
            if seen.setdefault(video.name, shard) is not shard:
                return f"{video.name} is in {seen[video.name].path} and in {shard.path}"
    return ""


def listed_shards(tables: Path, sha256: str) -> list[Shard]:
    """Shards as a file of `write_tables` lists them, in order; none is opened before something is read from it.

    Empty if there is no such file of that sha256, or it does not list what a shard can be.
    """
    try:
        check_plain(tables)
        if file_sha256(tables) != sha256:
            return []
        with tables.open(encoding="utf-8") as lines:
            said = dict(map(Tables.parse, lines))
    except (OSError, ValueError):
        return []
    return [Shard(tables.parent / name, said[name]) for name in sorted(said)]


def _listed(folder: Path, sha256: str) -> list[Shard]:
    """The shards of a whole cache without opening them; empty if it has other ones, or of other sizes."""
    shards = listed_shards(folder / TABLES, sha256)
    there = {path: path.stat().st_size for path in shard_paths(folder)}
    holds = there == {shard.path: shard.tables.file_bytes for shard in shards} and not _differ(shards)
    return shards if holds else []


def write_index(
    folder: Path, shards: list[Shard], source: Path, complete: bool, passed_over: dict[str, str] | None = None
) -> None:
    """(Re)writes `index.json` and `rejects.json` from the shards, and `shards.jsonl` if they are `complete`; each file
    is replaced as a whole.

    `passed_over` are files below `source` that were not taken for videos: path -> why; `rejects.json` names them too.
    """
    rejects = {name: reason for shard in shards for name, reason in shard.rejects.items()}
    write_json(folder / "rejects.json", rejects | (passed_over or {}))
    sha256 = write_tables(folder / TABLES, shards) if complete else ""
    write_json(folder / "index.json", index_of(shards, source, complete, passed_over, sha256))


def index_of(
    shards: list[Shard], source: Path, complete: bool, passed_over: dict[str, str] | None = None,
    tables_sha256: str = "",
) -> dict[str, Any]:  # fmt: skip
    """What an index says (`INDEX`)."""
    index = {"settings": shards[0].settings if shards else {}, "source": str(source), "complete": complete}
    index |= {"tables_sha256": tables_sha256} if tables_sha256 else {}
    return index | {"shards": [_index_entry(shard) for shard in shards], "passed_over": passed_over or {}}


def write_tables(path: Path, shards: list[Shard], part: Path | None = None) -> str:
    """Writes what the shards say of themselves, a line of JSON each; returns the file's sha256."""
    with written_whole(path, part) as whole:
        with whole.open("w", encoding="utf-8") as file:
            file.writelines(f"{shard.tables.to_json(shard.path.name)}\n" for shard in shards)
        return file_sha256(whole)


def write_json(path: Path, content: object, part: Path | None = None) -> None:
    """Replaces `path` as a whole, so that a reader never sees half a file."""
    with written_whole(path, part) as whole:
        whole.write_text(json.dumps(content, indent=2) + "\n")


def listed_sha256(folder: Path) -> dict[str, str]:
    """File name -> `features_sha256` of the shards that the index lists; empty if it cannot be read."""
    try:
        index = read_json(folder / "index.json", {"shards": [{"file": str, "features_sha256": str}]})
        return {entry["file"]: entry["features_sha256"] for entry in index["shards"]}
    except (OSError, ValueError):
        return {}


def _index_entry(shard: Shard) -> dict:
    return {
        "file": shard.path.name, "videos": len(shard.videos), "frames": shard.frames,
        "features_sha256": shard.sha256,
    }  # fmt: skip
