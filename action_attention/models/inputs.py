"""What is done to features before a model sees them."""

from typing import Any

from keras import ops

NORMALIZATIONS = ("none", "sqrt_l2")
MOTIONS = ("none", "difference")


def sqrt_l2(features: Any) -> Any:
    """Evens out pool5's heavy-tailed values: 90 % are zero, some 400. `(B, T, H, W, D)` in and out.

    Signed square root, then each frame's cube scaled to the L2 norm sqrt(H*W*D), so that the mean square of its values
    is 1 (power and L2 normalisation, Perronnin et al. 2010, ECCV, for a layer that wants values near 1).
    """
    rooted = ops.sign(features) * ops.sqrt(ops.abs(features))
    return rooted * ops.rsqrt(ops.mean(ops.square(rooted), axis=(2, 3, 4), keepdims=True) + 1e-6)


def with_motion(features: Any, before: Any = None) -> Any:
    """Appends how much each cube differs from the one before it: `(B, T, H, W, D)` -> `(B, T, H, W, 2 D)`.

    `before`, `(B, 1, H, W, D)`, is the cube before the first; None where there is none: that difference is zero.
    """
    earlier = ops.concatenate([features[:, :1] if before is None else before, features[:, :-1]], axis=1)
    return ops.concatenate([features, ops.abs(features - earlier)], axis=-1)
