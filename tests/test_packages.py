"""A package to pass on: the same model as a folder, an archive or on the Hub; what a stranger made does no harm."""

import gc
import json
import stat
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import small_network

import action_attention as aa
from action_attention.errors import UserError
from action_attention.packages import PARTS, write_package
from action_attention.runs import Run
from data_prep import recognizer as recognizer_module
from experiments.calibrate import calibrate_run
from tests import forked, hostile
from tests.test_training import config, make_validated_run

SECRET = b"precious"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, cache_folder, split):
    """Evaluated and calibrated."""
    folder = make_validated_run(
        tmp_path_factory.mktemp("runs") / "run", cache_folder, split, config("softmax", epochs=1)
    )
    calibrate_run(folder, [folder])
    return folder


@pytest.fixture(scope="module")
def packed(run_dir, tmp_path_factory):
    """A folder and an archive of the run, by the program."""
    root = tmp_path_factory.mktemp("packed")
    for name in ("tiny", "tiny.zip"):
        forked.succeeds(
            "experiments.export", "--run_dir", run_dir, "--format=package", "--output", root / name,
            "--data=tiny videos", "--licence=Apache-2.0",
        )  # fmt: skip
    return root


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made, and only those."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def answers(run):
    features = np.random.default_rng(0).random((2, 6, 7, 7, 512)).astype(np.float32)
    return np.asarray(run.model()({"features": features, "mask": np.ones((2, 6), bool)})["logits"])


def test_a_folder_and_an_archive_are_the_same_model_wherever_a_run_is_taken(packed, run_dir, temporary, monkeypatch):
    folder, archive = (Run.open(packed / name, pretrained=True) for name in ("tiny", "tiny.zip"))
    np.testing.assert_array_equal(answers(archive), answers(folder))
    np.testing.assert_allclose(answers(archive), answers(Run.open(run_dir)), atol=2e-3)  # of float16
    assert (archive.folder, archive.pretrained) == (packed / "tiny.zip", True)
    assert archive.calibration() == json.loads((run_dir / "calibration.json").read_text())
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: small_network())
    frames = np.random.default_rng(0).integers(0, 256, (8, 48, 64, 3), np.uint8)
    said = [aa.load(packed / name).predict(frames, fps=15).probabilities for name in ("tiny", "tiny.zip")]
    np.testing.assert_array_equal(*said)
    for name in ("tiny", "tiny.zip"):
        with pytest.raises(UserError, match=f"{name} is a pretrained model, which can only predict"):
            Run.open(packed / name)


def test_a_package_holds_its_card_and_the_same_bytes_in_both_forms(packed, run_dir, tmp_path):
    with zipfile.ZipFile(packed / "tiny.zip") as archive:
        assert archive.namelist() == list(PARTS)
        for name in PARTS:
            assert archive.read(name) == (packed / "tiny" / name).read_bytes() or name == "card.md"
        card = archive.read("card.md").decode()
    assert "\n    python -m experiments.predict --run_dir=tiny.zip --video=clip.mp4\n" in card
    for line in ("| data | tiny videos |", "| licence | Apache-2.0 |", "| actions | leap, nod, spin |"):
        assert line in card.splitlines()
    assert "\n## Limits\n\nnot stated by whoever made it\n" in card
    forked.succeeds(
        "experiments.export", "--run_dir", run_dir, "--format=package", "--output", tmp_path / "tiny.zip",
        "--data=tiny videos", "--licence=Apache-2.0",
    )  # fmt: skip
    assert (tmp_path / "tiny.zip").read_bytes() == (packed / "tiny.zip").read_bytes()


def test_the_temporary_folder_goes_with_the_run(packed, temporary):
    run = Run.open(packed / "tiny.zip", pretrained=True)
    (folder,) = temporary.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(PARTS)
    del run
    gc.collect()
    assert not list(temporary.iterdir())


def test_an_archive_is_not_written_over_what_is_there(tmp_path):
    (tmp_path / "a.zip").write_bytes(SECRET)
    with pytest.raises(UserError, match=r"a\.zip is there already; give another --output$"):
        write_package(dict.fromkeys(PARTS, b""), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == SECRET
    with pytest.raises(UserError, match=r"^.*a\.zip/b\.zip cannot be written \(.*\); see that it can be written$"):
        write_package(dict.fromkeys(PARTS, b""), tmp_path / "a.zip" / "b.zip")


# Archives of a stranger


def entry(name, mode=0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def archive_of(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for info, content in members:
            archive.writestr(info, content, compress_type=method)


def swap(members, name, info, content=None):
    return [(info, content or there) if each == name else (each, there) for each, there in members]


def many_times(path, members):
    """Each name a second time in the directory, of the same bytes."""
    archive_of(path, members)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.extend(archive.filelist[:1])
        archive._didModify = True


def bomb(path, members):
    """A gigabyte of zeros in a megabyte."""
    archive_of(path, swap(members, "model.npz", entry("model.npz"), bytes(1 << 28)), zipfile.ZIP_DEFLATED)


def lies(path, members):
    """A file that says it is four gigabytes."""
    archive_of(path, members)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 20 : place + 28] = b"\xfe\xff\xff\xff" * 2  # packed and unpacked size
    path.write_bytes(content)


HOSTILE = {
    "a name that leads out": lambda p, m: archive_of(p, [*m, ("../victim", SECRET)]),
    "an absolute name": lambda p, m: archive_of(p, [*m, ("/tmp/victim", SECRET)]),
    "a name that leads out, for one of ours": lambda p, m: archive_of(p, swap(m, "card.md", "../card.md")),
    "a folder around it": lambda p, m: archive_of(p, [(f"tiny/{name}", content) for name, content in m]),
    "a file more": lambda p, m: archive_of(p, [*m, ("sitecustomize.py", b"open('canary', 'w')")]),
    "a file less": lambda p, m: archive_of(p, m[1:]),
    "a name twice": many_times,
    "packed": lambda p, m: archive_of(p, m, zipfile.ZIP_DEFLATED),
    "a bomb": bomb,
    "a size that lies": lies,
    "no archive": lambda p, m: p.write_bytes(b"PK nothing"),
    "empty": lambda p, m: p.write_bytes(b""),
    "cut off": lambda p, m: (archive_of(p, m), p.write_bytes(p.read_bytes()[:-500]))[0],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_archive_that_is_no_package_is_one_sentence_and_nothing_is_written(what, packed, temporary, tmp_path):
    members = [(name, (packed / "tiny" / name).read_bytes()) for name in PARTS]
    path = tmp_path / "sent.zip"
    HOSTILE[what](path, members)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as raised:
        Run.open(path, pretrained=True)
    said = str(raised.value)
    assert said.startswith(f"{path} is not a package made by `make export FORMAT=package` (")
    assert said.endswith("); get it again, or unpack it yourself and give the folder that holds its run.json")
    assert "\n" not in said
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/victim").exists()


def test_a_link_in_an_archive_is_a_plain_file_that_is_no_run(packed, temporary, tmp_path):
    """What it would lead to is not read."""
    members = [(name, (packed / "tiny" / name).read_bytes()) for name in PARTS]
    archive_of(
        tmp_path / "sent.zip", swap(members, "run.json", entry("run.json", stat.S_IFLNK | 0o777), b"/etc/passwd")
    )
    with pytest.raises(UserError, match=r"sent\.zip: run\.json or split\.json is damaged \(Expecting value: line 1"):
        Run.open(tmp_path / "sent.zip", pretrained=True)


def test_what_is_inside_of_an_archive_is_read_as_untrusting_as_a_folder(packed, temporary, tmp_path):
    """A pickle among the weights, settings of other weights; by the archive's name, not the temporary folder's."""
    parts = {name: (packed / "tiny" / name).read_bytes() for name in PARTS}
    about = json.loads(parts["run.json"])
    about["config"]["lstm_units"] = 60000
    about["config"]["model"] = "alstm"
    pickled = hostile.npy((1,), "|O", b"cos\nsystem\n(S'touch canary'\ntR.")
    hostile.write_members(tmp_path / "model.npz", {"a.npy": pickled})
    for name, changes in (
        ("weights.zip", {"run.json": json.dumps(about).encode()}),
        ("pickle.zip", {"model.npz": (tmp_path / "model.npz").read_bytes()}),
    ):
        write_package(parts | changes, tmp_path / name)
        with pytest.raises(UserError, match=rf"^{tmp_path / name}/model\.npz cannot be read as a model of this"):
            Run.open(tmp_path / name, pretrained=True).model()
    write_package(parts | {"calibration.json": b"[]"}, tmp_path / "calibration.zip")
    with pytest.raises(UserError, match=rf"^{tmp_path}/calibration\.zip/calibration\.json is damaged"):
        Run.open(tmp_path / "calibration.zip", pretrained=True).calibration()
    assert not (tmp_path / "canary").exists()


# On the Hub


@pytest.fixture
def hub(packed, tmp_path, temporary, monkeypatch):
    """Stands in for huggingface_hub: a snapshot of links into a cache; says what was asked for."""
    blobs, snapshot, asked = tmp_path / "blobs", tmp_path / "snapshot", []
    for folder in (blobs, snapshot):
        folder.mkdir()
    for number, name in enumerate(PARTS):
        (blobs / str(number)).write_bytes((packed / "tiny" / name).read_bytes())
        (snapshot / name).symlink_to(blobs / str(number))

    def snapshot_download(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        if repository == "owner/absent":
            raise RuntimeError("404 Client Error.\nRepository Not Found")
        return str(snapshot)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return snapshot, asked


def test_a_package_on_the_hub_is_fetched_and_read_like_a_folder(hub, packed, monkeypatch):
    monkeypatch.setattr(recognizer_module, "build_backbone", lambda *_: small_network())
    run = aa.load("hf://owner/na-me_1.0").run
    assert hub[1] == [("owner/na-me_1.0", list(PARTS))]
    np.testing.assert_array_equal(answers(run), answers(Run.open(packed / "tiny", pretrained=True)))
    assert Run.open(Path("hf://owner/name"), pretrained=True).classes == run.classes  # as --run_dir gives it


def test_what_the_hub_does_not_give_is_one_sentence(hub, temporary, monkeypatch):
    end = r"check that it exists and holds run\.json, model\.npz, calibration\.json, card\.md$"
    with pytest.raises(
        UserError, match=r"^hf://owner/absent cannot be obtained as a package \(404 Client Er.*\); " + end
    ):
        aa.load("hf://owner/absent")
    (hub[0] / "card.md").unlink()
    with pytest.raises(UserError, match=r"^hf://owner/name cannot be obtained as a package \(.*card\.md'?\); " + end):
        aa.load("hf://owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"^hf://owner/name is fetched by huggingface_hub \(.*\): pip install huggingf"):
        aa.load("hf://owner/name")
    for address in ("hf://owner", "hf://a/b/c", "hf://../x/y"):
        with pytest.raises(UserError, match="holds no training run"):
            aa.load(address)
    assert not list(temporary.iterdir())
