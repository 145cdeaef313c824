"""Clips of T frames cut from features, and batches of them through `tf.data`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

from action_attention.errors import UserError
from action_attention.features import ArrayFeatures, FeatureCache
from action_attention.localization import permute
from action_attention.loss import PADDING

FLOW_MISSING = (
    "this model takes the frames' optical flow too: extract it with `make extract ARGS=--stream=flow` into a folder of "
    "its own, and name that with --flow_features"
)
FLOW_UNUSED = "--flow_features is for a model that takes optical flow; train it with --fusion=early, or leave them out"

# the thread that tunes a dataset takes up to two seconds to end with its iterator, and here is nothing to tune
UNTUNED = tf.data.Options()
UNTUNED.autotune.enabled = False


@dataclass(frozen=True)
class Clip:
    """Frames `start` to `start + frames` of a video; `frames` is less than T only where the whole video is shorter."""

    video: str
    start: int
    frames: int


def class_names(videos: list[str]) -> list[str]:
    """Classes of videos named `<class>/<file>`, sorted: this order gives the class ids everywhere."""
    return sorted({name.split("/")[0] for name in videos})


def cut_clips(video: str, frames: int, clip_length: int, stride: int) -> list[Clip]:
    """Clips of one video at every `stride` frames, the last one aligned to the end so that no frame is dropped."""
    if frames <= clip_length:
        return [Clip(video, 0, frames)]
    last = frames - clip_length
    return [Clip(video, start, clip_length) for start in [*range(0, last, stride), last]]


def check_flow(settings: Any, cache: FeatureCache) -> None:
    """Raises UserError unless a cache has optical flow beside its features where a model of such settings takes it."""
    if settings.takes_flow != bool(cache.flow):
        raise UserError(FLOW_UNUSED if cache.flow else FLOW_MISSING)


class Clips:
    """The clips of some videos of a cache.

    A video shorter than `clip_length` is padded by repeating its last frame; the mask says which frames are real, and
    the labels of the others are `PADDING`.

    Args:
        cache: the feature cache, or features in memory.
        videos: names `<class>/<file>`.
        classes: class names; a class's id is its place here.
        clip_length: T, frames.
        stride: frames from one clip's start to the next one's; None for `clip_length`.
        in_memory: keep the videos' features decompressed in memory; None does so where they take less than half of
            what is free, otherwise every batch is read from the shards.
        labelled: the videos' folders are their classes; if not, `labels` are None and those of all frames `PADDING`.
        motion: give the frames' motion maps too.
        flow: give the features of the frames' optical flow too.
        mirror: `shuffled_batches` turns each clip's cubes left to right with probability 1/2: nearly the features of
            the mirrored video, since a backbone's kernels are not symmetric themselves. What moved left moves right
            then, so features of flow are not turned: those of the mirrored video are read.

    Raises:
        UserError: a video is not in the cache, its class is not among `classes`, or there is no optical flow, or none
            of the mirrored videos.
    """

    def __init__(
        self,
        cache: FeatureCache | ArrayFeatures,
        videos: list[str],
        classes: list[str],
        clip_length: int,
        stride: int | None = None,
        *,
        in_memory: bool | None = None,
        labelled: bool = True,
        motion: bool = False,
        flow: bool = False,
        mirror: bool = False,
    ):
        absent = [name for name in videos if name not in cache.videos]
        if absent:
            raise UserError(f"{cache.folder} lacks {len(absent)} videos that are asked for: {', '.join(absent[:10])}")
        unknown = sorted({name.split("/")[0] for name in videos} - set(classes))
        if labelled and unknown:
            raise UserError(f"the model knows no class {', '.join(unknown)}; its classes are {', '.join(classes)}")
        self.clip_length, self.videos, self.cube_shape = clip_length, list(videos), cache.cube_shape
        self.labels = {name: classes.index(name.split("/")[0]) if labelled else None for name in videos}
        self.clips = [
            clip
            for name in videos
            for clip in cut_clips(name, cache.videos[name].frames, clip_length, stride or clip_length)
        ]
        self.video_frames = {name: cache.videos[name].frames for name in videos}
        if flow and not cache.flow:
            raise UserError(FLOW_MISSING)
        streams: list[Any] = [cache, *([cache.flow] if flow else [])]
        turned = [stream.open_mirrored() if mirror and stream.is_flow else None for stream in streams]
        self.mirror, self._cube_shapes = mirror, [stream.cube_shape for stream in streams]
        if in_memory is None:
            values = sum(math.prod(stream.cube_shape) for stream in (*streams, *turned) if stream)
            in_memory = 2 * values * sum(self.video_frames.values()) < psutil.virtual_memory().available / 2
        self.in_memory = in_memory

        def reader(read: Callable[..., np.ndarray]) -> Callable[[Clip], np.ndarray]:
            if not in_memory:
                return lambda clip: read(clip.video, clip.start, clip.start + clip.frames)
            loaded = {name: read(name) for name in videos}
            return lambda clip: loaded[clip.video][clip.start : clip.start + clip.frames]

        if motion:
            cache.check_motion(videos)
        self._motion = reader(cache.read_motion) if motion else None
        pairs = zip(streams, turned, strict=True)
        self._readers = [(reader(stream.read), reader(other.read) if other else None) for stream, other in pairs]

    def shuffle_flow(self, flow: FeatureCache) -> None:
        """Gives each video the flow of another one, stretched to its length. Raises UserError if there is no other."""
        if not (others := permute(self.labels)):
            raise UserError("the flow of a single video cannot be shuffled; give more videos")

        def read(clip: Clip) -> np.ndarray:
            other = flow.read(others[clip.video])
            frames = np.arange(clip.start, clip.start + clip.frames)
            return other[frames * len(other) // self.video_frames[clip.video]]

        self._readers[1] = (read, None)

    def __len__(self) -> int:
        return len(self.clips)

    def load(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Features float16 `(B, T, H, W, D)`, mask bool `(B, T)` and frame labels int32 `(B, T)` of some clips, and,
        where they are asked for, motion maps float16 `(B, T, H, W)` and features of flow float16 `(B, T, H, W, D)`.

        The cubes and maps of those that are `mirrored`, bool `(B,)`, are turned left to right; of flow, those of the
        mirrored videos are read.
        """
        turn = np.zeros(len(indices), bool) if mirrored is None else mirrored
        cubes = [np.empty((len(indices), self.clip_length, *shape), np.float16) for shape in self._cube_shapes]
        motion = np.zeros((len(indices), self.clip_length, *self.cube_shape[:2]), np.float16)
        mask = np.zeros((len(indices), self.clip_length), bool)
        labels = np.full((len(indices), self.clip_length), PADDING, np.int32)
        for row, index in enumerate(indices):
            clip = self.clips[index]
            for features, (read, read_turned) in zip(cubes, self._readers, strict=True):
                if turn[row]:
                    features[row, : clip.frames] = read_turned(clip) if read_turned else read(clip)[:, :, ::-1]
                else:
                    features[row, : clip.frames] = read(clip)
                features[row, clip.frames :] = features[row, clip.frames - 1]
            mask[row, : clip.frames] = True
            if self._motion:
                motion[row, : clip.frames] = self._motion(clip)
            if (label := self.labels[clip.video]) is not None:
                labels[row, : clip.frames] = label
        motion[turn] = motion[turn, :, :, ::-1]
        return (cubes[0], mask, labels, *([motion] if self._motion else []), *cubes[1:])

    def steps(self, batch_size: int) -> int:
        """Batches in one pass over all clips."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """All clips once, in order, as `({"features", "mask"[, "motion"][, "flow"]}, {"logits": labels, "attention":
        mask})`."""
        return self._dataset(tf.data.Dataset.range(len(self)).batch(batch_size))

    def shuffled_batches(self, batch_size: int, seed: int, epochs: range) -> tf.data.Dataset:
        """The batches of the given epochs, in turn; an epoch's order, and what is mirrored, depend on its number and
        the seed only."""

        def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            key = [seed, tf.cast(epoch, tf.int32)]
            drawn = [tf.cast(tf.random.experimental.stateless_shuffle(tf.range(len(self)), seed=key), tf.int64)]
            if self.mirror:
                drawn.append(tf.random.stateless_uniform([len(self)], key) < 0.5)
            return tf.data.Dataset.from_tensor_slices(tuple(drawn)).batch(batch_size)

        return self._dataset(tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch))

    def _dataset(self, drawn: tf.data.Dataset) -> tf.data.Dataset:
        """Batches of clips from batches of what `load` takes."""

        clip, cubes = (None, self.clip_length), self._cube_shapes
        shapes = {"features": (*clip, *cubes[0]), "mask": clip, "labels": clip}
        shapes |= {"motion": (*clip, *self.cube_shape[:2])} if self._motion else {}
        shapes |= {"flow": (*clip, *cubes[1])} if len(cubes) > 1 else {}

        def load(*arguments: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            types = [{"mask": tf.bool, "labels": tf.int32}.get(name, tf.float16) for name in shapes]
            loaded = dict(zip(shapes, tf.numpy_function(self.load, arguments, types), strict=True))
            for name, shape in shapes.items():
                loaded[name].set_shape(shape)
            labels = loaded.pop("labels")
            return loaded, {"logits": labels, "attention": loaded["mask"]}

        return drawn.map(load).prefetch(4).with_options(UNTUNED)
