"""Annotations of source frames meet the sampled frames that they belong to, or are refused."""

import json

import h5py
import numpy as np
import pytest
from conftest import write_video

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from data_prep.annotations import actor_reader, find_annotations
from data_prep.extract import extract
from data_prep.videos import VideoReader


def boxes_of(cache):
    """For every video a box in each source frame: one pixel wider and higher from frame to frame."""
    return {name: [[0, 0, n + 1, n + 1] for n in range(video.decoded_frames)] for name, video in cache.videos.items()}


@pytest.fixture
def boxes(cache, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes_of(cache)))
    return path


@pytest.mark.parametrize("source_fps", [30.0, 29.97, 25.0, 60.0, 10.0])
def test_every_sampled_frame_gets_the_annotation_of_the_source_frame_that_it_shows(source_fps, tmp_path, network):
    """Frame n shows n in its red channel and is annotated with a box of n + 1 by n + 1 pixels."""
    write_video(tmp_path / "videos" / "nod" / "a.avi", 40, source_fps)
    extract(tmp_path / "videos", tmp_path / "features", network)
    cache = FeatureCache(tmp_path / "features")
    (tmp_path / "boxes.json").write_text(json.dumps(boxes_of(cache)))
    shown = [
        round(float(frame[..., 0].mean()) / 6) for frame in VideoReader(tmp_path / "videos" / "nod" / "a.avi", 15.0)
    ]
    actor = actor_reader(tmp_path / "boxes.json", tmp_path / "videos", cache)("nod/a.avi")
    sides = np.sqrt(actor.cells.mean(axis=(1, 2)) * 64 * 48)  # of frames of 64 x 48 pixels
    np.testing.assert_allclose(sides, [n + 1 for n in shown])
    cache.close()


def test_boxes_and_masks_in_files_give_the_same_actor(cache, videos, boxes, tmp_path):
    """Masks under names without the extension, of half the frames' size in uint8, and as large as them in bool."""
    read = {"boxes": actor_reader(boxes, videos, cache)}
    for kind in ("bool", "uint8"):
        path = tmp_path / f"{kind}.h5"
        with h5py.File(path, "w") as file:
            for name, of_frames in boxes_of(cache).items():
                masks = np.zeros((len(of_frames), 48, 64), bool)
                for mask, (_, _, right, bottom) in zip(masks, of_frames, strict=True):
                    mask[:bottom, :right] = True
                if kind == "uint8":
                    masks = np.rint(255 * masks.reshape(len(masks), 24, 2, 32, 2).mean(axis=(2, 4))).astype(np.uint8)
                file[name.removesuffix(".avi")] = masks
        read[kind] = actor_reader(path, videos, cache)
    for name, video in cache.videos.items():
        expected = read["boxes"](name)
        assert len(expected.cells) == video.frames
        np.testing.assert_allclose(read["bool"](name).cells, expected.cells, atol=1e-12)
        np.testing.assert_array_equal(read["bool"](name).centres, expected.centres)
        # a block on the border of two cells tells only how much of it is covered, so just the sum is the same
        areas = [read[kind](name).cells.mean(axis=(1, 2)) for kind in ("uint8", "boxes")]
        np.testing.assert_allclose(*areas, atol=0.5 / 255)


def test_videos_and_frames_may_be_without_annotation(cache, videos, tmp_path):
    first, second = list(cache.videos)[:2]
    annotated = {first: boxes_of(cache)[first]}
    annotated[first][0] = None
    (tmp_path / "boxes.json").write_text(json.dumps(annotated))
    read = actor_reader(tmp_path / "boxes.json", videos, cache)
    assert read(first).cells.any(axis=(1, 2)).tolist() == [False] + [True] * (cache.videos[first].frames - 1)
    assert read(second) is None


def test_annotations_beside_the_videos_are_found(tmp_path):
    (tmp_path / "videos").mkdir()
    assert find_annotations(tmp_path / "videos") is None
    (tmp_path / "boxes.json").touch()
    assert find_annotations(tmp_path / "videos") == tmp_path / "boxes.json"


def test_annotations_of_other_videos_are_refused(cache, videos, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"swim/other.avi": [[0, 0, 1, 1]]}))
    with pytest.raises(UserError, match=r"annotates none of the 12 videos of .* it has swim/other\.avi"):
        actor_reader(path, videos, cache)
    annotated = boxes_of(cache)
    name = list(annotated)[3]
    frames = len(annotated[name])
    annotated[name].pop()
    path.write_text(json.dumps(annotated))
    sentence = rf"of {name} it annotates {frames - 1} frames, but the file has {frames} \(1 of 12 videos differ\)"
    with pytest.raises(UserError, match=sentence):
        actor_reader(path, videos, cache)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"nod/a": 3}', '{"nod/a": [[1, 2], [3]]}', "\x89HDF\r\n\x1a\n"])
def test_files_that_are_no_annotations_are_refused(content, cache, videos, tmp_path):
    (tmp_path / "file").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="cannot be read as annotations"):
        actor_reader(tmp_path / "file", videos, cache)
    with pytest.raises(UserError, match="cannot be read as annotations"):
        actor_reader(tmp_path / "absent", videos, cache)


@pytest.mark.parametrize("entry", [lambda n: np.ones((n, 3)), lambda n: np.ones((n, 8, 8), np.uint8),
                                   lambda n: np.ones((n, 8, 8))])  # fmt: skip
def test_an_entry_of_another_kind_is_refused(entry, cache, videos, tmp_path):
    """Not four numbers a box; 0 and 1 where 255 is full; a type that does not tell its unit."""
    name, video = next(iter(cache.videos.items()))
    with h5py.File(tmp_path / "masks.h5", "w") as file:
        file[name] = entry(video.decoded_frames)
    with pytest.raises(UserError, match=r"boxes \(frames, 4\) or masks .* of type bool, or uint8 up to 255"):
        actor_reader(tmp_path / "masks.h5", videos, cache)(name)


def test_without_the_video_or_with_another_one_nothing_is_aligned(cache, boxes, tmp_path):
    name = next(iter(cache.videos))
    with pytest.raises(UserError, match=r"absent is not a folder, .*say where they are with --videos"):
        actor_reader(boxes, tmp_path / "absent", cache)
    read = actor_reader(boxes, tmp_path, cache)
    with pytest.raises(UserError, match=r"is needed to align its annotations .*--videos says where it is"):
        read(name)
    write_video(tmp_path / name, cache.videos[name].decoded_frames + 1)
    with pytest.raises(UserError, match="has changed since it was extracted"):
        read(name)
