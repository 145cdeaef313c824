"""Videos of one recording stay on one side of a split: told by names, a CSV file, bytes or looks."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import JHMDB

from action_attention.errors import UserError
from data_prep import duplicates
from data_prep.datasets import choose_split, groups_of, made_lists
from data_prep.duplicates import COPY, SAME_SHOT, alike, join, near_duplicates
from data_prep.sample import CLASSES, FILMS
from data_prep.splits import (
    TEST,
    TRAIN,
    counts,
    groups_across,
    make_split,
    make_tags,
    name_groups,
    read_groups,
    read_lists,
    source_of,
    thin_classes,
    validation_folds,
    write_csv,
    write_lists,
)
from data_prep.videos import list_videos
from experiments import options

BITS = 256


def fake_cache(hashes, folder="features", **sha256):
    """What a split is chosen by. `hashes`: video -> frame hashes or None; `sha256`: of videos that are to have some."""
    videos = {name: SimpleNamespace(file_sha256=sha256.get(name, name)) for name in hashes}
    return SimpleNamespace(videos=videos, folder=folder, source="data/videos", frame_hashes=hashes.get)


def scenes(names, seed=0, frames=5):
    """Frame hashes of videos that have nothing in common."""
    rng = np.random.default_rng(seed)
    return {name: np.argsort(rng.random((frames, BITS))) < BITS // 2 for name in names}


def flipped(hashes, share, seed=0):
    """Hashes in which that share of each frame's bits is another."""
    which = np.argsort(np.random.default_rng(seed).random(hashes.shape)) < round(share * BITS)
    return hashes ^ which


def test_a_recording_is_guessed_by_what_stands_before_a_counter():
    names = {
        "wave/a_wave_f_nm_np1_le_goo_0.avi": "a",  # HMDB-51
        "Basketball/v_Basketball_g01_c01.avi": "v_Basketball_g01",  # UCF-101, in a folder of the class's name too
        "greet/anna_wave_01.mp4": "anna_wave", "greet/anna_wave_02.mp4": "anna_wave",
        "greet/kitchen.mov": "kitchen", "greet/kitchen (2).mov": "kitchen", "greet/kitchen(12).mov": "kitchen",
        "greet/kitchen-3.mkv": "kitchen", "greet/kitchen_c4.mov": "kitchen", "greet/kitchen5.mp4": "kitchen",
        "greet/bob 1.part.2.mp4": "bob 1.part", "greet/7.mp4": "greet/7.mp4", "greet/(1).mp4": "greet/(1).mp4",
        "greet/IMG_0001.MOV": "IMG_0001", "greet/IMG_0002.MOV": "IMG_0002", "greet/DSC00003.mp4": "DSC00003",
        "greet/IMG_0001 (2).MOV": "IMG_0001", "greet/GX010004.MP4": "GX010004", "greet/C0005.MP4": "C0005",
        "greet/VID_20240131_120000.mp4": "VID_20240131_120000", "greet/VID_20240131_120107.mp4": "VID_20240131_120107",
        "greet/a\nb_1.mp4": "a\nb", "greet/.1.mp4": "greet/.1.mp4",
    }  # fmt: skip
    assert name_groups(names) == names


def test_names_that_would_make_nine_tenths_of_a_class_one_recording_say_nothing():
    clips = [f"wave/clip_{n}.mp4" for n in range(9)]
    assert name_groups(clips) == {name: name for name in clips}
    assert name_groups([*clips, "wave/anna.mp4"]) == {name: name for name in [*clips, "wave/anna.mp4"]}
    two_others = [*clips, "wave/anna_1.mp4", "wave/anna_2.mp4"]  # 9 of 11
    assert set(name_groups(two_others).values()) == {"clip", "anna"}
    of_other_class = [*clips, *(f"nod/{who}_{n}.mp4" for who in ("clip", "anna") for n in range(2))]
    groups = name_groups(of_other_class)
    assert [groups["nod/clip_1.mp4"], groups["nod/anna_1.mp4"], groups["wave/clip_1.mp4"]] == [
        "clip", "anna", "wave/clip_1.mp4"
    ]  # fmt: skip
    films = [f"wave/One_wave_{n}.avi" for n in range(9)]
    assert set(name_groups(films).values()) == {"One"}


GOLDEN = {  # films that earlier versions tested, and validated, by seed
    0: ({"HELP!", "Late_Shift", "Rob_&_Ruth"}, {"Room_(1987)"}),
    1: ({"Late_Shift", "Rob_&_Ruth", "Room_(1987)"}, {"Gym#2"}),
    2: ({"Gym#2", "Late_Shift", "Loft"}, {"Rob_&_Ruth"}),
}
GOLDEN_FOLDS = {
    0: [{"Loft", "Room_(1987)"}, {"A+_Student", "Gym#2"}, {"Barn", "Moving_Day"}],
    1: [{"A+_Student", "Gym#2"}, {"Barn", "HELP!"}, {"Loft", "Moving_Day"}],
    2: [{"HELP!", "Rob_&_Ruth"}, {"Barn", "Room_(1987)"}, {"A+_Student", "Moving_Day"}],
}


@pytest.mark.parametrize("seed", GOLDEN)
def test_a_split_of_the_samples_names_is_what_earlier_versions_made(seed):
    names = sorted(
        f"{name}/{film}_{name}_f_nm_np1_{'fr' if take else 'le'}_goo_{take}.avi"
        for film in FILMS["train"] for name in CLASSES for take in (0, 1)
    )  # fmt: skip
    tags = make_tags(names, seed)
    split = make_split(tags, "source", seed)
    assert ({*map(source_of, split["test"])}, {*map(source_of, split["validation"])}) == GOLDEN[seed]
    assert {len(split["test"]), len(split["train"]), len(split["validation"])} == {36, 60, 12}
    folds = validation_folds(split, 3, seed)
    assert [set(map(source_of, held_out)) for _, held_out in folds] == GOLDEN_FOLDS[seed]
    assert [sorted(kept + held_out) for kept, held_out in folds] == 3 * [sorted(split["train"] + split["validation"])]


@pytest.mark.skipif(not JHMDB.is_dir(), reason="J-HMDB is not beside the project")
def test_splits_of_jhmdb_are_bit_for_bit_what_earlier_versions_made():
    def digest(value):
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    made = {
        0: ("764c41cf8b4a51bb", "30419998f4f0a1a0", "6a2328e8ff7d01de"),
        1: ("834f4a92c2dedc9b", "c87432484c5d3e09", "843e11855175aa81"),
        2: ("3371dc63587b7b0b", "c24944d123d8378f", "41dd8f412a692e45"),
    }
    official = {
        (1, 0): ("c203251cb841a1bf", "5c58dc8f06b4ef22"), (3, 0): ("bc28974eac914b61", "b3ae8b3bfd2f8efd"),
        (1, 1): ("795b758b52b6cc04", "90e8c1207f27dc97"), (3, 1): ("a4bd6fb2c4498fa0", "e3bb3d4ddee3cd50"),
    }  # fmt: skip
    for seed, expected in made.items():
        tags = make_tags(list_videos(JHMDB / "videos"), seed)
        split = make_split(tags, "source", seed)
        assert (digest(tags), digest(split), digest(validation_folds(split, 3, seed))) == expected
    for (number, seed), expected in official.items():
        split = make_split(read_lists(JHMDB / "splits", number), "source", seed)
        assert (digest(split), digest(validation_folds(split, 3, seed))) == expected
    with pytest.raises(UserError, match=r"^nothing to divide: walk has a single video here; add videos of it, remove "):
        make_split(read_lists(JHMDB / "splits", 2), "source", 0)


def test_a_class_that_cannot_be_divided_is_named():
    several = [f"wave/{who}.mp4" for who in ("anna", "bob", "carl")]
    with pytest.raises(UserError, match=r"^nothing to divide: leap, nod has a single video here; add videos of it"):
        make_tags([*several, "nod/a.mp4", "leap/b.mp4"], 0)
    films = [f"{name}/One_{name}_{n}.avi" for name in ("leap", "nod") for n in range(4)]
    with pytest.raises(UserError) as raised:
        make_tags(films, 0)
    assert str(raised.value) == (
        "nothing to divide: the videos of each class all come from one film or recording, leap (One), nod (One); add "
        "videos of others, or say by a CSV file with the column group (--splits) what belongs together"
    )


def test_a_class_of_one_recording_stays_in_training_and_a_warning_names_it(tmp_path):
    names = [f"wave/{who}.mp4" for who in ("anna", "bob", "carl")] + [f"nod/Film_nod_{n}.mp4" for n in range(4)]
    for seed in range(5):
        split, _, warnings = choose_split(fake_cache(scenes(names)), None, made_in=tmp_path / str(seed), seed=seed)
        assert {name for name in names if name.startswith("nod/")} <= set(split["train"])
        assert len(split["test"]) == len(split["validation"]) == 1
        assert "all videos of nod (Film) are one recording and stay in training" in warnings
        assert warnings[-3:] == [
            "2 or fewer training videos of wave (1); add videos",
            "no validation videos of nod; validation accuracy says nothing of them",
            "no test videos of nod; test accuracy says nothing of them",
        ]


def write(path, rows):
    path.write_text("\n".join(["video,subset,group", *rows]), encoding="utf-8")
    return path


def test_the_column_group_holds_videos_out_together_and_is_the_only_thing_that_does(tmp_path):
    rows = [
        f"{name}/anna_{n}.mp4,train,{' day 1' if n % 2 else 'Tag, ü'!r}" for name in ("nod", "wave") for n in (0, 1)
    ]
    rows = [row.replace("'Tag, ü'", '"Tag, ü"').replace("' day 1'", "day 1 ") for row in rows]
    rows += [f"{name}/bob_{n}.mp4,train," for name in ("nod", "wave") for n in range(2)]
    lists = write(tmp_path / "mine.csv", rows)
    groups = read_groups(lists)
    assert groups == {
        **{f"{name}/anna_{n}.mp4": ["Tag, ü", "day 1"][n] for name in ("nod", "wave") for n in (0, 1)},
        **{f"{name}/bob_{n}.mp4": f"{name}/bob_{n}.mp4" for name in ("nod", "wave") for n in range(2)},
    }
    cache = fake_cache(dict.fromkeys(groups))
    apart = False
    for seed in range(6):
        split, about, _ = choose_split(cache, lists, made_in=tmp_path, seed=seed)
        assert groups_across(split, groups) == []
        assert {name.split("/")[0] for name in split["validation"]} == {"nod", "wave"}
        assert about["groups"] == {"by": "csv"}
        apart |= groups_across(split, {name: name[:-5] for name in groups if "bob" in name}) != []
    assert apart  # bob_0 and bob_1 are no recording here, whatever their names
    lists.write_text("\n".join(row.rpartition(",")[0] for row in ["video,subset,group", *rows]), encoding="utf-8")
    assert read_groups(lists) == {}
    assert choose_split(cache, lists, made_in=tmp_path)[1]["groups"] == {"by": "names"}


def test_a_group_on_both_sides_of_ones_own_lists_is_named_and_not_refused(tmp_path):
    rows = ["nod/a.mp4,train,anna", "nod/b.mp4,train,", "nod/c.mp4,test,anna", "wave/d.mp4,train,bob"]
    rows += ["wave/e.mp4,validation,bob", "wave/f.mp4,test,carl", "wave/g.mp4,validation,carl", "nod/h.mp4,unused,b"]
    lists = write(tmp_path / "mine.csv", rows)
    cache = fake_cache({row.split(",")[0]: None for row in rows})
    split, about, warnings = choose_split(cache, lists, made_in=tmp_path)
    assert (len(split["train"]), about["validation"]) == (3, "mine.csv")
    assert warnings[0] == (
        f"2 groups of {lists} are trained on and held out too, such as 'anna' with nod/a.mp4 and nod/c.mp4; accuracies "
        "on them flatter"
    )
    assert len(warnings) == 3  # and few training videos, no validation videos of nod
    official = {"nod/One_nod_0.mp4": TRAIN, "nod/One_nod_1.mp4": TEST, "nod/Two_nod_0.mp4": TRAIN}
    write_lists(tmp_path / "lists", official)
    made = choose_split(fake_cache(official), tmp_path / "lists", made_in=tmp_path, validation="none")
    assert (made[1]["groups"], made[2]) == (
        {"by": "hmdb51 names"},
        ["2 or fewer training videos of nod (2); add videos"],
    )


def test_videos_look_alike_if_half_of_the_shorter_ones_frames_do():
    (one,) = scenes(["one"], frames=6).values()
    others = scenes(["a", "b"], seed=1, frames=6)
    part = others["a"].copy()
    part[:3] = flipped(one[[5, 0, 3]], SAME_SHOT)
    assert alike({"one": one, "part": part})[1:] == (1, [("one", "part")])
    assert alike({"one": one[:4], "part": part})[1] == 1  # two of four
    part[0] = flipped(one[5], SAME_SHOT + 2 / BITS)
    assert alike({"one": one, "part": part})[1] == 0
    three = {"one": one[:3], "copy": flipped(one[:3], 25 / BITS, 1), "near": flipped(one[:3], 26 / BITS, 2)}
    assert alike(three, COPY)[1:] == (1, [("copy", "one")])
    assert alike(three)[2] == [("copy", "near"), ("copy", "one"), ("near", "one")]


def test_what_a_chain_of_pairs_connects_is_one_recording_and_black_frames_connect_nothing():
    names = [f"wave/{n}.mp4" for n in range(7)]
    hashes = scenes(names)
    for near, far in ((0, 3), (3, 5), (2, 6)):
        hashes[names[far]] = flipped(hashes[names[near]], 0.2, seed=far)
    black = np.zeros((5, BITS), bool)
    black[:, 0] = True  # its brightness
    recordings, number, shown = alike(hashes | {"wave/8.mp4": black, "wave/9.mp4": black.copy()})
    together = [{name for name in recordings if recordings[name] == value} for value in set(recordings.values())]
    assert sorted(map(len, together)) == [1, 1, 1, 1, 2, 3]
    assert {names[n] for n in (0, 3, 5)} in together
    assert (number, shown) == (3, [(names[0], names[3]), (names[2], names[6]), (names[3], names[5])])
    known = {name: name for name in names} | {names[3]: names[0]}
    assert alike(hashes, SAME_SHOT, known)[1:] == (2, [(names[2], names[6]), (names[3], names[5])])


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_of_any_size_find_the_pairs_that_the_audit_finds(monkeypatch, block):
    monkeypatch.setattr(duplicates, "BLOCK_FRAMES", max(block, 9))
    rng = np.random.default_rng(3)
    hashes = {f"v{n:02}": found for n, (found,) in enumerate(scenes(["x"], n, 9).values() for n in range(12))}
    hashes |= {
        f"w{n:02}": flipped(hashes[f"v{n % 12:02}"], rng.choice([0.1, 0.2, 0.24, 0.26, 0.3]), n) for n in range(30)
    }
    hashes = {name: found[: 1 + 2 * int(rng.integers(5))] for name, found in hashes.items()}  # odd: the medians agree
    names = sorted(hashes)
    audited = [pair[:2] for pair in near_duplicates(hashes, names, names) if pair[0] < pair[1]]
    monkeypatch.setattr(duplicates, "SHOWN_PAIRS", 1000)
    recordings, number, shown = alike(hashes)
    assert sorted(shown) == sorted(audited)
    assert number == len(audited) > 20
    assert all(recordings[one] == recordings[other] for one, other in audited)


def test_more_frames_than_can_be_compared_are_thinned_evenly(monkeypatch):
    hashes = scenes(["a", "b", "c"], frames=12)
    hashes["b"][::3], hashes["c"][1::3] = hashes["a"][::3], hashes["a"][1::3]
    assert alike(hashes)[1] == 0  # a third of the frames
    monkeypatch.setattr(duplicates, "MOST_FRAMES", 12)
    assert alike(hashes)[1:] == (1, [("a", "b")])
    assert alike({}) == ({}, 0, [])


def test_groups_are_joined_along_chains_and_keep_their_first_name():
    names = {"a": "anna", "b": "bob", "c": "carl", "d": "anna", "e": "eve"}
    assert join(names) == names
    joined = join(names, {"b": 1, "d": 1, "c": 2}, {"e": "x", "c": "x"})
    assert joined == {"a": "anna", "b": "anna", "d": "anna", "c": "carl", "e": "carl"}


def phone_videos():
    """Two classes of eight videos under a camera's names; two recordings of three videos, one of two, and a copy."""
    names = [f"{name}/IMG_{n:04}.mp4" for n, name in enumerate(["nod", "wave"] * 8)]
    hashes = scenes(names)
    for first, *others in ((0, 2, 4), (1, 3, 5), (6, 7)):
        for other in others:
            hashes[names[other]] = flipped(hashes[names[first]], 0.15, other)
    return names, hashes, {names[15]: "same", names[14]: "same"}


def test_a_made_split_keeps_together_what_looks_alike_and_is_kept_with_its_groups(tmp_path):
    names, hashes, sha256 = phone_videos()
    cache = fake_cache(hashes, **sha256)
    truth = dict(zip(names, "abababccdefghijj", strict=True))
    leaks = 0
    for seed in range(8):
        folder = tmp_path / str(seed)
        split, about, warnings = choose_split(cache, None, made_in=folder, seed=seed)
        sides = [split["train"], split["validation"], split["test"]]
        assert [len({truth[name] for name in side} & {truth[name] for name in names if name not in side})
                for side in sides] == [0, 0, 0]  # fmt: skip
        assert about["groups"] == {
            "by": "names", "groups": 10, "near_duplicates": [(names[a], names[b]) for a, b in
                                                             ((0, 2), (0, 4), (6, 7), (1, 3), (1, 5))],
            "near_duplicate_pairs": 5, "up_to": SAME_SHOT, "videos_without_hashes": 0,
        }  # fmt: skip
        assert warnings[0] == (
            f"5 pairs of videos look like the same recording, such as {names[0]} and {names[2]}; they stay on one side "
            "of the split"
        )
        kept = folder / "splits.csv"
        assert made_lists(folder) == kept
        tags = {name: tag for name, tag in read_lists(kept).items() if tag == TEST}
        assert sorted(tags) == split["test"]
        assert groups_of(None, folder, names) == (read_groups(kept), "csv")
        before = kept.read_bytes()
        assert choose_split(cache, None, made_in=folder, seed=seed) == (split, about, warnings)
        assert choose_split(cache, kept, made_in=tmp_path, seed=seed)[0] == split
        assert kept.read_bytes() == before
        by_name = make_split(make_tags(sorted(names), seed), "source", seed)
        leaks += groups_across(by_name, truth) != []
    assert leaks > 5  # without looking


def test_a_cache_without_hashes_is_split_by_names_and_bytes_and_a_warning_says_what_to_do(tmp_path):
    names, hashes, sha256 = phone_videos()
    _, about, warnings = choose_split(fake_cache(dict.fromkeys(names), **sha256), None, made_in=tmp_path)
    sentence = "because features was made before frames' hashes were kept; extract them again into another folder"
    assert f"near duplicates were not looked for among 16 of 16 videos, {sentence}" in warnings
    assert (about["groups"]["groups"], about["groups"]["near_duplicates"]) == (15, [])
    some = {name: found if n < 5 else None for n, (name, found) in enumerate(hashes.items())}
    _, about, warnings = choose_split(fake_cache(some, **sha256), None, made_in=tmp_path / "some")
    assert f"near duplicates were not looked for among 11 of 16 videos, {sentence}" in warnings
    assert about["groups"]["near_duplicate_pairs"] == 3


def test_a_kept_split_that_divides_what_is_now_known_to_be_one_recording_is_named(tmp_path):
    names, hashes, _ = phone_videos()
    write_csv(tmp_path / "splits.csv", {name: TRAIN if n % 4 else TEST for n, name in enumerate(names[:12])},
              {name: name for name in names})  # fmt: skip
    _, _, warnings = choose_split(fake_cache(hashes), None, made_in=tmp_path, validation="none")
    remedy = "give another folder to have a split made anew"
    path = tmp_path / "splits.csv"
    assert warnings[:2] == [
        f"{path} divides 2 recordings, such as that of {names[2]} and {names[0]}; {remedy}".replace("2 rec", "1 rec"),
        f"{path} has 4 videos of the features in no subset, such as {min(names[12:])}; {remedy}",
    ]
    with pytest.raises(UserError, match=r"^features lacks 1 videos of the lists: nod/IMG_0000\.mp4; extract them, or"):
        choose_split(fake_cache({name: hashes[name] for name in names[1:]}), None, made_in=tmp_path)


@pytest.mark.parametrize(
    ("seed", "validation"),
    list(enumerate([(14, 5, 9), (10, 5, 7), (14, 9, 11), (6, 5, 15)])),  # as version 0.1 chose them
)
def test_a_split_of_an_earlier_version_goes_on_as_it_was(tmp_path, seed, validation):
    names, hashes, _ = phone_videos()
    write_lists(tmp_path / "splits", {name: TEST if n < 5 else TRAIN for n, name in enumerate(names)})
    split, about, warnings = choose_split(fake_cache(hashes), None, made_in=tmp_path, seed=seed)
    assert split["validation"] == [names[n] for n in validation]
    assert split["test"] == sorted(names[:5])
    assert (about["groups"], made_lists(tmp_path)) == ({"by": "hmdb51 names"}, tmp_path / "splits")
    sentence = "was made by an earlier version, which went by names only; another folder gets another split"
    assert warnings == [f"{tmp_path / 'splits'} {sentence}"]
    assert not (tmp_path / "splits.csv").exists()


def test_before_a_fixed_camera_only_copies_count_and_a_warning_says_so(tmp_path):
    names = [f"{name}/IMG_{n:04}.mp4" for n, name in enumerate(["nod", "wave"] * 8)]
    (background,) = scenes(["x"]).values()
    hashes = {name: flipped(background, 0.1, n) for n, name in enumerate(names)}  # 0.18 apart
    hashes[names[0]] = flipped(hashes[names[2]], 0.05, 99)
    split, about, warnings = choose_split(fake_cache(hashes), None, made_in=tmp_path)
    assert (about["groups"]["groups"], about["groups"]["up_to"]) == (15, COPY)
    assert about["groups"]["near_duplicates"] == [(names[0], names[2])]
    assert len(split["test"]) in (5, 6)
    assert warnings[0] == (
        "more than half of the videos look like one shot, as under a fixed camera, so only copies (up to 0.1 of the "
        "bits differ) count as one recording; where it is one, say so by a CSV file with the column group"
    )


def test_a_cache_in_which_every_video_was_rejected_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^features holds no video to make a split of; its rejects\.json says why$"):
        choose_split(fake_cache({}), None, made_in=tmp_path)


def test_few_classes_are_counted_a_line_each_and_many_in_one():
    split = {
        "train": [f"nod/{n}" for n in range(10)] + ["leap/1"],
        "validation": ["nod/a"],
        "test": ["leap/2", "nod/b"],
    }
    assert counts(split) == [
        "videos: 11 train, 1 validation, 2 test; 2 classes",
        "  leap   1 train, 0 validation, 1 test",
        "  nod   10 train, 1 validation, 1 test",
    ]
    assert counts({"train": ["nod/1"], "validation": [], "test": []}) == [
        "videos: 1 train; 1 classes",
        "  nod  1 train",
    ]
    many = {
        "train": [f"class{n:02}/{k}" for n in range(13) for k in range(3 + n % 4)],
        "validation": [f"class{n:02}/v" for n in range(13)],
        "test": [f"class{n:02}/t{k}" for n in range(12) for k in range(2)],
    }
    assert counts(many) == [
        "videos: 57 train, 13 validation, 24 test; 13 classes, each 3..6 train, 1..1 validation, 0..2 test; "
        "the smallest: class12 4, class00 6, class04 6"
    ]
    twelve = {subset: [name for name in videos if name < "class12"] for subset, videos in many.items()}
    assert len(counts(twelve)) == 13
    assert thin_classes(many) == ["no test videos of class12; test accuracy says nothing of them"]
    assert thin_classes({"train": [], "validation": [], "test": ["nod/1"]}) == [
        "2 or fewer training videos of nod (0); add videos"
    ]


def test_the_programs_print_the_counts_and_the_warnings(tmp_path, capsys, monkeypatch):
    _, hashes, _ = phone_videos()
    args = SimpleNamespace(splits=None, split=1, dataset=None, allow_missing=False, duplicates="allow")
    monkeypatch.setattr(options.flags, "FLAGS", args)
    split, about = options.split_as_flagged(fake_cache(hashes), tmp_path, 0)
    said = capsys.readouterr()
    assert said.out.splitlines() == counts(split)
    assert said.out.startswith(f"videos: {len(split['train'])} train, ")
    assert said.err.startswith("WARNING: 5 pairs of videos look like the same recording, such as nod/IMG_0000.mp4 and ")
    assert json.loads(json.dumps(about["groups"]))["near_duplicates"][0] == ["nod/IMG_0000.mp4", "nod/IMG_0002.mp4"]
