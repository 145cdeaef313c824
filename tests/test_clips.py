"""Clips cut from a cache: no frame lost, padding marked, every clip once an epoch in an order that a seed decides."""

import numpy as np
import pytest

from action_attention.clips import Clip, Clips, class_names, cut_clips
from action_attention.errors import UserError
from action_attention.features import ArrayFeatures
from action_attention.loss import PADDING


@pytest.mark.parametrize("frames", [1, 7, 29, 30, 31, 45, 59, 60, 61, 200])
@pytest.mark.parametrize("stride", [1, 15, 30])
def test_clips_cover_every_frame_and_the_last_ends_with_the_video(frames, stride):
    clips = cut_clips("a/b.avi", frames, 30, stride)
    covered = {frame for clip in clips for frame in range(clip.start, clip.start + clip.frames)}
    assert covered == set(range(frames))
    assert clips[-1].start + clips[-1].frames == frames
    assert len({clip.start for clip in clips}) == len(clips)
    assert {clip.frames for clip in clips} == {min(frames, 30)}


def test_strides_are_kept_up_to_the_last_clip():
    assert [clip.start for clip in cut_clips("a/b.avi", 75, 30, 20)] == [0, 20, 40, 45]
    assert cut_clips("a/b.avi", 60, 30, 30) == [Clip("a/b.avi", 0, 30), Clip("a/b.avi", 30, 30)]


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_short_video_is_padded_with_its_last_frame_and_masked(cache, in_memory):
    name = min(cache.videos, key=lambda n: cache.videos[n].frames)
    frames, classes = cache.videos[name].frames, class_names(list(cache.videos))
    clips = Clips(cache, [name], classes, 30, in_memory=in_memory)
    features, mask, labels = clips.load(np.array([0]))
    np.testing.assert_array_equal(features[0, :frames], cache.read(name))
    np.testing.assert_array_equal(features[0, frames:], cache.read(name)[-1:].repeat(30 - frames, 0))
    np.testing.assert_array_equal(mask[0], np.arange(30) < frames)
    label = classes.index(name.split("/")[0])
    np.testing.assert_array_equal(labels[0], np.where(np.arange(30) < frames, label, PADDING))


def test_videos_without_labels_have_the_same_clips_and_nothing_but_padding_for_labels(cache):
    name = sorted(cache.videos)[0]
    labelled = Clips(cache, [name], class_names([name]), 6)
    unlabelled = Clips(cache, [name], ["other"], 6, labelled=False)
    every = np.arange(len(labelled))
    for one, other in zip(labelled.load(every)[:2], unlabelled.load(every)[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert unlabelled.labels == {name: None}
    assert (unlabelled.load(every)[2] == PADDING).all()


def test_streamed_and_in_memory_batches_are_the_same(cache):
    names = sorted(cache.videos)
    in_memory, streamed = (Clips(cache, names, class_names(names), 6, 3, in_memory=kind) for kind in (True, False))
    for one, other in zip(in_memory.batches(4), streamed.batches(4), strict=True):
        np.testing.assert_array_equal(one[0]["features"], other[0]["features"])
        np.testing.assert_array_equal(one[1]["logits"], other[1]["logits"])


def epochs_of(clips, seed, epochs):
    """Each epoch's clips in order, told apart by their features."""
    batches = [inputs["features"].numpy() for inputs, _ in clips.shuffled_batches(4, seed, epochs)]
    steps = clips.steps(4)
    return [
        [clip.tobytes() for batch in batches[start : start + steps] for clip in batch]
        for start in range(0, len(batches), steps)
    ]


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own(cache):
    names = sorted(cache.videos)
    clips = Clips(cache, names, class_names(names), 6)
    first, second = epochs_of(clips, 0, range(2))
    assert len(first) == len(clips) == len(set(first))
    assert sorted(first) == sorted(second)
    assert first != second
    assert epochs_of(clips, 1, range(1)) != [first]
    assert epochs_of(clips, 0, range(1, 2)) == [second]  # an epoch does not depend on the ones before it


def test_videos_that_are_not_there_are_named(cache):
    names = [f"leap/absent{number:02}.avi" for number in range(12)]
    with pytest.raises(UserError, match=r"lacks 12 videos.*absent00\.avi.*absent09\.avi$"):
        Clips(cache, names, ["leap"], 30)
    with pytest.raises(UserError, match="knows no class nod, spin; its classes are leap"):
        Clips(cache, sorted(cache.videos), ["leap"], 30)


def test_class_ids_do_not_depend_on_the_order_of_videos():
    assert class_names(["b/1", "a/2", "b/3", "c/1"]) == class_names(["c/1", "b/3", "b/1", "a/2"]) == ["a", "b", "c"]


def test_mirroring_turns_half_of_the_clips_anew_in_each_epoch_and_nothing_else(cache):
    videos = sorted(cache.videos)

    def batches(epochs, mirror):
        clips = Clips(cache, videos, class_names(videos), 1, mirror=mirror)  # of one frame: enough of them to count
        drawn = list(clips.shuffled_batches(8, 3, epochs))
        return [np.concatenate([select(batch) for batch in drawn]) for select in (
            lambda b: b[0]["features"], lambda b: b[1]["logits"], lambda b: b[0]["mask"])]  # fmt: skip

    epochs = []
    for epoch in (range(0, 1), range(1, 2)):
        (plain, *others), (drawn, *drawn_others) = batches(epoch, False), batches(epoch, True)
        for one, other in zip(others, drawn_others, strict=True):
            np.testing.assert_array_equal(one, other)
        turned = (plain != drawn).any(axis=(1, 2, 3, 4))
        np.testing.assert_array_equal(drawn[turned], plain[turned][:, :, :, ::-1])
        assert 0.25 < turned.mean() < 0.75
        epochs.append((plain, drawn))
    both = batches(range(0, 2), True)[0]
    np.testing.assert_array_equal(both, np.concatenate([epochs[0][1], epochs[1][1]]))


def test_features_in_memory_give_the_clips_of_a_cache(cache):
    names = sorted(cache.videos)
    arrays = ArrayFeatures({name: cache.read(name) for name in names})
    for in_memory in (True, False, None):
        ours, theirs = (Clips(each, names, class_names(names), 6, 4, in_memory=in_memory) for each in (arrays, cache))
        for one, other in zip(ours.load(np.arange(len(ours))), theirs.load(np.arange(len(theirs))), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match=r"the dictionary of features lacks 1 videos that are asked for: leap/absent"):
        Clips(arrays, ["leap/absent"], ["leap"], 6)


def test_batches_have_the_shape_of_the_cubes():
    random = np.random.default_rng(0)
    arrays = ArrayFeatures({f"a/{frames}": random.random((frames, 5, 6, 24)) for frames in (3, 9)})
    clips = Clips(arrays, ["a/3", "a/9"], ["a"], 6)
    inputs, _ = clips.batches(4).element_spec
    assert inputs["features"].shape.as_list() == [None, 6, 5, 6, 24]
    ((batch, _),) = clips.batches(4)
    np.testing.assert_array_equal(batch["features"][0, :3], arrays.read("a/3"))
    np.testing.assert_array_equal(batch["features"][2], arrays.read("a/9", 3, 9))
