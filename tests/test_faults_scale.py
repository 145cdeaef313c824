"""Long videos, large reports, clocks that jump, ends in the middle of a save, files that change while they are read."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import keras
import numpy as np
import pytest
from conftest import write_video
from fuzz import content, sentence_of

from action_attention.errors import UserError
from action_attention.evaluation import evaluate
from action_attention.features import write_json
from action_attention.runs import Run
from action_attention.training import new_model, train
from data_prep.extract import extract
from data_prep.recognizer import Recognizer
from data_prep.videos import VideoReader
from experiments import report
from tests import test_report
from tests.browsers import CHROMIUM, chromium
from tests.test_faults_extraction import EXTRACT
from tests.test_faults_training import arguments, assert_the_same_run, state_of, succeeds
from tests.test_faults_training import tree as files_of
from tests.test_training import ABOUT, config, curves_of, history_of, make_run, weights_of

pytestmark = pytest.mark.slow

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
CUBE = (7, 7, 512)
MB, YEAR = 2**20, 365 * 86400


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    return make_run(tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config("softmax", epochs=4))


def run_in_tests(code, *words, **settings):
    """What a process of its own prints, a JSON in a line, started in this folder."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


# Words


def test_files_anywhere_and_what_is_no_file(run_dir, network, tmp_path, monkeypatch, fault):
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    write_video(folder / "clip.avi", 12)
    write_video(tmp_path / "above.avi", 12)
    elsewhere.symlink_to(folder)
    (tmp_path / "linked.avi").symlink_to(folder / "clip.avi")
    recognizer = Recognizer(Run.open(run_dir), network=network)
    monkeypatch.chdir(folder)
    top, mounted = Path(f"/action-attention-{os.getpid()}.avi"), tmp_path / "read-only"
    names = {
        "clip.avi": "in/clip.avi", "./clip.avi": "in/clip.avi", "../in/clip.avi": "in/clip.avi",
        "../above.avi": "video/above.avi", "../linked.avi": "video/linked.avi",
        elsewhere / "clip.avi": "elsewhere/clip.avi",
    }  # fmt: skip
    mounted.mkdir()
    is_mounted = subprocess.run(["mount", "--bind", folder, mounted], capture_output=True, check=False).returncode == 0
    try:
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
            names[mounted / "clip.avi"] = "read-only/clip.avi"
        if os.access("/", os.W_OK):
            shutil.copy("clip.avi", top)
            names |= {top: f"video/{top.name}", f"/{top}": f"video/{top.name}"}
        for place, name in names.items():
            result = recognizer.predict(place)
            assert result.prediction.name == name
            assert len(result.probabilities) == len(list(result.read())) == 6
    finally:
        top.unlink(missing_ok=True)
        if is_mounted:
            subprocess.run(["umount", mounted], check=True)
    none = [tmp_path, "camera:0", 0, "0", "/dev/video0", "http://example.org/a.mp4", "rtsp://camera/1", "file:///a.avi",
            "*.mp4", "*.avi", "clip.avi ../above.avi", ["clip.avi"], ("clip.avi",), None, "", "absent.avi", "/dev/zero",
            "x" * 300]  # fmt: skip
    for video in none:
        sentence = sentence_of(lambda: recognizer.predict(video))  # noqa: B023
        assert "\n" not in sentence
        remedies = ("; give a video file", "; predict takes ", "; give `experiments.predict` its name")
        assert any(remedy in sentence for remedy in remedies), video
    fault(
        "Predicting a file in /, in a read-only folder, above, behind a link; what is no file: folder, camera, address",
        len(names) + len(none), "files work anywhere; of the rest one sentence says what it is and what predict takes",
        f"{len(names)} worked, {len(none)} refused with such a sentence",
    )  # fmt: skip


# Scale

PREDICTS = """
import json, os, resource, sys
from pathlib import Path
from conftest import small_network
from action_attention.runs import Run
from data_prep.recognizer import Recognizer
recognizer = Recognizer(Run.open(Path(sys.argv[1])), network=small_network())
worked = lambda: sum(os.times()[:4])  # its own seconds of processor time and the decoder's: a busy machine adds none
for path in sys.argv[2:]:
    started = worked()
    frames = len(recognizer.predict(path).probabilities)
    print(json.dumps([frames, worked() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""
DRAWS = """
import json, resource, sys
from pathlib import Path
import numpy as np
from action_attention.metrics import VideoPrediction
from data_prep.recognizer import Result
from data_prep.videos import VideoReader
for path in map(Path, sys.argv[1:]):
    frames = int(path.stem)
    said = VideoPrediction("a/b", None, np.full((frames, 3), 1 / 3), np.full((frames, 7, 7), 1 / 49))
    result = Result(said, ["a", "b", "c"], "mode", 15.0, lambda: VideoReader(path, 15.0))
    result.overlay(path.with_suffix(".overlay.mp4"))
    print(json.dumps([len(result.times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def film(path, frames):
    """So many frames of 64x48, 15 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, width=64, height=48, pix_fmt="yuv420p")
        stream.options = {"preset": "ultrafast"}
        for number in range(frames):
            picture = np.full((48, 64, 3), number % 251, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_long_videos_take_no_more_memory(run_dir, tmp_path, fault):
    """Of each frame stay its probabilities and its map; while they are made, at most five times so many float64.

    That is 2 kB here; a resized frame takes 150 kB, a cube 50 kB, a drawn frame 600 kB. Batches that TensorFlow holds,
    and what the allocator keeps of them, differ by 100 MB from one call to the next.
    """
    short, long = (film(tmp_path / f"{frames}.mp4", frames) for frames in (9_000, 27_000))
    (frames, seconds, peak), (more_frames, more_seconds, more_peak) = run_in_tests(PREDICTS, run_dir, short, long)
    assert (frames, more_frames) == (9_000, 27_000)
    bound = 256 * MB + 5 * 8 * (3 + 49) * (more_frames - frames)
    assert more_peak - peak < bound
    assert more_seconds / more_frames < 2 * seconds / frames
    drawn = run_in_tests(DRAWS, *(film(tmp_path / f"{frames}.mp4", frames) for frames in (150, 600)))
    assert [frames for frames, _ in drawn] == [150, 600]
    assert drawn[1][1] - drawn[0][1] < 64 * MB
    before, after = 1000 * seconds / frames, 1000 * more_seconds / more_frames
    fault(
        "A video of 30 minutes after one of 10 (predict); an overlay of 40 s after one of 10 s", 4,
        f"memory grows by the answer only, less than {bound / 1e6:.0f} MB; time by the length",
        f"{(more_peak - peak) / 1e6:.0f} MB more, {before:.1f} and {after:.1f} ms of a core a frame; overlay "
        f"{(drawn[1][1] - drawn[0][1]) / 1e6:.0f} MB more",
    )  # fmt: skip


REPORTS = """
import json, resource, sys, time
from pathlib import Path
sys.path.insert(0, "..")
from experiments import report
run, videos, output = map(Path, sys.argv[1:])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, started = peak(), time.monotonic()
drawn = report.make_report(report.read_runs([run], "test"), videos, output, 0)
seconds = time.monotonic() - started
print(json.dumps([len(drawn), sum("note" in said for said in drawn.values()), seconds, peak() - before]))
"""


def test_a_report_of_5000_videos(tmp_path, fault):
    """Of them 200 are there, links to 12 files; the page is made for all."""
    classes, videos, there = [f"class{number:02}" for number in range(51)], 5_000, 200
    run = test_report.make_run(tmp_path / "run", 0, videos, classes)
    for number in range(12):
        write_video(tmp_path / f"{number}.avi", 2 * test_report.FRAMES, seed=number)
    for number, row in enumerate(test_report.rows_of(run)[:there]):
        link = tmp_path / "videos" / row["video"]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / f"{number % 12}.avi")
    page = tmp_path / "report" / "index.html"
    ((drawn, without, seconds, more),) = run_in_tests(REPORTS, run, tmp_path / "videos", page.parent)
    assert (drawn, without) == (videos, videos - there)
    assert len(list(page.parent.glob("overlays/run1/*.mp4"))) == there
    size = page.stat().st_size
    assert size < 500 * videos
    assert more < 200 * MB
    opened = "no browser here"
    if CHROMIUM:
        with chromium() as browser:
            shown, said = browser.new_page(), []
            shown.on("pageerror", lambda error: said.append(str(error)))
            started = time.monotonic()
            shown.goto(page.as_uri())
            shown.locator("#successes .file").first.wait_for()
            to_open = time.monotonic() - started
            shown.get_by_label("True class").select_option("3")
            shown.wait_for_function("document.querySelector('#successes .count').textContent.includes(' of ')")
            assert shown.evaluate("document.querySelectorAll('*').length") < 6_000  # 51 * 51 are the numbers' cells
        assert said == []
        assert to_open < 20
        opened = f"open in {to_open:.1f} s"
    fault(
        f"A report of {videos} videos", 1, "one page, small and soon open; memory does not follow the overlays",
        f"{size / 1e6:.1f} MB, {seconds:.0f} s with {there} overlays, {more / 1e6:.0f} MB of memory; {opened}",
    )  # fmt: skip


# Clocks


@pytest.fixture
def leaping_clock(monkeypatch):
    """The wall clock leaps by a year, backwards and forwards, whenever it is asked."""
    clock, clock_ns, leaps = time.time, time.time_ns, itertools.cycle((0, YEAR, -YEAR, 86400, -3600.5))
    monkeypatch.setattr(time, "time", lambda: clock() + next(leaps))
    monkeypatch.setattr(time, "time_ns", lambda: clock_ns() + int(1e9 * next(leaps)))


def test_a_clock_that_leaps(run_dir, videos, cache, cache_folder, split, network, tmp_path, leaping_clock, fault):
    options = config("softmax", epochs=4)
    extract(videos, tmp_path / "features", network, shard_videos=5)
    for path in cache_folder.glob("*.h5"):
        assert (tmp_path / "features" / path.name).read_bytes() == path.read_bytes()
    metrics = evaluate(run_dir, cache)
    for number, stop_after in enumerate((None, 0, 2)):
        folder = tmp_path / f"run{number}"

        def stop(epoch, logs, last=stop_after):
            if epoch == last:
                raise KeyboardInterrupt

        if stop_after is not None:
            with pytest.raises(KeyboardInterrupt):
                train(options, cache, split, folder, about=ABOUT,
                      callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=stop)])  # fmt: skip
        train(options, cache, split, folder, about=ABOUT, resume=True)
        assert weights_of(folder) == weights_of(run_dir)
        assert (state_of(folder), history_of(folder)) == (state_of(run_dir), history_of(run_dir))
        assert curves_of(folder) == curves_of(run_dir)
        seconds = [epoch["seconds"] for epoch in json.loads((folder / "history.json").read_text())]
        assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3] < 600
        assert evaluate(folder, cache) == metrics
    pages = []
    for number in range(2):
        report.make_report(report.read_runs([run_dir], "test"), videos, tmp_path / f"report{number}", 0)
        pages.append((tmp_path / f"report{number}" / "index.html").read_bytes())
    assert pages[0] == pages[1]
    name = split["test"][0]
    found = Recognizer(Run.open(run_dir), network=network).predict(videos / name)
    (evaluated,) = (said for said in Run.open(run_dir).predictions() if said.name == name)
    np.testing.assert_allclose(found.probabilities, evaluated.probabilities, atol=1e-5)
    fault(
        "The clock leaps by a year, back and forth, while extracting, training, resuming, evaluating, predicting", 10,
        "nothing depends on it", "same bytes of features, weights, states, curves, metrics and page; seconds run on",
    )  # fmt: skip


def test_files_of_another_time(run_dir, videos, cache, split, network, tmp_path, fault):
    """Whether a video is hashed again depends on its ctime, which nobody can set, and its shard's mtime."""
    root, features, tried = tmp_path / "videos", tmp_path / "features", 0
    shutil.copytree(videos, root)
    extract(root, features, network, shard_videos=5)
    whole, stamp = content(features), time.time()
    shards = sorted(features.glob("*.h5"))

    def set_times(paths, moment):
        for path in paths:
            os.utime(path, (moment, moment))

    def goes_on():
        assert extract(root, features, network, shard_videos=5).videos == 0
        assert content(features) == whole
        return 1

    for moment in (0, stamp - YEAR, stamp + YEAR):
        set_times(root.glob("*/*"), moment)
        tried += goes_on()
    for moment in (0, stamp - YEAR, stamp + YEAR):
        set_times(shards, moment)
        tried += goes_on()
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    before = files_of(run)
    for moment in (0, stamp + YEAR):
        set_times(run.rglob("*"), moment)
        train(config("softmax", epochs=4), cache, split, run, about=ABOUT, resume=True)
        assert files_of(run) == before
        tried += 1
    # an edit that keeps the size
    video = root / sorted(cache.videos)[0]
    set_times(shards, stamp)
    data = bytearray(video.read_bytes())
    data[len(data) // 2] ^= 1
    video.write_bytes(data)
    assert f"{video} has changed since it was extracted" in sentence_of(lambda: extract(root, features, network))
    tried += 1
    set_times(shards, stamp + YEAR)
    noticed = "has changed since it was extracted" in sentence_of(lambda: extract(root, features, network))
    tried += 1
    fault(
        "Files of another time: videos, shards and runs of 1970, of last year, of next year", tried,
        "extraction and --resume go on as they would; a video that was edited is refused, but for an edit that keeps "
        "its size, where its shard is of a later time than the edit",
        f"{tried - 1} as promised; such an edit was {'noticed too' if noticed else 'not noticed, as stated'}",
    )  # fmt: skip


# The end in the middle of a save

# Is sent SIGTERM so many seconds after the `count`-th call of `place` has begun, or when that ends.
ENDED_IN = """
import os, runpy, signal, sys, threading
from pathlib import Path
import numpy as np
import data_prep.quiet_tensorflow
import keras
from action_attention import features, overlays, runs, shards, training

place, count, seconds, program = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
calls = 0

def end_within(owner, function):
    original = getattr(owner, function)
    def wrapped(*arguments, **keywords):
        global calls
        calls += place == function
        if place == function and calls == count:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
            original(*arguments, **keywords)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)
    setattr(owner, function, wrapped)

sys.argv[:] = sys.argv[4:]
end_within(np, "savez")
end_within(keras.Model, "save")
end_within(shards.ShardWriter, "commit")
for module in (features, runs, training):
    end_within(module, "write_json")
end_within(Path, "write_text")
end_within(overlays, "write_video")
if program == "extract":
    exec(EXTRACT)
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


def ended(place, count, seconds, *words):
    """A program that SIGTERM ended there."""
    code = f"EXTRACT = {EXTRACT!r}\n{ENDED_IN}"
    command = [sys.executable, "-c", code, place, str(count), str(seconds), *map(str, words)]
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert done.returncode == -signal.SIGTERM, (place, done.stderr)
    return 1


def test_training_that_is_ended_within_a_save(cache_folder, tmp_path, fault):
    rng, whole, run, tried = random.Random(0), tmp_path / "whole", tmp_path / "run", 0
    succeeds("-m", "experiments.train", *arguments(cache_folder, whole, "softmax", epochs=4))
    more, epochs = arguments(cache_folder, run, "softmax", "--resume", epochs=4), 0
    for place, count, seconds in (("save", 1, 0.1), ("savez", 1, 0.02), ("savez", 2, 0.02), ("write_json", 3, 0.001),
                                  ("savez", 2, 0.02)):  # fmt: skip
        tried += ended(place, count, rng.uniform(0, seconds), "experiments.train", *more)
        state, model = run / "last_state.npz", run / "model.keras"
        if state.exists():  # whole, and no step back
            kept = len(json.loads(str(np.load(state)["progress"]))["history"])
            assert kept >= epochs
            epochs = kept
            Run.open(run).model()
        else:
            assert not model.exists()
            with pytest.raises(UserError, match=r"holds no model\.keras yet"):
                Run.open(run).model()
    assert 0 < epochs < 4
    succeeds("-m", "experiments.train", *more)
    assert_the_same_run(run, whole, cache_folder)
    fault(
        "Training ended (SIGTERM) at a random moment within the writing of state, model and history", tried,
        "nothing half-written is taken for whole; --resume ends with the run that was never stopped",
        f"{tried} ends in one run: the state is that of the last whole epoch each time, the same bits at the end",
    )  # fmt: skip


def test_extraction_and_report_that_are_ended_within_a_save(run_dir, videos, network, tmp_path, fault):
    rng, features, output, tried = random.Random(0), tmp_path / "features", tmp_path / "report", 0
    extract(videos, tmp_path / "whole", network, shard_videos=3)
    whole, shards = content(tmp_path / "whole"), 0
    for place, count in (("commit", 1), ("commit", 1), ("write_json", 1), ("commit", 1)):
        tried += ended(place, count, rng.uniform(0, 0.03 if place == "commit" else 0.001), "extract", videos, features)
        there = sorted(features.glob("*.h5"))
        assert len(there) >= shards
        shards = len(there)
        for path in there:
            assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert 0 < shards < 5
    extract(videos, features, network, shard_videos=3)
    assert content(features) == whole
    assert not list(features.glob("*.part"))
    of_extraction = tried
    report.make_report(report.read_runs([run_dir], "test"), videos, tmp_path / "page", 0)
    flags = [f"--run_dir={run_dir}", f"--videos={videos}", f"--output={output}"]
    for place, count, seconds in (("write_video", 1, 0.03), ("write_video", 2, 0.03), ("write_text", 1, 0.001)):
        tried += ended(place, count, rng.uniform(0, seconds), "experiments.report", *flags)
        page = output / "index.html"
        assert not page.exists() or page.read_bytes() == (tmp_path / "page" / "index.html").read_bytes()
    (output / "overlays" / "run1" / "00099.mp4.part").write_bytes(b"of a video that is not drawn again")
    report.make_report(report.read_runs([run_dir], "test"), videos, output, 0)
    assert files_of(output).keys() == files_of(tmp_path / "page").keys()
    fault(
        "Extraction and report ended (SIGTERM) at a random moment within a shard, an index, an overlay, the page",
        tried, "nothing half-written is taken for whole; the same command ends with the same files",
        f"{of_extraction} shards and indices, {tried - of_extraction} overlays and pages: same shards byte for byte, "
        "no page that is not whole, no leftovers",
    )  # fmt: skip


# Is sent SIGTERM at the `count`-th call of what is done at `place`, after it has said what stands in the output.
PREDICTS_ONE = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from conftest import small_network
from action_attention import overlays, shards
from data_prep import program, recognizer
from experiments import predict

place, count, output = sys.argv.pop(1), int(sys.argv.pop(1)), Path(sys.argv.pop(1))
calls = 0

def end_within(owner, function):
    original = getattr(owner, function)
    def wrapped(*arguments, **keywords):
        global calls
        calls += 1
        if calls == count:
            print("at work:", *(path.name for path in output.rglob("*")), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)
    setattr(owner, function, wrapped)

predict.json = SimpleNamespace(dumps=json.dumps)  # of this module alone
end_within(*{"features": (shards.ShardWriter, "append"), "drawing": (overlays, "overlay"),
             "frames": (predict.json, "dumps")}[place])
recognizer.build_backbone = lambda *_: small_network()
program.run(predict.main, predict.define_flags)
"""


def test_predictions_that_are_ended_leave_nothing(run_dir, tmp_path, fault):
    video, tried = film(tmp_path / "clip.mp4", 600), 0
    for place, count, file in (
        ("features", 10, "shard-00000.part"),
        ("drawing", 100, "clip_prediction.mp4.part"),
        ("frames", 100, "clip_prediction.json.part"),
    ):
        output = tmp_path / place
        flags = [f"--run_dir={run_dir}", f"--video={video}", f"--output={output}"]
        command = [sys.executable, "-c", PREDICTS_ONE, place, str(count), str(output), *flags]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
        assert done.returncode == 143, done.stderr
        assert file in done.stdout.partition("at work: ")[2].split()
        left = sorted(output.iterdir())
        assert [path.name for path in left] == ["clip_prediction.mp4", "clip_timeline.png"] * (place == "frames"), place
        assert all(len(list(VideoReader(path, 15.0))) == 600 for path in left[:1])
        tried += 1
    fault(
        "A prediction ended (SIGTERM) while it extracts, draws, writes JSON", tried, "its temporary files are gone",
        f"{tried} of {tried} left none, only an overlay that was whole; exit status 143",
    )  # fmt: skip


# Others at work


def test_a_model_that_training_replaces_while_it_is_read(run_dir, cache, network, tmp_path, fault):
    """As `RunState._settle` does, as fast as it can: a file beside it, which then takes its name."""
    run, models, expected = tmp_path / "run", [], []
    shutil.copytree(run_dir, run)
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        new_model(config("softmax"), 3, CUBE).save(tmp_path / f"{seed}.keras")
        models.append(tmp_path / f"{seed}.keras")
        shutil.copy(models[-1], run / "model.keras")
        said = Recognizer(Run.open(run), network=network).predict(frames, 15.0)
        expected.append((said.probabilities.tobytes(), evaluate(run, cache)))
    assert expected[0][0] != expected[1][0]
    stop, replaced = threading.Event(), []

    def settle():
        history, about = [json.loads((run / name).read_text()) for name in ("history.json", "run.json")]
        while not stop.is_set():
            part = run / f"model-{len(replaced)}.part.keras"
            replaced.append(shutil.copyfile(models[len(replaced) % 2], part))
            part.replace(run / "model.keras")
            write_json(run / "history.json", history)
            write_json(run / "run.json", about)

    training, found = threading.Thread(target=settle), []
    training.start()
    try:
        for _ in range(20):
            said = Recognizer(Run.open(run), network=network).predict(frames, 15.0)
            found.append([each[0] for each in expected].index(said.probabilities.tobytes()))
        for _ in range(6):
            found.append([each[1] for each in expected].index(evaluate(run, cache)))
    finally:
        stop.set()
        training.join()
    assert len(replaced) > len(found)
    fault(
        "predict and eval while the same run is trained and model.keras is replaced under them", len(found),
        "the answer of one whole model, the old or the new one", f"{len(found)} of {len(found)}, {found.count(0)} of "
        f"one model, {found.count(1)} of the other, replaced {len(replaced)} times",
    )  # fmt: skip
