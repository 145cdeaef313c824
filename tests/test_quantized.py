"""Networks in int8: what is made of frames, what a cache and a run say of it, and files by somebody who means ill.

What runs one needs OpenVINO and NNCF: those tests are slow ones, and skip where the libraries are not installed.
"""

import hashlib
import json
import zipfile

import forked
import hostile
import keras
import numpy as np
import pytest

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.registry import register_backbone
from action_attention.runs import Run
from data_prep import quantize
from data_prep.backbones import Backbone, build_backbone, openvino_runtime, quantized
from data_prep.backbones.base import compiled
from data_prep.extract import extract
from data_prep.recognizer import Recognizer
from data_prep.videos import list_videos, read_frames
from tests.test_training import config, make_run

OWN = "from tests.test_quantized import build, register_backbone\nregister_backbone('small')(build)\n"


def build(weights, precision):
    """Three convolutions with weights of their own, whatever is asked for: cubes of 8 x 8 x 24."""
    frames = keras.Input((32, 32, 3), dtype="uint8")
    cubes = keras.ops.cast(frames, "float32") / 128 - 1
    random, tensors = np.random.default_rng(0), []
    for filters, stride in ((16, 2), (24, 2), (24, 1)):
        fan_in = 9 * cubes.shape[-1]
        tensors += [random.normal(0, np.sqrt(2 / fan_in), (3, 3, cubes.shape[-1], filters)), np.zeros(filters)]
        cubes = keras.layers.Conv2D(filters, 3, stride, "same", activation="relu")(cubes)
    model = compiled(frames, cubes)
    model.set_weights(tensors)
    return Backbone("small map", model, "RGB / 128 - 1", "random", "0" * 64, "float32")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("action_attention.registry._backbones", {})
    register_backbone("small")(build)
    return build_backbone("small", "random")


# Which frames


def test_frames_are_taken_evenly_and_never_twice():
    assert quantize.evenly(9, 3) == [0, 4, 8]
    assert quantize.evenly(3, 9) == [0, 1, 2]
    assert quantize.evenly(5, 1) == [0]
    assert all(len(set(quantize.evenly(total, 7))) == 7 for total in range(7, 60))


def test_frames_are_those_that_extraction_samples(videos, caplog):
    names = list_videos(videos)
    frames = quantize.choose_frames(videos, names, 50, 32)
    assert len(frames.pictures) == len(set(frames.origin)) == 48  # 13 files, so 4 of each; one is no video
    assert "left out: 'nod/junk.avi'" in caplog.text
    for (name, number), picture in zip(frames.origin, frames.pictures, strict=True):
        np.testing.assert_array_equal(read_frames(videos / name, quantize.FPS, 32)[number], picture)
    about = frames.about()
    assert about["sha256"] == hashlib.sha256(frames.pictures.tobytes()).hexdigest()
    assert [(name, number) for name, numbers in about["videos"].items() for number in numbers] == frames.origin


def test_a_cosine_is_that_of_each_frame(small):
    """Against twice the cube it is 1; against one turned by 60 degrees, a half; of two zeros 1."""

    class Given:
        def __init__(self, cubes):
            self.cubes = cubes

        def __call__(self, frames):
            return np.resize(self.cubes, (len(frames), *self.cubes.shape[1:]))

    one = np.array([[1, 0], [1, 0], [0, 0]], np.float16).reshape(3, 1, 1, 2)
    other = np.array([[2, 0], [1, 3**0.5], [0, 0]], np.float16).reshape(3, 1, 1, 2)
    found = quantize.cosines(Given(one), Given(other), np.zeros((36, 4, 4, 3), np.uint8))
    np.testing.assert_allclose(found[:32], np.resize([1, 0.5, 1], 32), atol=1e-3)
    np.testing.assert_allclose(found[32:], [1, 0.5, 1, 1], atol=1e-3)


# Refusals


@pytest.mark.parametrize(
    ("weights", "precision", "runtime", "sentence"),
    [
        (
            "a.zip",
            "auto",
            "tensorflow",
            r"a\.zip is a network in int8, which OpenVINO alone runs; leave out --runtime=",
        ),
        ("a.zip", "bfloat16", None, r"a\.zip is a network in int8, but bfloat16 is asked for; give other --weights or"),
        ("imagenet", "int8", None, "needs the file of a quantised network, which --weights=imagenet is not; make"),
        (
            "a.zip",
            "int8",
            "openvino",
            r"--weights=a\.zip is not a file; give imagenet, random or the file of a quantis",
        ),
    ],
)
def test_what_does_not_go_with_int8_is_refused(small, weights, precision, runtime, sentence):
    with pytest.raises(UserError, match=sentence):
        build_backbone("small", weights, precision, runtime)


@pytest.mark.parametrize("output", ["{}/a.h5", "{}/absent/a.zip"])
def test_where_the_file_cannot_be_written_is_said_first(output, videos, tmp_path):
    done = forked.run("data_prep.quantize", "--videos", videos, "--output", output.format(tmp_path))
    assert done.returncode == 1
    assert "must be a file NAME.zip in a folder that is there" in done.stderr.splitlines()[-1]


def absent(module):
    raise ImportError(f"No module named '{module}'")


def test_without_the_libraries_it_is_said_what_to_install(small, tmp_path, monkeypatch):
    """And a good file gets as far as that."""
    monkeypatch.setattr(openvino_runtime.importlib, "import_module", absent)
    path = write(tmp_path / "good.zip")
    with pytest.raises(
        UserError, match=r"--weights=.*good\.zip needs OpenVINO \(No module .*\): pip install 'openvino"
    ):
        build_backbone("small", str(path))
    with pytest.raises(UserError, match=r"quantising needs NNCF \(No module named 'nncf'\): pip install 'nncf>=3\.0'"):
        quantized.quantize(small, [])


# Files by somebody who means ill

ABOUT = {
    "backbone": "small map", "preprocessing": "RGB / 128 - 1", "input_shape": [32, 32, 3], "output_shape": [8, 8, 24]
}  # fmt: skip


def xml(layers="", before="<net>"):
    return f'<?xml version="1.0"?>{before}<layers>{layers}</layers></net>'.encode()


def layer(kind, data=""):
    return f'<layer id="0" name="a" type="{kind}" version="opset1">{data}</layer>'


def constant(**changes):
    said = {"element_type": "f32", "shape": "2, 3", "offset": "0", "size": "24", **changes}
    return layer("Const", f"<data {' '.join(f'{name}={chr(34)}{value}{chr(34)}' for name, value in said.items())} />")


def write(path, graph=None, tensors=bytes(24), method=zipfile.ZIP_STORED, more=None, **about):
    parts = {"network.json": json.dumps({**ABOUT, **about}).encode(), "network.xml": graph or xml(constant())}
    hostile.write_members(path, {**parts, "network.bin": tensors, **(more or {})}, method)
    return path


BILLION = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><net>'
NOT_PLAIN, NO_SIZE = "its XML is not as OpenVINO writes it", "a constant of it is not of the size that it says"
HOSTILE = {
    "another backbone": ({"backbone": "VGG16 block5_pool"}, r"its backbone is VGG16 block5_pool, not small map"),
    "another preprocessing": ({"preprocessing": "none"}, "its preprocessing is none, not RGB"),
    "frames of another size": ({"input_shape": [64, 64, 3]}, r"its input_shape is \[64, 64, 3\], not \[32, 32, 3\]"),
    "cubes of another shape": ({"output_shape": [8, 8, 25]}, r"its output_shape is \[8, 8, 25\], not \[8, 8, 24\]"),
    "a shape of four": ({"output_shape": [1, 8, 8, 24]}, "output_shape must have 3 entries"),
    "text for a shape": ({"input_shape": "32"}, "input_shape must be a list"),
    "a loop": ({"graph": xml(layer("TensorIterator"))}, "its operation 'TensorIterator' is not part of such a network"),
    "a large array of a small one": ({"graph": xml(layer("Broadcast"))}, "its operation 'Broadcast' is not part"),
    "an operation without a type": ({"graph": xml("<layer/>")}, "its operation None is not part"),
    "entities": ({"graph": xml(layer("&b;"), BILLION)}, NOT_PLAIN),
    "UTF-16": ({"graph": xml().decode().encode("utf-16")}, NOT_PLAIN),
    "UTF-16 behind a plain head": ({"graph": xml()[:21] + BILLION.encode("utf-16-le")}, NOT_PLAIN),
    "another encoding": ({"graph": xml().replace(b'"?>', b'" encoding="cp037"?>')}, NOT_PLAIN),
    "depth": ({"graph": xml("<a>" * 10**5)}, "its XML is nested too deeply"),
    "half of an XML": ({"graph": xml()[:-9]}, "unclosed token"),
    "no XML": ({"graph": b'<?xml version="1.0"?>'}, "no element found"),
    "a constant beyond the tensors": ({"graph": xml(constant(offset="4"))}, NO_SIZE),
    "a constant before the tensors": ({"graph": xml(constant(offset="-4"))}, NO_SIZE),
    "a constant that says more than it has": ({"graph": xml(constant(shape=f"{1 << 40},2"))}, NO_SIZE),
    "a constant of minus one": ({"graph": xml(constant(shape="-2,-3"))}, NO_SIZE),
    "a constant of texts": ({"graph": xml(constant(element_type="string"))}, NO_SIZE),
    "a constant at no number": ({"graph": xml(constant(offset="x"))}, "invalid literal"),
    "packed parts": ({"method": zipfile.ZIP_DEFLATED}, "its parts are packed or overlap"),
    "a fourth part": ({"more": {"../../other": b"x"}}, r"it must hold network\.json, network\.xml, network\.bin"),
    "more than the network": ({"tensors": bytes(40 << 20)}, r"it has more than \d+ bytes"),
    "a long XML": ({"graph": xml(" " * (17 << 20))}, "the first two of 16777216 bytes at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_openvino_sees_it(name, small, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_runtime.importlib, "import_module", lambda module: pytest.fail(f"{module} was asked"))
    changes, reason = HOSTILE[name]
    path = write(tmp_path / "hostile.zip", **changes)
    remedy = r"make one with python -m data_prep\.quantize --backbone=small"
    with pytest.raises(UserError, match=rf"hostile\.zip is no small map in int8 \([^\n]*{reason}[^\n]*\); {remedy}$"):
        build_backbone("small", str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_is_refused_in_one_sentence(small, tmp_path, monkeypatch):
    """Cut anywhere, and with any byte of a part changed."""
    monkeypatch.setattr(openvino_runtime.importlib, "import_module", lambda module: pytest.fail(f"{module} was asked"))
    path = write(tmp_path / "damaged.zip")
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    starts = [whole.index(part) for part in (b'{"backbone', b"<?xml", bytes(24))]
    damaged += [whole[: start + 3] + bytes([whole[start + 3] ^ 1]) + whole[start + 4 :] for start in starts]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"damaged\.zip is no small map in int8 \([^\n]+\); make one [^\n]*$"):
            quantized.read(path, small)


# With OpenVINO and NNCF


@pytest.fixture(scope="module")
def made(tmp_path_factory, videos):
    """The file of the small network, and what the program said of it."""
    for name in ("openvino", "nncf"):
        pytest.importorskip(name, reason=f"{name} is not installed (pip install '.[openvino]')")
    folder = tmp_path_factory.mktemp("int8")
    (folder / "own.py").write_text(OWN)

    def run(output):
        return forked.succeeds("data_prep.quantize", "--import=own", "--backbone=small", "--weights=random",
                               "--frames=64", "--videos", videos, "--output", output, folder=folder)  # fmt: skip

    return folder / "small.zip", run(folder / "small.zip"), run


def about_of(path):
    return json.loads(hostile.members_of(path)["network.json"])


@pytest.mark.slow
def test_the_same_network_and_videos_make_the_same_file(made, tmp_path):
    path, _, run = made
    run(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_int8_is_near_to_float32_on_videos_that_it_has_not_seen(made, small, videos):
    path, said, _ = made
    about, network = about_of(path), build_backbone("small", str(path))
    used, apart = (set(about[key]["videos"]) for key in ("calibration", "held_out"))
    assert used
    assert apart == set(list_videos(videos)[3::4])
    assert not used & apart
    frames = np.concatenate([read_frames(videos / name, about["held_out"]["fps"], 32) for name in sorted(apart)])
    found = quantize.cosines(small, network, frames)
    assert 0.99 < found.min() < 0.99999  # near, and not the network itself
    assert about["cosine"]["least"] == pytest.approx(found.min(), abs=2e-4)
    assert f"least {about['cosine']['least']:.4f}, mean {about['cosine']['mean']:.4f}" in said
    assert {str(tensor.dtype) for tensor in network.model.get_weights() if tensor.ndim == 4} >= {"int8"}
    for count in (1, 3):  # a batch of another size is one too
        assert network(frames[:count]).shape == (count, 8, 8, 24)


@pytest.mark.slow
def test_a_cache_and_a_run_know_their_network_in_int8(made, small, videos, split, tmp_path):
    path, network = made[0], build_backbone("small", str(made[0]))
    assert (network.name, network.precision, network.runtime) == ("small map", "int8", "openvino")
    extract(videos, tmp_path / "features", network, shard_videos=5)
    cache = FeatureCache(tmp_path / "features")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [cache.settings[key] for key in ("backbone", "precision", "weights", "weights_sha256")] == [
        "small map", "int8", "small.zip", sha256,
    ]  # fmt: skip
    cache.close()
    with pytest.raises(UserError, match=r"was extracted with weights=small\.zip, now weights=random is asked for"):
        extract(videos, tmp_path / "features", small, shard_videos=5)
    run_dir = make_run(tmp_path / "run", tmp_path / "features", split, config(epochs=1))
    name = split["test"][0]
    result = Recognizer(Run.open(run_dir), str(path)).predict(videos / name)
    (recorded,) = (prediction for prediction in Run.open(run_dir).predictions() if prediction.name == name)
    np.testing.assert_allclose(result.probabilities, recorded.probabilities, atol=1e-6)
    with pytest.raises(UserError, match=r"trained on features of small with small\.zip, and small\.zip is not a file"):
        Recognizer(Run.open(run_dir))


@pytest.mark.slow
def test_a_graph_that_openvino_reads_must_be_the_networks(made, small, tmp_path):
    """What only OpenVINO can tell: an edge to nowhere, cubes of another type or shape, a map beyond measure."""
    import openvino  # noqa: PLC0415

    members, path = hostile.members_of(made[0]), tmp_path / "other.zip"
    graph = members["network.xml"]

    def padded():
        frames = openvino.opset13.parameter([-1, 32, 32, 3], openvino.Type.u8)
        wide = openvino.opset13.pad(frames, [0, 0, 0, 0], [0, 4000, 4000, 0], "constant", np.uint8(0))
        openvino.save_model(openvino.Model([wide], [frames], "network"), tmp_path / "wide.xml")
        return {f"network.{part}": (tmp_path / f"wide.{part}").read_bytes() for part in ("xml", "bin")}

    for changed, reason in (
        ({"network.xml": graph.replace(b'<edge from-layer="0"', b'<edge from-layer="99999"')}, ""),
        ({"network.xml": graph.replace(b'destination_type="f16"', b'destination_type="f32"')}, "its cubes are float32"),
        (
            {"network.xml": graph.replace(b'strides="1, 1"', b'strides="2, 2"')},
            r"its cubes are float16 \(32, 4, 4, 24\)",
        ),
        (padded(), "its maps are larger than those of such networks"),
    ):
        assert changed["network.xml"] != graph
        hostile.write_members(path, members | changed)
        with pytest.raises(UserError, match=rf"other\.zip is no small map in int8 \([^\n]*{reason}[^\n]*\); make one"):
            build_backbone("small", str(path))


@pytest.mark.slow
def test_too_few_frames_are_said_before_anything_is_quantised(made, videos, tmp_path):
    few = tmp_path / "few" / "nod"
    few.mkdir(parents=True)
    for name in list_videos(videos)[:3]:
        (few / name.replace("/", "-")).write_bytes((videos / name).read_bytes())
    done = forked.run("data_prep.quantize", "--import=own", "--backbone=small", "--videos", few.parent, "--output",
                      tmp_path / "a.zip", folder=made[0].parent)  # fmt: skip
    assert done.returncode == 1
    assert "frames for the ranges and 0, of other videos, to test them; at least 32 and 1" in done.stderr
    assert not (tmp_path / "a.zip").exists()
