"""Renders the sample dataset: seeded clips of solid figures acting in rooms, stored in HMDB-51's layout.

stand_up and put_down are sit_down and pick_up with the poses reversed in time and all else drawn alike, so single
frames cannot tell the two of a pair apart: only a model with memory can.
"""

import colorsys
import json
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from action_attention.errors import UserError
from action_attention.features import write_json
from data_prep import program, splits
from data_prep.terminal import say

DISTRACTOR_LEVEL = 0.6  # 0 hides the picture, lamp and ball; 1 shows them in full contrast and motion

CLASSES = ("jump", "pick_up", "put_down", "sit_down", "stand_up", "wave")
REVERSED = {"stand_up": "sit_down", "put_down": "pick_up"}
FPS, CODEC = 30, "XVID"
CLIPS_PER_FILM = 2  # of each class; the clips of a film share the room
FILMS = {
    "train": ["Late_Shift", "Rob_&_Ruth", "HELP!", "Room_(1987)", "A+_Student", "Gym#2", "Moving_Day", "Barn", "Loft"],
    "test": ["Open_House", "Salt_&_Pepper!", "Flat#9", "Understudy_(II)"],
}

# Points are complex numbers x + iy, y up from the floor. A figure's lengths are in units of its standing height, and x
# points forward or, seen from the front, to the near hand's side; a room's are in units of the picture's height.
LEG, ARM, TORSO, ANKLE = np.array([0.245, 0.235]), np.array([0.165, 0.15]), 0.30, 0.035
CIRCLE = np.exp(2j * np.pi * np.arange(20) / 20)
# the hull of circles: centres, radii, BGR colour
Part = tuple[list[complex] | np.ndarray, list[float] | float | np.ndarray, np.ndarray]
Film = namedtuple("Film", "background floor_y wood lamp mover_at mover_colour")  # what the clips of one film share


def make_sample(
    output: Path,
    train_clips: int = 18,
    test_clips: int = 8,
    seed: int = 0,
    *,
    size: tuple[int, int] = (320, 240),
    frames: int = 40,
) -> int:
    """Writes videos/, splits/, boxes.json and sample.json (the parameters) to `output`, and returns the clip count.

    Clips are counted per class, `size` is (width, height) in pixels, and the same seed gives the same pixels. A folder
    that already holds the same dataset is left alone. Raises UserError if a parameter is out of range or `output`
    holds an unfinished or a different dataset, OSError if a file cannot be written.
    """
    if min(train_clips, test_clips) < 1 or seed < 0 or frames < 8 or min(size) < 32 or any(side % 2 for side in size):
        raise UserError("clips must be >= 1, seed >= 0, frames >= 8, and both sides of size even and >= 32")
    parameters = {"train_clips": train_clips, "test_clips": test_clips, "seed": seed, "size": list(size)}
    parameters |= {"frames": frames, "distractor_level": DISTRACTOR_LEVEL}
    videos, boxes_path, parameters_path = output / "videos", output / "boxes.json", output / "sample.json"
    if videos.is_dir() and any(videos.iterdir()):
        remedy = "delete the folder or choose another"
        boxes = json.loads(boxes_path.read_text()) if boxes_path.is_file() else {}
        if not boxes or not all((videos / video).is_file() for video in boxes):
            raise UserError(f"{output} holds videos but no finished sample dataset: {remedy}")
        if json.loads(parameters_path.read_text()) != parameters:
            raise UserError(f"{output} holds a sample with other parameters: {remedy}")
        return len(boxes)
    boxes, tags = {}, {}
    for tag, (split, count) in enumerate([("train", train_clips), ("test", test_clips)], start=1):
        for index in tqdm(range(count), desc=f"rendering {split} clips", disable=None):
            number, take = divmod(index, CLIPS_PER_FILM)
            film = make_film(np.random.default_rng([seed, tag, number]), size)
            repeat, title = divmod(number, len(FILMS[split]))
            source = FILMS[split][title] + (f"_{repeat + 1}" if repeat else "")
            for name in CLASSES:
                # The two classes of a pair draw the same numbers, so that nothing but time's direction differs.
                key = [seed, tag, number, take, CLASSES.index(REVERSED.get(name, name))]
                images, corners, view = render_clip(name, film, np.random.default_rng(key), frames)
                video = f"{name}/{source}_{name}_f_nm_np1_{view}_goo_{take}.avi"
                write_video(videos / video, images)
                boxes[video], tags[video] = corners, tag
    splits.write_lists(output / "splits", tags)
    write_json(parameters_path, parameters)
    write_json(boxes_path, boxes)  # comes last: it marks the dataset as complete
    return len(boxes)


def write_video(path: Path, images: list[np.ndarray]) -> None:
    """Encodes BGR images (height, width, 3) of type uint8; raises OSError where OpenCV cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc, size = cv2.VideoWriter.fourcc(*CODEC), images[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, FPS, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot open {path} for writing with codec {CODEC}")
    for image in images:
        writer.write(image)
    writer.release()


def render_clip(name: str, film: Film, rng: np.random.Generator, frames: int) -> tuple[list, list, str]:
    """Returns a clip's images, its actor boxes [x0, y0, x1, y1] in pixels, and the view in HMDB-51's letters."""
    height, width = film.background.shape[:2]
    side = name not in ("wave", "jump")
    look, box_colour = make_look(rng), colour(rng, (0.3, 0.6), (0.35, 0.6))
    sequence = poses(name, rng, frames)
    figures, hips, hands = zip(*[figure(pose, look, side) for pose in sequence], strict=True)
    facing = int(rng.choice([-1, 1]))
    left, right, _, top = extent([part for parts in figures for part in parts], facing)
    left, right = left - 0.08, right + 0.08  # room for the chair or the carried box
    scale = height * min(rng.uniform(0.6, 0.9), max(0.6, 0.95 / top))  # raised hands stay in the picture
    x = rng.uniform(-left * scale, max(-left * scale, width - right * scale))
    y = rng.uniform(min(max(film.floor_y + 0.06 * height, top * scale), 0.97 * height), 0.97 * height)
    place = (x + 1j * y, scale, facing)

    scene = film.background.copy()
    aside = rng.choice([-1, 1])
    if REVERSED.get(name, name) == "sit_down":
        seat = min(hips, key=np.imag) - 0.058j * look["build"]
        draw(scene, chair(seat, film.wood), *place)
    else:
        corner = width * (0.5 + aside * rng.uniform(0.25, 0.45)) + 1j * (film.floor_y + 0.08 * height)
        draw(scene, chair(0.23j, film.wood), corner, scale * 0.85, -aside)
    held = sequence[:, -1] > 0
    resting = min(np.array(hands)[held], key=np.imag, default=0j)  # the middle of the carried box on the floor

    phase, rate = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.2)
    noise = rng.normal(0, 2.5, (height + 16, width + 16, 3)).astype(np.int16)
    images, boxes = [], []
    for index, (parts, hip, hand) in enumerate(zip(figures, hips, hands, strict=True)):
        image = scene.copy()
        swing = DISTRACTOR_LEVEL * np.sin(phase + 2 * np.pi * rate * index / FPS)
        bulb = (0.06 if film.lamp else 0.25) * swing  # of the swaying lamp on its cord, or else a rolling ball
        cord = [([0.17j, bulb], 0.003, film.mover_colour * 0.4)] if film.lamp else []
        draw(image, [*cord, ([bulb], 0.04, film.mover_colour)], film.mover_at, height, opacity=DISTRACTOR_LEVEL)
        shadow = [hip.real / 2 + 0.12 * direction * (1 + abs(hip.real)) for direction in (-1, 1)]
        draw(image, [(shadow, 0.022, np.zeros(3))], *place, opacity=0.35)
        draw(image, parts[:-3], *place)
        if side and held.any():  # between the body and the near arm, the last three parts
            base = (hand if held[index] else resting) - 1j * resting.imag
            draw(image, cuboid(base, 0.17, 2 * resting.imag, 0.03, box_colour), *place)
        draw(image, parts[-3:], *place)
        dy, dx = rng.integers(0, 16, 2)
        images.append(cv2.add(image, noise[dy : dy + height, dx : dx + width], dtype=cv2.CV_8U))
        left, right, bottom, top = scale * extent(parts, facing)
        low = np.floor([x + left, y - top]).clip(0, [width - 1, height - 1])
        high = np.ceil([x + right, y - bottom]).clip(1, [width, height])
        boxes.append([int(value) for value in (*low, *high)])
    return images, boxes, {-1: "le", 1: "ri"}[facing] if side else "fr"


def poses(action: str, rng: np.random.Generator, frames: int) -> np.ndarray:
    """Returns the poses of one performance, shape (frames, 9): random keyframes, eased.

    Columns: torso, near upper arm and forearm, far ones, thighs, shins, lift off the floor, object held. In degrees:
    0 stands upright or hangs down, 90 points forward (seen from the side) or outward (from the front).
    """
    if action in REVERSED:
        return poses(REVERSED[action], rng, frames)[::-1]
    times, rows = keyframes(action, rng)
    keys = np.array(rows, dtype=float)[:, [0, 1, 2, 1, 2, 3, 4, 5, 6]]
    if action == "wave":
        keys[:, 3:5] = keys[0, 3:5]  # one arm waves, the other hangs
    keys[:, :7] += rng.normal(0, 3, (len(keys), 5))[:, [0, 1, 2, 1, 2, 3, 4]]
    window = np.hanning(frames // 8 + 2)[1:-1]
    clock = (np.arange(-len(window), frames + len(window)) + 0.5) / frames
    tracks = [np.interp(clock, times, column) for column in keys.T]
    eased = np.stack([np.convolve(track, window / window.sum(), "same") for track in tracks], axis=1)
    eased[:, -1] = eased[:, -1] > 0.5
    return eased[len(window) : len(window) + frames]


def keyframes(action: str, rng: np.random.Generator) -> tuple[list[float], list[tuple]]:
    """Returns times as shares of the clip, and rows of torso, upper arms, forearms, thighs, shins, lift, held."""
    if action == "sit_down":
        start, end = rng.uniform(0, 0.2), rng.uniform(0.75, 1)
        crouched = (rng.uniform(30, 50), rng.uniform(0, 40), rng.uniform(30, 70), 55, -14, 0, 0)
        seated = (rng.uniform(-6, 6), rng.uniform(5, 25), rng.uniform(60, 80), 86, 0, 0, 0)
        return [start, start + 0.55 * (end - start), end], [(2, -2, 12, 2, -2, 0, 0), crouched, seated]
    if action == "pick_up":
        start, end = rng.uniform(0, 0.12), rng.uniform(0.88, 1)
        stoop, height = rng.uniform(0, 1, 2)
        grasp = (76 + 24 * stoop, 9 - 4 * stoop, 10, 75 - 30 * stoop, -25 + 10 * stoop, 0)
        raised = (-2, 35 + 55 * height, 100 + 30 * height, 2, -2, 0, 1)
        middle = (start + end) / 2  # hands rest on the object for a moment, and `held` switches at once
        times = [start, middle - 0.06, middle - 0.001, middle + 0.001, middle + 0.06, end]
        return times, [(3, 2, 14, 2, -2, 0, 0), *[(*grasp, 0)] * 2, *[(*grasp, 1)] * 2, raised]
    if action == "wave":
        swings, arm = rng.integers(4, 7), rng.uniform(90, 135)
        rest = (0, 12, 6, 3, 3, 0, 0)
        outward = (0, arm, rng.uniform(110, 135), 3, 3, 0, 0)
        inward = (0, arm + 8, rng.uniform(200, 225), 3, 3, 0, 0)
        start, end = rng.uniform(-0.25, 0.08), rng.uniform(0.95, 1.3)
        times = [start, *np.linspace(start + 0.2, end - 0.15, swings), end]
        return times, [rest, *([outward, inward] * 3)[:swings], rest]
    # Jumping jacks: feet together, in the air, feet apart, in the air.
    quarter, start = rng.uniform(0.09, 0.125), rng.uniform(-0.4, 0)
    leg, reach = rng.uniform(14, 24), rng.uniform(130, 160)
    flight = (0, 85, 95, leg / 2, leg / 2, rng.uniform(0.05, 0.09), 0)
    cycle = [(0, 12, 8, 3, 3, 0, 0), flight, (0, reach, reach + 15, leg, leg, 0, 0), flight]
    return [start + quarter * step for step in range(17)], (cycle * 5)[:17]


def make_look(rng: np.random.Generator) -> dict:
    """Returns one actor's BGR colours and build (the factor on every thickness)."""
    look = {"skin": np.array([95, 125, 175]) * rng.uniform(0.5, 1.05), "build": rng.uniform(0.95, 1.2)}
    look |= {"hair": np.array([25, 35, 45]) * rng.uniform(0.5, 1.8), "shoe": colour(rng, (0, 0.4), (0.08, 0.2))}
    look |= {"shirt": colour(rng, (0.2, 0.6), (0.18, 0.42)), "trousers": colour(rng, (0.1, 0.5), (0.12, 0.3))}
    return look | {"sleeve": look["shirt" if rng.random() < 0.6 else "skin"]}


def limb(start: complex, angles: np.ndarray, lengths: np.ndarray, sign: int = 1) -> np.ndarray:
    """Returns the three joints of an arm or a leg that starts at `start`; sign -1 mirrors it."""
    steps = lengths * (sign * np.sin(np.radians(angles)) - 1j * np.cos(np.radians(angles)))
    return start + np.cumsum([0, *steps])


def figure(pose: np.ndarray, look: dict, side: bool) -> tuple[list[Part], complex, complex]:
    """Returns a body's parts from back to front (the near arm is the last three), its hip and mid-point of hands."""
    stride = limb(0, pose[5:7], LEG)[-1]
    hip = 1j * (ANKLE + pose[7]) - (stride if side else 1j * stride.imag)
    axis = np.exp(1j * np.radians(90 - pose[0]))
    chest, head = hip + TORSO * axis, hip + (TORSO + 0.095) * axis + 0.015 * side
    arms, legs, hands = [], [], 0
    for far in (0, 1):
        sign, dim = (1, 1 - 0.22 * far) if side else (1 - 2 * far, 1)
        # From the side the far limbs show a little ahead and higher, as seen from slightly above.
        hip_at, shoulder_at = [far * (0.03 + 0.012j)] * 2 if side else [0.05 * sign, 0.105 * sign - 0.012j]
        thigh, knee, ankle = limb(hip + hip_at, pose[5:7], LEG, sign)
        swing = far * side * np.array([7, 5])
        shoulder, elbow, hand = limb(chest + shoulder_at, pose[1 + 2 * far : 3 + 2 * far] + swing, ARM, sign)
        toe = ankle + (0.085 - 0.016j if side else 0.022 * sign - 0.022j)
        legs += [
            ([ankle, ankle - 0.012 * side - 0.012j, toe], [0.026, 0.022, 0.018], look["shoe"] * dim),
            ([knee, ankle], [0.044, 0.029], look["trousers"] * dim),
            ([thigh, knee], [0.064, 0.045], look["trousers"] * dim),
        ]
        arms += [
            ([hand, hand + 0.12 * (hand - elbow)], [0.024, 0.022], look["skin"] * dim),
            ([elbow, hand], [0.031, 0.024], look["sleeve"] * dim),
            ([shoulder, elbow], [0.041, 0.033], look["shirt"] * dim),
        ]
        hands += hand / 2
    neck, face, wide = chest - 0.02j, head + 0.016 * side - 0.012j, 0.012 if side else 0.08
    body = [
        ([chest, head - 0.01 * side - 0.03j], [0.034, 0.03], look["skin"] * 0.85),
        ([neck - wide, neck + wide, hip - wide / 2, hip + wide / 2], [0.062, 0.062, 0.066, 0.066], look["shirt"]),
        ([head - 0.006 * side + 0.012j, head - 0.012 * side], [0.062, 0.058], look["hair"]),
        ([face, face + 0.004 * side - 0.018j], [0.05, 0.042], look["skin"]),
    ]
    parts = arms[3:] + legs[3:] + legs[:3] + body + arms[:3]
    return [(points, np.multiply(radii, look["build"]), tint) for points, radii, tint in parts], hip, hands


def extent(parts: list[Part], facing: int) -> np.ndarray:
    """Returns the smallest and largest x, then y, of a figure's parts."""
    centres, radii = (np.concatenate(column) for column in list(zip(*parts, strict=True))[:2])
    x, y = facing * centres.real, centres.imag
    return np.array([(x - radii).min(), (x + radii).max(), (y - radii).min(), (y + radii).max()])


def draw(
    image: np.ndarray, parts: list[Part], origin: complex, scale: float, facing: int = 1, opacity: float = 1.0
) -> None:
    """Draws parts in order; `origin` is their zero in pixels (y down), `scale` the pixels per unit, -1 mirrors."""
    before = image.copy()
    for points, radii, tint in parts:
        centres = origin + scale * (facing * np.real(points) - 1j * np.imag(points))
        radius = scale * np.broadcast_to(radii, len(points))
        for share, gain in ((1.0, 1.0), (0.55, 1.14)):  # a lighter core off the centre makes limbs look round
            outline = (centres - radius * (1 - share) * (0.5 + 0.5j))[:, None] + (radius * share)[:, None] * CIRCLE
            corners = np.stack([outline.real, outline.imag], axis=-1).reshape(-1, 2) * 16  # 4 fractional bits
            hull = cv2.convexHull(np.round(corners).astype(np.int32))
            cv2.fillConvexPoly(image, hull, (tint * gain).tolist(), cv2.LINE_AA, 4)
    cv2.addWeighted(image, opacity, before, 1 - opacity, 0, dst=image)


def colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    """Returns a BGR colour of random hue, with saturation and value drawn from the given ranges in [0, 1]."""
    return 255 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))[::-1])


def make_film(rng: np.random.Generator, size: tuple[int, int]) -> Film:
    """Paints a room: patterned wall, floor, one to three boxes, and a picture on the wall."""
    width, height = size
    floor = rng.uniform(0.66, 0.76)
    x, y = np.meshgrid(np.arange(width) / height, np.arange(height) / height)
    clouds = cv2.resize(rng.normal(0, 1, (9, 12)), size, interpolation=cv2.INTER_CUBIC)
    period = rng.uniform(0.06, 0.14)
    stripes, tiles = np.sign(np.sin(np.pi * x / period)), -2.0 * ((x % period < 0.01) | (y % period < 0.01))
    wall = clouds + [0 * x, stripes, tiles][rng.integers(3)]
    wall_colour, floor_colour = colour(rng, (0.05, 0.22), (0.68, 0.88)), colour(rng, (0.08, 0.25), (0.45, 0.62))
    below = (y > floor)[..., None]
    room = np.where(below, floor_colour, wall_colour)
    room += np.where(below, 6 * clouds[..., None], rng.uniform(3, 6) * wall[..., None])
    light = 1.06 - 0.2 * ((x - rng.uniform(0.2, 1.1)) ** 2 + (y - 0.3) ** 2)
    image = np.clip(room * light[..., None], 0, 255).astype(np.uint8)
    for _ in range(rng.integers(1, 4)):
        spot = rng.uniform(0, width) + 1j * height * (floor + rng.uniform(0.03, 0.07))
        w, h = rng.uniform(0.12, 0.3, 2)
        draw(image, cuboid(0, w, h, 0.04, colour(rng, (0.15, 0.4), (0.45, 0.7))), spot, height)
    w, h = rng.uniform(0.16, 0.28, 2)
    picture, ground = [], rng.uniform(0.3, 0.6)  # frame, sky and ground
    for base, share, tall, value in (0, 1, 1, 0.3), (0.08j, 0.84, 0.84, 0.85), (0.08j, 0.84, ground, 0.5):
        picture += cuboid(base * h, share * w, tall * h, 0, colour(rng, (0.15, 0.35), (value, value + 0.1)))
    hook = width * rng.uniform(0.1, 0.9) + 1j * height * (rng.uniform(0.18, 0.4) + h / 2)
    draw(image, picture, hook, height, opacity=DISTRACTOR_LEVEL)
    lamp = rng.random() < 0.5
    mover_at = width * rng.uniform(0.1, 0.9) + 1j * height * (0.17 if lamp else floor + 0.04)
    wood = np.array([60, 90, 130]) * rng.uniform(0.6, 1.2)
    return Film(image, floor * height, wood, lamp, mover_at, colour(rng, (0.3, 0.6), (0.5, 0.85)))


def cuboid(base: complex, width: float, height: float, rise: float, tint: np.ndarray) -> list[Part]:
    """Returns a box whose front face stands on `base`, its top and one side seen from above."""
    front = base + np.array([-width / 2, width / 2, width / 2 + 1j * height, -width / 2 + 1j * height])
    back = front + (0.6 + 1j) * rise
    top, flank = [*front[2:], *back[2:]], [*front[1:3], *back[1:3]]
    return [(top, 0.002, tint * 1.15), (flank, 0.002, tint * 0.75), (front, 0.002, tint)]


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


def main() -> None:
    values = flags.FLAGS
    count = make_sample(Path(values.output), values.train_clips, values.test_clips, values.seed)
    say(f"{values.output}: {count} clips of {len(CLASSES)} classes in videos/, their split lists in splits/")


if __name__ == "__main__":
    program.run(main, define_flags)
