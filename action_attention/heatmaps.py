"""Attention map -> heatmap -> colours over a frame, by the tutorial's recipe. The one place that draws attention."""

from functools import lru_cache

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d

SIZE = (800, 800)
KEPT_PERCENTILE = 80.0
SIGMA = 0.5  # of the Gaussian, in locations; the tutorial does not say
OPACITY = 0.5


def heatmap(
    attention: np.ndarray, size: tuple[int, int] = SIZE, percentile: float = KEPT_PERCENTILE, sigma: float = SIGMA
) -> np.ndarray:
    """One map `(F, F)` as a smooth heatmap `(height, width)`, 1 at its peak, 0 where it is not above the percentile.

    Cubic upsampling to `size` (width, height) pixels, Gaussian filter of `sigma` locations, then only what is above
    the percentile of the smooth map is kept. Nothing of a uniform map stands out, so that its heatmap is zero.
    """
    rows, columns = np.shape(attention)
    smooth = _smoothing(rows, size[1], sigma) @ np.asarray(attention, float) @ _smoothing(columns, size[0], sigma).T
    peak = smooth.max()
    if not peak - smooth.min() > 1e-6 * abs(peak):  # rounding is all that differs; false for NaN too
        return np.zeros_like(smooth)
    kept = np.where(smooth > np.percentile(smooth, percentile), smooth, 0)
    return np.clip(kept / peak, 0, 1)


def overlay(frame: np.ndarray, attention: np.ndarray, percentile: float = KEPT_PERCENTILE) -> np.ndarray:
    """An RGB frame, uint8 `(height, width, 3)`, with the map's heatmap over it at half opacity; the frame elsewhere.

    The heatmap is made at the frame's size: VGG16 saw the frame squeezed into a square, so location `(i, j)` of F is
    that share of its height and width, and a square heatmap stretched to the frame would only be blurred once more.
    """
    heat = heatmap(attention, (frame.shape[1], frame.shape[0]), percentile)
    colours = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    blended = cv2.addWeighted(frame, 1 - OPACITY, colours, OPACITY, 0)
    return np.where((heat > 0)[..., None], blended, frame)


@lru_cache(maxsize=16)
def _smoothing(locations: int, pixels: int, sigma: float) -> np.ndarray:
    """Upsampling and filter along one axis as one matrix `(pixels, locations)`.

    Both are linear and separable; two small products give what filtering the large picture takes 60 ms for.
    """
    upsampled = cv2.resize(np.eye(locations), (locations, pixels), interpolation=cv2.INTER_CUBIC)
    return gaussian_filter1d(upsampled, sigma * pixels / locations, axis=0, mode="nearest")
