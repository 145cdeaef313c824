"""Videos -> feature cache. Decoding, the network and writing run at once; a stopped extraction goes on where it was.

    python -m data_prep.extract --videos DIR --features DIR

Videos are taken in sorted order, `SHARD_VIDEOS` to a shard. A shard appears only when it is complete, so whatever stops
an extraction, the next one redoes at most the shard in hand, and the shards are those of one that was never stopped.
"""

import fcntl
import hashlib
import queue
import resource
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from absl import flags, logging
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import (
    FILTERS,
    SCHEMA_VERSION,
    FeatureCache,
    Shard,
    ShardWriter,
    Video,
    open_shards,
    write_index,
)  # fmt: skip
from data_prep import backbone, program
from data_prep.videos import UnusableVideoError, VideoInfo, VideoReader, list_videos

SHARD_VIDEOS = 64
BATCH_SIZE = 32
QUEUE_BATCHES = 4


@dataclass(frozen=True)
class VideoEnd:
    """A video's last frame has passed: what is known of it, or why it is rejected."""

    name: str
    last_of_shard: bool
    info: VideoInfo | None = None
    file_bytes: int = 0
    file_sha256: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Batch:
    """`count` frames (the rest of `frames` is padding) and the videos that end among them, each with its position."""

    frames: np.ndarray
    count: int
    ends: list[tuple[int, VideoEnd]]


@dataclass
class Summary:
    """What an extraction did; `network_seconds` of `seconds` were spent in the network."""

    videos: int = 0
    frames: int = 0
    rejected: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0


def extract(
    videos: Path,
    features: Path,
    network: backbone.Backbone,
    *,
    fps: float = 15.0,
    compression: str = "zstd",
    shard_videos: int = SHARD_VIDEOS,
    names: list[str] | None = None,
) -> Summary:
    """Extracts the features of every video below `videos` that the cache in `features` does not hold yet.

    Args:
        videos: folder of class folders of video files.
        features: the cache's folder; made if absent.
        network: the backbone.
        fps: sampled frames per second.
        compression: HDF5 filter, a key of `FILTERS`.
        shard_videos: videos per shard.
        names: `<class>/<file>` of the videos below `videos` to take; None for all.

    Raises:
        UserError: no videos, a damaged cache, or one that was made with other settings or from other files.
    """
    names = list_videos(videos) if names is None else names
    settings = cache_settings(network, fps)
    software = {package: version(package) for package in ("tensorflow", "keras", "numpy", "h5py", "hdf5plugin")}
    software["opencv"] = cv2.__version__
    summary, started = Summary(), time.monotonic()
    with _lock(features):
        shards = open_shards(features)
        _check_resumable(shards, settings, videos, features)
        done = {name for shard in shards for name in [*(v.name for v in shard.videos), *shard.rejects]}
        todo = [name for name in names if name not in done]
        if done:
            logging.info("%s holds %d of %d videos already", features, len(names) - len(todo), len(names))
        groups = [todo[first : first + shard_videos] for first in range(0, len(todo), shard_videos)]
        # a deleted shard's number is free, so it is made again under its own name
        paths = (path for n in count() if not (path := features / f"shard-{n:05}.h5").exists())
        progress = tqdm(total=len(todo), unit="video", disable=None, dynamic_ncols=True)
        batches = in_background(decode_batches(videos, groups, fps))
        pieces = in_background(_forward(network, batches, summary))
        writer, frames = None, 0
        try:
            for cubes, end in pieces:
                writer = writer or ShardWriter(next(paths), settings, software, compression)
                writer.append(cubes)
                frames += len(cubes)
                progress.set_postfix_str(f"{frames} frames, {frames / (time.monotonic() - started):.1f} frames/s")
                if not end:
                    continue
                _finish_video(writer, end, summary)
                progress.update()
                if end.last_of_shard:
                    writer.commit()
                    shards.append(Shard(writer.path))
                    write_index(features, shards, videos.resolve(), complete=False)
                    writer = None
        finally:
            pieces.close()
            progress.close()
            if writer:
                writer.discard()
        shards.sort(key=lambda shard: shard.path)
        write_index(features, shards, videos.resolve(), complete=True)
        for shard in shards:
            shard.close()
    summary.seconds = time.monotonic() - started
    return summary


def cache_settings(network: backbone.Backbone, fps: float) -> dict:
    """What a cache says of how its features were made (`features.SETTINGS`)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "backbone": "VGG16 block5_pool",
        "weights": network.weights,
        "weights_sha256": network.weights_sha256,
        "precision": network.precision,
        "preprocessing": backbone.PREPROCESSING,
        "resize": f"{backbone.FRAME_SIZE}x{backbone.FRAME_SIZE} bilinear",
        "fps": float(fps),
    }


def in_background(items: Iterable) -> Iterator:
    """Iterates over `items` in a thread of its own, at most QUEUE_BATCHES ahead; errors are raised at the consumer."""
    ahead: queue.Queue = queue.Queue(QUEUE_BATCHES)
    stop = threading.Event()

    def put(entry: tuple) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return ahead.put(entry, timeout=0.1)

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    break
        except BaseException as error:  # raised again by the consumer
            put((None, error))
        else:
            put((None, StopIteration()))
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ahead.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
        thread.join()


def decode_batches(videos: Path, groups: list[list[str]], fps: float) -> Iterator[Batch]:
    """Decodes all videos in order into batches that are full, whatever the videos' lengths."""
    shape = (BATCH_SIZE, backbone.FRAME_SIZE, backbone.FRAME_SIZE, 3)
    frames, filled, ends = np.zeros(shape, np.uint8), 0, []
    for group in groups:
        for name in group:
            path, last = videos / name, name == group[-1]
            try:
                # all that can fail for reasons of the file comes before its first frame is passed on
                size, sha256 = path.stat().st_size, _file_sha256(path)
                reader = VideoReader(path, fps, backbone.FRAME_SIZE)
                for frame in reader:
                    frames[filled] = frame
                    filled += 1
                    if filled == BATCH_SIZE:
                        yield Batch(frames, filled, ends)
                        frames, filled, ends = np.zeros(shape, np.uint8), 0, []
                end = VideoEnd(name, last, reader.info, size, sha256)
            except (UnusableVideoError, OSError) as error:
                end = VideoEnd(name, last, reason=str(error))
            ends.append((filled, end))
    if ends:
        yield Batch(frames, filled, ends)


def _forward(network: backbone.Backbone, batches: Iterable[Batch], summary: Summary) -> Iterator[tuple]:
    """Cubes in order, cut where a video ends, each piece with that end or None."""
    for batch in batches:
        started = time.monotonic()
        cubes = network(batch.frames)
        summary.network_seconds += time.monotonic() - started
        first = 0
        for position, end in batch.ends:
            yield cubes[first:position], end
            first = position
        if first < batch.count:
            yield cubes[first : batch.count], None


def _finish_video(writer: ShardWriter, end: VideoEnd, summary: Summary) -> None:
    summary.videos += 1
    if end.reason:
        summary.rejected += 1
        writer.reject(end.name, end.reason)
        logging.warning("rejected %s: %s", end.name, end.reason)
        return
    info, frames = end.info, end.info.sampled_frames
    class_name, file_name = end.name.split("/")
    video = Video(
        class_name, file_name, writer.rows - frames, frames, info.fps, info.sampled_fps, info.announced_frames,
        info.decoded_frames, info.width, info.height, end.file_bytes, end.file_sha256,
    )  # fmt: skip
    writer.add_video(video)
    summary.frames += frames
    if video.is_short:
        logging.warning("short: %s decodes %d of %d frames", end.name, info.decoded_frames, info.announced_frames)


def _check_resumable(shards: list[Shard], settings: dict, videos: Path, features: Path) -> None:
    """Raises UserError if the extraction that is there is not the one that is asked for."""
    for shard in shards:
        for key, value in settings.items():
            if shard.settings[key] != value:
                raise UserError(
                    f"{features} was extracted with {key}={shard.settings[key]}, now {key}={value} is asked for; "
                    "give another --features folder or the same settings"
                )
        for video in shard.videos:
            path = videos / video.name
            if path.is_file() and path.stat().st_size != video.file_bytes:
                raise UserError(f"{path} has changed since it was extracted; delete {shard.path} and run this again")


@contextmanager
def _lock(features: Path) -> Iterator[None]:
    """Holds the folder for one extraction; temporary files that a killed one left are removed."""
    features.mkdir(parents=True, exist_ok=True)
    with (features / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another extraction is writing to {features}; wait for it or stop it") from error
        for part in features.glob("*.part"):
            part.unlink()
        yield


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def define_flags() -> None:
    flags.DEFINE_string("videos", None, "folder with one folder of video files per class", required=True)
    flags.DEFINE_string("features", None, "folder of the feature cache", required=True)
    flags.DEFINE_float("fps", 15.0, "sampled frames per second (the paper's 30-frame clips are 2 s)", lower_bound=0.1)
    flags.DEFINE_string("weights", "imagenet", "imagenet, random (seeded) or a Keras weights file of VGG16")
    flags.DEFINE_bool("fall_back_to_random", False, "if ImageNet weights cannot be had, say so and use random ones")
    flags.DEFINE_enum("precision", "auto", ["auto", "float32", "bfloat16"], "of the network; auto asks the processor")
    flags.DEFINE_enum("compression", "zstd", sorted(FILTERS), "HDF5 filter; gzip is read by every h5py, but slower")


def main() -> None:
    args = flags.FLAGS
    try:
        network = backbone.build_backbone(args.weights, args.precision)
    except UserError as error:
        if not (args.fall_back_to_random and args.weights == "imagenet"):
            raise
        print(f"WARNING: {error}\nWARNING: RANDOM WEIGHTS ARE USED INSTEAD: ACCURACIES WILL MEAN NOTHING.")
        network = backbone.build_backbone("random", args.precision)
    features = Path(args.features)
    done = extract(Path(args.videos), features, network, fps=args.fps, compression=args.compression)
    cache = FeatureCache(features)
    raw = cache.frames * 7 * 7 * 512 * 2
    if done.videos:
        print(
            f"extracted {done.videos} videos ({done.rejected} rejected), {done.frames} frames in {done.seconds:.0f} s: "
            f"{done.frames / done.seconds:.1f} frames/s, network busy {done.network_seconds / done.seconds:.1%} of the "
            f"time, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
        )
    print(
        f"{features}: {len(cache.videos)} videos, {cache.frames} frames, {cache.file_bytes / 1e6:.0f} MB "
        f"(1/{raw / max(cache.file_bytes, 1):.1f} of raw float16), weights {cache.settings['weights']}, "
        f"{cache.settings['precision']}"
    )
    if cache.rejects:
        print(f"{len(cache.rejects)} videos could not be used: {features / 'rejects.json'} says why")


if __name__ == "__main__":
    program.run(main, define_flags, "the same command goes on from here")
