"""Measures stages of the project against what limits them, each pair in turn in one process; the median of the rounds.

    python -m experiments.benchmark --output FILE.json [--videos DIR] [--stages extraction,filters]

`extraction`: frames/s of the whole pipeline (decoding, network, compression, writing) against the bare network on the
same batches, already decoded and in memory. VGG16 bounds it: on two cores a frame takes the network some 70 ms.

`filters`: size, write and read speed of HDF5 filters and chunks on the cubes of those videos. pool5 is 90 % zeros.
"""

import os
import platform
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import tensorflow as tf
from absl import flags, logging

from action_attention.features import FeatureCache, write_json
from data_prep import program
from data_prep.backbone import FRAME_SIZE, Backbone, build_backbone
from data_prep.decoder import Decoder
from data_prep.extract import decode_batches, extract
from data_prep.sample import make_sample
from data_prep.videos import list_videos

ZSTD = dict(hdf5plugin.Zstd(clevel=1))
CANDIDATES = {
    "zstd level 1, 8 frames": (8, ZSTD),
    "zstd level 3, 8 frames": (8, dict(hdf5plugin.Zstd(clevel=3))),
    "zstd level 1, shuffle, 8 frames": (8, {**ZSTD, "shuffle": True}),
    "gzip level 1, 8 frames": (8, {"compression": "gzip", "compression_opts": 1}),
    "gzip level 4, 8 frames": (8, {"compression": "gzip", "compression_opts": 4}),
    "lzf, 8 frames": (8, {"compression": "lzf"}),
    "bitshuffle lz4, 8 frames": (8, dict(hdf5plugin.Bitshuffle(cname="lz4"))),
    **{f"zstd level 1, {frames} frames": (frames, ZSTD) for frames in (1, 4, 16, 32)},
}


def extraction(videos: Path, network: Backbone, rounds: int) -> dict:
    """The pipeline's frames/s over the bare network's, round by round."""
    with closing(Decoder(15.0, FRAME_SIZE)) as decoder:
        batches = list(decode_batches(videos, [list_videos(videos)], decoder))
    frames = sum(batch.count for batch in batches)
    network(batches[0].frames)  # builds the graph
    seconds = {"pipeline": [], "network": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds["pipeline"].append(extract(videos, Path(folder), network).seconds)
        started = time.monotonic()
        for batch in batches:
            network(batch.frames)
        seconds["network"].append(time.monotonic() - started)
    speeds = {f"{name}_frames_per_second": frames / statistics.median(taken) for name, taken in seconds.items()}
    ratios = [bare / whole for bare, whole in zip(seconds["network"], seconds["pipeline"], strict=True)]
    return {"frames": frames, **speeds, "ratios": ratios, "ratio": statistics.median(ratios)}


def filters(videos: Path, network: Backbone, rounds: int) -> dict:
    """Ratio to raw float16, MB/s of raw data written and read, of each filter and chunk."""
    with tempfile.TemporaryDirectory() as folder:
        extract(videos, Path(folder), network)
        cache = FeatureCache(Path(folder))
        cubes = np.concatenate([cache.read(name) for name in cache.videos])
        cache.close()
        measured, megabytes = {name: [] for name in CANDIDATES}, cubes.nbytes / 1e6
        for _ in range(rounds):
            for name, (frames, options) in CANDIDATES.items():
                path = Path(folder) / "filter.h5"
                started = time.monotonic()
                with h5py.File(path, "w") as file:
                    file.create_dataset("x", data=cubes, chunks=(frames, *cubes.shape[1:]), **options)
                written = time.monotonic()
                with h5py.File(path) as file:
                    file["x"][:]
                read = time.monotonic()
                ratio = cubes.nbytes / path.stat().st_size
                measured[name].append((ratio, megabytes / (written - started), megabytes / (read - written)))
    columns = ("ratio", "write_mb_s", "read_mb_s")
    return {name: dict(zip(columns, np.median(rows, axis=0).tolist(), strict=True)) for name, rows in measured.items()}


STAGES = {"extraction": extraction, "filters": filters}


def define_flags() -> None:
    flags.DEFINE_string("output", None, "file for the figures", required=True)
    flags.DEFINE_string("videos", None, "folder of videos [a sample of 36 clips]")
    flags.DEFINE_string("weights", "imagenet", "imagenet, random (seeded) or a Keras weights file of VGG16")
    flags.DEFINE_list("stages", sorted(STAGES), "which stages")
    flags.DEFINE_integer("rounds", 3, "repetitions of each pair", lower_bound=1)


def main() -> None:
    args = flags.FLAGS
    network = build_backbone(args.weights)
    figures = {"machine": platform.platform(), "cores": os.cpu_count(), "tensorflow": tf.__version__}
    figures["precision"] = network.precision
    with tempfile.TemporaryDirectory() as folder:
        if not args.videos:
            make_sample(Path(folder) / "sample", train_clips=4, test_clips=2)
        videos = Path(args.videos or Path(folder) / "sample" / "videos")
        for stage in args.stages:
            logging.info("%s ...", stage)
            figures[stage] = STAGES[stage](videos, network, args.rounds)
            print(stage, figures[stage])
    write_json(Path(args.output), figures)


if __name__ == "__main__":
    program.run(main, define_flags)
