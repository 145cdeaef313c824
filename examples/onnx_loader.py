"""What a video shows, by a model exported with `--format=onnx --with_backbone`: python onnx_loader.py MODEL.onnx VIDEO

Needs onnxruntime, NumPy and OpenCV only. A model that looks where something moves, as the pretrained `jhmdb21` does,
takes motion maps beside the frames, which `motion_maps` computes; for a model without the input `motion` leave it out.
"""

import json
import sys
from itertools import pairwise

import cv2
import numpy as np
import onnxruntime


def main(model, video):
    session = onnxruntime.InferenceSession(model)
    about = json.loads(session.get_modelmeta().custom_metadata_map["action_attention"])
    shapes, length = {name: each["shape"] for name, each in about["inputs"].items()}, about["frames"]
    frames = read(video, about["fps"])
    small = np.stack([cv2.resize(frame, (shapes["frames"][2], shapes["frames"][1])) for frame in frames])
    motion = motion_maps(frames, shapes["motion"][1:]) if "motion" in shapes else np.zeros(len(frames))
    summed, seen, last = (
        np.zeros((len(frames), len(about["classes"]))),
        np.zeros((len(frames), 1)),
        len(frames) - length,
    )
    for start in [*range(0, last, length), max(0, last)]:  # the last clip ends with the video
        kept = np.minimum(np.arange(start, start + length), len(frames) - 1)  # a short video repeats its last frame
        mask = np.arange(start, start + length) < len(frames)
        inputs = {
            "frames": small[kept],
            "mask": mask,
            "motion": motion[kept] * mask.reshape(-1, *[1] * (motion.ndim - 1)),
        }
        (logits,) = session.run(
            ["logits"], {name: inputs[name].astype(about["inputs"][name]["dtype"]) for name in shapes}
        )
        summed[kept[mask]] += softmax(logits[mask].astype(np.float64))
        seen[kept[mask]] += 1
    of_frames = summed / seen
    wins = np.bincount(of_frames.argmax(1), minlength=len(about["classes"])) if about["vote"] == "mode" else 0
    best = int(np.argmax(wins + of_frames.mean(0) / 2))  # ties go to the larger mean
    sure = softmax(np.log(of_frames) / (about["calibration"] or {"temperature": 1})["temperature"]).mean(0)[best]
    print(f"{about['classes'][best]} {sure:.3f}")


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def read(path, fps):
    """The first frame at or after every 1 / fps seconds, RGB."""
    video, frames, due = cv2.VideoCapture(path), [], -1.0
    while video.grab():
        time = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if time + 2e-3 >= due:
            due = (np.floor((time + 2e-3) * fps) + 1) / fps
            frames.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
    return frames


def motion_maps(frames, grid):
    """How far each location moves until the next frame, against the camera, in percent of the frame's longer side."""
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = frames[0].shape[:2]
    scale = min(1, 320 / max(height, width))
    size = (max(16, round(scale * width)), max(16, round(scale * height))) if scale < 1 else (width, height)
    grey = [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA) for frame in frames]
    maps = []
    for before, after in pairwise(grey):
        flow = flow_of.calc(before, after, None)[::2, ::2]
        rows, columns = np.mgrid[0 : flow.shape[0], 0 : flow.shape[1]].astype(np.float32)
        affine = np.stack([np.ones_like(rows), columns / flow.shape[1] - 0.5, rows / flow.shape[0] - 0.5], axis=-1)
        points, vectors = affine[::4, ::4].reshape(-1, 3), flow[::4, ::4].reshape(-1, 2)
        camera = np.zeros((3, 2), np.float32)  # its affine motion, by reweighted least squares
        camera[0] = np.median(vectors, axis=0)
        for _ in range(8):
            apart = np.linalg.norm(vectors - points @ camera, axis=1)
            weighed = points.T * (1 + (apart / max(0.05, np.median(apart))) ** 2) ** -2
            camera = np.linalg.solve(weighed @ points + 1e-6 * np.eye(3, dtype=np.float32), weighed @ vectors)
        length = np.linalg.norm(flow - affine @ camera.astype(np.float32), axis=2) * 100 / max(flow.shape)
        maps.append(cv2.resize(length, tuple(grid[::-1]), interpolation=cv2.INTER_AREA))
    return np.array([*maps, maps[-1] if maps else np.zeros(grid)])


if __name__ == "__main__":
    main(*sys.argv[1:])
