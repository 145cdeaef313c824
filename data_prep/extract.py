"""Videos -> feature cache. Decoding, the network and writing run at once; a stopped extraction goes on where it was.

    python -m data_prep.extract --videos DIR --features DIR [--partition I/N]

Videos are taken in sorted order, `SHARD_VIDEOS` to a shard. A shard appears only when it is complete, so whatever stops
an extraction, the next one redoes at most the shard in hand, and the shards are those of one that was never stopped.
With `--partition` any number of workers make them together (`data_prep/partition.py`).
"""

import json
import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from action_attention.errors import UserError, remedy
from action_attention.features import (
    FILTERS,
    HASH_BYTES,
    MIRRORED,
    STREAMS,
    FeatureCache,
    Shard,
    ShardWriter,
    Video,
    are_finite,
    shard_paths,
    write_index,
)
from action_attention.files import locked
from data_prep import program
from data_prep.backbones import Backbone, build_backbone
from data_prep.decoder import Decoder
from data_prep.flow import PICTURES
from data_prep.partition import Make, Partition, take_over, work
from data_prep.resume import check_resumable, gone, whole_shards, writing
from data_prep.terminal import BAR, say
from data_prep.videos import UnusableVideoError, is_utf8, list_videos, passed_over

SHARD_VIDEOS = 64
BATCH_FRAMES = 32
QUEUE_BATCHES = 4
BUSY = "another extraction is writing to {}; wait for it or stop it"
NOT_FINITE = "its features hold NaN or more than float16 can; check the backbone's weights and precision"


@dataclass(frozen=True)
class VideoEnd:
    """A video's last frame has passed: what is known of it, its frames' times in seconds, or why it is rejected."""

    name: str
    video: Video | None = None
    reason: str = ""
    remarks: tuple[str, ...] = ()
    motion: np.ndarray | None = None
    times: tuple[float, ...] = ()


@dataclass
class Batch:
    """`count` frames (the rest of `frames` is padding), their hashes, uint8 `(size, HASH_BYTES)`, and the videos that
    end among them, each with its position."""

    frames: np.ndarray
    hashes: np.ndarray
    count: int = 0
    ends: list[tuple[int, VideoEnd]] = field(default_factory=list)


@dataclass
class Summary:
    """What an extraction did; `network_seconds` of `seconds` were spent in the network.

    `share` is a sentence of what one of several workers made."""

    videos: int = 0
    frames: int = 0
    rejected: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    share: str = ""


def extract(
    videos: Path,
    features: Path,
    network: Backbone,
    *,
    fps: float = 15.0,
    stream: str = "rgb",
    compression: str = "zstd",
    shard_videos: int = SHARD_VIDEOS,
    names: list[str] | None = None,
    decode_timeout: float = 60.0,
    prune: bool = False,
    partition: Partition | None = None,
    on_end: Callable[[VideoEnd], object] = lambda _: None,
) -> Summary:
    """Extracts the features of every video `<class>/<file>` below `videos` that the cache in `features` lacks.

    `fps` is in sampled frames per second; `stream` is one of `STREAMS`: the frames themselves, or the flow between them
    as pictures, or `mirrored_flow`, that of the mirrored frames; `compression` is a key of `FILTERS`; `names` chooses
    among the videos. A video that gives no frame for `decode_timeout` seconds is rejected. Damaged shards are set aside
    and made again. Videos that the cache holds and the folder does not are named, and with `prune` removed. With a
    `partition` only that worker's shards are made (`data_prep/partition.py`). `on_end` is called with each video's end.
    Raises UserError if there are no videos, the cache was made with other settings or from other files, another
    extraction is writing to it, or it cannot be written.
    """
    whole, others = names is None, passed_over(videos) if names is None and videos.is_dir() else {}
    names = list_videos(videos) if names is None else names
    if bad := [name for name in names if not is_utf8(name)]:
        raise UserError(f"the name {bad[0]!r} is not UTF-8, which the cache cannot hold; rename the file")
    settings = cache_settings(network, fps, stream)
    packages = {"tensorflow", "keras", "numpy", "h5py", "hdf5plugin", "av", network.runtime}
    software = {package: version(package) for package in sorted(packages)}
    summary, started = Summary(), time.monotonic()

    def make(
        groups: list[list[str]], claimed: Iterable[list[str]], paths: Iterator[tuple[Path, Path | None]]
    ) -> Generator[Shard, None, None]:
        decoder = Decoder(fps, network.input_size, decode_timeout, network.cube_shape[:2], stream)
        writers = (ShardWriter(path, network.cube_shape, settings, software, compression, part) for path, part in paths)
        batches = in_background(decode_batches(videos, claimed, decoder))
        pieces = in_background(_forward(network, batches, summary), decoder.close)
        with closing(pieces), closing(_new_shards(groups, pieces, writers, summary, on_end)) as new_shards:
            yield from new_shards

    with locked(features, BUSY.format(features), shared=partition is not None):
        if partition:
            summary.share = work(partition, features, videos, names, settings, others, make, shard_videos)
        else:
            take_over(features, BUSY.format(features))
            for part in features.glob("*.part"):  # that a killed one left
                part.unlink()
            shards = whole_shards(shard_paths(features))
            check_resumable(shards, settings, videos, features)
            gone_videos = gone(shards, names, videos, features) if whole else set()
            if prune:
                shards = [kept for shard in shards if (kept := _without(shard, gone_videos))]
            _extract_rest(features, videos, names, others, shards, make, shard_videos)
    summary.seconds = time.monotonic() - started
    return summary


def _extract_rest(
    features: Path, videos: Path, names: list[str], others: dict[str, str], shards: list[Shard], make: Make,
    shard_videos: int,
) -> None:  # fmt: skip
    """Makes shards of the names that those that are there lack, and adds them."""
    done = {name for shard in shards for name in [*(v.name for v in shard.videos), *shard.rejects]}
    todo = [name for name in names if name not in done]
    if done:
        logging.info("%s holds %d of %d videos already", features, len(names) - len(todo), len(names))
    groups = [todo[first : first + shard_videos] for first in range(0, len(todo), shard_videos)]
    # the number of a shard that is gone is free, so it is made again under its own name
    paths = ((path, None) for n in count() if not (path := features / f"shard-{n:05}.h5").exists())
    with writing(features, shards):
        with closing(make(groups, groups, paths)) as new_shards:
            for shard in new_shards:
                shards.append(shard)
                write_index(features, shards, videos.resolve(), False, others)
        shards.sort(key=lambda shard: shard.path)
        write_index(features, shards, videos.resolve(), True, others)
    for shard in shards:
        shard.close()


def _new_shards(
    groups: list[list[str]],
    pieces: Iterable[tuple],
    writers: Iterator[ShardWriter],
    summary: Summary,
    on_end: Callable[[VideoEnd], object],
) -> Generator[Shard, None, None]:
    """Writes the pieces that `_forward` gives into a shard for each group; yields each when it is complete."""
    last_of_shard, writer, finite, started = {group[-1] for group in groups}, None, True, time.monotonic()
    with tqdm(total=sum(map(len, groups)), bar_format=BAR, disable=None, dynamic_ncols=True) as progress:
        frames = 0
        try:
            for cubes, hashes, end in pieces:
                writer = writer or next(writers)
                writer.append(cubes, hashes)
                frames, finite = frames + len(cubes), finite and are_finite(cubes)
                progress.set_postfix_str(f"{frames} frames, {frames / (time.monotonic() - started):.1f} frames/s")
                if not end:
                    continue
                on_end(end)
                _finish_video(writer, end if finite else replace(end, video=None, reason=NOT_FINITE), summary)
                finite = True
                progress.update()
                if end.name in last_of_shard:
                    writer.commit()
                    path, writer = writer.path, None
                    yield Shard(path)
        finally:
            if writer:
                writer.discard()


def cache_settings(network: Backbone, fps: float, stream: str = "rgb") -> dict:
    """What a cache says of how its features were made (`features.SETTINGS`)."""
    of_stream = {"stream": stream, "preprocessing": f"{PICTURES}; {network.preprocessing}"}
    settings = {
        "backbone": network.name,
        "weights": network.weights,
        "weights_sha256": network.weights_sha256,
        "precision": network.precision,
        "preprocessing": network.preprocessing,
        "resize": f"{network.input_size}x{network.input_size} bilinear",
        "fps": float(fps),
    }
    return settings if stream == "rgb" else settings | of_stream


def in_background(items: Generator, stop: Callable[[], None] = lambda: None) -> Generator:
    """Iterates over `items` in a thread of its own, at most QUEUE_BATCHES ahead; errors are raised at the consumer.

    At the end, however it comes, `stop` is called before the thread is waited for.
    """
    thread, done = ThreadPoolExecutor(max_workers=1), object()
    ahead = deque(thread.submit(next, items, done) for _ in range(QUEUE_BATCHES))
    try:
        while (item := ahead.popleft().result()) is not done:
            ahead.append(thread.submit(next, items, done))
            yield item
    finally:
        stop()
        thread.shutdown(cancel_futures=True)
        items.close()


def decode_batches(videos: Path, groups: Iterable[list[str]], decoder: Decoder) -> Generator[Batch, None, None]:
    """Decodes the videos of each group (a shard) in order into batches that are full, whatever the videos' lengths.

    A shard begins with a batch: on some processors a frame's features differ in their last bit by its place in the
    batch, and a shard must not depend on what was extracted before it. Frames that a video gave before it turned out
    to be unusable stay in; its `VideoEnd` says to drop them.
    """

    def empty() -> Batch:
        frames = np.zeros((BATCH_FRAMES, decoder.size, decoder.size, 3), np.uint8)
        return Batch(frames, np.zeros((BATCH_FRAMES, HASH_BYTES), np.uint8))

    for group in groups:
        batch = empty()
        for name in group:
            try:
                for frame in decoder.frames(videos / name):
                    batch.frames[batch.count] = frame
                    batch.hashes[batch.count] = decoder.hash
                    batch.count += 1
                    if batch.count == len(batch.frames):
                        yield batch
                        batch = empty()
                class_name, file_name = name.split("/")
                video = Video(class_name, file_name, 0, **decoder.about)
                remarks, times = tuple(decoder.remarks), tuple(decoder.times)
                end = VideoEnd(name, video, remarks=remarks, motion=decoder.motion, times=times)
                batch.ends.append((batch.count, end))
            except UnusableVideoError as error:
                batch.ends.append((batch.count, VideoEnd(name, reason=str(error))))
        if batch.ends:
            yield batch


def _forward(network: Backbone, batches: Iterable[Batch], summary: Summary) -> Generator[tuple, None, None]:
    """Cubes and hashes in order, cut where a video ends, each piece with that end or None."""
    for batch in batches:
        started = time.monotonic()
        cubes = network(batch.frames)
        summary.network_seconds += time.monotonic() - started
        first = 0
        for position, end in batch.ends:
            yield cubes[first:position], batch.hashes[first:position], end
            first = position
        if first < batch.count:
            yield cubes[first : batch.count], batch.hashes[first : batch.count], None


def _finish_video(writer: ShardWriter, end: VideoEnd, summary: Summary) -> None:
    summary.videos += 1
    video = end.video
    if video is None:
        summary.rejected += 1
        writer.reject(end.name, end.reason)
        logging.warning("rejected %r: %s", end.name, end.reason)
        return
    writer.add_video(video, end.remarks, end.motion)
    summary.frames += video.frames
    if video.is_short:
        logging.warning("short: %r decodes %d of %d frames", end.name, video.decoded_frames, video.announced_frames)
    for remark in end.remarks:
        logging.warning("doubtful: %r %s", end.name, remark)


def add_motion(videos: Path, features: Path, *, decode_timeout: float = 60.0) -> int:
    """Gives the shards that have no motion maps these, from the same videos, without the network; how many videos.

    Raises UserError: a video is gone or has changed, another extraction is at work, or the cache cannot be written.
    """
    with locked(features, BUSY.format(features)):
        cache = FeatureCache(features)
        decoder = Decoder(cache.settings["fps"], 8, decode_timeout, cache.cube_shape[:2])  # of frames nothing is used
        shards, todo = list(cache.shards), [shard for shard in cache.shards if not shard.has_motion]
        try:
            with tqdm(total=sum(len(shard.videos) for shard in todo), unit=" videos", disable=None) as progress:
                for shard in todo:
                    maps = {}
                    for video in shard.videos:
                        maps[video.name] = _motion_of(video, videos / video.name, decoder)
                        progress.update()
                    shards[shards.index(shard)] = _rewritten(shard, shard.videos, maps)
        except OSError as error:
            raise UserError(
                f"{features} cannot be written ({error.strerror}); its shards are safe: {remedy(error)} and run the "
                "same command again"
            ) from error
        finally:
            decoder.close()
            for shard in shards:
                shard.close()
    return sum(len(shard.videos) for shard in todo)


def _motion_of(video: Video, path: Path, decoder: Decoder) -> np.ndarray:
    """Raises UserError unless the file is the one that the features are of."""
    try:
        for _ in decoder.frames(path):
            pass
    except UnusableVideoError as error:
        raise UserError(f"{path} {error}; its features are there: put it back, or extract with --prune") from error
    if (decoder.about["file_sha256"], decoder.about["frames"]) != (video.file_sha256, video.frames):
        raise UserError(f"{path} has changed since it was extracted; extract it anew into another --features folder")
    assert decoder.motion is not None
    return decoder.motion


def _without(shard: Shard, gone: set[str]) -> Shard | None:
    """The shard written anew from its own features without some videos; itself if it has none of them."""
    kept = [video for video in shard.videos if video.name not in gone]
    if len(kept) == len(shard.videos):
        return shard
    if not kept and not shard.rejects:
        shard.close()
        shard.path.unlink()
        return None
    return _rewritten(shard, kept, {video.name: shard.motion(video) for video in kept})


def _rewritten(shard: Shard, kept: list[Video], motion: Mapping[str, np.ndarray | None]) -> Shard:
    """The shard written anew from its own features, with these motion maps, in the place of the old one."""
    writer = ShardWriter(shard.path, shard.cube_shape, shard.settings, json.loads(shard.software), shard.compression)
    for video in kept:
        writer.append(shard.read(video.first_row, video.first_row + video.frames), shard.frame_hashes(video))
        writer.add_video(video, shard.remarks.get(video.name, ()), motion[video.name])
    for name, reason in shard.rejects.items():
        writer.reject(name, reason)
    writer.commit()
    shard.close()
    return Shard(shard.path)


def define_flags() -> None:
    flags.DEFINE_string("videos", None, "folder with one folder of video files per class", required=True)
    flags.DEFINE_string("features", None, "folder of the feature cache", required=True)
    flags.DEFINE_float("fps", 15.0, "sampled frames per second (the paper's 30-frame clips are 2 s)", lower_bound=0.1)
    flags.DEFINE_string(
        "backbone", "vgg16", "vgg16, efficientnet_lite0 (or 1, 2), a network of keras.applications (ResNet50V2), "
        "timm:NAME, keras_hub:PRESET, or one of your own"
    )  # fmt: skip
    flags.DEFINE_string(
        "weights",
        "imagenet",
        "imagenet, random (seeded), a file of weights of the backbone, or one made by data_prep.quantize",
    )
    flags.DEFINE_bool("fall_back_to_random", False, "if ImageNet weights cannot be obtained, warn and use random ones")
    flags.DEFINE_float("decode_timeout", 60.0, "reject a video that gives no frame for this many seconds", 0.1)
    flags.DEFINE_bool("prune", False, "remove videos from the cache that --videos no longer holds")
    flags.DEFINE_enum(
        "precision", "auto", ["auto", "float32", "bfloat16", "int8"],
        "precision of the network; auto: the fastest on this machine; int8: for a network of data_prep.quantize",
    )  # fmt: skip
    flags.DEFINE_enum(
        "runtime", None, ["tensorflow", "openvino"], "what runs the network [tensorflow; openvino for one in int8]"
    )
    flags.DEFINE_enum("stream", "rgb", STREAMS, "the frames, or the optical flow between them as pictures")
    flags.DEFINE_integer("grid", None, "average larger maps down to this many cells a side", 1)
    flags.DEFINE_bool(
        "mirrored", False, f"also extract the flow of the mirrored videos, into {MIRRORED}/, for training with --mirror"
    )
    flags.DEFINE_bool("motion_only", False, "add motion maps to a cache that has none; the network does not run")
    flags.DEFINE_string(
        "partition", None, "I/N: this is worker I (from 0) of N on the same --features; /N in a Slurm array or an "
        "indexed Kubernetes job; auto in a Slurm array"
    )  # fmt: skip
    flags.DEFINE_enum("compression", "zstd", sorted(FILTERS), "HDF5 filter; gzip is read by every h5py, but slower")


def _partition(args: flags.FlagValues) -> Partition | None:
    if args.partition is None:
        return None
    for name in ("prune", "motion_only"):
        if args[name].value:
            raise UserError(f"--{name} is not for workers; run it without --partition")
    partition = Partition.parse(args.partition, os.environ)
    if partition.count > 1 and not args["precision"].present:
        raise UserError(
            "--partition needs --precision: by default each machine takes the one that is fastest on it, but the "
            "features must be the same on all; give --precision=float32, or bfloat16, to all workers"
        )
    return partition


def main() -> None:
    args = flags.FLAGS
    if args.mirrored and args.stream != "flow":
        raise UserError("--mirrored is for --stream=flow; --mirror needs no second cache of frames")
    partition = _partition(args)
    if args.motion_only:
        added = add_motion(Path(args.videos), Path(args.features), decode_timeout=args.decode_timeout)
        say(f"{args.features}: motion maps of {added} videos were added")
        return
    try:
        network = build_backbone(args.backbone, args.weights, args.precision, args.runtime, args.grid)
    except UserError as error:
        if not (args.fall_back_to_random and args.weights == "imagenet"):
            raise
        network = build_backbone(args.backbone, "random", args.precision, args.runtime, args.grid)
        say(f"WARNING: {error}\nWARNING: RANDOM WEIGHTS ARE USED INSTEAD: ACCURACIES WILL MEAN NOTHING.")
    caches = {Path(args.features): args.stream}
    if args.mirrored:
        caches[Path(args.features) / MIRRORED] = "mirrored_flow"
    for features, stream in caches.items():
        done = extract(Path(args.videos), features, network, fps=args.fps, stream=stream, prune=args.prune,
                       compression=args.compression, decode_timeout=args.decode_timeout,
                       partition=partition)  # fmt: skip
        _print_summary(features, done)


def _print_summary(features: Path, done: Summary) -> None:
    if done.videos:
        say(
            f"extracted {done.videos} videos ({done.rejected} rejected), {done.frames} frames in {done.seconds:.0f} s: "
            f"{done.frames / done.seconds:.1f} frames/s, network busy {done.network_seconds / done.seconds:.1%} of the "
            f"time, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
        )
    if done.share:
        say(f"{features}: {done.share}")
        return
    cache = FeatureCache(features)
    raw = cache.frames * math.prod(cache.cube_shape) * 2
    say(
        f"{features}: {len(cache.videos)} videos, {cache.frames} frames, {cache.file_bytes / 1e6:.0f} MB "
        f"(1/{raw / max(cache.file_bytes, 1):.1f} of raw float16), weights {cache.settings['weights']}, "
        f"{cache.settings['precision']}"
    )
    if cache.rejects:
        say(f"{len(cache.rejects)} videos could not be used: {features / 'rejects.json'} says why")
    if cache.passed_over:
        say(f"{len(cache.passed_over)} files were passed over, such as {next(iter(cache.passed_over))}: "
              f"{features / 'rejects.json'} says why")  # fmt: skip
    if cache.remarks:
        say(f"{len(cache.remarks)} videos are doubtful: `make inspect FEATURES={features}` says why")


if __name__ == "__main__":
    program.run(main, define_flags, "the same command goes on from here")
