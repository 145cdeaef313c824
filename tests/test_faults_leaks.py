"""Leaks in a user's own data: one recording's videos under whatever names, damaged in whatever way, copies, few videos.

Slow. Every test ends with a row of the reliability table (`make faults`).
"""

import csv
import shutil
from collections import Counter
from itertools import product

import cv2
import numpy as np
import pytest
from conftest import write_frames
from test_groups import fake_cache, flipped, scenes

from action_attention.errors import UserError
from action_attention.files import file_sha256
from data_prep.datasets import choose_split
from data_prep.duplicates import frame_hash
from data_prep.videos import VideoReader

pytestmark = pytest.mark.slow

CLASSES = ("leap", "nod", "spin", "wave")
CUT = 24  # frames of a clip
# which recording each of a class's six clips is cut from: 24 clips of 11 recordings, one of which gives to two classes
CUT_FROM = {"leap": "AAABBC", "nod": "DDDEEC", "spin": "FFFGGH", "wave": "IIIJJK"}


def recording(seed, frames):
    """A room, shades of grey large and small, filmed by hand (it shakes by a pixel), and somebody who walks through."""
    rng = np.random.default_rng(seed)
    shades = [cv2.resize(rng.random((6 * n, 8 * n)) / n, (162, 122), interpolation=cv2.INTER_CUBIC) for n in (1, 2, 4)]
    room = cv2.normalize(sum(shades), None, 10, 245, cv2.NORM_MINMAX, cv2.CV_8U)
    speed, height = rng.uniform(0.5, 2), int(rng.integers(20, 80))
    for number in range(frames):
        x, y = rng.integers(0, 3, 2)
        picture = cv2.cvtColor(room[y : y + 120, x : x + 160], cv2.COLOR_GRAY2BGR)
        left = int(speed * number) % 140
        cv2.rectangle(picture, (left, height), (left + 16, height + 36), (0, 0, 255), -1)
        yield picture


def undamaged(pictures):
    return pictures, 30.0, "MJPG"


def re_encoded(pictures):
    return [cv2.resize(picture, (128, 96)) for picture in pictures], 30.0, "XVID"


def trimmed(pictures):
    return pictures[5:-4], 30.0, "MJPG"


def slower(pictures):
    return [pictures[round(1.2 * number)] for number in range(len(pictures) * 5 // 6)], 25.0, "MJPG"


def brighter(pictures):
    return [cv2.convertScaleAbs(picture, alpha=1.1, beta=20) for picture in pictures], 30.0, "MJPG"


DAMAGE = (undamaged, re_encoded, trimmed, slower, brighter)


def filmed(folder, damage, seed):
    """The 24 clips, every other one damaged: [(class, recording, number within it, frame hashes, sha256)]."""
    number, clips = Counter(), []
    films = {who: list(recording([seed, ord(who)], 4 * CUT)) for who in sorted(set("".join(CUT_FROM.values())))}
    for class_name, cut_from in CUT_FROM.items():
        for who in cut_from:
            start = number[who] * CUT
            pictures = films[who][start : start + CUT]
            how = damage if number[who] % 2 else undamaged
            number[who] += 1
            path = folder / class_name / f"{who}{number[who]}.avi"
            write_frames(path, *how(pictures))
            hashes = np.stack([frame_hash(frame) for frame in VideoReader(path, 15.0, 224)])
            clips.append((class_name, who, number[who], hashes, file_sha256(path)))
    return clips


def shuffled(clips, seed):
    order = np.random.default_rng(seed).permutation(len(clips))
    return {n: "".join("bcdfghjklmnpqrst"[digit] for digit in divmod(int(order[n]), 16)) for n in range(len(clips))}


NAMINGS = {
    "after the recording, counted": lambda c, who, k, n, s: f"person {who}_{k:02}.mp4",
    "in brackets": lambda c, who, k, n, s: f"{who}.mov" if k == 1 else f"{who} ({k}).mov",
    "as in UCF-101": lambda c, who, k, n, s: f"v_{c}_g{ord(who) - 64:02}_c{k:02}.avi",
    "as in HMDB-51": lambda c, who, k, n, s: f"{who}_{c}_f_cm_np1_fr_med_{k}.avi",
    "by the camera": lambda c, who, k, n, s: f"IMG_{n + 1:04}.MOV",
    "counted through": lambda c, who, k, n, s: f"clip_{n + 1:02}.mp4",
    "shuffled": lambda c, who, k, n, s: f"{s[n]}.mp4",
}  # fmt: skip
TELLING = ("after the recording, counted", "in brackets", "as in HMDB-51")


def leaks(split, truth):
    """Recordings with videos in more than one subset."""
    subsets = [{truth[name] for name in videos} for videos in split.values()]
    return {who for n, one in enumerate(subsets) for other in subsets[n + 1 :] for who in one & other}


def test_clips_of_one_recording_under_any_name(tmp_path, fault):
    tried, pairs, by_name = 0, 0, 0
    for damage, seed in product(DAMAGE, range(2)):
        clips = filmed(tmp_path / f"{damage.__name__}{seed}", damage, seed)
        letters = shuffled(clips, seed)
        for naming, name_of in NAMINGS.items():
            names = [f"{c}/{name_of(c, who, k, n, letters)}" for n, (c, who, k, *_) in enumerate(clips)]
            truth = {name: who for name, (_, who, *_) in zip(names, clips, strict=True)}
            hashes = {name: clip[3] for name, clip in zip(names, clips, strict=True)}
            sha256 = {name: clip[4] for name, clip in zip(names, clips, strict=True)}
            for known in (hashes, dict.fromkeys(names)) if naming in TELLING and damage is undamaged else (hashes,):
                folder = tmp_path / f"run{tried}"
                split, about, warnings = choose_split(fake_cache(known, **sha256), None, made_in=folder, seed=seed)
                assert leaks(split, truth) == set(), (naming, damage.__name__, seed)
                assert about["groups"]["groups"] == 11, (naming, damage.__name__, seed)  # and no more than that
                assert {name.split("/")[0] for name in split["train"]} == set(CLASSES)
                for subset in ("validation", "test"):
                    without = sorted(set(CLASSES) - {name.split("/")[0] for name in split[subset]})
                    said = f"no {subset} videos of {', '.join(without)}; {subset} accuracy says nothing of them"
                    assert (said in warnings) == bool(without)
                again = choose_split(fake_cache(known, **sha256), None, made_in=folder, seed=seed)
                assert again == (split, about, warnings)
                pairs += about["groups"]["near_duplicate_pairs"]
                by_name += known is not hashes
                tried += 1
    fault(
        "24 clips cut from 11 recordings, under 7 kinds of names, some re-encoded, trimmed, slower or brighter", tried,
        "no recording has clips in two subsets, in a split that is made or made and used again",
        f"{tried} splits without a leak, {by_name} by names alone; {pairs} pairs of clips were told by their looks",
    )  # fmt: skip


def test_groups_that_somebody_gives(tmp_path, fault):
    tried = warned = 0
    texts = ("anna", "Kaffeeküche, früh", '"q"', "a\nb", " 7 ", "=1+1", "nod/x.mp4", "日本")
    for number, text in enumerate(texts):
        for seed in range(2):
            rows = [
                (f"{name}/{k:03}.mp4", "train", (text, f"{text}2", "", "")[k % 4]) for name in CLASSES for k in range(8)
            ]
            rows += [(f"{name}/t{k}.mp4", "test", "") for name in CLASSES for k in range(2)]
            lists = tmp_path / f"{number}.csv"

            def write_lists(rows, lists=lists):
                with lists.open("w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([("video", "subset", "group"), *rows])

            write_lists(rows)
            cache = fake_cache(dict.fromkeys(name for name, *_ in rows))
            truth = {name: group.strip() or name for name, _, group in rows}
            split, about, warnings = choose_split(cache, lists, made_in=tmp_path, seed=seed)
            assert (leaks(split, truth), about["groups"]) == (set(), {"by": "csv"})
            assert {name.split("/")[0] for name in split["validation"]} == set(CLASSES)
            assert not any("held out too" in warning for warning in warnings)
            write_lists([*rows[:-1], (*rows[-1][:2], text)])
            _, _, warnings = choose_split(cache, lists, made_in=tmp_path, validation="none")
            sentence = f"1 groups of {lists} are trained on and held out too, such as {text.strip()!r} with "
            warned += any(warning.startswith(sentence) and rows[-1][0] in warning for warning in warnings)
            tried += 2
    assert 2 * warned == tried
    fault(
        "Groups in a CSV file, with commas, quotes, newlines, formulas, other scripts", tried,
        "held out together; one on both sides of the lists is named",
        f"{tried - warned} held out together, {warned} named",
    )  # fmt: skip


def test_classes_of_one_two_and_three_videos(tmp_path, fault):
    refused = divided = stayed = 0
    others = [f"wave/IMG_{n:04}.mp4" for n in range(24)]
    for few, seed, one_recording in product((1, 2, 3), range(4), (False, True)):
        names = [f"nod/IMG_{100 + n:04}.mp4" for n in range(few)]
        hashes = scenes([*others, *names], seed)
        if one_recording:
            hashes |= {name: flipped(hashes[names[0]], 0.1, n) for n, name in enumerate(names)}
        folder = tmp_path / f"{few}{seed}{one_recording}"
        if few == 1 or (few == 2 and not one_recording):
            with pytest.raises(UserError, match=r"^nothing to divide: nod has a single video here; add videos of it, "):
                choose_split(fake_cache(hashes), None, made_in=folder, seed=seed)
            refused += 1
            continue
        split, _, warnings = choose_split(fake_cache(hashes), None, made_in=folder, seed=seed)
        there = {subset: [name for name in videos if name in names] for subset, videos in split.items()}
        thin = f"2 or fewer training videos of nod ({len(there['train'])}); add videos"
        assert (thin in warnings) == (len(there["train"]) <= 2)
        assert there["train"]
        if one_recording:
            assert there["train"] == names
            assert (
                f"all videos of nod ({names[0].split('/')[1][:-4]}) are one recording and stay in training" in warnings
            )
            assert "no test videos of nod; test accuracy says nothing of them" in warnings
            stayed += 1
        else:
            assert [len(there[subset]) for subset in ("train", "validation", "test")] == [1, 1, 1]
            divided += 1
    tried = refused + divided + stayed
    fault(
        "Classes of one, two or three videos, of one recording or several", tried,
        "refused or divided, and the class is named",
        f"{refused} refused, {divided} divided, {stayed} kept in training, all by name",
    )  # fmt: skip


def test_copies_under_other_names_and_in_other_classes(tmp_path, fault):
    tried = copied = 0
    write_frames(tmp_path / "one.avi", list(recording(1, CUT)), 30.0, "MJPG")
    shutil.copy(tmp_path / "one.avi", tmp_path / "copy.avi")
    assert file_sha256(tmp_path / "one.avi") == file_sha256(tmp_path / "copy.avi")
    for copies, seed, hashed in product((1, 2, 4), range(3), (True, False)):
        names = [f"{name}/IMG_{20 * n + k:04}.mp4" for n, name in enumerate(CLASSES) for k in range(8)]
        rng = np.random.default_rng([seed, copies])
        order = rng.permutation(len(names))
        twins = {names[order[2 * n]]: names[order[2 * n + 1]] for n in range(copies)}
        hashes = scenes(names, seed)
        hashes |= {copy: hashes[name] for copy, name in twins.items()}
        cache = fake_cache(hashes if hashed else dict.fromkeys(names), **twins)
        truth = {name: twins.get(name, name) for name in names}
        folder = tmp_path / f"{copies}{seed}{hashed}"
        split, about, _ = choose_split(cache, None, made_in=folder, seed=seed, duplicates="error")
        assert leaks(split, truth) == set()
        assert about["groups"]["groups"] == len(names) - copies
        copied += copies
        tried += 1
    fault(
        "Copies of videos under other names, in the same class or another", tried,
        "a copy stands on its original's side", f"{copied} copies, none on the other side",
    )  # fmt: skip
