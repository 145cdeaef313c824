"""Extraction under fire, for `make faults`: killed, out of disk, damaged videos and caches, hostile names."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import SPOILT, small_network, write_video
from fuzz import CACHE_DAMAGE, CONTENT, FILES, Fuzz, content, sentence_of

from action_attention.shards import RESERVED_BYTES
from data_prep.extract import extract

pytestmark = pytest.mark.slow
KILLS, DAMAGED_VIDEOS, DAMAGED_CACHES = (
    int(os.environ.get(f"FAULTS_{name}", default)) for name, default in (("KILLS", 20), ("VIDEOS", 240), ("CACHES", 65))
)
DATA = Path(os.environ.get("ACTION_ATTENTION_DATA", Path(__file__).parents[2] / "shared" / "data"))
EXTRACT = (
    "import sys\nfrom pathlib import Path\nfrom conftest import small_network\nfrom data_prep import program\n"
    "from data_prep.extract import extract\nnetwork = small_network()\nprint('ready', flush=True)\n"
    "folders = [Path(argument) for argument in sys.argv[1:]]\ndel sys.argv[1:]\n"
    "program.run(lambda: extract(*folders, network, shard_videos=3), lambda: None)"
)


def start_extraction(videos, features, **options):
    """A process of its own that extracts with the small network, at the moment when it begins."""
    process = subprocess.Popen([sys.executable, "-c", EXTRACT, str(videos), str(features)], cwd=Path(__file__).parent,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def stamps(features):
    return {path.name: path.stat().st_mtime_ns for path in features.glob("shard-*.h5")}


@pytest.fixture(scope="module")
def many_videos(tmp_path_factory):
    """Twenty-four videos of a few seconds and a file that is none: eight shards and a bit."""
    root = tmp_path_factory.mktemp("many")
    for number in range(24):
        write_video(root / f"class{number % 3}" / f"v{number:02}.avi", 60 + 10 * (number % 5), seed=number)
    (root / "class0" / "w.avi").write_text("no video")
    return root


@pytest.fixture(scope="module")
def uninterrupted(many_videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    extract(many_videos, folder, small_network(), shard_videos=3)
    return folder


def test_killed_at_random_moments(many_videos, uninterrupted, tmp_path, fault):
    rng, kills, chains, shards_then = random.Random(0), 0, 0, Counter()
    while kills < KILLS:
        features, finished, code = tmp_path / f"chain{chains}", {}, None
        chains += 1
        while code != 0:  # killed again and again, until once it is too late
            process = start_extraction(many_videos, features)
            wanted = len(finished) + rng.randrange(3)
            while len(stamps(features)) < wanted and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            errors, code = process.communicate()[1], process.returncode
            assert code in (0, -signal.SIGKILL), errors
            now = stamps(features)
            assert finished.items() <= now.items(), "a finished shard was touched"
            finished = now
            if code:
                kills += 1
                shards_then[len(now)] += 1
        assert content(features) == content(uninterrupted)
        for path in uninterrupted.iterdir():
            if path.suffix == ".h5":  # every byte: features, tables and HDF5's own structures
                assert (features / path.name).read_bytes() == path.read_bytes()
        assert not list(features.glob("*.part")) + list(features.glob("*.damaged"))
    assert len(shards_then) > 2, "the kills all came at the same stage"
    fault(
        "extraction killed (SIGKILL) at random moments", kills, "goes on; at most the shard in hand is redone",
        f"{chains} caches, byte for byte those of an uninterrupted run; no finished shard touched, no leftovers",
    )  # fmt: skip


def test_two_at_once(many_videos, uninterrupted, tmp_path, fault):
    first = start_extraction(many_videos, tmp_path)
    while not (tmp_path / ".lock").exists():
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # holds still until the others were refused
    refused = 0
    for _ in range(2):
        second = start_extraction(many_videos, tmp_path)
        errors = second.communicate()[1]
        assert second.returncode == 1
        assert f"another extraction is writing to {tmp_path}" in errors
        assert "Traceback" not in errors
        refused += 1
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 0, first.stderr.read()
    first.communicate()
    assert content(tmp_path) == content(uninterrupted)
    fault("second extraction into the same folder", refused, "refused", f"{refused} refused, the first one undisturbed")


DISK_BYTES, BATCH_BYTES = 16 * 2**20, 32 * 7 * 7 * 512 * 2


@pytest.fixture
def small_disk(tmp_path):
    """A disk of `DISK_BYTES`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk(many_videos, uninterrupted, small_disk, fault):
    """Filled so that other writes fail: at the first byte, in features, tables, index, at every number of shards."""
    whole, rng, places = content(uninterrupted), random.Random(0), Counter()
    network = small_network()
    needed = sum(path.stat().st_size for path in uninterrupted.iterdir())
    # while a shard is written, room for its temporary file's reserve is needed too
    free = [0, 4096, 8192, 12288, *(RESERVED_BYTES + BATCH_BYTES + rng.randrange(needed) for _ in range(10))]
    for size in free:
        features = small_disk / "features"
        features.mkdir()
        (small_disk / "filler").write_bytes(bytes(DISK_BYTES - size // 4096 * 4096))
        said = None
        try:
            said = sentence_of(lambda: extract(many_videos, features, network, shard_videos=3))  # noqa: B023
        except OSError as error:  # where not even the lock's file can be made
            said = str(error)
        shards = stamps(features)
        assert "No space left on device" in said or (not said and len(shards) == 9), said
        assert str(features) in said or not said
        assert f"its {len(shards)} finished shards are safe: make room" in said or not said or not shards, said
        assert not list(features.glob("*.part"))
        places[len(shards)] += bool(said)
        (small_disk / "filler").unlink()
        extract(many_videos, features, network, shard_videos=3)
        assert shards.items() <= stamps(features).items()
        assert content(features) == whole
        shutil.rmtree(features)
    assert len(places) > 2, places
    tried = places.total()
    assert tried >= 10
    fault(
        "disk full while extracting", tried, "one sentence; finished shards intact; goes on when there is room",
        f"{tried} sentences with 0 to {max(places)} shards finished; {tried} times completed, same bytes",
    )  # fmt: skip


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    clips = [folder for folder in (DATA / "jhmdb" / "videos", DATA / "hmdb51_clips") if folder.is_dir()]
    return Fuzz(tmp_path_factory.mktemp("fuzz"), clips[0] if clips else None)


def test_damaged_videos(fuzz, tmp_path, fault):
    kinds = [*CONTENT] * (DAMAGED_VIDEOS // len(CONTENT)) + [*FILES]
    outcomes = fuzz.videos(tmp_path, random.Random(0), kinds)
    rejected = sum(count for outcome, count in outcomes.items() if outcome.startswith("rejected: "))
    assert outcomes["used"] + outcomes["flagged"] + rejected == len(kinds)
    assert rejected >= len(FILES) - 3
    fault(
        "damaged videos", len(kinds), "used, flagged as short, or rejected with a reason; good ones unaffected",
        f"{outcomes['used']} used, {outcomes['flagged']} flagged, {rejected} rejected; 10 good ones identical",
    )  # fmt: skip


def test_videos_that_crash_or_hang_the_decoder(fuzz, tmp_path, monkeypatch, fault):
    """By a hook in the decoder's process; what the hook does is real: a segmentation fault, an endless wait, 8 GB."""
    monkeypatch.setenv("PYTHONPATH", f"{SPOILT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    folder, tried = tmp_path / "videos" / "wave", 0
    folder.mkdir(parents=True)
    for path in sorted(fuzz.good.iterdir()):
        shutil.copy(path, folder)
        for how in ("crash", "hang", "exhaust"):
            frame = (0, 3, 9)[tried % 3]
            shutil.copy(fuzz.sources[0], folder / f"{path.stem}-{how}-at-{frame}.avi")
            tried += 1
    extract(tmp_path / "videos", tmp_path / "features", fuzz.network, shard_videos=7, decode_timeout=1)
    found = content(tmp_path / "features")
    reasons = {"crash": "the decoder crashed (SIGSEGV)", "hang": "the decoder gave no frame for 1 s",
               "exhaust": "the decoder failed: out of memory"}  # fmt: skip
    counts = Counter()
    for name, what in found.items():
        if "-at-" in name:
            assert what == reasons[name.split("-")[1]]
            counts[name.split("-")[1]] += 1
        elif name != "shards":
            assert what[1] == fuzz.whole[name][1]
    assert counts.total() == tried
    happened = ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
    fault("videos that crash or hang the decoder or exhaust memory", tried, "rejected with the reason; the run goes on",
          f"{happened}: all rejected; good ones identical")  # fmt: skip


def test_damaged_caches(fuzz, tmp_path, fault):
    rng, outcomes = random.Random(0), Counter()
    for number in range(DAMAGED_CACHES):
        outcome = fuzz.caches(tmp_path / str(number), rng, CACHE_DAMAGE[number % len(CACHE_DAMAGE)])
        outcomes[outcome.split(":")[0]] += 1
        shutil.rmtree(tmp_path / str(number))
    found = outcomes["found"] + outcomes["refused, then found"]
    fault("damaged caches", DAMAGED_CACHES, "found and named when it is read; extraction redoes only what is broken",
          f"{found} found ({outcomes['refused, then found']} foreign or double shards refused by name), "
          f"{outcomes['harmless']} without effect; all mended to the same features")  # fmt: skip


NAMES = ("plain", "two words", "new\nline", "tab\tand\x1b[31mred", "'single'", '"double"', "`id`", "$(id)", "$HOME",
         "a;b", "a&&b", "a|b", "a>b", "*", "?", "[a]", "{a,b}", "~", "-rf", "--help", "#hash", "!bang", "100%d", "%s%n",
         "\\n", "<script>alert(1)<script>", "größe", "日本語", "\u202egnp", "e\u0301", "x" * 240, "file:a",
         "concat:a|b", "a..", "a\\b", "http:")  # fmt: skip
BYTE_NAMES = (b"caf\xe9", b"\xff\xfe", b"a\x80\n", b"\xed\xa0\x80")


def test_hostile_file_names(network, tmp_path, fault):
    write_video(tmp_path / "plain.avi", 8)
    wanted = {}
    for number, name in enumerate(NAMES):
        class_name = name if number % 2 else "wave"
        folder = tmp_path / "videos" / class_name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "plain.avi", folder / f"{name}.avi")
        wanted[f"{class_name}/{name}.avi"] = True
    for name in BYTE_NAMES:
        shutil.copy(tmp_path / "plain.avi", os.fsencode(tmp_path / "videos" / "wave") + b"/" + name + b".avi")
        wanted["wave/" + name.decode(errors="backslashreplace") + ".avi"] = False
    extract(tmp_path / "videos", tmp_path / "features", network)
    found = content(tmp_path / "features")
    found.pop("shards")
    assert found.keys() == wanted.keys()
    plain = found["wave/plain.avi"][1]
    for name, used in wanted.items():
        if used:
            assert found[name][1] == plain
        else:
            assert "a name that is not UTF-8" in found[name]
    again = extract(tmp_path / "videos", tmp_path / "features", network)
    assert again.videos == 0
    fault("hostile file names in extraction", len(wanted), "survive, or are rejected by name",
          f"{len(NAMES)} survived, {len(BYTE_NAMES)} (not UTF-8) rejected by name")  # fmt: skip
