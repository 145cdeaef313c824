"""Who trains and who is tested, in the official format; no film on two sides."""

from pathlib import Path

import pytest

from action_attention.errors import UserError
from data_prep.splits import TEST, TRAIN, make_split, make_tags, read_lists, source_of, write_lists

OFFICIAL = Path(__file__).parents[1] / "../shared/data/hmdb51_splits"


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


def test_a_wrong_line_is_named_with_its_place(tmp_path):
    (tmp_path / "sit_test_split1.txt").write_text("a_sit_0.avi 1 \nb_sit_0.avi 3 \n")
    with pytest.raises(UserError, match=r"sit_test_split1\.txt, line 2: .*'b_sit_0\.avi 3 '"):
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


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official HMDB-51 lists are not beside the project")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_official_lists_have_their_known_counts(number):
    tags = list(read_lists(OFFICIAL, number).values())
    assert (tags.count(TRAIN), tags.count(TEST), tags.count(0)) == (3570, 1530, 1666)
