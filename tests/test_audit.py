"""What the audit finds in a dataset whose defects are known."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import write_frames

from action_attention.errors import UserError
from data_prep.audit import audit, summary
from data_prep.duplicates import COPY, SAME_SHOT, near_duplicates
from data_prep.splits import TEST, TRAIN, UNUSED, VALIDATION


def film(seed: int, frames: int = 40) -> list[np.ndarray]:
    """Frames of a scene of its own: a few large shades of grey, and one box that moves."""
    rng = np.random.default_rng(seed)
    scene = cv2.resize(rng.integers(0, 255, (8, 10), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    pictures = []
    for number in range(frames):
        picture = cv2.cvtColor(scene, cv2.COLOR_GRAY2BGR)
        cv2.rectangle(picture, (2 * number, 40), (2 * number + 20, 80), (0, 0, 255), -1)
        pictures.append(picture)
    return pictures


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Eight scenes; of scene 0 there is an exact copy, of 1 to 4 altered ones, among the test videos."""
    root = tmp_path_factory.mktemp("audit") / "videos"
    for seed in range(8):
        write_frames(root / "wave" / f"Film{seed}_wave_0.avi", film(seed))
    shutil.copy(root / "wave" / "Film0_wave_0.avi", root / "wave" / "Exact_wave_0.avi")
    write_frames(root / "wave" / "Encoded_wave_0.avi", film(1), codec="XVID")
    write_frames(root / "wave" / "Small_wave_0.avi", [cv2.resize(picture, (96, 64)) for picture in film(2)])
    write_frames(root / "wave" / "Trimmed_wave_0.avi", film(3)[7:25])
    write_frames(root / "nod" / "Slower_nod_0.avi", film(4), fps=25.0)
    write_frames(root / "nod" / "Film7_nod_0.avi", film(100))
    (root / "nod" / "Junk_nod_0.avi").write_text("no video")
    write_frames(root / "nod" / "Extra_nod_0.avi", film(101))
    tags = {f"wave/Film{seed}_wave_0.avi": TRAIN for seed in range(8)}
    tags |= {f"wave/{name}_wave_0.avi": TEST for name in ("Exact", "Encoded", "Small", "Trimmed")}
    tags |= {"nod/Slower_nod_0.avi": VALIDATION, "nod/Film7_nod_0.avi": TEST, "nod/Junk_nod_0.avi": TRAIN}
    return root, tags | {"nod/absent_nod_0.avi": TEST, "nod/ignored_nod_0.avi": UNUSED}


def test_everything_that_is_wrong_is_found_and_nothing_else(dataset):
    root, tags = dataset
    found = audit(root, tags, clip_length=15)
    assert found["exact_duplicates"] == [("wave/Film0_wave_0.avi", "wave/Exact_wave_0.avi")]
    copies = {(train[5:10], other.split("/")[1].split("_")[0]) for train, other, _ in found["near_duplicates"]}
    assert copies == {("Film1", "Encoded"), ("Film2", "Small"), ("Film3", "Trimmed"), ("Film4", "Slower")}
    assert found["same_shot"] == []
    assert found["films_on_both_sides"] == {"Film7": [1, 1]}
    assert found["too_short"] == {"wave/Trimmed_wave_0.avi": 9}
    assert found["classes"] == {"nod": {"test": 1, "validation": 1}, "wave": {"train": 8, "test": 4}}
    reason = "cannot be opened as a video: Invalid data found when processing input"
    assert found["unreadable"] == {"nod/Junk_nod_0.avi": reason}
    assert (found["missing"], found["unlisted"]) == (["nod/absent_nod_0.avi"], ["nod/Extra_nod_0.avi"])
    assert found["unused"] == 1
    said = summary(json.loads(json.dumps(found))).splitlines()
    assert said[0].endswith("8 train, 5 test, 1 validation videos of 2 classes, 2 to 12 a class; 1 unused")
    assert "the same bytes in training and held out: 1" in said


def test_the_distance_is_the_median_over_the_shorter_video_of_the_share_of_different_bits():
    rng = np.random.default_rng(0)
    long = rng.random((9, 256)) < 0.5
    short = long[[6, 2, 4]].copy()
    short[0, :8] ^= True  # frames differ in 8, 20 and 0 bits
    short[1, :20] ^= True
    hashes = {"long": long, "short": short, "other": rng.random((4, 256)) < 0.5}
    expected = [("long", "short", round(8 / 256, 3))]
    assert near_duplicates(hashes, ["long", "other"], ["short"]) == expected
    assert near_duplicates(hashes, ["short"], ["other", "long"]) == [("short", "long", expected[0][2])]
    short[:, :100] = ~long[[6, 2, 4], :100]
    assert near_duplicates(hashes, ["long"], ["short"]) == []
    assert COPY < SAME_SHOT < 100 / 256


def test_a_split_with_one_side_in_the_folder_is_refused(dataset):
    root, tags = dataset
    with pytest.raises(UserError, match=r"has 8 training and 0 other videos of the split"):
        audit(root, {name: tag for name, tag in tags.items() if tag == TRAIN})
