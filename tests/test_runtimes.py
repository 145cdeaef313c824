"""What else can run a backbone, and what else can be one: OpenVINO, coarser grids, networks of timm and keras-hub.

The optional libraries are heavy: their tests are slow ones, and skip by name where a library is not installed.
"""

from importlib.util import find_spec

import keras
import numpy as np
import pytest
from test_efficientnet_lite import cosine

from action_attention.errors import UserError
from action_attention.features import FeatureCache
from action_attention.registry import register_backbone
from action_attention.runs import Run
from data_prep.backbones import Backbone, build_backbone, openvino_runtime
from data_prep.backbones.base import compiled
from data_prep.backbones.pooled import PooledNetwork
from data_prep.extract import extract
from data_prep.recognizer import Recognizer
from tests.test_training import config, make_run


class Fixed:
    """A network of one given map, whatever the frames are."""

    input_shape = (None, 8, 8, 3)

    def __init__(self, cubes):
        self.cubes = np.asarray(cubes, np.float32)
        self.output_shape = (None, *self.cubes.shape[1:])

    def predict_on_batch(self, x):
        return self.cubes.astype(np.float16)

    def get_weights(self):
        return [self.cubes]


def test_a_grid_is_the_mean_of_its_cells():
    """4x6 locations by hand: to 2x2 by halves; to 3x3 by rows 0-1, 1-2, 2-3, which overlap, and columns in pairs."""
    values = np.arange(24.0).reshape(1, 4, 6, 1)
    halves = PooledNetwork(Fixed(values), 2)
    assert (halves.output_shape, halves.input_shape) == ((None, 2, 2, 1), (None, 8, 8, 3))
    np.testing.assert_array_equal(halves.predict_on_batch(None)[0, ..., 0], [[4, 7], [16, 19]])
    thirds = PooledNetwork(Fixed(values), 3).predict_on_batch(None)
    rows = np.stack([values[0, [0, 1]].mean(0), values[0, [1, 2]].mean(0), values[0, [2, 3]].mean(0)])[..., 0]
    np.testing.assert_array_equal(thirds[0, ..., 0], rows.reshape(3, 3, 2).mean(2))
    assert thirds.dtype == np.float16
    with pytest.raises(UserError, match=r"--grid=5 does not fit the backbone's map of 4x6 locations"):
        PooledNetwork(Fixed(values), 5)


@pytest.fixture
def mosaic(monkeypatch):
    """A small Keras backbone with a map of 8x8 locations."""
    monkeypatch.setattr("action_attention.registry._backbones", {})

    @register_backbone("mosaic")
    def build(weights, precision):
        frames = keras.Input((32, 32, 3), dtype="uint8")
        scaled = keras.layers.Rescaling(1 / 256)(keras.ops.cast(frames, "float32"))
        layer = keras.layers.Conv2D(6, 4, 4, activation="relu")
        model = compiled(frames, layer(scaled))
        random = np.random.default_rng(0)
        layer.set_weights([random.normal(0, 0.2, (4, 4, 3, 6)), random.normal(0, 0.1, 6)])
        return Backbone("mosaic map", model, "RGB / 256", weights, "0" * 64, "float32")


def test_a_cache_and_a_run_of_a_coarser_grid_are_found_again(mosaic, videos, split, tmp_path):
    """The grid is part of the backbone's name, so predict makes the features that the run was trained on."""
    extract(videos, tmp_path / "features", build_backbone("mosaic", "random", grid=2), shard_videos=5)
    cache = FeatureCache(tmp_path / "features")
    name = split["test"][0]
    assert cache.settings["backbone"] == "mosaic map, mean of each cell of a grid of 2"
    assert cache.cube_shape == (2, 2, 6)
    run_dir = make_run(tmp_path / "run", tmp_path / "features", split, config(epochs=1))
    network = build_backbone(cache.settings["backbone"], "random")
    assert (network.name, network.cube_shape) == (cache.settings["backbone"], (2, 2, 6))
    result = Recognizer(Run.open(run_dir)).predict(videos / name)
    (recorded,) = (prediction for prediction in Run.open(run_dir).predictions() if prediction.name == name)
    np.testing.assert_allclose(result.probabilities, recorded.probabilities, atol=1e-6)
    cache.close()


def test_without_a_library_it_is_said_what_to_install(mosaic, monkeypatch):
    def absent(module):
        raise ImportError(f"No module named '{module}'")

    monkeypatch.setattr(openvino_runtime.importlib, "import_module", absent)
    for arguments, package in (
        (("mosaic", "random", "float32", "openvino"), "'openvino>=2025.0'"),
        (("timm:resnet18", "random"), "timm"),
        (("keras_hub:vit_base_patch16_224_imagenet", "random"), "keras-hub"),
    ):
        with pytest.raises(UserError, match=rf"needs .*No module named .*: pip install {package}"):
            build_backbone(*arguments)


FRAMES = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "efficientnet_lite0", "MobileNetV2"])
def test_openvino_changes_no_cube(name):
    """At one precision, to rounding; and a batch of another size is one too."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed (pip install '.[openvino]')")
    exact = build_backbone(name, "random", "float32")
    network = build_backbone(name, "random", "float32", "openvino")
    assert (network.cube_shape, network.weights_sha256) == (exact.cube_shape, exact.weights_sha256)
    for count in (3, 1):
        cubes, expected = network(FRAMES[:count]), exact(FRAMES[:count])
        assert cubes.dtype == np.float16
        assert min(map(cosine, cubes, expected)) >= 0.9999


@pytest.mark.slow
@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (pip install '.[timm]')")
@pytest.mark.parametrize(("name", "cube"), [("vit_tiny_patch16_224", (14, 14, 192)), ("resnet18", (7, 7, 512)),
                                            ("swin_tiny_patch4_window7_224", (7, 7, 768)),
                                            ("convnext_atto", (7, 7, 320))])  # fmt: skip
def test_a_network_of_timm_is_timms_own(name, cube, tmp_path):
    network = build_backbone(f"timm:{name}", "random")
    import timm  # noqa: PLC0415
    import torch  # noqa: PLC0415

    assert (network.input_size, network.cube_shape) == (224, cube)
    again = build_backbone(f"timm:{name}", "random")
    assert network.weights_sha256 == again.weights_sha256
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        torch.save(model.state_dict(), tmp_path / "own.pth")
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        transform.transforms = transform.transforms[-1:]  # the normalisation; sizes are right already
        frames = transform(torch.from_numpy(FRAMES).permute(0, 3, 1, 2) / 255)
        expected = model.forward_features(frames)
    if expected.ndim == 3:
        expected = expected[:, model.num_prefix_tokens :].reshape(-1, *cube)
    elif expected.shape[1:] != cube:
        expected = expected.permute(0, 2, 3, 1)
    assert min(map(cosine, network(FRAMES), expected.numpy())) >= 0.9999
    own = build_backbone(f"timm:{name}", str(tmp_path / "own.pth"))
    assert (own.weights, own.weights_sha256) == ("own.pth", network.weights_sha256)
    pooled = build_backbone(f"timm:{name}", "random", grid=7)
    assert pooled.cube_shape == (7, 7, cube[2])


@pytest.mark.slow
def test_a_preset_of_keras_hub_is_keras_hubs_own(tmp_path):
    hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed (pip install '.[keras_hub]')")
    model = hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    model.save_to_preset(tmp_path / "vit")
    hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1.0).save_to_preset(tmp_path / "vit")
    network = build_backbone(f"keras_hub:{tmp_path / 'vit'}")
    frames = FRAMES[:, :32, :32]
    expected = np.asarray(model(frames / 127.5 - 1.0))[:, 1:].reshape(3, 4, 4, 16)
    assert (network.input_size, network.cube_shape) == (32, (4, 4, 16))
    assert min(map(cosine, network(frames), expected)) >= 0.9999
    with pytest.raises(UserError, match="name its folder: --backbone=keras_hub:FOLDER"):
        build_backbone(f"keras_hub:{tmp_path / 'vit'}", "own.h5")
    with pytest.raises(UserError, match=r"keras-hub's no_such_preset with --weights=imagenet could not be obtained"):
        build_backbone("keras_hub:no_such_preset")
