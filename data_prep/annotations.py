"""Where the actor is: files of boxes or masks, and which of their frames the sampled frames are.

A file annotates every *source* frame of a video; videos are named `<class>/<file>`, with or without the extension.
- JSON: a video's name -> a box [x0, y0, x1, y1] for each frame, in pixels, x1 and y1 exclusive; null without an actor.
- HDF5: a dataset for each video, masks `(frames, height, width)` of any resolution, bool, or uint8 for the share of
  each pixel that the actor covers, times 255.
"""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.localization import Actor
from data_prep.videos import UnusableVideoError, VideoReader


def find_annotations(videos: Path) -> Path | None:
    """The annotations that lie beside the folder `videos`, as the sample dataset's do."""
    path = videos.parent / "boxes.json"
    return path if videos.is_dir() and path.is_file() else None


def actor_reader(annotations: Path, videos: Path, cache: FeatureCache) -> Callable[[str], Actor | None]:
    """A function from a video's name to the actor in its sampled frames, or None where the video is not annotated.

    The video is decoded once more: only its time stamps say which source frame each sampled frame is.

    Raises:
        UserError: the annotations cannot be read, or are not those of the cache's videos frame by frame; also when
            called, if a video is gone or has changed.
    """
    if not videos.is_dir():
        raise UserError(
            f"{videos} is not a folder, but annotations need the videos themselves; say where they are with --videos"
        )
    entries = _read(annotations)
    names = {name: key for name in cache.videos for key in (name.rpartition(".")[0], name) if key in entries}
    if not names:
        raise UserError(
            f"{annotations} annotates none of the {len(cache.videos)} videos of {cache.folder}; its names must be "
            f"<class>/<file>, it has {', '.join(list(entries)[:3]) or 'none'}"
        )
    wrong = [name for name, key in names.items() if len(entries[key]) != cache.videos[name].decoded_frames]
    if wrong:
        raise UserError(
            f"{annotations} does not belong to the videos of {cache.folder}: of {wrong[0]} it annotates "
            f"{len(entries[names[wrong[0]]])} frames, but the file has {cache.videos[wrong[0]].decoded_frames} "
            f"({len(wrong)} of {len(names)} videos differ); give annotations of every source frame"
        )

    def read(name: str) -> Actor | None:
        if name not in names:
            return None
        video, grid = cache.videos[name], cache.cube_shape[:2]
        entry = np.asarray(entries[names[name]])[_source_frames(videos / name, cache, name)]
        if entry.ndim == 2 and entry.shape[1] == 4:
            return Actor.from_boxes(entry, (video.width, video.height), grid)
        if entry.ndim == 3 and entry.dtype == bool:
            return Actor.from_masks(entry, grid)
        if entry.ndim == 3 and entry.dtype == np.uint8 and entry.max() != 1:  # a mask of 0 and 1 would be 1/255
            return Actor.from_masks(entry / 255, grid)
        raise UserError(
            f"{annotations}: {names[name]} is {entry.dtype} of shape {entry.shape}; boxes (frames, 4) or masks "
            "(frames, height, width) of type bool, or uint8 up to 255, are expected"
        )

    return read


def _source_frames(path: Path, cache: FeatureCache, name: str) -> list[int]:
    """The number of the source frame that each sampled frame of the cache is."""
    try:
        reader = VideoReader(path, cache.settings["fps"])
        deque(reader, maxlen=0)
    except UnusableVideoError as error:
        raise UserError(
            f"{path} is needed to align its annotations with the sampled frames: {error}; --videos says where it is"
        ) from error
    info, video = reader.info, cache.videos[name]
    if (info.decoded_frames, info.sampled_frames) != (video.decoded_frames, video.frames):
        raise UserError(f"{path} has changed since it was extracted to {cache.folder}; extract it again")
    return info.source_frames


def _read(path: Path) -> dict[str, np.ndarray | h5py.Dataset]:
    """A file's annotations by video."""
    entries = {}
    try:
        if h5py.is_hdf5(path):
            h5py.File(path, "r").visititems(
                lambda name, entry: entries.update({name: entry} if isinstance(entry, h5py.Dataset) else {})
            )
        else:
            for name, boxes in json.loads(path.read_text()).items():
                entries[name] = np.array([box or (0, 0, 0, 0) for box in boxes], float)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as annotations ({error}); JSON of boxes or HDF5 of masks is expected"
        ) from error
    return entries
