"""What the benchmark compares with computes the same thing."""

import numpy as np

from action_attention.models import build_model
from action_attention.registry import Config
from experiments.benchmark_baselines import plain_conv_alstm

INPUTS = {"features": np.random.default_rng(0).random((2, 3, 7, 7, 512), np.float32), "mask": np.ones((2, 3), bool)}


def test_the_plain_conv_alstm_is_the_same_model():
    ours = build_model("conv_alstm", 5, lstm_units=4, cube_shape=(7, 7, 512))
    plain = plain_conv_alstm(Config.of("conv_alstm", lstm_units=4), 5)
    plain(INPUTS)
    by_shape = {}
    for weight in ours.get_weights():
        by_shape.setdefault(tuple(size for size in weight.shape if size > 1), []).append(weight)
    plain.set_weights([
        by_shape[tuple(size for size in old.shape if size > 1)].pop(0).reshape(old.shape) for old in plain.get_weights()
    ])  # fmt: skip
    for name, value in plain(INPUTS).items():
        np.testing.assert_allclose(value, ours(INPUTS)[name], atol=1e-5)
