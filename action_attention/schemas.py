"""What is read of the JSON files of a run (`runs.py`), as `untrusted.complaint` takes it."""

from typing import Any

from action_attention.boxes import CORLOC, VIDEO_MAP
from action_attention.localization import CONTROLS
from action_attention.settings import VOTES

MADE_BY = {"schema_version?": int, "git?": str, "versions?": {str: str}}
FEATURES: dict[str, Any] = {
    "settings": {"weights": str, "fps": float, "backbone": str, "precision": str}, "cube_shape?": [int, int, int]
}  # fmt: skip
ABOUT: dict[str, Any] = {
    "config": {"model": str},
    "classes": [str],
    "cache": {
        "folder": str, "fingerprint?": str, "files?": {str: str},
        **FEATURES, "flow?": FEATURES,
    },
    "best?": {"epoch": (int, None)}, "of_frames?": bool, "box_tau?": float,
    **{name: (str, int, None) for name in ("dataset?", "split?", "validation?")},
}  # fmt: skip
FINISHED = {"epochs": (int, None), "seconds": float, "git": str, "versions": {str: str}}
SPLIT = {str: [str]}
HISTORY = [{str: float}]
_AIM = {
    "attention": float, "attention_ci95": ([float, float], None), "uniform": float, "centre": float,
    **{f"{control}?": float for control in CONTROLS[2:]},  # which versions before 0.3 did not measure
    **{f"above_{control}_ci95?": ([float, float], None) for control in CONTROLS},
}  # fmt: skip
_OF_BOXES = {
    **dict.fromkeys(("attention", "whole_frame", "centred_box", "training_box", "oracle"), float),
    "motion?": float, "motion_centre?": float, "above_training_box_ci95?": ([float, float], None),
}  # fmt: skip
BOXES = {
    "videos": int, "training_videos": int, "tau": {"attention": float}, "tube_iou": _OF_BOXES,
    **{f"corloc_{least:g}": _OF_BOXES for least in CORLOC},
    **{f"video_map_{least:g}": _OF_BOXES for least in VIDEO_MAP},
}  # fmt: skip
METRICS = {
    **{name: (str, int, None) for name in ("dataset", "split", "validation")},
    "subset": str, "model": str, "seed": int, "weights": str, "videos": int, "vote": set(VOTES),
    **dict.fromkeys(("video_top1", "video_top5", "macro_f1"), float), "video_top1_ci95": [float, float],
    "per_class": {str: {"accuracy": float, "videos": int}}, "confusion": [[int]], "entropy?": float,
    "localization?": {
        "videos": int, "frames": int, "frames_without_annotation": int, "without_annotation": [str],
        "pointing": _AIM, "mass": _AIM, "boxes?": (BOXES, None),
    },
}  # fmt: skip
_FIGURES = {"confidence": float, "accuracy": float, "ece": float}
CALIBRATION = {
    "temperature": float, "videos": int, "runs": int, "judged_by": str, "before": _FIGURES, "after": _FIGURES,
    "threshold": float, "above_threshold": {"share": float, "accuracy": (float, None)},
}  # fmt: skip
OF_FRAMES = ("clip_top1", "frame_top1", "cross_entropy")  # null where a model decides on whole videos
