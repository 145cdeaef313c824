"""Renders the sample dataset: seeded clips of solid figures acting in rooms, stored in HMDB-51's layout.

stand_up and put_down are sit_down and pick_up with the poses reversed in time and all else drawn alike, so single
frames cannot tell the two of a pair apart: only a model with memory can.
"""

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

DISTRACTOR_LEVEL = 0.6  # 0 hides the picture, lamp and ball; 1 shows them in full contrast and motion

CLASSES = ("jump", "pick_up", "put_down", "sit_down", "stand_up", "wave")
REVERSED = {"stand_up": "sit_down", "put_down": "pick_up"}
FPS, CODEC = 30, "XVID"
CLIPS_PER_FILM = 2  # of each class; the clips of a film share the room
FILMS = {
    "train": ["Late_Shift", "Rob_&_Ruth", "HELP!", "Room_(1987)", "A+_Student", "Gym#2", "Moving_Day", "Barn", "Loft"],
    "test": ["Open_House", "Salt_&_Pepper!", "Flat#9", "Understudy_(II)"],
}

# Points are complex numbers x + iy; a figure's lengths are in units of its standing height, y up from the floor.
SHIN, THIGH, TORSO, UPPER_ARM, FOREARM, ANKLE = 0.235, 0.245, 0.30, 0.165, 0.15, 0.035
CIRCLE = np.exp(2j * np.pi * np.arange(20) / 20)
Part = tuple[list[complex], list[float] | float, np.ndarray]  # the hull of circles: centres, radii, BGR colour


def make_sample(
    output: Path,
    train_clips: int = 18,
    test_clips: int = 8,
    seed: int = 0,
    *,
    size: tuple[int, int] = (320, 240),
    frames: int = 40,
) -> int:
    """Writes videos/, splits/, boxes.json and sample.json (the parameters) to `output`.

    Args:
        output: folder to fill; left alone where it already holds the same dataset.
        train_clips: training clips per class.
        test_clips: test clips per class.
        seed: non-negative; the same seed gives the same pixels.
        size: width and height in pixels, both even.
        frames: frames per clip, at 30 frames per second.

    Returns:
        The number of clips in the dataset.

    Raises:
        ValueError: a parameter is out of range, or `output` holds an unfinished or a different dataset.
        OSError: a file cannot be written.
    """
    if min(train_clips, test_clips) < 1 or seed < 0 or frames < 8 or min(size) < 32 or any(side % 2 for side in size):
        raise ValueError("clips must be >= 1, seed >= 0, frames >= 8, and both sides of size even and >= 32")
    parameters = {"train_clips": train_clips, "test_clips": test_clips, "seed": seed, "size": list(size)}
    parameters |= {"frames": frames, "distractor_level": DISTRACTOR_LEVEL}
    videos, boxes_path = output / "videos", output / "boxes.json"
    if videos.is_dir() and any(videos.iterdir()):
        return finished_clips(output, parameters)
    for name in CLASSES:
        (videos / name).mkdir(parents=True, exist_ok=True)
    boxes, splits = {}, {name: [] for name in CLASSES}
    for tag, (split, count) in enumerate([("train", train_clips), ("test", test_clips)], start=1):
        for index in tqdm(range(count), desc=f"rendering {split} clips", disable=None):
            number, take = divmod(index, CLIPS_PER_FILM)
            film = make_film(np.random.default_rng([seed, tag, number]), size)
            repeat, title = divmod(number, len(FILMS[split]))
            source = FILMS[split][title] + (f"_{repeat + 1}" if repeat else "")
            for name in CLASSES:
                # The two classes of a pair draw the same numbers, so that nothing but time's direction differs.
                key = [seed, tag, number, take, CLASSES.index(REVERSED.get(name, name))]
                images, clip_boxes, view = render_clip(name, film, np.random.default_rng(key), frames)
                file_name = f"{source}_{name}_f_nm_np1_{view}_goo_{take}.avi"
                write_video(videos / name / file_name, images)
                boxes[f"{name}/{file_name}"] = clip_boxes
                splits[name].append(f"{file_name} {tag} \n")
    (output / "splits").mkdir(exist_ok=True)
    for name, lines in splits.items():
        (output / "splits" / f"{name}_test_split1.txt").write_text("".join(sorted(lines)))
    (output / "sample.json").write_text(json.dumps(parameters))
    partial = boxes_path.with_suffix(".partial")  # boxes.json comes last: it marks the dataset as complete
    partial.write_text(json.dumps(boxes))
    partial.replace(boxes_path)
    return len(boxes)


def finished_clips(output: Path, parameters: dict) -> int:
    """Returns the clip count of a complete dataset made with `parameters`; raises ValueError for any other folder."""
    remedy = "delete the folder or choose another"
    if not (output / "boxes.json").is_file() or not (output / "sample.json").is_file():
        raise ValueError(f"{output} holds videos but no finished sample dataset: {remedy}")
    if json.loads((output / "sample.json").read_text()) != parameters:
        raise ValueError(f"{output} holds a sample dataset made with other parameters: {remedy}")
    names = json.loads((output / "boxes.json").read_text())
    if not all((output / "videos" / name).is_file() for name in names):
        raise ValueError(f"{output} lacks some of the videos listed in its boxes.json: {remedy}")
    logging.info("%s is complete, nothing to do", output)
    return len(names)


def write_video(path: Path, images: list[np.ndarray]) -> None:
    """Encodes BGR images (height, width, 3) of type uint8; raises OSError where OpenCV cannot."""
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*CODEC), FPS, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot open {path} for writing with codec {CODEC}")
    for image in images:
        writer.write(image)
    writer.release()


def render_clip(
    name: str, film: "Film", rng: np.random.Generator, frames: int
) -> tuple[list[np.ndarray], list[list[int]], str]:
    """Returns a clip's images, its actor boxes [x0, y0, x1, y1] in pixels, and the view in HMDB-51's letters."""
    height, width = film.background.shape[:2]
    side = name not in ("wave", "jump")
    look, box_colour = make_look(rng), colour(rng, (0.3, 0.6), (0.35, 0.6))
    sequence = poses(name, rng, frames)
    skeletons = [skeleton(pose, side) for pose in sequence]
    figures = [figure(joints, look, side) for joints in skeletons]
    facing = int(rng.choice([-1, 1]))
    left, right, _, top = extent([part for parts in figures for part in parts], facing)
    left, right = left - 0.08, right + 0.08  # room for the chair or the carried box
    scale = height * min(rng.uniform(0.6, 0.9), max(0.6, 0.95 / top))  # raised hands stay in the picture
    x = rng.uniform(-left * scale, max(-left * scale, width - right * scale))
    y = rng.uniform(min(max(film.floor_y + 0.06 * height, top * scale), 0.97 * height), 0.97 * height)
    place = {"origin": x + 1j * y, "scale": scale, "facing": facing}

    scene = film.background.copy()
    aside = rng.choice([-1, 1])
    if REVERSED.get(name, name) == "sit_down":
        seat = min((joints["hip"] for joints in skeletons), key=lambda hip: hip.imag)
        draw(scene, chair(seat - 0.058j * look["build"], film.chair), **place)
    else:
        corner = width * (0.5 + aside * rng.uniform(0.25, 0.45)) + 1j * (film.floor_y + 0.08 * height)
        draw(scene, chair(0.23j, film.chair), corner, scale * 0.85, -aside)
    held = sequence[:, 10] > 0
    hands = np.array([(joints["near_hand"] + joints["far_hand"]) / 2 for joints in skeletons])
    floor_spot = min(hands[held], key=lambda hand: hand.imag, default=None)  # where the carried box rests

    phase, rate = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    noise = rng.normal(0, 2.5, (height + 16, width + 16, 3)).astype(np.int16)
    images, boxes = [], []
    for index, (joints, parts) in enumerate(zip(skeletons, figures, strict=True)):
        image = scene.copy()
        draw(
            image, film.mover(DISTRACTOR_LEVEL * np.sin(phase + 2 * np.pi * rate * index / FPS)), film.mover_at, height
        )
        image = cv2.addWeighted(image, DISTRACTOR_LEVEL, scene, 1 - DISTRACTOR_LEVEL, 0)
        shadow, reach = np.full_like(image, 255), joints["hip"].real * facing * scale / 2
        axes = (int(0.14 * scale + abs(reach)), int(0.025 * scale))
        cv2.ellipse(shadow, (int(x + reach), int(y)), axes, 0, 0, 360, (155, 155, 155), -1)
        image = cv2.multiply(image, cv2.blur(shadow, (15, 7)), scale=1 / 255)
        draw(image, parts[:-3], **place)
        if side and held.any():  # between the body and the near arm, the last three parts
            centre = hands[index] if held[index] else floor_spot
            draw(image, cuboid(centre - 1j * floor_spot.imag, 0.17, 2 * floor_spot.imag, 0.03, box_colour), **place)
        draw(image, parts[-3:], **place)
        dy, dx = rng.integers(0, 16, 2)
        images.append(cv2.add(image, noise[dy : dy + height, dx : dx + width], dtype=cv2.CV_8U))
        left, right, bottom, top = scale * extent(parts, facing)
        low = np.floor([x + left, y - top]).clip(0, [width - 1, height - 1])
        high = np.ceil([x + right, y - bottom]).clip(1, [width, height])
        boxes.append([int(value) for value in (*low, *high)])
    return images, boxes, {-1: "le", 1: "ri"}[facing] if side else "fr"


# ---- Poses: angles in degrees. Limbs: 0 hangs down, 90 points forward (seen from the side) or outward (front). ----
# Columns: torso, near arm (upper, fore), far arm, near leg (thigh, shin), far leg, lift off the floor, object held.


def poses(action: str, rng: np.random.Generator, frames: int) -> np.ndarray:
    """Returns the poses of one performance, shape (frames, 11): random keyframes, eased."""
    if action in REVERSED:
        return poses(REVERSED[action], rng, frames)[::-1]
    times, keys = {"sit_down": sit_keys, "pick_up": pick_keys, "wave": wave_keys, "jump": jump_keys}[action](rng)
    keys = np.array(keys, dtype=float)
    keys[:, :9] += rng.normal(0, 3, (len(keys), 5))[:, [0, 1, 2, 1, 2, 3, 4, 3, 4]]  # legs alike: feet stay planted
    window = np.hanning(frames // 8 + 2)[1:-1]
    clock = (np.arange(-len(window), frames + len(window)) + 0.5) / frames
    tracks = [np.interp(clock, times, column) for column in keys.T]
    eased = np.stack([np.convolve(track, window / window.sum(), "same") for track in tracks], axis=1)
    eased[:, 10] = eased[:, 10] > 0.5
    return eased[len(window) : len(window) + frames]


def side_key(angles: list[float], held: bool = False) -> list[float]:
    torso, arm, fore, thigh, shin = angles
    return [torso, arm, fore, arm + 7, fore + 5, thigh, shin, thigh, shin, 0, held]


def front_key(angles: list[float], lift: float = 0) -> list[float]:
    arm, fore, leg = angles
    return [0, arm, fore, arm, fore, leg, leg, leg, leg, lift, 0]


def sit_keys(rng: np.random.Generator) -> tuple[list[float], list[list[float]]]:
    start, end = rng.uniform(0, 0.2), rng.uniform(0.75, 1)
    crouch = [rng.uniform(30, 50), rng.uniform(0, 40), rng.uniform(30, 70), 55, -14]
    seated = [rng.uniform(-6, 6), rng.uniform(5, 25), rng.uniform(60, 80), 86, 0]
    keys = [side_key([2, -2, 12, 2, -2]), side_key(crouch), side_key(seated)]
    return [start, start + 0.55 * (end - start), end], keys


def pick_keys(rng: np.random.Generator) -> tuple[list[float], list[list[float]]]:
    start, end = rng.uniform(0, 0.12), rng.uniform(0.88, 1)
    stoop, height = rng.uniform(0, 1, 2)
    grasp = [76 + 24 * stoop, 9 - 4 * stoop, 10, 75 - 30 * stoop, -25 + 10 * stoop]
    raised = side_key([-2, 35 + 55 * height, 100 + 30 * height, 2, -2], held=True)
    keys = [side_key([3, 2, 14, 2, -2]), *[side_key(grasp)] * 2, *[side_key(grasp, held=True)] * 2, raised]
    middle = (start + end) / 2  # hands rest on the object for a moment, and `held` switches at once
    return [start, middle - 0.06, middle - 0.001, middle + 0.001, middle + 0.06, end], keys


def wave_keys(rng: np.random.Generator) -> tuple[list[float], list[list[float]]]:
    swings, arm = rng.integers(4, 7), rng.uniform(90, 135)
    rest = front_key([12, 6, 3])
    outward, inward = rest.copy(), rest.copy()
    outward[1:3], inward[1:3] = [arm, rng.uniform(110, 135)], [arm + 8, rng.uniform(200, 225)]
    start, end = rng.uniform(-0.25, 0.08), rng.uniform(0.95, 1.3)
    times = [start, *np.linspace(start + 0.2, end - 0.15, swings), end]
    return times, [rest, *([outward, inward] * 3)[:swings], rest]


def jump_keys(rng: np.random.Generator) -> tuple[list[float], list[list[float]]]:
    """Jumping jacks: feet together, in the air, feet apart, in the air."""
    quarter, start = rng.uniform(0.09, 0.125), rng.uniform(-0.4, 0)
    leg, reach = rng.uniform(14, 24), rng.uniform(130, 160)
    flight = front_key([85, 95, leg / 2], rng.uniform(0.05, 0.09))
    cycle = [front_key([12, 8, 3]), flight, front_key([reach, reach + 15, leg]), flight]
    return [start + quarter * step for step in range(17)], (cycle * 5)[:17]


# ---- Figures: x points forward, or to the near hand's side when seen from the front; 0 lies between the feet. ----


def skeleton(pose: np.ndarray, side: bool) -> dict[str, complex]:
    """Returns the joints of one pose (11,), standing on the floor or lifted off it."""
    axis = np.exp(1j * np.radians(90 - pose[0]))
    joints = {"hip": 0j, "chest": TORSO * axis, "head": (TORSO + 0.095) * axis + 0.015 * side}
    for index, name in enumerate(["near", "far"]):
        sign = 1 if side or name == "near" else -1
        down = [complex(sign * np.sin(angle), -np.cos(angle)) for angle in np.radians(pose)]
        # From the side the far limbs show a little ahead and higher, as seen from slightly above.
        hip, shoulder = [index * (0.03 + 0.012j)] * 2 if side else [0.05 * sign, 0.105 * sign - 0.012j]
        shoulder += joints["chest"]
        elbow, knee = shoulder + UPPER_ARM * down[1 + 2 * index], hip + THIGH * down[5 + 2 * index]
        hand, ankle = elbow + FOREARM * down[2 + 2 * index], knee + SHIN * down[6 + 2 * index]
        limbs = {"hip": hip, "knee": knee, "ankle": ankle, "shoulder": shoulder, "elbow": elbow, "hand": hand}
        joints |= {f"{name}_{part}": point for part, point in limbs.items()}
    near, far = joints["near_ankle"], joints["far_ankle"]
    centre = near.real if side else (near.real + far.real) / 2
    shift = -centre + 1j * (ANKLE + pose[9] - min(near.imag, far.imag))
    return {name: point + shift for name, point in joints.items()}


def make_look(rng: np.random.Generator) -> dict:
    """Returns one actor's BGR colours and build (the factor on every thickness)."""
    look = {"skin": np.array([95, 125, 175]) * rng.uniform(0.5, 1.05), "build": rng.uniform(0.95, 1.2)}
    look |= {"hair": np.array([25, 35, 45]) * rng.uniform(0.5, 1.8), "shoe": colour(rng, (0, 0.4), (0.08, 0.2))}
    look |= {"shirt": colour(rng, (0.2, 0.6), (0.18, 0.42)), "trousers": colour(rng, (0.1, 0.5), (0.12, 0.3))}
    return look | {"sleeve": look["shirt" if rng.random() < 0.6 else "skin"]}


def figure(joints: dict[str, complex], look: dict, side: bool) -> list[Part]:
    """Returns the body's parts from back to front; the near arm is the last three."""
    arms, legs = {}, {}
    for name, sign in (("near", 1), ("far", 1 if side else -1)):
        dim = 0.78 if side and name == "far" else 1.0
        limbs = ("hip", "knee", "ankle", "shoulder", "elbow", "hand")
        hip, knee, ankle, shoulder, elbow, hand = (joints[f"{name}_{limb}"] for limb in limbs)
        toe = ankle + (0.085 - 0.016j if side else 0.022 * sign - 0.022j)
        legs[name] = [
            ([ankle, ankle - 0.012 * side - 0.012j, toe], [0.026, 0.022, 0.018], look["shoe"] * dim),
            ([knee, ankle], [0.044, 0.029], look["trousers"] * dim),
            ([hip, knee], [0.064, 0.045], look["trousers"] * dim),
        ]
        arms[name] = [
            ([hand, hand + 0.12 * (hand - elbow)], [0.024, 0.022], look["skin"] * dim),
            ([elbow, hand], [0.031, 0.024], look["sleeve"] * dim),
            ([shoulder, elbow], [0.041, 0.033], look["shirt"] * dim),
        ]
    hip, chest, head = joints["hip"], joints["chest"] - 0.02j, joints["head"]
    face, wide = head + 0.016 * side - 0.012j, 0.012 if side else 0.08
    eyes = [face + 0.034 + 0.01j] if side else [face - 0.02 + 0.008j, face + 0.02 + 0.008j]
    body = [
        ([chest + 0.02j, head - 0.01 * side - 0.03j], [0.034, 0.03], look["skin"] * 0.85),
        ([chest - wide, chest + wide, hip - wide / 2, hip + wide / 2], [0.062, 0.062, 0.066, 0.066], look["shirt"]),
        ([head - 0.006 * side + 0.012j, head - 0.012 * side], [0.062, 0.058], look["hair"]),
        ([face, face + 0.004 * side - 0.018j], [0.05, 0.042], look["skin"]),
        ([face + 0.045 * side - 0.008j], 0.012, look["skin"] * 0.95),
        *[([eye], 0.0055, look["hair"] * 0.5) for eye in eyes],
    ]
    parts = arms["far"] + legs["far"] + legs["near"] + body + arms["near"]
    return [(points, np.multiply(radii, look["build"]), tint) for points, radii, tint in parts]


def extent(parts: list[Part], facing: int) -> np.ndarray:
    """Returns the smallest and largest x, then y, of the drawn parts."""
    centres = np.concatenate([points for points, _, _ in parts])
    radii = np.concatenate([np.broadcast_to(radius, len(points)) for points, radius, _ in parts])
    x, y = facing * centres.real, centres.imag
    return np.array([(x - radii).min(), (x + radii).max(), (y - radii).min(), (y + radii).max()])


def draw(image: np.ndarray, parts: list[Part], origin: complex, scale: float, facing: int = 1) -> None:
    """Draws parts in order; `origin` is their zero in pixels (y down), `scale` the pixels per unit, -1 mirrors."""
    for points, radii, tint in parts:
        centres = origin + scale * (facing * np.real(points) - 1j * np.imag(points))
        radius = scale * np.broadcast_to(radii, len(points))
        for share, gain in ((1.0, 1.0), (0.55, 1.14)):  # a lighter core off the centre makes limbs look round
            outline = (centres - radius * (1 - share) * (0.5 + 0.5j))[:, None] + (radius * share)[:, None] * CIRCLE
            corners = np.stack([outline.real, outline.imag], axis=-1).reshape(-1, 2) * 16  # 4 fractional bits
            hull = cv2.convexHull(np.round(corners).astype(np.int32))
            cv2.fillConvexPoly(image, hull, (tint * gain).tolist(), cv2.LINE_AA, 4)


# ---- Rooms: lengths in units of the picture's height, 0 where an object stands on the floor or hangs. ----


@dataclass
class Film:
    """What the clips of one film share."""

    background: np.ndarray
    floor_y: float
    chair: np.ndarray
    mover_at: complex
    mover_colour: np.ndarray
    hangs: bool

    def mover(self, swing: float) -> list[Part]:
        """Returns the moving distractor, `swing` in [-1, 1]: a lamp swaying on its cord or a rolling ball."""
        if not self.hangs:
            return [([0.25 * swing + 0.01j], 0.04, self.mover_colour)]
        down = np.exp(1j * (0.35 * swing - np.pi / 2))
        shade = [down * corner for corner in (0.13 - 0.02j, 0.13 + 0.02j, 0.2 - 0.07j, 0.2 + 0.07j)]
        return [([0j, 0.13 * down], 0.003, self.mover_colour * 0.4), (shade, 0.006, self.mover_colour)]


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """Returns a BGR colour of random hue, with saturation and value drawn from the given ranges in [0, 1]."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))[::-1])


def make_film(rng: np.random.Generator, size: tuple[int, int]) -> Film:
    """Paints a room: patterned wall and floor, one to three boxes, and a picture on the wall."""
    width, height = size
    floor = rng.uniform(0.66, 0.76)
    x, y = np.meshgrid(np.arange(width) / height, np.arange(height) / height)
    clouds = cv2.resize(rng.normal(0, 1, (9, 12)), size, interpolation=cv2.INTER_CUBIC)
    period = rng.uniform(0.06, 0.14)
    stripes, tiles = np.sign(np.sin(np.pi * x / period)), -2.0 * ((x % period < 0.01) | (y % period < 0.01))
    wall = clouds + [0 * x, stripes, tiles][rng.integers(3)]
    planks = clouds[::-1] - 2.0 * ((x - width / height / 2) / (np.maximum(y - floor, 0) + 0.12) % 0.5 < 0.035)
    wall_colour, floor_colour = colour(rng, (0.05, 0.22), (0.68, 0.88)), colour(rng, (0.08, 0.25), (0.45, 0.62))
    room = np.where(
        (y > floor)[..., None],
        floor_colour + 6 * planks[..., None],
        wall_colour * np.where(y > floor - 0.025, 0.85, 1)[..., None] + rng.uniform(3, 6) * wall[..., None],
    )
    light = 1.06 - 0.2 * ((x - rng.uniform(0.2, 1.1)) ** 2 + (y - 0.3) ** 2)
    image = np.clip(room * light[..., None], 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        spot = rng.uniform(0, width) + 1j * height * (floor + rng.uniform(0.03, 0.07))
        w, h = rng.uniform(0.12, 0.3, 2)
        draw(image, cuboid(0j, w, h, 0.04, colour(rng, (0.15, 0.4), (0.45, 0.7))), spot, height)
    w, h = rng.uniform(0.08, 0.14, 2)
    picture = []
    for shrink, top, tint in ((1, 1, 0.3), (0.84, 0.84, 0.85), (0.84, rng.uniform(-0.3, 0.3), 0.5)):
        corners = [complex(sx * shrink * w, sy * h) for sx in (-1, 1) for sy in (-min(shrink, 0.84 / shrink), top)]
        picture.append((corners, 0.004, colour(rng, (0.15, 0.35), (tint, tint + 0.1))))
    hung = image.copy()
    draw(hung, picture, width * rng.uniform(0.1, 0.9) + 1j * height * rng.uniform(0.18, 0.4), height)
    image = cv2.addWeighted(hung, DISTRACTOR_LEVEL, image, 1 - DISTRACTOR_LEVEL, 0)
    hangs = rng.random() < 0.5
    mover_at = width * rng.uniform(0.1, 0.9) + (0 if hangs else 1j * height * (floor + 0.05))
    wood = np.array([60, 90, 130]) * rng.uniform(0.6, 1.2)
    return Film(image, floor * height, wood, mover_at, colour(rng, (0.3, 0.6), (0.5, 0.85)), hangs)


def cuboid(base: complex, width: float, height: float, rise: float, tint: np.ndarray) -> list[Part]:
    """Returns a box whose front face stands on `base`, its top and one side seen from above."""
    depth = 0.6 * rise + 1j * rise
    low, high = [base - width / 2, base + width / 2], [base - width / 2 + 1j * height, base + width / 2 + 1j * height]
    top, flank = [*high, high[0] + depth, high[1] + depth], [low[1], high[1], low[1] + depth, high[1] + depth]
    return [(top, 0.002, tint * 1.15), (flank, 0.002, tint * 0.75), (low + high, 0.002, tint)]


def chair(seat: complex, wood: np.ndarray) -> list[Part]:
    """Returns a chair facing +x, seen slightly from above; `seat` is its surface under the sitter's hip."""
    deep, rear, front = 0.07 + 0.035j, seat - 0.10 - 0.014j, seat + 0.16 - 0.014j
    top, middle = rear - 0.035 + 0.33j, rear - 0.02 + 0.16j
    bars = [[rear, rear.real + 0.012j], [front, front.real + 0.012j], [rear, top]]  # two legs and a post, then afar
    far = [([point + deep for point in bar], 0.012, wood * 0.7) for bar in bars]
    back = ([top, middle, top + deep, middle + deep], 0.01, wood * 0.85)
    plate = ([rear, front, rear + deep, front + deep], 0.014, wood * 0.9)
    return [*far, back, plate, *[(bar, 0.012, wood) for bar in bars]]


def define_flags() -> None:
    flags.DEFINE_string("output", None, "folder to write the dataset to", required=True)
    flags.DEFINE_integer("train_clips", 18, "training clips per class", lower_bound=1)
    flags.DEFINE_integer("test_clips", 8, "test clips per class", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of every random choice", lower_bound=0)


def main(_: list[str]) -> None:
    values = flags.FLAGS
    try:
        count = make_sample(Path(values.output), values.train_clips, values.test_clips, values.seed)
    except (ValueError, OSError) as error:
        raise SystemExit(f"data_prep.sample: {error}") from error
    logging.info("%s holds %d clips", values.output, count)


if __name__ == "__main__":
    define_flags()
    app.run(main)
