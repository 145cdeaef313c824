"""How sure a model may say that it is: one number, fitted on validation videos, and how far off its confidence is.

A temperature T softens (above 1) or sharpens (below 1) each frame's probabilities p to p^(1/T) / Z (temperature
scaling, Guo et al. 2017, ICML, arXiv 1706.04599). A video's probability is their mean over its frames. No decision
depends on it: each frame keeps its likeliest class, and the video's class is voted by what the model itself says.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.model_selection import KFold

from action_attention.errors import UserError
from action_attention.metrics import VideoPrediction, rank_classes

LIMITS = (0.05, 20.0)  # of T: for a model that is always right it would be 0, for one that knows nothing infinite
SMALLEST = float(np.finfo(np.float32).tiny)  # in place of 0, of which there is no logarithm
FOLDS = 5
THRESHOLD = 0.5  # of the calibrated confidence: below it another class is as likely as the one that is named
MEANING = "more likely right than wrong"


def calibrated(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `(..., C)` at a temperature: p^(1/T), scaled to sum 1; float64."""
    return softmax(_logs(probabilities) / temperature, axis=-1)


def fit_temperature(predictions: list[VideoPrediction]) -> float:
    """The T, within `LIMITS`, of least negative log-likelihood of the videos' true classes.

    A video's likelihood is the mean over its frames of the true class's p^(1/T) / Z; the mean over videos is minimised
    over log T. Raises UserError if there are no videos, or not of all of them the class is known.
    """
    labels = [prediction.label for prediction in predictions if prediction.label is not None]
    if not labels or len(labels) < len(predictions):
        raise UserError("a temperature is fitted on videos of known class; some of these, or all, have none")
    logs = np.concatenate([_logs(prediction.probabilities) for prediction in predictions])
    frames = [len(prediction.probabilities) for prediction in predictions]
    true = np.repeat(np.array(labels), frames)  # of each frame
    first: Any = np.cumsum([0, *frames[:-1]])  # frame of each video

    def loss(log_temperature: float) -> float:
        of_true = log_softmax(logs * np.exp(-log_temperature), axis=1)[np.arange(len(logs)), true]
        return -float(np.mean(np.logaddexp.reduceat(of_true, first) - np.log(frames)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded").x))


def expected_calibration_error(confidences: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """How far confidence and accuracy are apart: sum over bins of (its share of videos) |mean confidence - accuracy|.

    Naeini et al. 2015 (AAAI) and Guo et al. 2017 (ICML, arXiv 1706.04599); here each bin has equally many videos, by
    confidence, where Guo's have equal widths, most of them empty for a few hundred videos.

    Args:
        confidences: of each video, `(N,)`, from 0 to 1.
        right: whether the class that was said is the true one, `(N,)`.
        bins: how many; of fewer videos each is one.
    """
    order = np.argsort(confidences, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    gaps = [len(part) * abs(np.mean(confidences[part]) - np.mean(right[part])) for part in parts]
    return float(sum(gaps) / len(order))


def calibrate(runs: list[list[VideoPrediction]], vote: str = "mode") -> dict[str, Any]:
    """`calibration.json`: the temperature of all these runs' validation videos together, and what it is worth.

    What is said of confidence "after" is of temperatures that were fitted on other videos (`held_out`). Raises
    UserError if there are fewer than two videos.
    """
    predictions = [prediction for run in runs for prediction in run]
    if len(predictions) < 2:
        raise UserError(f"calibration needs at least two validation videos, not {len(predictions)}; hold out more")
    best = [rank_classes(prediction.probabilities, vote)[0] for prediction in predictions]
    right = np.array([index == prediction.label for index, prediction in zip(best, predictions, strict=True)])
    before = np.array([each.probabilities[:, index].mean() for index, each in zip(best, predictions, strict=True)])
    after = np.empty(len(predictions))
    for part in held_out([len(run) for run in runs]):
        others = np.setdiff1d(np.arange(len(predictions)), part)
        temperature = fit_temperature([predictions[number] for number in others])
        for number in part:
            after[number] = calibrated(predictions[number].probabilities, temperature)[:, best[number]].mean()
    above = after >= THRESHOLD
    return {
        "temperature": fit_temperature(predictions),
        "videos": len(predictions),
        "runs": len(runs),
        "judged_by": "leave-one-run-out" if len(runs) > 1 else f"{min(FOLDS, len(predictions))}-fold by video",
        "before": _figures(before, right),
        "after": _figures(after, right),
        "threshold": THRESHOLD,
        "threshold_means": MEANING,
        "above_threshold": {
            "share": float(above.mean()), "accuracy": float(right[above].mean()) if above.any() else None,
        },
    }  # fmt: skip


def held_out(videos: list[int]) -> list[np.ndarray]:
    """Which videos are judged by a temperature of all the others: places in the list of all runs' videos, in parts.

    Of several runs, given how many videos each has, a part is a run; of one, a fifth of its videos, drawn with a seed.
    """
    everything = np.arange(sum(videos))
    if len(videos) > 1:
        return np.split(everything, np.cumsum(videos)[:-1])
    return [part for _, part in KFold(min(FOLDS, len(everything)), shuffle=True, random_state=0).split(everything)]


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), SMALLEST))


def _figures(confidences: np.ndarray, right: np.ndarray) -> dict[str, float]:
    error = expected_calibration_error(confidences, right)
    return {"confidence": float(confidences.mean()), "accuracy": float(right.mean()), "ece": error}
