"""The segments of a video as a picture, and their colours."""

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from action_attention.segments import Segment

NOBODY_KNOWS = (88, 94, 106)  # where there is no action
CURSOR = (255, 255, 255)
NO_ACTION = "none with confidence"
TAB20 = [tuple(round(255 * part) for part in to_rgb(colour)) for colour in mpl.color_sequences["tab20"]]
PALETTE = [colour for colour in TAB20[::2] + TAB20[1::2] if len(set(colour)) > 1]  # the strong ones first, no grey


def colours(segments: Sequence[Segment]) -> dict[str | None, tuple[int, ...]]:
    """RGB, uint8, of each action, in the order in which they first come; none is grey. They repeat after 18."""
    actions = dict.fromkeys(segment.action for segment in segments if segment.action is not None)
    return {action: PALETTE[number % len(PALETTE)] for number, action in enumerate(actions)} | {None: NOBODY_KNOWS}


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:07, 12:00, 1:02:03."""
    minutes, rest = divmod(int(seconds + 1e-6), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def timeline_png(segments: Sequence[Segment]) -> bytes:
    """A PNG file's bytes: time from left to right, each segment as high as its confidence, in its action's colour."""
    named, end = colours(segments), segments[-1].end
    shown = [action for action in named if any(segment.action == action for segment in segments)]
    rows = -(-len(shown) // 5)
    figure = Figure(figsize=(12, 2.2 + 0.25 * rows), layout="constrained")
    axes = figure.add_subplot()
    for segment in segments:
        colour = _hex(named[segment.action])
        axes.bar(segment.start, segment.confidence, segment.end - segment.start, align="edge", color=colour)
    axes.set(xlim=(0, end), ylim=(0, 1), ylabel="confidence")
    axes.xaxis.set_major_formatter(lambda seconds, _: clock(seconds))
    handles = [Patch(color=_hex(named[action])) for action in shown]
    names = [f" {action or NO_ACTION}" for action in shown]  # one that begins with _ would be left out
    legend = figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _hex(colour: tuple[int, ...]) -> str:
    return f"#{bytes(colour).hex()}"
