"""The diagrams of README and docs/method.md as SVG, in light and dark: python docs/diagrams.py

Numbers in brackets are those of the equations in docs/method.md.
"""

import math
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent / "diagrams"
WIDTH = 1000
CELLS = 7  # of a map, in each direction
LINE_HEIGHT = 19
STYLE = """
    text { fill: #1b2733; text-anchor: middle; }
    text { font: 14px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
    .title { font-size: 15px; font-weight: 600; }
    .formula { font: 16px Georgia, "Times New Roman", serif; }
    .note { font-size: 13px; fill: #5b6875; }
    .start { text-anchor: start; }
    .paper { fill: #ffffff; }
    .panel { fill: none; stroke: #b6c2cd; stroke-dasharray: 2 4; }
    .data { fill: #f3f5f7; stroke: #9fb0bf; }
    .learned { fill: #e3eefc; stroke: #4c86c6; }
    .frozen { fill: #f3f5f7; stroke: #7d8a96; stroke-dasharray: 6 4; }
    .state { fill: #e4f4e8; stroke: #4a9a63; }
    .look { fill: #fdeee3; stroke: #d9772b; }
    .arrow { fill: none; stroke: #52606d; stroke-width: 1.6; marker-end: url(#head); }
    .head { fill: #52606d; }
    .cell { fill: #4c86c6; }
    .heat { fill: #d9500b; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .note { fill: #9aa7b3; }
      .paper { fill: #0d1117; }
      .panel { stroke: #3d4a57; }
      .data { fill: #161b22; stroke: #53616e; }
      .learned { fill: #12263f; }
      .frozen { fill: #161b22; stroke: #8b98a5; }
      .state { fill: #10291a; }
      .look { fill: #33200f; }
      .arrow { stroke: #93a1ae; }
      .head { fill: #93a1ae; }
      .cell { fill: #6ea8e8; }
      .heat { fill: #ff8a3d; }
    }"""
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float

    def left(self, share: float = 0.5) -> Point:
        return self.x, self.y + share * self.height

    def right(self, share: float = 0.5) -> Point:
        return self.x + self.width, self.y + share * self.height

    def top(self, share: float = 0.5) -> Point:
        return self.x + share * self.width, self.y

    def bottom(self, share: float = 0.5) -> Point:
        return self.x + share * self.width, self.y + self.height


@dataclass
class Drawing:
    """Elements of one SVG in the order in which they are painted."""

    title: str
    about: str
    height: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        """One line; `_{...}` is a subscript, and a kind of its own may stand before it: `formula:h_{t}`."""
        own, _, rest = words.rpartition(":")
        kind, words = (own, rest) if own in ("title", "formula", "note") else (kind, words)
        spans = re.split(r"_\{(.*?)\}", words)
        written = escape(spans[0])
        for subscript, after in zip(spans[1::2], spans[2::2], strict=True):
            written += f'<tspan dy="4" font-size="11">{escape(subscript)}</tspan>'
            written += f'<tspan dy="-4">{escape(after)}</tspan>' if after else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{written}</text>')

    def box(self, kind: str, x: float, y: float, width: float, height: float, *lines: str, first: float = 0) -> Box:
        """A rounded box with its lines, a title first, in the middle or from `first` down."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" class="box {kind}"/>'
        )
        first = first or y + height / 2 - LINE_HEIGHT * (len(lines) - 1) / 2 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, first + LINE_HEIGHT * number, line, "note" if number else "title")
        return Box(x, y, width, height)

    def panel(self, x: float, y: float, width: float, height: float, label: str) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="12" class="panel"/>')
        self.text(x + 12, y + 20, label, "note start")

    def map(self, x: float, y: float, size: float, kind: str) -> Box:
        """A 7 x 7 map: of attention, `heat`, with a peak, or of features, `cell`, in a pattern."""
        cell = size / CELLS
        for row in range(CELLS):
            for column in range(CELLS):
                near = math.exp(-((row - 2.4) ** 2 + (column - 4.2) ** 2) / 3.2)
                opacity = 0.06 + 0.9 * near if kind == "heat" else 0.25 + 0.5 * (row * 5 + column * 3) % 0.73
                self.parts.append(
                    f'<rect x="{x + column * cell:.1f}" y="{y + row * cell:.1f}" width="{cell - 1:.1f}" '
                    f'height="{cell - 1:.1f}" class="{kind}" fill-opacity="{opacity:.2f}"/>'
                )
        return Box(x, y, size, size)

    def cube(self, x: float, y: float, *lines: str) -> Box:
        """A feature cube, two channels behind a map, with two lines below."""
        box = self.box("data", x, y, 104, 130)
        for depth in (12, 6, 0):
            size, corner = 60, (x + 18 + depth, y + 22 - depth)
            if depth:
                self.parts.append(
                    f'<rect x="{corner[0]:g}" y="{corner[1]:g}" width="{size}" height="{size}" class="data"/>'
                )
            else:
                self.map(*corner, size, "cell")
        for number, line in enumerate(lines):
            self.text(x + 52, y + 100 + LINE_HEIGHT * number, line, "note" if number else "formula")
        return box

    def arrow(self, *points: Point, label: str = "", at: Point = (0, 0)) -> None:
        """A line with rounded corners from the first point to the last; `at` moves the label from its middle."""
        path = f"M{points[0][0]:g} {points[0][1]:g}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            (ax, ay), (bx, by) = _towards(corner, before), _towards(corner, after)
            path += f" L{ax:g} {ay:g} Q{corner[0]:g} {corner[1]:g} {bx:g} {by:g}"
        self.parts.append(f'<path d="{path} L{points[-1][0]:g} {points[-1][1]:g}" class="arrow"/>')
        if label:
            middle = len(points) // 2
            (ax, ay), (bx, by) = points[middle - 1], points[middle]
            self.text((ax + bx) / 2 + at[0], (ay + by) / 2 + at[1], label, "note")

    def svg(self) -> str:
        body = "\n  ".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" role="img">\n'
            f"  <title>{escape(self.title)}</title>\n  <desc>{escape(self.about)}</desc>\n"
            f"  <style>{STYLE}\n  </style>\n"
            '  <defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0 L10 5 L0 10 z" class="head"/></marker></defs>\n'
            f'  <rect width="{WIDTH}" height="{self.height:g}" rx="10" class="paper"/>\n  {body}\n</svg>\n'
        )


def _towards(corner: Point, other: Point, radius: float = 8) -> Point:
    """The point that is `radius` from a corner on the way to another."""
    length = math.dist(corner, other)
    share = min(radius, length / 2) / length
    return corner[0] + share * (other[0] - corner[0]), corner[1] + share * (other[1] - corner[1])


def pipeline() -> Drawing:
    """What happens to a video."""
    d = Drawing(
        "From videos to answers", "Videos, frozen network, feature cache, attention and recurrence, run, answers.", 356
    )
    d.panel(162, 14, 372, 328, "make extract, once")
    d.panel(550, 14, 288, 328, "make train")
    d.panel(854, 14, 134, 328, "make predict, ...")
    videos = d.box("data", 12, 60, 118, 96, "videos", "one folder", "for each class")
    network = d.box(
        "frozen", 178, 60, 152, 96, "frozen network", "sees 15 frames", "a second: VGG16,", "EfficientNet, ..."
    )
    flow = d.box("data", 178, 226, 152, 96, "optical flow", "what moves", "against the", "camera's motion")
    cache = d.box(
        "data",
        378,
        60,
        140,
        262,
        "feature cache",
        "every frame once:",
        "7 x 7 x D cubes,",
        "motion maps,",
        "flow cubes",
    )
    look = d.box("look", 566, 60, 112, 150, "attention", first=84)
    d.map(592, 98, 60, "heat")
    d.text(622, 186, "weighs places", "note")
    memory = d.box("learned", 722, 60, 100, 150, "LSTM", "a class", "for every", "frame")
    run = d.box("data", 566, 254, 256, 68, "run directory", "model, settings, split, curves")
    answers = d.box(
        "data", 866, 60, 110, 262, "answers", "class and map", "of each frame,", "numbers,", "overlays,", "ONNX, ..."
    )  # fmt: skip
    d.arrow(videos.right(), network.left())
    d.arrow(videos.bottom(), (videos.bottom()[0], flow.left()[1]), flow.left())
    d.arrow(network.right(), cache.left(48 / 262))
    d.arrow(flow.right(), cache.left(214 / 262))
    d.arrow(flow.top(), network.bottom(), label="as pictures", at=(44, 4))
    d.arrow(cache.right(75 / 262), look.left())
    d.arrow(look.right(0.35), memory.left(0.35))
    d.arrow(memory.left(0.65), look.right(0.65))
    d.arrow(memory.bottom(), run.top(206 / 256))
    d.arrow(run.right(), answers.left(228 / 262))
    return d


def _step(d: Drawing, words: dict[str, tuple[str, ...]], bottom: float, first_kind: str = "learned") -> dict[str, Box]:
    """Frame t of a recurrent model: the scores in a row from left to right, the recurrence below, `bottom` its middle.

    What tells the scores of the frame before, in the row between, is the caller's.
    """
    frame = d.cube(16, 42, "X_{t}", *words["cube"])
    see = d.box("learned", 156, 66, 136, 82, *words["see"])
    mix = d.box("data", 328, 66, 96, 82, "tanh", "of the sum")
    score = d.box("learned", 460, 66, 112, 82, *words["score"])
    weights = d.box("look", 608, 42, 116, 130, *words["map"], first=124)
    d.map(636, 48, 60, "heat")
    weigh = d.box("look", 766, 66, 160, 82, *words["weigh"])
    state = d.box("state", 16, bottom - 41, 136, 82, *words["state"])
    core = d.box("learned", 766, bottom - 41, 160, 82, *words["core"])
    after = d.box("state", 950, bottom - 22, 42, 44, "formula:h_{t}")
    classify = d.box("learned", 766, bottom + 74, 160, 72, *words["classify"])
    first = d.box(first_kind, 16, bottom + 78, 420, 64, *words["first"])
    for one, other in pairwise((frame, see, mix, score, weights, weigh)):
        d.arrow((one.right()[0], 107), (other.left()[0], 107))
    d.arrow(frame.top(), (frame.top()[0], 20), (weigh.top()[0], 20), weigh.top())
    d.arrow(weigh.bottom(), core.top())
    d.arrow(state.right(), core.left())
    d.arrow(core.right(), after.left())
    d.arrow(core.bottom(), classify.top())
    d.arrow((84, first.y), (84, bottom + 41), label="t = 1", at=(26, 5))
    return {"mix": mix, "state": state}


def _branch(d: Drawing, made: dict[str, Box], *words: str) -> None:
    """h_{t-1} into the scores."""
    hidden = d.box("learned", 328, 190, 96, 54, *words)
    start, level = made["state"].right(0.25), hidden.left()[1]
    d.arrow(start, (240, start[1]), (240, level), hidden.left())
    d.arrow(hidden.top(), made["mix"].bottom())


ALSTM = {
    "cube": ("7 x 7 x D",),
    "see": ("mlp1", "of the mean cube", "formula:mean_{i} X_{t,i}"),
    "score": ("mlp3", "formula:s_{t}", "(1)"),
    "map": ("softmax", "formula:c_{t}", "(2)"),
    "weigh": ("glimpse", "formula:z_{t} = Σ_{i} c_{t,i} X_{t,i}", "(3)"),
    "state": ("formula:h_{t-1}, cell_{t-1}", "of the frame before"),
    "core": ("LSTM", "formula:h_{t}, cell_{t}", "(4)"),
    "classify": ("classifier", "formula:y_{t}", "(5)"),
    "first": ("mlps of the clip's mean cube", "formula:h_{0}, cell_{0} = mlp(mean_{t} mean_{i} X_{t,i})   (6)"),
}
CONV_ALSTM = ALSTM | {
    "see": ("1 x 1 conv", "of every location", "formula:W_{x} x_{t,i}"),
    "score": ("1 x 1 conv", "formula:s_{t,i}", "(7)"),
    "map": ("softmax", "formula:c_{t}", "(8)"),
    "weigh": ("weighed cube", "formula:c_{t} X_{t}", "not summed   (9)"),
    "state": ("formula:h_{t-1}, cell_{t-1}", "maps, 7 x 7 x U"),
    "core": ("ConvLSTM, 3 x 3", "formula:h_{t}, cell_{t}", "(10)"),
    "classify": ("classifier", "formula:y_{t}", "(11)"),
    "first": ("zeros", "h_{0} and cell_{0}, or of the clip's mean cube (--first_states=clip)"),
}
MOTION_CONV_ALSTM = CONV_ALSTM | {
    "cube": ("frames' cube",),
    "score": ("1 x 1 conv", "formula:s_{t,i}", "(13)"),
    "first": (
        "tanh of convolutions of the clip's means",
        "3 x 3 of X: h_{0}, cell_{0};  1 x 1 of M: g_{0}, e_{0}   (14)",
    ),
}


def alstm() -> Drawing:
    d = Drawing("ALSTM, one frame", "Soft attention over the locations of a feature cube, then an LSTM.", 470)
    _branch(d, _step(d, ALSTM, 300), "mlp2")
    return d


def conv_alstm() -> Drawing:
    d = Drawing("ConvALSTM, one frame", "Every location has a score and a hidden vector of its own.", 470)
    _branch(d, _step(d, CONV_ALSTM, 300, "data"), "1 x 1 conv", "formula:W_{h} h_{t-1,i}")
    return d


def motion_conv_alstm() -> Drawing:
    d = Drawing("Motion attention, one frame", "ConvALSTM whose attention a recurrent map of optical flow guides.", 620)
    made = _step(d, MOTION_CONV_ALSTM, 450)
    flow = d.cube(16, 218, "M_{t}", "flow's cube")
    gates = d.box("learned", 172, 242, 152, 82, "ConvLSTM, 1 x 1", "formula:g_{t}, e_{t}", "(12)")
    motion = d.box("learned", 360, 256, 112, 54, "1 x 1 conv", "formula:W_{g} g_{t,i}")
    before = d.box("state", 344, 362, 144, 54, "formula:g_{t-1}, e_{t-1}", "maps, 7 x 7 x U")
    d.arrow(flow.right(), gates.left())
    d.arrow(gates.right(), motion.left())
    d.arrow((392, motion.y), (392, made["mix"].bottom()[1]))
    start = made["state"].right(0.25)
    d.arrow(start, (220, start[1]), (220, gates.bottom()[1]))
    d.arrow(before.left(), (276, before.left()[1]), (276, gates.bottom()[1]))
    d.arrow((416, 528), before.bottom(), label="t = 1", at=(26, 24))
    return d


def rank_pool() -> Drawing:
    d = Drawing("Rank pooling, one clip", "Attention, then what its glimpses change and in which order they come.", 428)
    frame = d.cube(16, 42, "X_{t}", "7 x 7 x D")
    score = d.box("learned", 192, 66, 136, 82, "scores", "formula:w . X_{t,i}", "of each head")
    weights = d.box("look", 400, 42, 116, 130, "softmax", "formula:c_{t}", "(15)", first=124)
    d.map(428, 48, 60, "heat")
    glimpse = d.box("look", 588, 66, 160, 82, "glimpse", "formula:g_{t} = Σ_{i} c_{t,i} X_{t,i}", "(16)")
    mean = d.box("data", 800, 66, 160, 82, "frame's mean", "formula:m_{t} = mean_{i} X_{t,i}", "(16)")
    flow = d.box("data", 8, 220, 120, 72, "motion", "one map a frame")
    prior = d.box("learned", 192, 220, 136, 72, "prior", "motion, centre")
    clip = d.box(
        "data", 588, 206, 372, 100, "of all n frames, seven parts", "means of g and m",
        "largest and smallest changes of g and m", "order of g: Σ_{t} (2 t - n - 1) g_{t}   (17)",
    )  # fmt: skip
    classify = d.box("learned", 694, 344, 160, 72, "classifier", "formula:y", "one for the clip   (18)")
    for one, other in ((frame, score), (score, weights), (weights, glimpse)):
        d.arrow((one.right()[0], 107), (other.left()[0], 107))
    d.arrow(frame.top(), (frame.top()[0], 20), (glimpse.top()[0], 20), glimpse.top())
    d.arrow(frame.top(), (frame.top()[0], 20), (mean.top()[0], 20), mean.top())
    d.arrow(flow.right(), prior.left())
    d.arrow(prior.right(), (weights.bottom()[0], prior.right()[1]), weights.bottom())
    d.arrow(glimpse.bottom(), clip.top(80 / 372))
    d.arrow(mean.bottom(), clip.top(292 / 372))
    d.arrow(clip.bottom(), classify.top())
    return d


DRAWINGS = {
    "pipeline": pipeline,
    "alstm": alstm,
    "conv_alstm": conv_alstm,
    "motion_conv_alstm": motion_conv_alstm,
    "rank_pool": rank_pool,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
