"""Measures every stage against what limits it: things run in turn, the median of the rounds' ratios.

    python -m experiments.benchmark --output FILE.json [--videos DIR --features DIR] [--stages network,steps]

Peers (`pip install .[bench]`) that are not installed are skipped by name. The figures go to the screen as a table and
into a JSON file, where stages that are not run keep what they have; docs/performance.md has them. What bounds what:

- Extraction: the network, 30 ms a frame on two cores in bfloat16 by oneDNN's kernels, as in OpenVINO; XLA's
  convolutions are slower, and weights frozen into the graph gain nothing. Decoding, compression and writing go on
  beside it, motion maps in turn with it.
- The cache: decompression by one core. zstd level 1 is smaller than gzip and lzf, and read more than twice as fast;
  chunks larger than 8 frames are read a tenth faster, but a clip then reads frames that it has no use for (`filters`).
- ALSTM's step: memory, not arithmetic. The LSTM's kernels have one gradient product of all frames (`models.lstm`); the
  unrolled loop's own writes and adds matrices of their size once a frame, a fifth of the work in float32, two fifths in
  bfloat16. One thread per operation, because halves of small products cost more than they save; no XLA (slower, and
  46 s to compile); frame means, their projection and dropout are out of the loop.
- ConvALSTM's step: its 3x3 products, written as one product over neighbourhoods, whose gradient by the kernel is one
  too; TensorFlow's gradient of a convolution is three times as slow. All threads, bfloat16.
- The start: imports, then tracing the unrolled loop.
"""

import json
import math
import os
import platform
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import Any

import data_prep.quiet_tensorflow  # isort: skip  # noqa: F401 - before Keras
import h5py
import hdf5plugin
import keras
import numpy as np
import scipy.stats
import tensorflow as tf
from absl import flags, logging

from action_attention.clips import UNTUNED, Clips, class_names
from action_attention.evaluation import predict_videos
from action_attention.features import FeatureCache, write_json
from action_attention.registry import Config
from action_attention.training import choose_threads, compile_model, new_model, train
from data_prep import program
from data_prep.backbones import Backbone, build_backbone
from data_prep.decoder import Decoder
from data_prep.extract import extract
from data_prep.pipeline import Batch, decode_batches
from data_prep.sample import make_sample
from data_prep.splits import make_split, make_tags
from data_prep.videos import list_videos, read_frames
from experiments import benchmark_baselines as baselines
from experiments import text_table

FPS = 15.0
SHORT_FPS = 1.0  # where the number of videos is the point, not that of frames
CLASSES = 21
STEPS = 10  # training steps between two looks at the clock
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


@dataclass(frozen=True)
class Row:
    """One line of the table: `value` of `stage`, as a ratio to `against` where that is given, and the goal."""

    stage: str
    against: str
    value: float
    goal: float
    unit: str = "x"
    lower_is_better: bool = False
    detail: dict | None = None

    @property
    def met(self) -> bool:
        return self.value <= self.goal if self.lower_is_better else self.value >= self.goal

    def cells(self) -> tuple[str, ...]:
        goal = f"{'at most' if self.lower_is_better else 'at least'} {self.goal:g} {self.unit}"
        return self.stage, self.against, f"{self.value:.4g} {self.unit}", goal, "yes" if self.met else "no"


@dataclass(frozen=True)
class Bench:
    """What the stages work on."""

    videos: Path
    features: Path
    rounds: int
    weights: str
    clip_length: int

    @cached_property
    def network(self) -> Backbone:
        return build_backbone(weights=self.weights)

    @cached_property
    def names(self) -> list[str]:
        """24 videos of many classes."""
        names = list_videos(self.videos)
        return names[:: max(1, len(names) // 24)][:24]

    def batches(self) -> Iterator[Batch]:
        """Batches of their frames."""
        with closing(Decoder(FPS, self.network.input_size)) as decoder:
            yield from decode_batches(self.videos, [self.names], decoder)

    @cached_property
    def cache(self) -> FeatureCache:
        return FeatureCache(self.features)

    def clips(self, *, in_memory: bool | None = None, videos: int | None = None) -> Clips:
        names = list(self.cache.videos)[:videos]
        return Clips(self.cache, names, class_names(names), self.clip_length, in_memory=in_memory)

    def model(self, name: str, classes: int = CLASSES, build: Callable = new_model, **settings: Any) -> keras.Model:
        """A new model, ready to be trained."""
        config = Config.of(name, clip_length=self.clip_length, **settings)
        model = build(config, classes)
        compile_model(model, config, STEPS)
        return model


def time_alternately(rounds: int, **functions: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each function, called in turn, `rounds` times after a first call that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as fast `fast` is: the median over rounds."""
    return statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def in_fresh_process(function: Callable, bench: Bench, *arguments: Any) -> Any:
    """What a function of this module returns in a new process, which has threads, memory, network and cache anew."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, replace(bench), *arguments).result()


def network(bench: Bench) -> list[Row]:
    """The bare networks, alone, by each runtime; VGG16 bounds its extraction."""
    rows, frames = [], next(bench.batches()).frames
    contest = {}
    for name, weights in (("vgg16", bench.weights), ("efficientnet_lite0", "imagenet")):
        ours = build_backbone(name, weights)
        other = build_backbone(name, weights, ours.precision, "openvino")
        contest[name], contest[f"{name} openvino"] = partial(ours, frames), partial(other, frames)
        lowest = min(cosines(ours(frames), other(frames)))
        what = f"{name}, {ours.precision}"
        rows.append(Row(f"{what}: lowest cosine of a frame's cube", "OpenVINO", lowest, 0.9999, ""))
    seconds = time_alternately(2 * bench.rounds, **contest)
    speeds = {name: len(frames) / statistics.median(taken) for name, taken in seconds.items()}
    for name in ("vgg16", "efficientnet_lite0"):
        faster = ratio(seconds, name, f"{name} openvino")
        rows.append(Row(f"{name} in OpenVINO, frames/s", "TensorFlow", faster, 1.0, detail=speeds))
    best = {name: max(speeds[name], speeds[f"{name} openvino"]) for name in ("vgg16", "efficientnet_lite0")}
    rows.append(Row("efficientnet_lite0, frames/s", "vgg16", best["efficientnet_lite0"] / best["vgg16"], 12.0))
    return rows


def cosines(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Of each frame's cube."""
    a, b = (cubes.astype(float).reshape(len(cubes), -1) for cubes in (a, b))
    return (np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).tolist()


def precision(bench: Bench) -> list[Row]:
    """bfloat16 cubes beside float32 ones of the same frames."""
    exact = build_backbone(weights=bench.weights, precision="float32")
    found = []
    for batch in islice(filter(attrgetter("count"), bench.batches()), 4):  # the last may hold ends of videos only
        frames = batch.frames[: batch.count]
        found += cosines(exact(frames), bench.network(frames))
    detail = {"frames": len(found), "median": statistics.median(found), "precision": bench.network.precision}
    return [Row("features, lowest cosine of a frame's cube", "float32 network", min(found), 0.999, "", detail=detail)]


def accuracy(bench: Bench) -> list[Row]:
    """ALSTM trained on bfloat16 features and on float32 ones, both of few frames, seed by seed."""
    right: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    with tempfile.TemporaryDirectory() as folder:
        for name, found in right.items():
            features = Path(folder) / name
            extract(bench.videos, features, build_backbone(weights=bench.weights, precision=name), fps=SHORT_FPS)
            cache = FeatureCache(features)
            for seed in range(5):
                split = make_split(make_tags(sorted(cache.videos), seed), "source", seed)
                config = Config.of("alstm", clip_length=2, epochs=10, seed=seed)
                run = train(config, cache, split, Path(folder) / f"{name}-{seed}")
                found.append(100 * run["best"]["val_video_top1"])
    apart = np.subtract(right["bfloat16"], right["float32"])
    noise = scipy.stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / math.sqrt(len(apart))
    apart, noise = round(float(abs(apart.mean())), 3), round(float(noise), 3)
    stage, against = "ALSTM on bfloat16 features, validation videos right", "float32 features, 5 seeds; 95 % interval"
    return [Row(stage, against, apart, noise, "points", lower_is_better=True, detail=right)]


def extraction(bench: Bench) -> list[Row]:
    """The whole pipeline beside the bare network on the same batches, decoded before, and beside a plain loop."""
    batches = list(bench.batches())
    frames = sum(batch.count for batch in batches)
    backbones = {"vgg16": bench.network, "efficientnet_lite0": build_backbone("efficientnet_lite0")}

    def pipeline(network: Backbone) -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract(bench.videos, Path(folder), network, fps=FPS, names=bench.names)

    def alone(network: Backbone) -> None:
        for batch in batches:
            network(batch.frames)

    contest = {}
    for name, network in backbones.items():
        contest[f"extraction {name}"], contest[f"network {name}"] = partial(pipeline, network), partial(alone, network)
    loop = partial(baselines.one_thread_loop, bench.videos, bench.names, FPS, bench.weights)
    seconds = time_alternately(bench.rounds, **contest, loop=loop)
    speeds = {name: frames / statistics.median(taken) for name, taken in seconds.items()}
    rows = []
    for name in backbones:
        faster = ratio(seconds, f"network {name}", f"extraction {name}")
        rows.append(Row(f"{name} extraction, frames/s", "bare network", faster, 0.97, detail=speeds))
    faster = ratio(seconds, "loop", "extraction vgg16")
    return [*rows, Row("vgg16 extraction, frames/s", "one-thread loop, float32", faster, 2.5)]


def lstm_step(bench: Bench) -> list[Row]:
    """A training step of ALSTM beside the same model in PyTorch, which computes in float32 on all cores."""
    choose_threads("alstm")
    features, labels, batches = whole_clips(bench)
    contest = {
        "float32": fitted(bench.model("alstm"), batches),
        "bfloat16": fitted(bench.model("alstm", mixed_precision=True), batches),
    }
    for name, compiled in (("eager", False), ("compiled", True)):
        step = baselines.torch_alstm_step(features.shape[2:], CLASSES, Config.of("alstm"), compiled)
        contest[name] = partial(repeat, step, features, labels)
    seconds = time_alternately(bench.rounds, **contest)
    speeds = {name: STEPS * len(features) / statistics.median(taken) for name, taken in seconds.items()}
    return [
        Row(f"ALSTM step, {ours}", f"PyTorch {peer}, float32", ratio(seconds, peer, ours), goal, detail=speeds)
        for ours in ("float32", "bfloat16")
        for peer, goal in (("eager", 1.5), ("compiled", 1.0))
    ]


def repeat(step: Callable[..., object], *arguments: Any) -> None:
    for _ in range(STEPS):
        step(*arguments)


def conv_lstm_step(bench: Bench) -> list[Row]:
    """A training step of ConvALSTM beside Keras' own ConvLSTM cell in the same loop."""
    features, _, batches = whole_clips(bench)
    seconds = time_alternately(
        max(1, bench.rounds - 1), plain=fitted(bench.model("conv_alstm", build=baselines.plain_conv_alstm), batches),
        ours=fitted(bench.model("conv_alstm", mixed_precision=True), batches),
    )  # fmt: skip
    speeds = {name: STEPS * len(features) / statistics.median(taken) for name, taken in seconds.items()}
    against = "Keras' ConvLSTM2D cell unrolled, float32"
    return [Row("ConvALSTM step, bfloat16", against, ratio(seconds, "plain", "ours"), 2.0, detail=speeds)]


def whole_clips(bench: Bench) -> tuple[np.ndarray, np.ndarray, tf.data.Dataset]:
    """Features and labels of 16 clips without padding, and the batch of them for ever."""
    clips = bench.clips()
    whole = [index for index, clip in enumerate(clips.clips) if clip.frames == bench.clip_length][:16]
    features, mask, labels = clips.load(np.array(whole))
    batch = ({"features": features, "mask": mask}, {"logits": labels, "attention": mask})
    return features, labels, tf.data.Dataset.from_tensors(batch).repeat().with_options(UNTUNED)


def fitted(model: keras.Model, batches: tf.data.Dataset, steps: int = STEPS) -> Callable[[], object]:
    """Training of some steps, to be timed."""
    return lambda: model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)


def data(bench: Bench) -> list[Row]:
    """What waiting for data costs ALSTM's training, from memory and streamed."""
    choose_threads("alstm")
    model, clips, endless, steps = bench.model("alstm"), bench.clips(), range(10_000), 4 * STEPS
    constant = tf.data.Dataset.from_tensors(next(iter(clips.batches(16)))).repeat().with_options(UNTUNED)
    streamed = bench.clips(in_memory=False)
    seconds = time_alternately(
        2 * bench.rounds, constant=fitted(model, constant, steps),
        memory=fitted(model, clips.shuffled_batches(16, 0, endless), steps),
        streamed=fitted(model, streamed.shuffled_batches(16, 0, endless), steps),
        evaluation=lambda: predict_videos(model, clips, 16),
    )  # fmt: skip
    step = statistics.median(seconds["constant"]) / (steps * 16)
    reading, appetite = in_fresh_process(read_shuffled, bench), 1 / step
    evaluated = statistics.median(seconds["evaluation"]) / len(clips)
    in_loop = statistics.median(in_fresh_process(step_with_network, bench) for _ in range(bench.rounds))
    in_memory = statistics.median(seconds["memory"]) / steps
    detail = {"clips_per_second": reading, "training_clips_per_second": appetite}
    return [
        Row("reading clips, streamed, fresh process", "what ALSTM's step takes", reading / appetite, 10, detail=detail),
        Row("ALSTM training, in memory", "one constant batch", ratio(seconds, "constant", "memory"), 0.95),
        Row("ALSTM training, streamed", "one constant batch", ratio(seconds, "constant", "streamed"), 0.95),
        Row("ALSTM epoch from the cache", "VGG16 float32 in the training loop", in_loop / in_memory, 200),
        Row("evaluation, a clip", "a clip's training step", evaluated / step, 0.5, lower_is_better=True),
    ]


def read_shuffled(bench: Bench) -> float:
    """Clips per second of the first pass over a cache, read in shuffled order."""
    clips = bench.clips(in_memory=False)
    started = time.perf_counter()
    for _ in clips.shuffled_batches(16, 0, range(1)):
        pass
    return len(clips) / (time.perf_counter() - started)


def step_with_network(bench: Bench) -> float:
    """Seconds of one training step the tutorial's way: 16 videos are decoded and go through VGG16 first.

    The network has all cores, as it has in extraction. The first step, which traces, does not count.
    """
    exact, model = build_backbone(weights=bench.weights, precision="float32"), bench.model("alstm")
    cubes = np.zeros((16, bench.clip_length, *exact.cube_shape), np.float32)
    mask = np.ones(cubes.shape[:2], bool)
    targets = {"logits": mask.astype(np.int32), "attention": mask}
    for _ in range(2):
        started = time.perf_counter()
        for row, name in enumerate(bench.names[:16]):
            frames = read_frames(bench.videos / name, FPS, exact.input_size)[: bench.clip_length]
            cubes[row, : len(frames)] = exact.model.predict_on_batch(frames)
        model.train_on_batch({"features": cubes, "mask": mask}, targets)
    return time.perf_counter() - started


def start(bench: Bench) -> list[Row]:
    """From the start of the process: imports, reading the cache, tracing, compiling, one step."""
    rows = []
    for model, goal in (("alstm", 15), ("conv_alstm", 25)):
        taken = [in_fresh_process(first_step, bench, model, time.time()) for _ in range(bench.rounds)]
        rows.append(Row(f"start to first step, {model}", "", statistics.median(taken), goal, "s", lower_is_better=True))
    return rows


def first_step(bench: Bench, model: str, started: float) -> float:
    """Seconds since `started` when a training step is done."""
    fitted(bench.model(model), bench.clips().shuffled_batches(16, 0, range(1)), steps=1)()
    return time.time() - started


def memory(bench: Bench) -> list[Row]:
    """Peak memory of a process with a hundred videos and with all of them."""
    rows, every = [], len(list_videos(bench.videos))
    for stage, function in (("extraction", extraction_memory), ("streamed training", training_memory)):
        few, many = (in_fresh_process(function, bench, videos) for videos in (100, every))
        detail = {"100_videos_mib": few, f"{every}_videos_mib": many}
        name = f"peak memory, {stage}, {every} videos"
        rows.append(Row(name, "100 videos", many / few, 1.1, lower_is_better=True, detail=detail))
    return rows


def extraction_memory(bench: Bench, count: int) -> float:
    """Peak MiB of extracting so many videos, few frames of each."""
    with tempfile.TemporaryDirectory() as folder:
        names = list_videos(bench.videos)[:count]
        extract(bench.videos, Path(folder), bench.network, fps=SHORT_FPS, names=names)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def training_memory(bench: Bench, count: int) -> float:
    """Peak MiB of an epoch on so many videos that are read from the shards batch by batch."""
    clips = bench.clips(in_memory=False, videos=count)
    model = bench.model("alstm", len(class_names(clips.videos)))
    model.fit(clips.shuffled_batches(16, 0, range(2)), shuffle=False, verbose=0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def size(bench: Bench) -> list[Row]:
    """Size of the cache beside raw float16, and how fast one core reads it."""
    raw = bench.cache.frames * math.prod(bench.cache.cube_shape) * 2
    speeds = []
    for _ in range(bench.rounds):
        started = time.perf_counter()
        taken = sum(bench.cache.read(name).nbytes for name in bench.cache.videos)
        speeds.append(taken / 1e6 / (time.perf_counter() - started))
    return [
        Row("cache, times smaller", "raw float16", raw / bench.cache.file_bytes, 6),
        Row("cache, read by one core", "", statistics.median(speeds), 800, "MB/s"),
    ]


def filters(bench: Bench) -> dict:
    """Ratio to raw float16, MB/s of raw data written and read, of each filter and chunk; pool5 is 90 % zeros."""
    names = list(bench.cache.videos)[:: max(1, len(bench.cache.videos) // 24)][:24]
    cubes = np.concatenate([bench.cache.read(name) for name in names])
    megabytes = cubes.nbytes / 1e6
    measured: dict[str, list[tuple]] = {name: [] for name in CANDIDATES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filter.h5"
        for _ in range(bench.rounds):
            for name, (frames, options) in CANDIDATES.items():
                started = time.perf_counter()
                with h5py.File(path, "w") as file:
                    file.create_dataset("x", data=cubes, chunks=(frames, *cubes.shape[1:]), **options)
                written = time.perf_counter()
                with h5py.File(path) as file:
                    file["x"][:]
                read = time.perf_counter()
                smaller = cubes.nbytes / path.stat().st_size
                measured[name].append((smaller, megabytes / (written - started), megabytes / (read - written)))
    columns = ("ratio", "write_mb_s", "read_mb_s")
    return {name: dict(zip(columns, np.median(rows, axis=0).tolist(), strict=True)) for name, rows in measured.items()}


STAGES = {
    stage.__name__: stage
    for stage in (
        network, precision, extraction, size, filters, data, lstm_step, conv_lstm_step, start, memory, accuracy
    )
}  # fmt: skip


def machine() -> dict:
    """What the figures hold for."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    packages = ("tensorflow", "keras", "numpy", "h5py", "torch", "openvino")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "threads": len(os.sched_getaffinity(0)),
        **{name: version(name) if find_spec(name) else "not installed" for name in packages},
    }


def define_flags() -> None:
    flags.DEFINE_string("output", None, "JSON file for the figures", required=True)
    flags.DEFINE_string("videos", None, "folder of videos [a sample of 36 clips]")
    flags.DEFINE_string("features", None, "feature cache of these videos [made first]")
    flags.DEFINE_string("weights", "imagenet", "imagenet, random (seeded) or a Keras weights file of VGG16")
    flags.DEFINE_integer("clip_length", 18, "frames per clip, T", lower_bound=1)
    flags.DEFINE_list("stages", list(STAGES), "which stages")
    flags.DEFINE_integer("rounds", 3, "repetitions of each pair", lower_bound=1)
    text_table.define_format()
    flags.adopt_module_key_flags(text_table)


def main() -> None:
    args = flags.FLAGS
    output = Path(args.output)
    figures = json.loads(output.read_text()) if output.is_file() else {}
    figures |= {"machine": machine(), "videos": "given" if args.videos else "sample"}
    with tempfile.TemporaryDirectory() as folder:
        if not args.videos:
            make_sample(Path(folder) / "sample", train_clips=4, test_clips=2)
        videos = Path(args.videos or Path(folder) / "sample" / "videos")
        features = Path(args.features or Path(folder) / "features")
        bench = Bench(videos, features, args.rounds, args.weights, args.clip_length)
        if not args.features:
            extract(videos, features, build_backbone(weights=args.weights), fps=FPS)
        head = "| stage | against | measured | goal | met |\n|---|---|---|---|---|\n"
        for name in args.stages:
            try:
                found = in_fresh_process(STAGES[name], bench)
            except ImportError as error:
                logging.warning("%s is skipped: %s is not installed", name, error.name)
                continue
            if isinstance(found, list):
                text_table.show(head + "\n".join(f"| {' | '.join(row.cells())} |" for row in found))
                head = "" if text_table.as_markdown() else head  # aligned, each stage has a table of its own
                found = [{**asdict(row), "met": row.met} for row in found]
            figures[name] = found
            write_json(output, figures)


if __name__ == "__main__":
    program.run(main, define_flags)
