"""Keras on JAX in place of TensorFlow (`KERAS_BACKEND=jax`): the same cubes, the same training, one of our programs."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from action_attention.registry import model_names
from action_attention.runs import Run
from tests.test_efficientnet_lite import FRAMES, cosine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed (pip install jax)"),
]

ROOT = Path(__file__).parents[1]

TWO_STEPS = """
import sys
import data_prep.quiet_tensorflow
import keras, numpy as np
from action_attention.registry import Config, find_model
from action_attention.training import compile_model, new_model
assert keras.backend.backend() == sys.argv[1]
random, found = np.random.default_rng(0), {}
features, flow = (random.uniform(0, 2, (4, 5, 7, 7, channels)).astype("float32") for channels in (32, 16))
mask, labels = np.ones((4, 5), bool), np.repeat([[0], [1], [2], [1]], 5, 1)
mask[1, 3:] = False
for name in sys.argv[3:]:
    units = {"lstm_units": 8} if "lstm_units" in find_model(name).fields else {}
    config = Config.of(name, dropout=0, clip_length=5, learning_rate=1e-2, **units)
    model = new_model(config, 3, features.shape[2:], flow.shape[2:])
    for variable in model.weights:
        variable.assign(random.normal(0, 0.2, variable.shape))
    compile_model(model, config, 2)
    targets = {"logits": np.where(mask, labels, -1), "attention": mask}
    inputs = {"features": features, "mask": mask, "flow": flow}
    for _ in range(2):
        model.train_on_batch(inputs, targets)
    out = model.predict_on_batch(inputs)
    found |= {f"{name} {key}": np.asarray(value) for key, value in out.items()}
np.savez(sys.argv[2], **found)
"""

CUBES = """
import sys
import data_prep.quiet_tensorflow
import numpy as np
from data_prep.backbones import build_backbone
frames = np.load(sys.argv[1])
np.savez(sys.argv[2], **{name: build_backbone(name, "random", "float32")(frames) for name in sys.argv[3:]})
"""


def on(backend, *command):
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_models_train_as_on_tensorflow(tmp_path):
    """Two steps of Adam from the same weights, without dropout: then the same logits and maps."""
    for backend in ("tensorflow", "jax"):
        on(backend, "-c", TWO_STEPS, backend, tmp_path / f"{backend}.npz", *model_names())
    expected, found = np.load(tmp_path / "tensorflow.npz"), np.load(tmp_path / "jax.npz")
    assert len(expected.files) == 2 * len(model_names())
    for key in expected.files:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-4, err_msg=key)


def test_backbones_make_the_same_cubes(tmp_path):
    np.save(tmp_path / "frames.npy", FRAMES)
    names = ("vgg16", "efficientnet_lite0")
    for backend in ("tensorflow", "jax"):
        on(backend, "-c", CUBES, tmp_path / "frames.npy", tmp_path / f"{backend}.npz", *names)
    expected, found = np.load(tmp_path / "tensorflow.npz"), np.load(tmp_path / "jax.npz")
    for name in names:
        assert min(map(cosine, found[name], expected[name])) >= 0.9999


def test_a_run_is_trained_resumed_and_evaluated(cache_folder, tmp_path):
    """And what JAX trained, TensorFlow evaluates to the same numbers."""
    arguments = ["experiments.train", f"--features={cache_folder}", "--splits=", "--model=alstm", "--lstm_units=8",
                 "--clip_length=6", f"--run_dir={tmp_path / 'run'}"]  # fmt: skip
    on("jax", "-m", *arguments, "--epochs=1")
    on("jax", "-m", *arguments, "--epochs=2", "--resume")
    assert len(Run.open(tmp_path / "run").history()) == 2
    found = []
    for backend in ("jax", "tensorflow"):
        on(backend, "-m", "experiments.eval", f"--run_dir={tmp_path / 'run'}")
        found.append([prediction.probabilities for prediction in Run.open(tmp_path / "run").predictions()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
