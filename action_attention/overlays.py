"""Annotated overlays, frame by frame, and the video files they go to. The one place that draws predictions."""

from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import av
import cv2
import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from action_attention.files import written_whole
from action_attention.heatmaps import CLOSE_TO_UNIFORM, FULL, overlay, paint, relative_entropy
from action_attention.metrics import VideoPrediction, percent, rank_classes, running_votes
from action_attention.segments import Segment
from action_attention.timeline import CURSOR, NO_ACTION, colours

MIN_WIDTH = 480  # pixels; smaller frames are enlarged, so that the text beside them can be read
LONGEST = 1280  # pixels of a larger frame's longer side; more makes files and their making slower, and shows no more
BACKGROUND, PLAIN, MUTED = (22, 24, 29), (226, 229, 235), (160, 166, 178)
RIGHT, WRONG, NEUTRAL, OTHER = (74, 201, 106), (255, 99, 92), (106, 170, 255), (88, 94, 106)
# DejaVu comes with matplotlib and has Latin, Greek, Cyrillic, Hebrew and Arabic letters
FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
VOTED = {"mode": "votes", "mean": "mean"}
THREADS = 4  # of the encoder; as many on every machine, since the bytes depend on it
STREAMS: dict[str, dict[str, Any]] = {
    "mp4": {"codec_name": "libx264", "pix_fmt": "yuv420p", "options": {"crf": "23", "preset": "veryfast"}},
    "gif": {"codec_name": "gif", "pix_fmt": "pal8", "time_base": Fraction(1, 100)},
}


def draw_overlays(
    frames: Iterable[np.ndarray],
    prediction: VideoPrediction,
    classes: list[str],
    vote: str,
    *,
    width: int | None = None,
    only: Iterable[int] | None = None,
    heatmap: str = "absolute",
    boxes: np.ndarray | None = None,
    calibrated: np.ndarray | None = None,
    segments: Sequence[Segment] = (),
    times: Sequence[float] = (),
) -> Iterator[np.ndarray]:
    """The frames of a video with what the model says of them.

    Above a frame: the true class, if it is known, the frame's predicted class and its confidence. Over it: its
    heatmap. Below it: a bar of the classes' shares of the vote so far, the true class first, then the others as they
    rank in the end; and the leading class by name. Green is the true class, red a wrong one (of the bar: the leading
    one); where the truth is unknown, blue stands for both. Below that: what the heatmap's colours mean, and, where the
    frame's map is close to uniform, these words. At the bottom, where there are several segments: all of them from left
    to right, each in its action's colour, a cursor at the frame's time, and the name of the one that it is in.

    Args:
        frames: RGB, uint8 `(height, width, 3)`, one for each sampled frame.
        prediction: of that video; `label` None where the true class is unknown.
        classes: class names by id.
        vote: `mode` (shares of the vote are shares of frames won) or `mean` (mean probabilities).
        width: of the drawn frames, pixels; None for the frame's own, or less if its longer side is over LONGEST, but at
            least MIN_WIDTH.
        only: numbers of the frames to draw, ascending; None for all.
        heatmap: one of `heatmaps.HEATMAPS`.
        boxes: one for each sampled frame, `(n, 4)` of x0, y0, x1, y1 in shares of its width and height, to be drawn.
        calibrated: probabilities that are shown, `(n, C)`, in place of the prediction's, which decide.
        segments: of the video.
        times: of the frames, in seconds; there if segments are.

    Yields RGB frames, uint8, of even height and width and the source's aspect ratio. Reads one frame at a time.

    Raises:
        ValueError: there are more or fewer frames than predictions.
    """
    shown = prediction.probabilities if calibrated is None else calibrated
    order = rank_classes(prediction.probabilities, vote)
    if prediction.label is not None:
        order = np.array([prediction.label, *order[order != prediction.label]])
    chosen = None if only is None else set(only)
    votes, leaders = running_votes(shown, vote), running_votes(prediction.probabilities, vote)
    each = zip(frames, prediction.attention, shown, votes, leaders, strict=True)
    for number, (frame, attention, probabilities, (shares, _), (_, leader)) in enumerate(each):
        if chosen is not None and number not in chosen:
            continue
        picture = _resize(frame, width or _width(frame))
        above = _header(picture.shape[1], probabilities, prediction.label, classes)
        below = _vote_bar(picture.shape[1], VOTED[vote], shares, leader, order, prediction.label, classes)
        close = bool(relative_entropy(attention[None])[0] > CLOSE_TO_UNIFORM)
        legend = _legend(picture.shape[1], heatmap, close)
        seen = overlay(picture, attention, heatmap)
        if boxes is not None:
            seen = _with_box(seen, boxes[number])
        strips = [above, seen, below, legend]
        if len(segments) > 1:
            strips.append(_timeline(picture.shape[1], tuple(segments), times[number]))
        yield np.concatenate(strips)


def gallery(
    rows: Iterable[tuple[VideoPrediction, np.ndarray]],
    classes: list[str],
    vote: str,
    columns: int = 6,
    width: int = 288,
    heatmap: str = "absolute",
) -> np.ndarray:
    """Videos under each other, RGB uint8: of each, `columns` annotated frames evenly spaced over its length.

    Args:
        rows: each video's prediction and frames uint8 `(n, height, width, 3)`.
        classes: class names by id.
        vote: `mode` or `mean`.
        columns: pictures a row.
        width: of one picture, in pixels; every video keeps its aspect ratio.
        heatmap: one of `heatmaps.HEATMAPS`.
    """
    lines = []
    for prediction, frames in rows:
        chosen = np.linspace(0, len(frames) - 1, columns).round().astype(int)
        drawn = draw_overlays(frames, prediction, classes, vote, width=width, only=chosen, heatmap=heatmap)
        pictures = dict(zip(np.unique(chosen), drawn, strict=True))  # fewer than `columns` where the video is shorter
        gap = ((0, 4), (0, 4), (0, 0))
        lines.append(np.concatenate([np.pad(pictures[n], gap, constant_values=255) for n in chosen], axis=1))
    return np.concatenate(lines)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes RGB frames, uint8 `(height, width, 3)` of even sides, as `.mp4` (H.264) or `.gif`, one frame at a time.

    The file appears under its name only when it is complete. A GIF has time stamps of 1/100 s, to which every frame's
    time is rounded; its palette is made anew for each frame, since one for all would need all frames in memory.

    Raises:
        ValueError: another suffix, or no frame.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in STREAMS:
        raise ValueError(f"videos are written as .mp4 or .gif. Received: path={path}")
    rate = Fraction(fps).limit_denominator(1001)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("a video needs at least one frame. Received: none")
    height, width = first.shape[:2]
    palettes = _palettes(width, height, rate) if kind == "gif" else None
    # faststart: what a player must know stands first, so that a browser can begin before it has all
    options = {"movflags": "+faststart"} if kind == "mp4" else {}
    with (  # absolute: a name alone may look like a protocol's
        written_whole(path.absolute()) as part,
        av.open(str(part), "w", format=kind, container_options=options) as container,
    ):
        stream = container.add_stream(rate=rate, width=width, height=height, **STREAMS[kind])
        stream.codec_context.thread_count = THREADS
        for number, frame in enumerate(chain([first], frames)):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = number, 1 / rate
            if palettes:
                palettes.vpush(picture)
                picture = palettes.vpull()
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _palettes(width: int, height: int, rate: Fraction) -> av.filter.Graph:
    """FFmpeg's split, palettegen, paletteuse; one RGB frame in, one frame with its palette out."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=5")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _width(frame: np.ndarray) -> int:
    """Of a drawn frame, in pixels."""
    return max(MIN_WIDTH, round(frame.shape[1] * min(1, LONGEST / max(frame.shape))))


def _resize(frame: np.ndarray, width: int) -> np.ndarray:
    """The frame, about `width` pixels wide; both sides even, as H.264 needs them."""
    scale = width / frame.shape[1]
    size = tuple(2 * max(1, round(scale * side / 2)) for side in (frame.shape[1], frame.shape[0]))
    if size == (frame.shape[1], frame.shape[0]):
        return frame
    return cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)


def _with_box(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A white frame with a dark edge, so that it is seen on any ground."""
    height, width = picture.shape[:2]
    corners = np.rint(box * (width, height, width, height)).astype(int) - (0, 0, 1, 1)
    drawn, thin = np.ascontiguousarray(picture), max(1, width // 240)
    for colour, thickness in (((0, 0, 0), 3 * thin), ((255, 255, 255), thin)):
        cv2.rectangle(drawn, corners[:2].tolist(), corners[2:].tolist(), colour, thickness)
    return drawn


def _header(width: int, probabilities: np.ndarray, label: int | None, classes: list[str]) -> np.ndarray:
    """The true class and the frame's own, RGB uint8 `(height, width, 3)`."""
    predicted = int(probabilities.argmax())
    size = _text_size(width)
    lines = [] if label is None else [("true class: ", classes[label], "", PLAIN)]
    mark = "" if label is None else "\u2713 " if predicted == label else "\u2717 "
    lines.append((
        f"{mark}this frame: ", classes[predicted], f" {percent(probabilities[predicted])}%", _colour(predicted, label),
    ))  # fmt: skip
    strip = Image.new("RGB", (width, 2 * round(size * (0.4 + 0.7 * len(lines)))), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for row, (before, name, after, colour) in enumerate(lines):
        y = round(size * (0.4 + 0.7 + 1.4 * row))
        _write_text(draw, size // 2, y, width - size, before, name, after, colour)
    return np.asarray(strip)


def _vote_bar(
    width: int, what: str, shares: np.ndarray, leader: int, order: np.ndarray, label: int | None, classes: list[str]
) -> np.ndarray:
    """Shares of the vote as one stacked bar, the whole width being all of it, and the leading class by name."""
    size = _text_size(width)
    bar, margin = max(6, size // 2), size // 2
    strip = Image.new("RGB", (width, 2 * ((bar + 5 * size // 2) // 2)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    ends = margin + np.rint((width - 2 * margin) * np.minimum(np.cumsum(shares[order]), 1)).astype(int)
    start = margin
    for index, end in zip(order, ends, strict=True):
        if end > start:
            colour = _colour(index, label) if index in (leader, label) else OTHER
            gap = end - start > 3  # between neighbours
            draw.rectangle((start, margin, end - 1 - gap, margin + bar - 1), colour)
        start = end
    y = margin + bar + round(0.9 * size)
    _write_text(draw, margin, y, width - 2 * margin, f"{what} so far: ", classes[leader],
                f" {percent(shares[leader])}%", _colour(leader, label))  # fmt: skip
    return np.asarray(strip)


@lru_cache(maxsize=16)
def _legend(width: int, heatmap: str, close_to_uniform: bool) -> np.ndarray:
    """The heatmap's colours, as they look over mid grey, and what they mean, RGB uint8 `(height, width, 3)`."""
    size = round(0.85 * _text_size(width))
    left, top, length, height = _text_size(width) // 2 + round(0.65 * size), size // 3, 8 * size, size  # of the bar
    below, beside = round(2.15 * size), left + length + size
    grey = np.full((height, length, 3), 128, np.uint8)
    bar = paint(grey, np.tile(np.linspace(0, 1, length), (height, 1)), heatmap)
    strip = Image.new("RGB", (width, 2 * round(1.5 * size)), BACKGROUND)
    strip.paste(Image.fromarray(bar), (left, top))
    draw, font = ImageDraw.Draw(strip), _font(size)
    if heatmap == "absolute":
        doublings = FULL.bit_length() - 1
        for power in range(doublings + 1):
            x = left + round(power / doublings * (length - 1))
            draw.line((x, top + height, x, top + height + 2), MUTED)
            draw.text((x, below), f"{2**power}x", MUTED, font, anchor="mm")
        draw.text((beside, below), "uniform", MUTED, font, anchor="lm")
    else:
        draw.text((left, below), "each frame to its own peak", MUTED, font, anchor="lm")
    if close_to_uniform:
        draw.text((beside, top + height // 2), "attention close to uniform", PLAIN, font, anchor="lm")
    return np.asarray(strip)


def _timeline(width: int, segments: tuple[Segment, ...], time: float) -> np.ndarray:
    """The segments with a cursor at a time in seconds, RGB uint8 `(height, width, 3)`."""
    now = bisect(segments, time, hi=len(segments) - 1, key=lambda segment: segment.end)
    strip, size = _segment_strip(width, segments, now).copy(), _text_size(width)
    x = size // 2 + round(time / segments[-1].end * (width - 2 * (size // 2) - 1))
    strip[:size, x - 1 : x + 2], strip[:size, x] = BACKGROUND, CURSOR
    return strip


@lru_cache(maxsize=4)
def _segment_strip(width: int, segments: tuple[Segment, ...], now: int) -> np.ndarray:
    """Each segment in its action's colour, and below the one of that number by name, with its confidence."""
    size, named = _text_size(width), colours(segments)
    margin, at = size // 2, segments[now]
    strip = Image.new("RGB", (width, 2 * round(1.3 * size)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for segment in segments:
        ends = np.array([segment.start, segment.end]) / segments[-1].end
        left, right = (margin + np.rint(ends * (width - 2 * margin))).astype(int).tolist()
        draw.rectangle((left, 0, max(left, right - 2), size - 1), named[segment.action])
    colour = PLAIN if at.action else MUTED  # green and red say what is right
    _write_text(draw, margin, round(1.8 * size), width - 2 * margin, "", at.action or NO_ACTION,
                f" {percent(at.confidence)}%", colour)  # fmt: skip
    return np.asarray(strip)


def _colour(index: int, label: int | None) -> tuple[int, int, int]:
    return NEUTRAL if label is None else RIGHT if index == label else WRONG


def _text_size(width: int) -> int:
    return max(14, width // 40)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), size)


def _write_text(
    draw: ImageDraw.ImageDraw, x: int, y: int, room: float, before: str, name: str, after: str, colour: tuple
) -> None:
    """`before name after` from `x`, centred at `y`, in at most `room` pixels: a name too long loses its end."""
    font = _font(_text_size(draw.im.size[0]))
    if font.getlength(before + name + after) > room:
        kept = bisect(range(len(name)), room, key=lambda end: font.getlength(f"{before}{name[:end]}\u2026{after}"))
        name = name[: max(kept - 1, 0)] + "\u2026"
    draw.text((x, y), before + name + after, colour, font, anchor="lm")
