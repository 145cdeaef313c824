"""One video file -> what a run says of it: the decision that `eval` makes, and the files that are left behind."""

import csv
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import encode, small_network, write_video
from forked import run

from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import FeatureCache
from action_attention.heatmaps import relative_entropy
from action_attention.metrics import VideoPrediction, rank_classes
from action_attention.registry import Config
from action_attention.runs import Run
from action_attention.segments import Segment
from action_attention.training import train
from data_prep import recognizer as recognizer_module
from data_prep.recognizer import CAMERA, Recognizer, Result, check_video
from data_prep.videos import VideoReader, read_frames
from experiments import predict

ROOT = Path(__file__).parents[1]
ODD_NAME = '#&()!\'+ "größe" %d $HOME $(error x);`x`.avi'


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder):
    """An ALSTM of one epoch, evaluated on all videos of the cache."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    cache = FeatureCache(cache_folder)
    names = sorted(cache.videos)
    config = Config.of("alstm", clip_length=6, clip_stride=4, batch_size=4, lstm_units=8, epochs=1)
    train(config, cache, {"train": names, "validation": [], "test": names}, folder,
          about={"dataset": "tiny", "split": 1, "validation": "none"})  # fmt: skip
    evaluate(folder, cache)
    cache.close()
    return folder


def decisions(run_dir):
    with (run_dir / "eval" / "test" / "predictions.csv").open() as file:
        return {row["video"]: row for row in csv.DictReader(file)}


def test_a_video_of_the_dataset_gets_the_decision_that_eval_made_of_its_cached_features(run_dir, videos, tmp_path):
    classes = json.loads((run_dir / "run.json").read_text())["classes"]
    recognizer, expected = Recognizer(Run.open(run_dir), network=small_network()), decisions(run_dir)
    for name in sorted(expected)[::3]:
        result = recognizer.predict(videos / name, scratch=tmp_path)
        prediction = result.prediction
        ranking = [classes[index] for index in rank_classes(prediction.probabilities)]
        wins = prediction.probabilities.argmax(axis=1)
        best = classes.index(ranking[0])
        assert ranking[0] == expected[name]["predicted"]
        assert f"{(wins == best).mean():.4f}" == expected[name]["votes"]
        assert f"{prediction.probabilities[:, best].mean():.4f}" == expected[name]["probability"]
        assert len(list(result.read())) == int(expected[name]["frames"]) == len(prediction.attention)
        assert (prediction.label, prediction.loss) == (None, None)
        assert " ".join(ranking) == expected[name]["top5"]
    assert not list(tmp_path.iterdir())  # the temporary cache is gone


def test_times_are_those_of_the_files_time_stamps(run_dir, tmp_path):
    """Of a video without a constant rate too, and before its frames are read again."""
    stamps = [0.0, 0.04, 0.3, 0.31, 1.0, 1.1, 1.5]
    encode(tmp_path / "a.mp4", len(stamps), stamps=stamps)
    result = Recognizer(Run.open(run_dir), network=small_network()).predict(tmp_path / "a.mp4")
    assert result.times == pytest.approx([0.0, 0.3, 1.0, 1.1, 1.5])
    assert (result.segments[0].start, result.segments[-1].end) == (0, pytest.approx(5 / result.fps))


def test_a_run_with_other_weights_is_refused(run_dir, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    run = json.loads((other / "run.json").read_text())
    run["cache"]["settings"] |= {"weights": "ours.h5", "weights_sha256": "1" * 64}
    (other / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"features of VGG16 with ours\.h5, and ours\.h5 is not a file here; give"):
        Recognizer(Run.open(other))
    with pytest.raises(UserError, match=r"features with weights_sha256=1{64}, but now they have weights_sha256=0{64}"):
        Recognizer(Run.open(other), network=small_network())


def test_a_file_that_cannot_be_decoded_is_named_and_leaves_nothing(run_dir, videos, tmp_path):
    recognizer = Recognizer(Run.open(run_dir), network=small_network())
    with pytest.raises(UserError, match=r"junk\.avi cannot be used \(cannot be opened as a video: Invalid .*\); give"):
        recognizer.predict(videos / "nod" / "junk.avi", scratch=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_anywhere_is_read_where_it_is(run_dir, tmp_path, monkeypatch):
    """Below this folder, above it, or where none is above it; scratch may be a run's folder, which holds no links."""
    recognizer = Recognizer(Run.open(run_dir), network=small_network())
    write_video(tmp_path / "in" / "clip.avi", 12)
    monkeypatch.chdir(tmp_path / "in")
    opened, links = [], []
    extract = recognizer_module.extract

    def watch(videos, *arguments, names, **settings):
        opened.append((videos / names[0]).resolve())
        links.extend(path for path in run_dir.rglob("*") if path.is_symlink())
        return extract(videos, *arguments, names=names, **settings)

    monkeypatch.setattr(recognizer_module, "extract", watch)
    for path, name in (("clip.avi", "in/clip.avi"), ("../in/clip.avi", "in/clip.avi")):
        assert recognizer.predict(path, scratch=run_dir).prediction.name == name
    Path("clip.avi").rename("../clip.avi")
    assert recognizer.predict("../clip.avi", scratch=run_dir).prediction.name == "video/clip.avi"
    assert opened == [tmp_path / "in" / "clip.avi"] * 2 + [tmp_path / "clip.avi"]
    assert not links
    with pytest.raises(UserError, match="/proc/version cannot be used"):  # whose folder is in the topmost one
        recognizer.predict("/proc/version")


@pytest.mark.parametrize(
    ("video", "sentence"),
    [
        ("{}", "{} is a folder; predict takes one video file: give one that is in it"),
        ("camera:0", f"camera:0 {CAMERA}"),
        ("0", f"0 {CAMERA}"),
        (0, f"0 {CAMERA}"),
        ("rtsp://a/b", "rtsp://a/b is an address; predict takes a file on this machine: save the video to one first"),
        ("{}/*.mp4", "{}/*.mp4 is a pattern that matches no file; predict takes one video file: give its name"),
        ("{}/*.avi", "{}/*.avi is a pattern that matches 2 files, such as {}/a.avi; predict takes one video file: "
         "give its name"),
        ("{}/a.avi {}/b.avi", "{}/a.avi {}/b.avi is a list of 2 files; predict takes one: call it once for each"),
        (["a.avi"], "a list is not a video; predict takes one file, or the frames of one as a NumPy array"),
        ("{}/c.avi", "{}/c.avi is not a file; give a video file"),
        ("x" * 256, "x" * 256 + " cannot be read (File name too long); give a video file"),
    ],
)  # fmt: skip
def test_what_is_no_file_is_told_what_it_is_and_what_predict_takes(tmp_path, video, sentence):
    for name in ("a.avi", "b.avi"):
        (tmp_path / name).touch()
    place = str(tmp_path)
    with pytest.raises(UserError) as raised:
        check_video(video.replace("{}", place) if isinstance(video, str) else video)
    assert str(raised.value) == sentence.replace("{}", place)


def test_the_json_of_a_long_video_is_written_frame_by_frame(tmp_path):
    frames, rng = 4_000, np.random.default_rng(0)
    said = VideoPrediction("a/b", None, rng.random((frames, 3)), rng.dirichlet(np.ones(49), frames).reshape(-1, 7, 7))
    times = [number / 15 for number in range(frames)]
    result = Result(said, ["a", "b", "c"], "mode", 15.0, lambda: (), times=times)
    tracemalloc.start()
    predict._write_frames(tmp_path / "said.json", {"video": "b"}, result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "said.json").stat().st_size > 2e6 > 10 * peak
    written = json.loads((tmp_path / "said.json").read_text())["frames"]
    assert [frame["time"] for frame in written] == [round(time, 3) for time in times]


def test_an_overlay_of_a_result_has_the_heatmap_that_was_asked_for(tmp_path, monkeypatch):
    asked, attention = [], np.full((2, 7, 7), 1 / 49)
    said = VideoPrediction("a/b", None, np.full((2, 3), 1 / 3), attention)
    frame = np.full((48, 64, 3), 90, np.uint8)
    result = Result(said, ["a", "b", "c"], "mode", 15.0, lambda: [frame, frame])
    draw_overlays = recognizer_module.draw_overlays

    def draw(*arguments, heatmap, **settings):
        asked.append(heatmap)
        return draw_overlays(*arguments, heatmap=heatmap, **settings)

    monkeypatch.setattr(recognizer_module, "draw_overlays", draw)
    result.overlay(tmp_path / "a.mp4")
    result.overlay(tmp_path / "b.mp4", heatmap="tutorial")
    assert asked == ["absolute", "tutorial"]
    with pytest.raises(UserError, match="there is no heatmap 'jet'; give one of absolute, tutorial"):
        result.overlay(tmp_path / "c.mp4", heatmap="jet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_map_close_to_uniform_is_called_so():
    recognizer, other = (SimpleNamespace(config=SimpleNamespace(model=name)) for name in ("alstm", "avg_lstm"))
    assert predict._attention(0.934, recognizer) == "attention: 0.93 of uniform's entropy"
    assert predict._attention(0.98, recognizer) == "attention: 0.98 of uniform's entropy"
    assert predict._attention(1, recognizer) == (
        "attention: 1.00 of uniform's entropy (close to uniform: it hardly prefers any place)"
    )
    assert predict._attention(1, other) == "attention: none; avg_lstm weighs all places alike"


def run_make(folder, **variables):
    """`make predict` as a user types it, with a python that has the small network in place of VGG16."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\ntest "$1" = -m && shift\nexec "{sys.executable}" "{folder}/stand_in.py" "$@"\n')
    python.chmod(0o755)
    (folder / "stand_in.py").write_text(
        "import runpy, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "from conftest import small_network\n"
        "import data_prep.backbones\n"
        "data_prep.backbones.build_backbone = lambda *_: small_network()\n"
        "module = sys.argv[1]\n"
        "del sys.argv[1]\n"
        "runpy.run_module(module, run_name='__main__')\n"
    )
    command = ["make", "-o", "setup", "predict", f"VENV={folder / 'venv'}"]
    # the tests may run under `make test` themselves, and this make is not to be its child
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS")
    return subprocess.run(
        [*command, *(f"{key}={value}" for key, value in variables.items())],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key not in outer},
    )  # fmt: skip


@pytest.mark.slow
def test_make_predict_of_a_file_with_every_punctuation_in_its_name(run_dir, tmp_path):
    video = tmp_path / "my videos" / ODD_NAME
    write_video(video, 40, 25.0)
    output = tmp_path / "out put"
    done = run_make(tmp_path, VIDEO=video, RUN_DIR=run_dir, OUTPUT=output, ARGS="--label=nod")
    assert done.returncode == 0, done.stderr
    stem = f"{video.stem}_prediction"
    assert sorted(path.name for path in output.iterdir()) == [f"{stem}.gif", f"{stem}.json", f"{stem}.mp4"]
    assert done.stdout.splitlines()[-3:] == [str(output / f"{stem}{suffix}") for suffix in (".mp4", ".gif", ".json")]

    said = json.loads((output / f"{stem}.json").read_text())
    assert (said["video"], said["label"], said["vote"], len(said["top5"])) == (str(video), "nod", "mode", 3)
    frames = said["frames"]
    # 25 frames/s sampled to 15: the first frame at or after every fifteenth of a second
    assert [frame["time"] for frame in frames] == [pytest.approx(-(-5 * k // 3) / 25, abs=1e-3) for k in range(24)]
    attention = np.array([frame["attention"] for frame in frames])
    assert attention.shape == (24, 7, 7)
    assert said["attention_entropy"] == pytest.approx(relative_entropy(attention).mean(), abs=1e-5)
    sentence = f"attention: {said['attention_entropy']:.2f} of uniform's entropy"
    assert any(line.startswith(sentence) for line in done.stdout.splitlines())
    np.testing.assert_allclose(attention.sum(axis=(1, 2)), 1, atol=1e-4)
    top = said["top5"][0]
    assert (
        sum(frame["class"] == top["class"] for frame in frames) / 24
        == top["votes"]
        == max(row["votes"] for row in said["top5"])
    )
    assert f"{top['votes']:.1%}" in done.stdout
    assert f"{top['probability']:.1%}  {top['class']}" in done.stdout
    with av.open(str(output / f"{stem}.mp4")) as file:
        assert file.duration / 1e6 == pytest.approx(40 / 25, abs=0.01)  # as long as its source
        assert len(list(file.decode(video=0))) == 24


@pytest.mark.parametrize(
    ("video", "arguments", "sentence"),
    [
        ("absent.avi", "", "--video={}/absent.avi is not a file; give a video file"),
        ("junk.avi", "--label=fly", "the model knows no class fly; its classes are leap, nod, spin"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_no_traceback(run_dir, tmp_path, video, arguments, sentence):
    (tmp_path / "junk.avi").write_text("no video")
    done = run_make(tmp_path, VIDEO=f"{tmp_path}/{video}", RUN_DIR=run_dir, OUTPUT=tmp_path / "out", ARGS=arguments)
    assert done.returncode == 2  # make's own
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.format(tmp_path) in line
    assert "Traceback" not in done.stderr


def test_the_json_can_be_left_out(run_dir, tmp_path):
    write_video(tmp_path / "clip.avi", 12)
    done = run_make(tmp_path, VIDEO=tmp_path / "clip.avi", RUN_DIR=run_dir, OUTPUT=tmp_path / "out",
                    ARGS="--nojson --heatmap=tutorial")  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = ["clip_prediction.gif", "clip_prediction.mp4"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert ".json" not in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("attention: ")]
    assert line.split(" (")[0].endswith(" of uniform's entropy")


def small_backbone():
    """In a program's process: the small network."""
    recognizer_module.build_backbone = lambda *_: small_network()


def test_a_file_is_looked_at_while_it_plays(run_dir, tmp_path):
    """Its answers are in a table with the time of each, and in a film as long as they are."""
    write_video(tmp_path / "clip.avi", 60, seed=3)
    out = tmp_path / "out"
    flags = [f"--run_dir={run_dir}", f"--video={tmp_path / 'clip.avi'}", f"--output={out}", "--realtime"]
    done = run("experiments.predict", *flags, "--seconds=1.5", prepare=small_backbone)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((out / "clip_live.csv").read_text().splitlines()))
    times = [float(row["time"]) for row in rows]
    assert times == sorted(set(times))
    assert times[-1] < 1.5
    assert f"\n{len(rows)} frames in " in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(out / "clip_live.csv"), str(out / "clip_live.mp4")]
    assert len(read_frames(out / "clip_live.mp4", 1000.0)) == 1 + round(15 * (times[-1] - times[0]))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--video=camera:0", "--video=b.avi"], "--video=b.avi: one camera, address or --realtime file at a time"),
        (["--video=none.avi", "--realtime"], "--video=none.avi is not a file; give a video file"),
        (["--video=camera:0", "--boxes"], "--boxes is for files, not for a camera, an address or --realtime; leave it"),
        (["--video=camera:0", "--overlay=gif"], "--overlay is for files, not for a camera, an address or --realtime"),
        (["--video=http://127.0.0.1:9/a.mp4"], "http://127.0.0.1:9/a.mp4 cannot be opened as a video (Connection"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_live_source_is_refused(run_dir, tmp_path, flags, sentence):
    given = [f"--run_dir={run_dir}", f"--output={tmp_path / 'out'}", *flags]
    done = run("experiments.predict", *given, prepare=small_backbone)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in line
    assert not list((tmp_path / "out").glob("*"))


def test_make_predict_asks_for_the_video():
    done = subprocess.run(["make", "-o", "setup", "predict"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "say which video: make predict VIDEO=FILE" in done.stdout + done.stderr


def stand_in(read_only):
    """In a program's process: the small network, whose making is told, and nothing is written where it may not be.

    Root may write everywhere, by a capability (capabilities(7), CAP_DAC_OVERRIDE) that it can give up.
    """
    recognizer_module.build_backbone = lambda *_: print("network made", file=sys.stderr) or small_network()
    if os.geteuid() == 0:
        libc, of_version_3, held = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capget(of_version_3, held) == 0
        held[0] &= ~(1 << 1)
        assert libc.capset(of_version_3, held) == 0
    with pytest.raises(PermissionError):
        (read_only / "new").touch()


def test_a_tree_of_videos_in_folders_that_may_only_be_read(run_dir, tmp_path):
    """One network for all; a broken one is named, the others go on; each file's decision is that of it alone."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number, name in enumerate(("a.avi", "deep/er/a.avi", "deep/b.mkv")):
        write_video(videos / name, 12 + 8 * number, seed=number)
    (videos / "deep" / "broken.avi").write_text("no video")
    (videos / "notes.txt").touch()
    for folder in (videos, videos / "deep", videos / "deep" / "er"):
        folder.chmod(0o555)
    flags = [f"--run_dir={run_dir}", f"--output={out}", "--overlay=mp4"]
    done = run("experiments.predict", *flags, f"--video={videos}", prepare=partial(stand_in, videos))
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("network made") == 1, done.stderr
    assert f"error: 1 of 4 videos could not be used; {out / 'summary.csv'} says why" in done.stderr.splitlines()
    made = ["a", "deep/b", "deep/er/a"]
    expected = {f"{name}_prediction{suffix}" for name in made for suffix in (".mp4", ".json")}
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == expected | {"summary.csv", "summary.json"}

    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["passed_over"]) == [str(videos / "notes.txt")]
    assert [row["video"] for row in summary["videos"]] == [
        str(videos / name) for name in ("a.avi", "deep/b.mkv", "deep/broken.avi", "deep/er/a.avi")
    ]
    with (out / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, said in zip(rows, summary["videos"], strict=True):
        assert row == {key: "" if said[key] is None else str(said[key]) for key in row}
    broken = summary["videos"].pop(2)
    assert "broken.avi cannot be used (cannot be opened as a video: " in broken["error"]
    recognizer = Recognizer(Run.open(run_dir), network=small_network())
    for name, row in zip(made, summary["videos"], strict=True):
        alone = recognizer.predict(row["video"])
        assert row["error"] is None
        assert (row["answer"], row["frames"]) == (alone.answer, len(alone.probabilities))
        assert row["confidence"] == pytest.approx(alone.confidence, abs=1e-6)
        assert row["seconds"] == pytest.approx(row["frames"] / alone.fps, abs=1e-3)
        of_file = json.loads((out / f"{name}_prediction.json").read_text())
        assert row["segments"] == of_file["segments"]
        assert row["segments"] == [
            {key: value if key == "action" else pytest.approx(value, abs=1e-3) for key, value in vars(segment).items()}
            for segment in alone.segments
        ]
        assert of_file["attention_entropy"] == row["attention_entropy"]
    seconds = sum(row["seconds"] for row in summary["videos"])
    said = re.fullmatch(r"4 videos, ([\d.]+) s of video in ([\d.]+) s: ([\d.]+) times real time",
                        done.stdout.splitlines()[-1])  # fmt: skip
    assert float(said[1]) == pytest.approx(seconds, abs=0.06)
    took, speed = float(said[2]), float(said[3])  # rounded to tenths and hundredths
    assert seconds / (took + 0.051) - 0.006 <= speed <= seconds / (took - 0.051) + 0.006


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What is written of a result of some seconds, with flags; a second reading is counted."""

    def write(seconds, **given):
        frames, reads = round(10 * seconds), []
        said = VideoPrediction("a/b", None, np.full((frames, 3), 1 / 3), np.full((frames, 7, 7), 1 / 49))

        def read():
            reads.append(1)
            return [np.full((16, 16, 3), 90, np.uint8)] * frames

        result = Result(said, ["a", "b", "c"], "mode", 10.0, read)
        flags = {"overlay": None, "gif": None, "json": False, "heatmap": "absolute", "boxes": False}
        monkeypatch.setattr(predict.flags, "FLAGS", SimpleNamespace(**{**flags, **given}))
        row = predict.Row("b", seconds=seconds, frames=frames)
        written = predict._write(result, row, None, tmp_path / "b")
        assert sorted(path for path in tmp_path.iterdir()) == sorted(written)
        return [path.name for path in written], len(reads)

    return write


@pytest.mark.parametrize(("seconds", "given", "suffixes"), [
    (1, {}, [".mp4", ".gif"]), (1, {"gif": False}, [".mp4"]), (1, {"overlay": "gif"}, [".gif"]),
    (1, {"overlay": "none"}, []), (11, {"overlay": "none"}, []), (11, {}, [".mp4"]),
    (11, {"gif": True}, [".mp4", ".gif"]), (11, {"overlay": "both"}, [".mp4", ".gif"]),
])  # fmt: skip
def test_what_is_drawn_is_what_was_asked_for(drawn, seconds, given, suffixes):
    """Each overlay reads the video once more, none does not; of a longer video the timeline is a picture too."""
    picture = ["b_timeline.png"] * (seconds > 10 and given.get("overlay") != "none")
    assert drawn(seconds, **given) == ([*(f"b_prediction{suffix}" for suffix in suffixes), *picture], len(suffixes))


def test_two_flags_that_say_what_to_draw_are_refused(run_dir, tmp_path):
    flags = [f"--run_dir={run_dir}", f"--video={tmp_path}", "--overlay=none", "--gif"]
    done = run("experiments.predict", *flags)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith("give one of --gif and --overlay")


def test_the_table_of_segments():
    parts = [Segment(0, 59.96, "sit", 0.815), Segment(59.96, 3723.5, None, 0.4)]
    assert predict._table(parts).splitlines() == [
        "       from         to  confidence  action",
        "     0:00.0     0:59.9         81%  sit",
        "     0:59.9  1:02:03.5         40%  none with confidence",
    ]


def test_a_video_that_is_gone_before_it_is_drawn_is_named(tmp_path, monkeypatch):
    said = VideoPrediction("a/b", None, np.full((4, 3), 1 / 3), np.full((4, 7, 7), 1 / 49))
    result = Result(said, ["a", "b", "c"], "mode", 15.0, lambda: VideoReader(tmp_path / "gone.avi", 15.0))
    flags = dict.fromkeys(("gif", "vote", "label")) | {"overlay": "mp4", "heatmap": "absolute", "boxes": False}
    monkeypatch.setattr(predict.flags, "FLAGS", SimpleNamespace(**flags))
    asked = SimpleNamespace(predict=lambda *_, **__: result, run=None)
    with pytest.raises(UserError, match=r"gone\.avi cannot be read a second time \(cannot be opened as a video: No"):
        predict._predict(asked, tmp_path / "gone.avi", tmp_path, Path("gone"), alone=False)
    assert not list(tmp_path.iterdir())
