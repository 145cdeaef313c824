"""Small real videos and a feature cache of them, made once a session."""

import json
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import data_prep.quiet_tensorflow  # noqa: F401, I001 - before Keras

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import keras
import numpy as np
import pytest

from action_attention.features import FeatureCache
from data_prep.backbones import Backbone
from data_prep.extract import extract
from data_prep.splits import make_split, make_tags

CLASSES = ("leap", "nod", "spin")
# real data beside a developer's checkout; tests of it skip elsewhere
JHMDB = Path(__file__).parents[1] / "../shared/data/jhmdb"
# a folder for PYTHONPATH: the decoder's process fails for certain file names
SPOILT = Path(__file__).parent / "spoilt"


def write_video(path: Path, frames: int = 40, fps: float = 30.0, seed: int = 0, codec: str = "MJPG") -> None:
    """A video whose frame n is nearly uniform, its red channel 6 * n: so a decoded frame tells its own number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (64, 48)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size)
    assert writer.isOpened()
    noise = np.random.default_rng(seed).integers(0, 8, (size[1], size[0], 3))
    for number in range(frames):
        frame = noise + np.array([40, 120, 0])
        frame[..., 2] = min(6 * number, 250)
        writer.write(frame.astype(np.uint8))
    writer.release()


def write_frames(path: Path, frames: Sequence[np.ndarray], fps: float = 30.0, codec: str = "FFV1") -> None:
    """A video, lossless unless it has another codec, of given frames, each BGR uint8 `(height, width, 3)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def encode(
    path: Path, frames: int = 40, fps: int = 30, codec: str = "libx264", *, pix_fmt: str = "yuv420p",
    options: dict | None = None, stamps: list[float] | None = None, rotation: int = 0, still: bool = False,
    size: tuple[int, int] = (64, 48),
) -> None:  # fmt: skip
    """A video of any codec: frame n's red channel is 6 n, its left half darker; `stamps` are the frames' times in s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, width=size[0], height=size[1], pix_fmt=pix_fmt)
        stream.options = options or {}
        if stamps:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), (0 if still else min(6 * number, 250), 120, 40), np.uint8)
            picture[:, : size[0] // 2, 1] = 60
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if stamps:
                frame.pts, frame.time_base = round(1000 * stamps[number]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def mux_sound(container: av.container.OutputContainer, sound: av.AudioStream) -> None:
    """A fifth of a second of silence, in a stream of 44,100 samples a second."""
    for _ in range(8):
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        samples.sample_rate = 44100
        container.mux(sound.encode(samples))
    container.mux(sound.encode(None))


def small_network() -> Backbone:
    """Stands in for VGG16 where what is tested is not the network: same inputs and outputs, little cost.

    Its numbers are few binary digits, so that no rounding depends on a frame's place in its batch.
    """
    frames = keras.Input((224, 224, 3), dtype="uint8")
    pooled = keras.layers.AveragePooling2D(32)(keras.layers.Rescaling(1 / 256)(frames))
    dense = keras.layers.Dense(512, "relu")
    cubes = dense(pooled)
    dense.set_weights([np.random.default_rng(0).normal(0, 4, (3, 512)).round() / 64, np.zeros(512)])
    model = keras.Model(frames, keras.ops.cast(cubes, "float16"))
    return Backbone("VGG16 stand-in", model, "scaled to 0..1", "random", "0" * 64, "float32")


def pytest_addoption(parser):
    parser.addoption("--faults", metavar="FILE", help="write the reliability table's rows to this JSON file")


@pytest.fixture
def fault(record_property):
    """Adds a row to the table that `make faults` prints; call it last, when everything promised was seen."""

    def add(name: str, tried: int, promised: str, happened: str) -> None:
        name = name[0].upper() + name[1:]
        record_property("fault", {"fault": name, "tried": tried, "promised": promised, "happened": happened})

    return add


def pytest_terminal_summary(terminalreporter, config):
    passed = terminalreporter.stats.get("passed", ())
    rows = [value for report in passed for key, value in report.user_properties if key == "fault"]
    if not rows or not config.option.faults:
        return
    Path(config.option.faults).write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    terminalreporter.section("faults")
    for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)):
        terminalreporter.write_line(f"| {' | '.join(map(str, cells))} |")


@pytest.fixture(scope="session")
def network() -> Backbone:
    return small_network()


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Four films of three classes, two clips each of 4 to 18 sampled frames, and one file that is no video."""
    root = tmp_path_factory.mktemp("tiny") / "videos"
    for film in range(4):
        for index, class_name in enumerate(CLASSES):
            seed = 10 * film + index
            write_video(root / class_name / f"film{film}_{class_name}_f_nm_{index}.avi", 8 + 2 * seed % 29, seed=seed)
    (root / "nod" / "junk.avi").write_text("no video")
    return root


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory, videos, network) -> Path:
    folder = tmp_path_factory.mktemp("features")
    extract(videos, folder, network, shard_videos=5)
    return folder


@pytest.fixture
def cache(cache_folder):
    opened = FeatureCache(cache_folder)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def split(cache_folder):
    cache = FeatureCache(cache_folder)
    cache.close()
    return make_split(make_tags(sorted(cache.videos), 0), "source", 0)
