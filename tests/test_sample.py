"""The sample dataset: reproducible, laid out as HMDB-51, and hopeless for single frames by construction."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.sample import CLASSES, CLIPS_PER_FILM, REVERSED, make_sample, poses

SMALL = {"train_clips": CLIPS_PER_FILM + 1, "test_clips": 1, "size": (96, 72), "frames": 10}


def decode(path: Path) -> np.ndarray:
    capture, images = cv2.VideoCapture(str(path)), []
    while (image := capture.read()[1]) is not None:
        images.append(image)
    return np.array(images)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sample")
    assert make_sample(output, **SMALL) == 6 * (CLIPS_PER_FILM + 2)
    return output


def listed(sample: Path, class_name: str) -> dict[str, str]:
    text = (sample / "splits" / f"{class_name}_test_split1.txt").read_text()
    assert all(line.endswith(" ") for line in text.splitlines())
    return dict(line.split() for line in text.splitlines())


def test_the_same_seed_gives_the_same_pixels_and_another_seed_does_not(sample: Path, tmp_path: Path) -> None:
    make_sample(tmp_path / "same", **SMALL)
    make_sample(tmp_path / "other", seed=1, **SMALL)
    for name in CLASSES:
        first = decode(min((sample / "videos" / name).iterdir()))
        assert np.array_equal(first, decode(min((tmp_path / "same" / "videos" / name).iterdir())))
        assert not np.array_equal(first, decode(min((tmp_path / "other" / "videos" / name).iterdir())))


def test_videos_split_lists_and_boxes_agree(sample: Path) -> None:
    boxes = json.loads((sample / "boxes.json").read_text())
    names = [f"{name}/{file}" for name in CLASSES for file in listed(sample, name)]
    assert sorted(names) == sorted(boxes) == sorted(f"{p.parent.name}/{p.name}" for p in sample.glob("videos/*/*.avi"))
    for name in CLASSES:
        tags = list(listed(sample, name).values())
        assert (tags.count("1"), tags.count("2")) == (SMALL["train_clips"], SMALL["test_clips"])
    for name, corners in boxes.items():
        assert decode(sample / "videos" / name).shape == (10, 72, 96, 3)
        x0, y0, x1, y1 = np.array(corners).T
        assert len(corners) == 10
        assert np.all((x0 >= 0) & (x0 < x1) & (x1 <= 96) & (y0 >= 0) & (y0 < y1) & (y1 <= 72))


def test_no_film_is_on_both_sides_of_the_split(sample: Path) -> None:
    films = {"1": set(), "2": set()}
    for name in CLASSES:
        for file, tag in listed(sample, name).items():
            films[tag].add(file.split(f"_{name}_")[0])
    assert films["1"]
    assert films["2"]
    assert films["1"].isdisjoint(films["2"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("backward", "forward"), REVERSED.items())
def test_a_reversed_class_is_the_other_class_backwards(backward: str, forward: str, seed: int) -> None:
    sequence = poses(forward, np.random.default_rng(seed), 40)
    assert np.array_equal(poses(backward, np.random.default_rng(seed), 40), sequence[::-1])
    assert not np.allclose(sequence, sequence[::-1], atol=5)


def test_a_finished_folder_is_left_alone(sample: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert make_sample(sample, **SMALL) == 6 * (CLIPS_PER_FILM + 2)
    assert {path: path.stat().st_mtime_ns for path in sample.rglob("*")} == before


def test_other_parameters_or_an_unfinished_folder_are_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other parameters: delete the folder or choose another"):
        make_sample(sample, seed=1, **SMALL)
    shutil.copytree(sample, tmp_path / "half")
    (tmp_path / "half" / "boxes.json").unlink()
    with pytest.raises(ValueError, match="half holds videos but no finished sample dataset"):
        make_sample(tmp_path / "half", **SMALL)


def test_a_frame_size_the_codec_cannot_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        make_sample(tmp_path, size=(97, 72))
