"""Who trains and who is tested, in the official format; no film on two sides."""

from collections import Counter

import pytest
from conftest import JHMDB

from action_attention.errors import UserError
from data_prep.splits import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    copies_across,
    make_split,
    make_tags,
    match_names,
    read_lists,
    source_of,
    write_lists,
)

OFFICIAL = JHMDB.parent / "hmdb51_splits"
needs_official = pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official lists are not beside the project")


@pytest.fixture
def tags():
    """Three classes; films give 1 to 5 clips each, some to two classes."""
    names = {}
    for film in range(40):
        for clip in range(1 + film % 5):
            class_name = "abc"[(film + clip % 2) % 3]
            names[f"{class_name}/Film_{film}_(x)_{class_name}_f_{clip}.avi"] = TEST if film >= 30 else TRAIN
    return names


def test_lists_survive_a_round_trip_with_any_name(tmp_path):
    tags = {"sit/a b_!_(HQ)_#1&2+'é@_sit_u_0.avi": 1, "sit/x_sit_0.avi": 2, "wave/7 2_wave_1.avi": 0}
    write_lists(tmp_path, tags, 3)
    assert read_lists(tmp_path, 3) == tags
    assert (tmp_path / "wave_test_split3.txt").read_text() == "7 2_wave_1.avi 0 \n"


def test_names_with_odd_spaces_and_separators_survive_and_what_a_line_cannot_hold_is_refused(tmp_path):
    tags = dict.fromkeys(("sit/a\u2028b\x85\x0c\tc.avi", "sit/ 1 2.avi", "sit/=1+1.avi", "si\nt/-0 1"), 1)
    write_lists(tmp_path / "whole", tags)
    assert read_lists(tmp_path / "whole") == tags
    for name in ("sit/a\nb.avi", "sit/a\rb.avi", "sit/a.avi ", "sit/a.avi\u2028"):
        with pytest.raises(UserError, match="cannot stand in a list of videos; rename it, or give a split as a CSV"):
            write_lists(tmp_path / "none", {"sit/good.avi": 1, name: 1})
    assert not (tmp_path / "none").exists()
    path = tmp_path / "mine.csv"
    path.write_text('video,subset\n"sit/a\nb ""c"",\'.avi ",train\n=cmd|/\u202e,test\n', newline="")
    assert read_lists(path) == {'sit/a\nb "c",\'.avi ': TRAIN, "=cmd|/\u202e": TEST}


def test_lists_with_any_line_ends_and_no_other_encoding(tmp_path):
    for ends in ("\n", "\r\n", "\r"):
        (tmp_path / "sit_test_split1.txt").write_bytes(f"a.avi 1 {ends}é b.avi 2{ends}".encode())
        assert read_lists(tmp_path) == {"sit/a.avi": TRAIN, "sit/é b.avi": TEST}
    (tmp_path / "sit_test_split1.txt").write_bytes("a.avi 1\né.avi 2".encode("latin-1"))
    with pytest.raises(UserError, match=r"sit_test_split1\.txt is not UTF-8 text .* at byte 8\); save it as UTF-8"):
        read_lists(tmp_path)


def test_a_wrong_line_is_named_with_its_place(tmp_path):
    (tmp_path / "sit_test_split1.txt").write_text("a_sit_0.avi 1 \nb_sit_0.avi 3 \n")
    with pytest.raises(UserError, match=r"sit_test_split1\.txt, line 2: .*'b_sit_0\.avi 3 '"):
        read_lists(tmp_path, 1)
    (tmp_path / "sit_test_split1.txt").write_text("a_sit_0.avi 1 \nb_sit_0.avi 2 \na_sit_0.avi 2 \n")
    with pytest.raises(UserError, match=r"sit_test_split1\.txt, line 3: sit/a_sit_0\.avi is listed twice"):
        read_lists(tmp_path, 1)
    with pytest.raises(UserError, match=r"holds no lists <class>_test_split2\.txt"):
        read_lists(tmp_path, 2)


def test_a_source_is_what_stands_before_the_class_name():
    assert source_of("sit/The_sit_film_sit_u_cm_np1_0.avi") == "The_sit_film"
    assert source_of("sit/holiday.avi") == "sit/holiday.avi"


@pytest.mark.parametrize("seed", range(5))
def test_validation_is_held_out_of_training_by_film(tags, seed):
    split = make_split(tags, "source", seed)
    assert set(split["train"]) | set(split["validation"]) == {name for name, tag in tags.items() if tag == TRAIN}
    assert set(split["test"]) == {name for name, tag in tags.items() if tag == TEST}
    films = [{source_of(name) for name in split[subset]} for subset in ("train", "validation")]
    assert not films[0] & films[1]
    assert 0.08 < len(split["validation"]) / (len(split["train"]) + len(split["validation"])) < 0.22
    assert {name[0] for name in split["validation"]} == set("abc")


def test_a_seed_decides_the_split(tags):
    assert make_split(tags, "source", 1) == make_split(dict(reversed(tags.items())), "source", 1)
    assert make_split(tags, "source", 1) != make_split(tags, "source", 2)


def test_a_made_split_is_stratified_and_keeps_films_together(tags):
    made = make_tags(sorted(tags), 0)
    films = [{source_of(name) for name, tag in made.items() if tag == side} for side in (TRAIN, TEST)]
    assert made.keys() == tags.keys()
    assert not films[0] & films[1]
    for class_name in "abc":
        of_class = [tag for name, tag in made.items() if name[0] == class_name]
        assert 0.2 < of_class.count(TEST) / len(of_class) < 0.45


def test_few_films_are_divided_and_a_single_one_is_refused():
    tags = {f"{name}/{film}_{name}_{n}.avi": TRAIN for name in "ab" for film in ("One", "Two") for n in range(4)}
    split = make_split(tags, "source", 0)
    assert len({source_of(name) for name in split["validation"]}) == 1
    with pytest.raises(UserError, match="all come from one film"):
        make_split({name: tag for name, tag in tags.items() if "One" in name}, "source", 0)


def test_the_tutorials_validation_comes_out_of_the_test_list(tags):
    split = make_split(tags, "tutorial", 0)
    assert set(split["train"]) == {name for name, tag in tags.items() if tag == TRAIN}
    assert {tags[name] for name in [*split["validation"], *split["test"]]} == {TEST}
    assert len(split["validation"]) == pytest.approx(1130 / 1530 * 30, abs=1)
    assert make_split(tags, "none", 0)["validation"] == []


@needs_official
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_official_lists_have_their_known_counts(number):
    tags = list(read_lists(OFFICIAL, number).values())
    assert (tags.count(TRAIN), tags.count(TEST), tags.count(0)) == (3570, 1530, 1666)


@needs_official
def test_the_tutorials_protocol_has_its_published_numbers():
    tags = read_lists(OFFICIAL, 1)
    split = make_split(tags, "tutorial", 0)
    assert [len(split[subset]) for subset in ("train", "validation", "test")] == [3570, 1130, 400]
    per_class = Counter(name.split("/")[0] for name in split["test"])
    assert len(per_class) == 51
    assert set(per_class.values()) <= {7, 8}
    assert make_split(tags, "tutorial", 0) == split != make_split(tags, "tutorial", 1)


@needs_official
@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_film_of_the_official_training_list_validates_too(number):
    split = make_split(read_lists(OFFICIAL, number), "source", 0)
    assert len(split["test"]) == 1530
    assert len(split["train"]) + len(split["validation"]) == 3570
    assert 0.12 < len(split["validation"]) / 3570 < 0.17
    assert len({name.split("/")[0] for name in split["validation"]}) == 51
    assert not set(map(source_of, split["train"])) & set(map(source_of, split["validation"]))


@pytest.mark.skipif(not JHMDB.is_dir() or not OFFICIAL.is_dir(), reason="J-HMDB is not beside the project")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_official_lists_give_jhmdb_the_tags_that_its_own_lists_have(number):
    own = read_lists(JHMDB / "splits", number)
    matched = match_names(read_lists(OFFICIAL, number), own.keys())
    there = {name: tag for name, tag in matched.items() if name in own}
    assert len(matched) == 6766
    assert own.keys() - there.keys() <= {name for name, tag in own.items() if tag == UNUSED}
    assert len(own) - len(there) == 6
    assert {name: own[name] for name in there} == there
    assert sum("@" in name for name in there) == 16


def test_names_are_matched_only_where_there_is_no_doubt():
    tags = {"a/#1_a_0.avi": 1, "a/&2_a_0.avi": 1, "a/#2_a_0.avi": 2, "a/3_a_0.avi": 2, "a/4_a_0.avi": 0}
    videos = ["a/@1_a_0.mp4", "a/@2_a_0.mp4", "a/3_a_0.mp4", "a/3_a_0.mkv", "a/4_a_0.avi", "a/4_a_0.mp4"]
    assert match_names(tags, videos) == {"a/@1_a_0.mp4": 1, **dict(list(tags.items())[1:])}


def test_a_csv_file_is_a_split_with_or_without_validation_videos(tmp_path):
    path = tmp_path / "mine.csv"
    rows = ["subset,note,video", 'train,x,"sit/a, b.mp4"', "test,,sit/ü.mp4", "unused,,sit/c.mp4", "train,,wave/d.mp4"]
    path.write_text("\r\n".join(rows), encoding="utf-8-sig")
    tags = {"sit/a, b.mp4": TRAIN, "sit/ü.mp4": TEST, "sit/c.mp4": UNUSED, "wave/d.mp4": TRAIN}
    assert read_lists(path) == tags
    path.write_text("\n".join([*rows, "validation,,wave/e.mp4"]), encoding="utf-8")
    assert read_lists(path) == tags | {"wave/e.mp4": VALIDATION}
    split = make_split(read_lists(path), "source", 0)
    assert split == {"train": ["sit/a, b.mp4", "wave/d.mp4"], "validation": ["wave/e.mp4"], "test": ["sit/ü.mp4"]}
    with pytest.raises(UserError, match="names its validation videos, so --validation=tutorial cannot be used"):
        make_split(read_lists(path), "tutorial", 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"first line must name the columns video and subset, found None"),
        ("sit/a.mp4,train\n", r"must name the columns video and subset, found \['sit/a\.mp4', 'train'\]"),
        (
            "video,subset\nsit/a.mp4,Train\n",
            r"line 2: the subset of 'sit/a\.mp4' is 'Train', not one of unused, train, ",
        ),
        ("video,subset\nsit/a.mp4\n", r"line 2: the subset of 'sit/a\.mp4' is None"),
        ("video,subset\n" + "x" * 200_000 + ",test", r"line 2 is not a line of a CSV file \(field larger than"),
        ("video,subset\na.mp4,train\n", r"line 2: expected <class>/<file> as video, found 'a\.mp4'"),
        ("video,subset\nsit/a.mp4,train\nsit/a.mp4,test\n", r"line 3: sit/a\.mp4 is listed twice"),
    ],
)
def test_a_wrong_csv_file_is_named_with_its_line(tmp_path, text, sentence):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=rf"mine\.csv.*{sentence}"):
        read_lists(tmp_path / "mine.csv")


def test_copies_are_found_in_every_later_subset():
    split = {"train": ["a", "b", "c", "d"], "validation": ["e", "f"], "test": ["g", "h"]}
    sha256 = dict(zip("abcdefgh", "12345261", strict=True))
    assert copies_across(split, sha256) == [("a", "h"), ("b", "f")]
    assert copies_across(split, sha256 | {"e": "6"}) == [("a", "h"), ("b", "f"), ("e", "g")]
