"""Clips of T frames cut from features, and batches of them through `tf.data`."""

import math
from dataclasses import dataclass

import numpy as np
import psutil
import tensorflow as tf

from action_attention.errors import UserError
from action_attention.features import ArrayFeatures, FeatureCache
from action_attention.loss import PADDING


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

    Raises:
        UserError: a video is not in the cache, or its class is not among `classes`.
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
        if in_memory is None:
            needed = sum(self.video_frames.values()) * 2 * math.prod(self.cube_shape)
            in_memory = needed < psutil.virtual_memory().available / 2
        self.in_memory, self._motion = in_memory, {name: cache.read_motion(name) for name in videos} if motion else None
        if in_memory:
            loaded = {name: cache.read(name) for name in videos}
            self._read = lambda clip: loaded[clip.video][clip.start : clip.start + clip.frames]
        else:
            self._read = lambda clip: cache.read(clip.video, clip.start, clip.start + clip.frames)

    def __len__(self) -> int:
        return len(self.clips)

    def load(self, indices: np.ndarray, mirrored: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Features float16 `(B, T, H, W, D)`, mask bool `(B, T)` and frame labels int32 `(B, T)` of some clips, and,
        where they are asked for, motion maps float16 `(B, T, H, W)`.

        The cubes and maps of those that are `mirrored`, bool `(B,)`, are turned left to right.
        """
        motion = np.zeros((len(indices), self.clip_length, *self.cube_shape[:2]), np.float16)
        features = np.empty((len(indices), self.clip_length, *self.cube_shape), np.float16)
        mask = np.zeros((len(indices), self.clip_length), bool)
        labels = np.full((len(indices), self.clip_length), PADDING, np.int32)
        for row, index in enumerate(indices):
            clip = self.clips[index]
            features[row, : clip.frames] = self._read(clip)
            features[row, clip.frames :] = features[row, clip.frames - 1]
            mask[row, : clip.frames] = True
            if self._motion:
                motion[row, : clip.frames] = self._motion[clip.video][clip.start : clip.start + clip.frames]
            if (label := self.labels[clip.video]) is not None:
                labels[row, : clip.frames] = label
        if mirrored is not None:
            features[mirrored] = features[mirrored, :, :, ::-1]
            motion[mirrored] = motion[mirrored, :, :, ::-1]
        return (features, mask, labels, motion) if self._motion else (features, mask, labels)

    def steps(self, batch_size: int) -> int:
        """Batches in one pass over all clips."""
        return -(-len(self) // batch_size)

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """All clips once, in order, as `({"features", "mask"[, "motion"]}, {"logits": labels, "attention": mask})`."""
        return self._dataset(tf.data.Dataset.range(len(self)).batch(batch_size))

    def shuffled_batches(self, batch_size: int, seed: int, epochs: range, *, mirror: bool = False) -> tf.data.Dataset:
        """The batches of the given epochs, in turn; an epoch's order depends on its number and the seed only.

        `mirror` turns each clip's cubes left to right with probability 1/2: nearly the features of the mirrored video,
        since a backbone's kernels are not symmetric themselves.
        """

        def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
            key = [seed, tf.cast(epoch, tf.int32)]
            drawn = [tf.cast(tf.random.experimental.stateless_shuffle(tf.range(len(self)), seed=key), tf.int64)]
            if mirror:
                drawn.append(tf.random.stateless_uniform([len(self)], key) < 0.5)
            return tf.data.Dataset.from_tensor_slices(tuple(drawn)).batch(batch_size)

        return self._dataset(tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(of_epoch))

    def _dataset(self, drawn: tf.data.Dataset) -> tf.data.Dataset:
        """Batches of clips from batches of what `load` takes."""

        def load(*arguments: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            types = (tf.float16, tf.bool, tf.int32, tf.float16)[: 4 if self._motion else 3]
            features, mask, labels, *motion = tf.numpy_function(self.load, arguments, types)
            features.set_shape((None, self.clip_length, *self.cube_shape))
            mask.set_shape((None, self.clip_length))
            labels.set_shape((None, self.clip_length))
            inputs = {"features": features, "mask": mask}
            for maps in motion:
                maps.set_shape((None, self.clip_length, *self.cube_shape[:2]))
                inputs["motion"] = maps
            return inputs, {"logits": labels, "attention": mask}

        return drawn.map(load).prefetch(4)
