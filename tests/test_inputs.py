"""Which videos somebody means by files, folders, patterns and lists, and where what is made of each goes."""

import os
from pathlib import Path

import pytest

from action_attention.errors import UserError
from data_prep.inputs import find_videos
from data_prep.recognizer import CAMERA


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Empty files by these names; the folder is the current one."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.avi",
        "in/a.avi",
        "in/b.MP4",
        "in/deep/er/a.avi",
        "in/deep/notes.txt",
        "in/.hidden.avi",
        "other/a.avi",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def places(*given):
    """Of each video, from the current folder, where its files go; sorted."""
    return sorted((str(path.relative_to(Path.cwd())), str(place)) for path, place in find_videos(given).videos.items())


def test_a_folder_is_its_videos_at_any_depth_and_its_tree_is_mirrored(tree):
    assert places("in") == [("in/a.avi", "a"), ("in/b.MP4", "b"), ("in/deep/er/a.avi", "deep/er/a")]
    found = find_videos(["in"])
    ((path, why),) = found.passed_over.items()
    assert (path, why.split(" (")[0]) == (str(tree / "in/deep/notes.txt"), "no video by its name")


def test_the_same_stem_in_two_folders_has_two_places(tree):
    assert places("in/a.avi", "other/a.avi") == [("in/a.avi", "in/a"), ("other/a.avi", "other/a")]
    assert places("in/deep", "other") == [("in/deep/er/a.avi", "in/deep/er/a"), ("other/a.avi", "other/a")]
    assert places("a.avi", "other") == [("a.avi", "a"), ("other/a.avi", "other/a")]


def test_the_same_stem_in_one_folder_keeps_its_suffix(tree):
    for name in ("a.mkv", "a.avi.mp4"):
        (tree / "other" / name).touch()
    found = find_videos(["other"]).videos.values()
    assert sorted(map(str, found)) == ["a.avi", "a.avi.mp4", "a.mkv"]


@pytest.mark.parametrize("given", [
    ("in/a.avi", "in/b.MP4"), ("in/a.avi in/b.MP4",), ("in/a.avi, in/b.MP4",), ("in/*.*",), ("in/[ab].*", "in/a.avi"),
    ("in/../in/a.avi", "in/b.MP4", "./in/b.MP4"),
])  # fmt: skip
def test_files_patterns_and_lists_of_them_mean_each_video_once(tree, given):
    assert places(*given) == [("in/a.avi", "a"), ("in/b.MP4", "b")]


def test_patterns_reach_any_depth_and_pass_over_what_is_no_video(tree):
    found = find_videos(["in/**/*"])
    assert len(found.videos) == 3
    assert list(found.passed_over) == [str(tree / "in/deep/notes.txt")]


def test_nothing_lies_beside_the_output(tree, monkeypatch):
    monkeypatch.chdir(tree / "in")
    found = find_videos(["../other/../a.avi", "a.avi", "../other"])
    assert sorted(map(str, found.videos.values())) == ["a", "in/a", "other/a"]


def test_a_named_file_is_taken_whatever_its_name_an_overlay_in_a_folder_is_not(tree):
    Path("in/deep/a_prediction.mp4").touch()
    assert places("in/deep/notes.txt", "in/deep/a_prediction.mp4") == [
        ("in/deep/a_prediction.mp4", "a_prediction"), ("in/deep/notes.txt", "notes"),
    ]  # fmt: skip
    found = find_videos(["in/deep"])
    assert found.passed_over[str(tree / "in/deep/a_prediction.mp4")] == "an overlay by its name"
    assert len(found.videos) == 1


def test_a_link_to_a_folder_is_not_entered_but_named(tree):
    (tree / "in" / "round").symlink_to(tree / "in")
    found = find_videos(["in"])
    assert len(found.videos) == 3
    assert found.passed_over[str(tree / "in/round")] == "a link to a folder; give that folder itself"
    assert len(find_videos(["in/round"]).videos) == 3


def test_a_name_that_is_not_utf8_is_found_and_what_is_passed_over_can_be_written(tree):
    for name in (b"in/\xff.avi", b"in/\xff.txt"):
        Path(os.fsdecode(name)).touch()
    found = find_videos(["in"])
    assert len(found.videos) == 4
    assert any("\\xff.txt" in name for name in found.passed_over)


@pytest.mark.parametrize(("given", "sentence"), [
    (["a.avi", "absent.avi"], "absent.avi is not a file; give a video file"),
    (["in", "camera:0"], f"camera:0 {CAMERA}"),
    (["*.mov"], "*.mov is a pattern that matches no file; predict takes one video file: give its name"),
    (["in/deep/*.txt"], "in/deep/*.txt holds no videos (.3gp"),
    ([""], " is not a file; give a video file"),
])  # fmt: skip
def test_what_is_no_video_is_refused_before_any_work(tree, given, sentence):
    with pytest.raises(UserError) as raised:
        find_videos(given)
    assert str(raised.value).startswith(sentence)
