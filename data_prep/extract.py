"""Videos -> feature cache. Decoding, the network and writing run at once; a stopped extraction goes on where it was.

    python -m data_prep.extract --videos DIR --features DIR [--partition I/N | --engine ray]

Videos are taken in sorted order, `SHARD_VIDEOS` to a shard. A shard appears only when it is complete, so whatever stops
an extraction, the next one redoes at most the shard in hand, and the shards are those of one that was never stopped.
With `--partition` any number of workers make them together (`data_prep/partition.py`), with `--engine=ray` the actors
of a Ray cluster (`data_prep/ray_engine.py`).
"""

import json
import math
import os
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from action_attention.errors import UserError, remedy
from action_attention.features import MIRRORED, FeatureCache, shard_paths, write_index
from action_attention.files import locked
from action_attention.shards import FILTERS, Shard, ShardWriter
from action_attention.tables import STREAMS, Video
from data_prep import program, ray_engine
from data_prep.backbones import Backbone, build_backbone
from data_prep.decoder import Decoder
from data_prep.partition import Partition, take_over, work
from data_prep.pipeline import Pipeline, Summary, VideoEnd
from data_prep.resume import check_resumable, gone, whole_shards, writing
from data_prep.terminal import say
from data_prep.videos import UnusableVideoError, is_utf8, list_videos, passed_over

SHARD_VIDEOS = 64
BUSY = "another extraction is writing to {}; wait for it or stop it"


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
    cluster: ray_engine.Cluster | None = None,
    on_end: Callable[[VideoEnd], object] = lambda _: None,
) -> Summary:
    """Extracts the features of every video `<class>/<file>` below `videos` that the cache in `features` lacks.

    `fps` is in sampled frames per second; `stream` is one of `STREAMS`: the frames themselves, or the flow between them
    as pictures, or `mirrored_flow`, that of the mirrored frames; `compression` is a key of `FILTERS`; `names` chooses
    among the videos. A video that gives no frame for `decode_timeout` seconds is rejected. Damaged shards are set aside
    and made again. Videos that the cache holds and the folder does not are named, and with `prune` removed. With a
    `partition` only that worker's shards are made; with a `cluster` its actors make all of them. `on_end` is called
    with the end of each video that is decoded here.

    Raises UserError if there are no videos, the cache was made with other settings or from other files, another
    extraction is writing to it, or it cannot be written.
    """
    whole, others = names is None, passed_over(videos) if names is None and videos.is_dir() else {}
    names = list_videos(videos) if names is None else names
    if bad := [name for name in names if not is_utf8(name)]:
        raise UserError(f"the name {bad[0]!r} is not UTF-8, which the cache cannot hold; rename the file")
    pipeline, started = Pipeline(videos, network, fps, stream, compression, decode_timeout, on_end), time.monotonic()
    with locked(features, BUSY.format(features), shared=bool(partition or cluster)):
        if cluster:
            ray_engine.work(cluster, features, pipeline, names, others, shard_videos)
        elif partition:
            pipeline.summary.share = work(partition, features, pipeline, names, others, shard_videos)
        else:
            take_over(features, BUSY.format(features))
            for part in features.glob("*.part"):  # that a killed one left
                part.unlink()
            shards = whole_shards(shard_paths(features))
            check_resumable(shards, pipeline.settings, videos, features)
            gone_videos = gone(shards, names, videos, features) if whole else set()
            if prune:
                shards = [kept for shard in shards if (kept := _without(shard, gone_videos))]
            _extract_rest(features, pipeline, names, others, shards, shard_videos)
    pipeline.summary.seconds = time.monotonic() - started
    return pipeline.summary


def _extract_rest(
    features: Path, pipeline: Pipeline, names: list[str], others: dict[str, str], shards: list[Shard],
    shard_videos: int,
) -> None:  # fmt: skip
    """Makes shards of the names that those that are there lack, and adds them."""
    source = pipeline.videos.resolve()
    done = {name for shard in shards for name in [*(v.name for v in shard.videos), *shard.rejects]}
    todo = [name for name in names if name not in done]
    if done:
        logging.info("%s holds %d of %d videos already", features, len(names) - len(todo), len(names))
    groups = [todo[first : first + shard_videos] for first in range(0, len(todo), shard_videos)]
    # the number of a shard that is gone is free, so it is made again under its own name
    paths = ((path, None) for n in count() if not (path := features / f"shard-{n:05}.h5").exists())
    with writing(features, shards):
        with closing(pipeline.make(groups, groups, paths)) as new_shards:
            for shard in new_shards:
                shards.append(shard)
                write_index(features, shards, source, False, others)
        shards.sort(key=lambda shard: shard.path)
        write_index(features, shards, source, True, others)
    for shard in shards:
        shard.close()


def add_motion(videos: Path, features: Path, *, decode_timeout: float = 60.0) -> int:
    """Gives the shards that have no motion maps these, from the same videos, without the network; how many videos.

    Raises UserError: a video is gone or has changed, another extraction is at work, or the cache cannot be written.
    """
    with locked(features, BUSY.format(features)):
        cache = FeatureCache(features)
        decoder = Decoder(cache.settings["fps"], 8, decode_timeout, cache.cube_shape[:2])  # of frames nothing is used
        shards, todo = list(cache.shards), [shard for shard in cache.shards if not shard.tables.has_motion]
        try:
            with tqdm(total=sum(len(shard.videos) for shard in todo), unit=" videos", disable=None) as progress:
                for shard in todo:
                    maps = {}
                    for video in shard.videos:
                        maps[video.name] = _motion_of(video, videos / video.name, decoder)
                        progress.update()
                    shards[shards.index(shard)] = _rewritten(shard, shard.videos, maps)
            write_index(features, shards, Path(cache.source), cache.complete, cache.passed_over)
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
    return _rewritten(shard, kept, {video.name: shard.motion(video) for video in kept if shard.tables.has_motion})


def _rewritten(shard: Shard, kept: list[Video], motion: Mapping[str, np.ndarray]) -> Shard:
    """The shard written anew from its own features, with these motion maps, in the place of the old one."""
    said = shard.tables
    writer = ShardWriter(shard.path, said.cube_shape, said.settings, json.loads(said.software), said.compression)
    for video in kept:
        writer.append(shard.read(video.first_row, video.first_row + video.frames), shard.frame_hashes(video))
        writer.add_video(video, said.remarks.get(video.name, ()), motion.get(video.name))
    for name, reason in said.rejects.items():
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
    flags.DEFINE_enum("engine", "local", ["local", "ray"], "what makes the shards: this process, or actors of Ray")
    flags.DEFINE_string("ray_address", None, "of a running Ray cluster [RAY_ADDRESS, else one on this machine]")
    flags.DEFINE_integer("ray_cpus", 4, "cores of each actor; with GPUs in the cluster, each has one too", 1)
    flags.DEFINE_enum("compression", "zstd", sorted(FILTERS), "HDF5 filter; gzip is read by every h5py, but slower")


def _partition(args: flags.FlagValues) -> Partition | None:
    """The worker that this is to be, if one of several. Raises UserError if the flags do not go together."""
    shared = "partition" if args.partition is not None else "engine" if args.engine == "ray" else ""
    if not shared:
        return None
    if args.partition is not None and args.engine == "ray":
        raise UserError("--partition is for workers that you start yourself; leave it out with --engine=ray")
    for name in ("prune", "motion_only"):
        if args[name].value:
            raise UserError(f"--{name} is not for workers; run it without --{shared}")
    partition = Partition.parse(args.partition, os.environ) if args.partition is not None else None
    if (not partition or partition.count > 1) and not args["precision"].present:
        raise UserError(
            f"--{shared} needs --precision: by default each machine takes the one that is fastest on it, but the "
            "features must be the same on all; give --precision=float32, or bfloat16, to all workers"
        )
    if args.engine == "ray":
        ray_engine.check_installed()
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
    weights = str(Path(args.weights).resolve()) if Path(args.weights).is_file() else args.weights
    build = partial(build_backbone, args.backbone, weights, args.precision, args.runtime, args.grid)
    try:
        network = build()
    except UserError as error:
        if not (args.fall_back_to_random and args.weights == "imagenet"):
            raise
        build = partial(build_backbone, args.backbone, "random", args.precision, args.runtime, args.grid)
        network = build()
        say(f"WARNING: {error}\nWARNING: RANDOM WEIGHTS ARE USED INSTEAD: ACCURACIES WILL MEAN NOTHING.")
    modules = tuple(args["import"].value or ())
    cluster = ray_engine.Cluster(build, modules, args.ray_address, args.ray_cpus) if args.engine == "ray" else None
    caches = {Path(args.features): args.stream}
    if args.mirrored:
        caches[Path(args.features) / MIRRORED] = "mirrored_flow"
    for features, stream in caches.items():
        done = extract(Path(args.videos), features, network, fps=args.fps, stream=stream, prune=args.prune,
                       compression=args.compression, decode_timeout=args.decode_timeout,
                       partition=partition, cluster=cluster)  # fmt: skip
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
