"""A backbone -> its network in int8, one file for `--weights` (needs the extra `openvino`).

    python -m data_prep.quantize --backbone=vgg16 --videos=DIR --output=vgg16_int8.zip

Ranges are those of frames out of many videos. Every fourth video is kept apart: the file says how near the network
comes to float32 on frames of those.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags, logging

from action_attention.errors import UserError
from data_prep import program
from data_prep.backbones import Backbone, build_backbone, quantized
from data_prep.backbones.openvino_runtime import library
from data_prep.terminal import say
from data_prep.videos import UnusableVideoError, VideoReader, list_videos

FPS = 15.0  # as extraction samples unless it is told otherwise
BATCH = quantized.BATCH
HELD_OUT = 4  # every so many videos
HELD_OUT_FRAMES = 128
PER_VIDEO = 4  # frames


class Frames(NamedTuple):
    """Frames, uint8 `(n, size, size, 3)`, and of each its video and its number among those that are sampled at FPS."""

    pictures: np.ndarray
    origin: list[tuple[str, int]]

    def about(self) -> dict:
        """What the file says of them."""
        videos: dict[str, list[int]] = {}
        for name, number in self.origin:
            videos.setdefault(name, []).append(number)
        return {"fps": FPS, "sha256": hashlib.sha256(self.pictures.tobytes()).hexdigest(), "videos": videos}


def choose_frames(videos: Path, names: Sequence[str], count: int, size: int) -> Frames:
    """At most `count` frames, evenly out of evenly chosen videos; a video that cannot be used is named and left out."""
    chosen = [names[place] for place in evenly(len(names), -(-count // PER_VIDEO))]
    share, taken = -(-count // max(len(chosen), 1)), dict[tuple[str, int], np.ndarray]()
    for name in chosen:
        try:
            taken |= {(name, number): frame for number, frame in _frames_of(videos / name, share, size).items()}
        except UnusableVideoError as error:
            logging.warning("left out: %r %s", name, error)
    pictures = np.array([*taken.values()][:count], np.uint8)
    return Frames(pictures, [*taken][:count])


def evenly(total: int, count: int) -> list[int]:
    """So many of the numbers below `total`, or all of them if they are fewer."""
    return [round(place) for place in np.linspace(0, total - 1, min(count, total))]


def _frames_of(path: Path, count: int, size: int) -> dict[int, np.ndarray]:
    """Frames by their number. A video is read twice, since it may be longer than memory."""
    wanted = set(evenly(sum(1 for _ in VideoReader(path, FPS, size)), count))
    return {number: frame for number, frame in enumerate(VideoReader(path, FPS, size)) if number in wanted}


def cosines(exact: Backbone, other: Backbone, frames: np.ndarray) -> np.ndarray:
    """Of each frame's two cubes, `(n,)`; 1 where both are zero."""
    found = []
    for first in range(0, len(frames), BATCH):
        batch = frames[first : first + BATCH]
        padded = np.concatenate([batch, np.zeros((BATCH - len(batch), *batch.shape[1:]), np.uint8)])
        a, b = (network(padded)[: len(batch)].astype(np.float64).reshape(len(batch), -1) for network in (exact, other))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found.append(np.where((a == b).all(axis=1), 1, (a * b).sum(axis=1) / np.maximum(norms, 1e-30)))
    return np.concatenate(found)


def define_flags() -> None:
    flags.DEFINE_string("videos", None, "folder with one folder of video files per class", required=True)
    flags.DEFINE_string("output", None, f"the file to write, NAME{quantized.SUFFIX}", required=True)
    flags.DEFINE_string("backbone", "vgg16", "as for extract")
    flags.DEFINE_string("weights", "imagenet", "imagenet, random (seeded) or a file of weights of the backbone")
    flags.DEFINE_integer(
        "frames", 288, f"number of frames that the ranges are taken from, in batches of {BATCH}", BATCH, 10_000
    )


def main() -> None:
    args, output = flags.FLAGS, Path(flags.FLAGS.output)
    if output.suffix != quantized.SUFFIX or not output.parent.is_dir():
        raise UserError(f"--output={output} must be a file NAME{quantized.SUFFIX} in a folder that is there")
    for module in ("openvino", "nncf"):  # before the frames are read
        library(module, "quantising")
    videos, names = Path(args.videos), list_videos(Path(args.videos))
    exact, apart = build_backbone(args.backbone, args.weights, "float32"), names[HELD_OUT - 1 :: HELD_OUT]
    found = choose_frames(videos, sorted(set(names) - set(apart)), args.frames, exact.input_size)
    test = choose_frames(videos, apart, HELD_OUT_FRAMES, exact.input_size)
    whole = len(found.pictures) // BATCH * BATCH
    if not whole or not len(test.pictures):
        raise UserError(
            f"{videos} gives {len(found.pictures)} frames for the ranges and {len(test.pictures)}, of other videos, to "
            f"test them; at least {BATCH} and 1 are needed: give more videos"
        )
    used = Frames(found.pictures[:whole], found.origin[:whole])
    network = quantized.quantize(exact, np.split(used.pictures, whole // BATCH))
    near = cosines(exact, network, test.pictures)
    cosine = {"least": round(float(near.min()), 4), "mean": round(float(near.mean()), 4)}
    quantized.write(output, network, {"calibration": used.about(), "held_out": test.about(), "cosine": cosine})
    say(
        f"{output}: {network.name} in int8, {output.stat().st_size / 1e6:.1f} MB, by {whole} frames of "
        f"{len(used.about()['videos'])} videos; cosine with float32 on {len(near)} frames of "
        f"{len(test.about()['videos'])} others: least {cosine['least']:.4f}, mean {cosine['mean']:.4f}"
    )


if __name__ == "__main__":
    program.run(main, define_flags)
