"""`rank_pool` against its equations in NumPy, and what follows from them: time turned round, padding, a fresh start."""

import numpy as np
import pytest
from scipy.special import softmax

from action_attention.models import build_model

FRAMES, SIDE, CHANNELS, REAL = 9, 3, 4, (9, 6)
PLACES = SIDE * SIDE
PRIORS = {"motion_prior": True, "centre_prior": True}


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    features = random.normal(0, 1, (2, FRAMES, SIDE, SIDE, CHANNELS)).astype("float32")
    motion = random.exponential(1, (2, FRAMES, SIDE, SIDE)).astype("float32")
    mask = np.arange(FRAMES) < np.array(REAL)[:, None]
    return {"features": features, "mask": mask, "motion": motion}


def model(**settings):
    """With weights drawn at random."""
    made = build_model("rank_pool", 3, cube_shape=(SIDE, SIDE, CHANNELS), **PRIORS, **settings)
    random = np.random.default_rng(1)
    made.set_weights([random.normal(0, 0.5, weight.shape) for weight in made.get_weights()])
    return made


def hidden(made, inputs):
    vectors, attention = made.core(inputs["features"], inputs["mask"], inputs["motion"])
    return np.asarray(vectors), np.asarray(attention)


@pytest.mark.parametrize(("heads", "temperature"), [(1, 1.0), (1, 0.5), (3, 0.5)])
def test_it_is_its_equations(heads, temperature, inputs):
    made = model(heads=heads, temperature=temperature)
    weights = {weight.path.split("core/")[-1]: np.asarray(weight, np.float64) for weight in made.core.weights}
    vectors, attention = hidden(made, inputs)
    grid = (np.arange(SIDE) - 1) * 7 / (1.5 * SIDE)
    distances = (grid[:, None] ** 2 + grid**2).reshape(-1) / 2
    for clip, n in enumerate(REAL):
        x = inputs["features"][clip, :n].reshape(n, PLACES, CHANNELS).astype(np.float64)
        moved = inputs["motion"][clip, :n].reshape(n, PLACES)
        prior = weights["prior/gamma"] * np.log(0.05 + moved / moved.mean(1, keepdims=True))
        scores = x @ weights["scores/kernel"] + (prior - weights["prior/delta"] * distances)[..., None]
        c = softmax(scores / temperature, axis=1)  # (n, L, heads)
        seen = [x.mean(1), np.einsum("tih,tid->thd", c, x).reshape(n, -1)]
        changes = [s[2:] - s[:-2] for s in seen]
        parts = [part for s, d in zip(seen, changes, strict=True) for part in (s.mean(0), d.max(0), d.min(0))]
        parts.append(sum((2 * t - n - 1) * seen[1][t - 1] for t in range(1, n + 1)))
        expected = np.concatenate([part / np.sqrt((part**2).mean()) for part in parts])
        np.testing.assert_allclose(vectors[clip], np.tile(expected, (FRAMES, 1)), atol=1e-4)
        np.testing.assert_allclose(attention[clip, :n], c.mean(2).reshape(n, SIDE, SIDE), atol=1e-5)
        assert not attention[clip, n:].any()


def test_a_clip_turned_round_has_the_same_means_and_the_opposite_of_what_tells_the_order(inputs):
    """Sitting down and standing up: largest and smallest changes change places and signs, the rank its sign."""
    made = model()
    turned = {name: value[:1, ::-1] for name, value in inputs.items()}
    forth, back = (hidden(made, {key: value[:1] for key, value in each.items()})[0][0, 0].reshape(7, -1)
                   for each in (inputs, turned))  # fmt: skip
    for mean, largest, smallest in ((0, 1, 2), (3, 4, 5)):
        np.testing.assert_allclose(back[mean], forth[mean], atol=1e-5)
        np.testing.assert_allclose(back[largest], -forth[smallest], atol=1e-5)
    np.testing.assert_allclose(back[6], -forth[6], atol=1e-5)
    assert np.abs(forth[6]).max() > 0.5


def test_padding_says_nothing(inputs):
    short = {name: value[1:, : REAL[1]] for name, value in inputs.items()}
    np.testing.assert_allclose(hidden(model(), inputs)[0][1, 0], hidden(model(), short)[0][0, 0], atol=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_what_is_too_short_to_change_has_no_changes(frames, inputs):
    """Alone, and as the only real frames of a longer clip."""
    alone = {name: value[:, :frames] for name, value in inputs.items()}
    padded = {**inputs, "mask": np.arange(FRAMES) < np.full((2, 1), frames)}
    for given in (alone, padded):
        parts = hidden(model(), given)[0][:, 0].reshape(2, 7, -1)
        np.testing.assert_array_equal(parts[:, [1, 2, 4, 5]], 0)
        assert np.abs(parts[:, [0, 3]]).min(axis=2).max() > 0
        assert parts[:, 6].any() == (frames > 1)


def test_before_training_it_looks_where_the_prior_does_and_knows_no_class(inputs):
    """A random start of the classifier would stay in all directions that no training video has."""
    fresh = build_model("rank_pool", 3, cube_shape=(SIDE, SIDE, CHANNELS), **PRIORS)
    outputs = fresh(inputs)
    np.testing.assert_array_equal(outputs["logits"], 0)
    moved = 0.05 + inputs["motion"] / inputs["motion"].mean((2, 3), keepdims=True)
    grid = np.exp(-(((np.arange(SIDE) - 1) * 7 / (1.5 * SIDE)) ** 2) / 2)
    expected = moved * grid[:, None] * grid
    expected *= inputs["mask"][..., None, None] / expected.sum((2, 3), keepdims=True)
    np.testing.assert_allclose(outputs["attention"], expected, atol=1e-5)
