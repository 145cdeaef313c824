"""Attention map -> heatmap -> colours over a frame. The one place that draws attention.

`absolute`: colour says how many times uniform a place weighs, so that frames, videos and models can be compared.
`tutorial`: the tutorial's recipe, which scales each map to its own peak: of a map that is close to uniform it makes as
bright a spot as of a sharp one.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.special import entr

from action_attention.errors import UserError

FULL = 8  # times uniform: full colour from there on; no more than an eighth of the locations can weigh as much
STRONGEST = 0.6  # opacity of full colour; what is below can still be recognised
# Turbo without its dark ends, which over a video look like its shadows: from blue through green and yellow to red
TURBO = np.linspace(0.15, 0.95, 256)
# 49 locations with an entropy of 0.98 log 49 are as undecided as 45 that weigh alike; so are half of them at 1.4 times
# uniform and half at 0.6, of which the first get a sixth of the colour.
CLOSE_TO_UNIFORM = 0.98

SIZE = (800, 800)
KEPT_PERCENTILE = 80.0
SIGMA = 0.5  # of the Gaussian, in locations; the tutorial does not say
OPACITY = 0.5


def heatmap(
    attention: np.ndarray, size: tuple[int, int] = SIZE, percentile: float = KEPT_PERCENTILE, sigma: float = SIGMA
) -> np.ndarray:
    """One map `(F, F)` as a smooth heatmap `(height, width)`, 1 at its peak, 0 where it is not above the percentile.

    The tutorial's recipe: cubic upsampling to `size` (width, height) pixels, Gaussian filter of `sigma` locations, then
    only what is above the percentile of the smooth map is kept. Nothing of a uniform map stands out, so that its
    heatmap is zero.
    """
    rows, columns = np.shape(attention)
    smooth = _smoothing(rows, size[1], sigma) @ np.asarray(attention, float) @ _smoothing(columns, size[0], sigma).T
    peak = smooth.max()
    if not peak - smooth.min() > 1e-6 * abs(peak):  # rounding is all that differs; false for NaN too
        return np.zeros_like(smooth)
    kept = np.where(smooth > np.percentile(smooth, percentile), smooth, 0)
    return np.clip(kept / peak, 0, 1)


def times_uniform(attention: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """One map `(H, W)` on a log scale `(height, width)`: 0 up to 1/(H W), which is uniform, 1 from FULL times that on.

    Each location gets its place on the scale, which is then upsampled to `size` (width, height) pixels. The centre of a
    location says what it weighs, whatever the others weigh; in between it is no more than the locations around. (The
    tutorial's Gaussian would show a location of 8 times uniform among even ones as 4.2 times, and one of weight 0
    beside a single one with all the weight as 5.9 times.)
    """
    rows, columns = np.shape(attention)
    ratio = np.asarray(attention, float) * (rows * columns)
    places = np.clip(np.log2(np.fmax(ratio, 1)) / np.log2(FULL), 0, 1)  # fmax: 1 for NaN too
    return _upsample(_upsample(places.T, size[1]).T, size[0])


HEATMAPS: dict[str, Callable[..., np.ndarray]] = {"absolute": times_uniform, "tutorial": heatmap}


def overlay(frame: np.ndarray, attention: np.ndarray, heatmap: str = "absolute") -> np.ndarray:
    """An RGB frame, uint8 `(height, width, 3)`, with the map's heatmap, one of HEATMAPS, over it; the frame elsewhere.

    The heatmap is made at the frame's size: VGG16 saw the frame squeezed into a square, so location `(i, j)` of F is
    that share of its height and width, and a square heatmap stretched to the frame would only be blurred once more.

    Raises UserError for another name of a heatmap.
    """
    if heatmap not in HEATMAPS:
        raise UserError(f"there is no heatmap {heatmap!r}; give one of {', '.join(HEATMAPS)}")
    return paint(frame, HEATMAPS[heatmap](attention, (frame.shape[1], frame.shape[0])), heatmap)


def paint(frame: np.ndarray, heat: np.ndarray, heatmap: str = "absolute") -> np.ndarray:
    """An RGB frame, uint8 `(height, width, 3)`, with `heat` `(height, width)`, 0 to 1, over it; where that is 0, none.

    `absolute`: opacity grows with the heat, to STRONGEST. `tutorial`: half opacity.
    """
    if heatmap == "tutorial":
        colours = cv2.cvtColor(cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
        blended = cv2.addWeighted(frame, 1 - OPACITY, colours, OPACITY, 0)
        return np.where((heat > 0)[..., None], blended, frame)
    colours, opacity = _blend()
    level = cv2.convertScaleAbs(heat, alpha=255)
    opaque = cv2.LUT(level, opacity)
    return cv2.blendLinear(frame, cv2.applyColorMap(level, colours), 1 - opaque, opaque)


def relative_entropy(maps: np.ndarray) -> np.ndarray:
    """The entropy of each map of `(n, H, W)`, whose sum is 1, by log(H W), `(n,)`: 1 is uniform, 0 one location.

    Maps of a single location, which cannot be anything but uniform, have 1.
    """
    locations = maps.shape[1] * maps.shape[2]
    if locations == 1:
        return np.ones(len(maps))
    return entr(np.asarray(maps, float)).sum(axis=(1, 2)) / np.log(locations)


def _upsample(places: np.ndarray, pixels: int) -> np.ndarray:
    """Along the second axis, by cubics, which are cut where they would leave the range of the two locations around."""
    locations, places = places.shape[1], np.ascontiguousarray(places, np.float32)
    before = ((np.arange(pixels) + 0.5) * locations / pixels - 0.5).clip(0).astype(int)
    after = np.concatenate([places[:, 1:], places[:, -1:]], axis=1)
    low, high = np.minimum(places, after), np.maximum(places, after)
    # not NumPy's product, whose threads spin for ten times as long on one as small as this
    matrix = _smoothing(locations, pixels, 0).T.astype(np.float32)
    smooth = cv2.gemm(places, matrix, 1, None, 0)  # type: ignore[call-overload]
    for location, part in enumerate(np.split(smooth, np.searchsorted(before, range(1, locations)), axis=1)):
        np.clip(part, low[:, location, None], high[:, location, None], out=part)
    return smooth


@lru_cache(maxsize=1)
def _blend() -> tuple[np.ndarray, np.ndarray]:
    """Of 256 levels of heat: the colour, RGB uint8 `(256, 1, 3)`, and its opacity, float32 `(1, 256)`."""
    levels = np.rint(255 * TURBO).astype(np.uint8)[:, None]
    colours = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return colours, np.linspace(0, STRONGEST, 256, dtype=np.float32)[None]


@lru_cache(maxsize=16)
def _smoothing(locations: int, pixels: int, sigma: float) -> np.ndarray:
    """Upsampling and filter (`sigma` 0: none) along one axis as one matrix `(pixels, locations)`.

    Both are linear and separable; two small products give what filtering the large picture takes 60 ms for.
    """
    upsampled = cv2.resize(np.eye(locations), (locations, pixels), interpolation=cv2.INTER_CUBIC)
    return gaussian_filter1d(upsampled, sigma * pixels / locations, axis=0, mode="nearest") if sigma else upsampled
