"""Attention map -> heatmap -> overlay, by the tutorial's recipe. The one place that draws attention."""

import cv2
import numpy as np

KEPT_PERCENTILE = 80.0


def heatmap(
    attention: np.ndarray, size: tuple[int, int] = (800, 800), percentile: float = KEPT_PERCENTILE
) -> np.ndarray:
    """One map `(F, F)` as a smooth heatmap `(height, width)` in 0..1 for a picture of `size` (width, height) pixels.

    Smooth upsampling, Gaussian filter (sigma: half a location), values under the percentile set to zero.
    """
    smooth = cv2.resize(np.asarray(attention, np.float32), size, interpolation=cv2.INTER_CUBIC)
    smooth = cv2.GaussianBlur(smooth, (0, 0), sigmaX=size[0] / (2 * attention.shape[1]))
    kept = np.where(smooth >= np.percentile(smooth, percentile), smooth, 0)
    return np.clip(kept / max(float(kept.max()), 1e-12), 0, 1)


def overlay(frame: np.ndarray, attention: np.ndarray, percentile: float = KEPT_PERCENTILE) -> np.ndarray:
    """An RGB frame, uint8 `(height, width, 3)`, with the map's heatmap over it at half opacity; the frame elsewhere."""
    height, width = frame.shape[:2]
    heat = heatmap(attention, (width, height), percentile)
    colours = cv2.cvtColor(cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    opacity = 0.5 * (heat > 0)[..., None]
    return np.uint8(np.rint(frame * (1 - opacity) + colours * opacity))


def gallery(rows: list[tuple[str, np.ndarray, np.ndarray]], columns: int = 6, width: int = 200) -> np.ndarray:
    """Rows of overlays, RGB uint8, one row a video: `columns` frames evenly spaced over its length, its caption above.

    Args:
        rows: caption, frames uint8 `(n, height, width, 3)` and attention `(n, F, F)` of each video.
        columns: pictures a row.
        width: of one picture, in pixels; the first video's aspect ratio is kept.
    """
    height = round(width * rows[0][1].shape[1] / rows[0][1].shape[2])
    lines = []
    for caption, frames, attention in rows:
        chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        pictures = [
            overlay(cv2.resize(frames[index], (width, height), interpolation=cv2.INTER_AREA), attention[index])
            for index in chosen
        ]
        title = np.full((22, width * columns, 3), 255, np.uint8)
        cv2.putText(title, caption, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        lines += [title, np.concatenate(pictures, axis=1)]
    return np.concatenate(lines)
