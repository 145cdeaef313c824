"""Videos side by side, with where a model looks in them and what it takes them for, as one animated picture.

The README's: python examples/animation.py --output docs/attention.webp golf.avi shoot_bow.avi pour.avi wave.avi
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import action_attention as aa
from action_attention.heatmaps import overlay
from action_attention.metrics import percent
from action_attention.overlays import BACKGROUND, FONT, MUTED, PLAIN

HEIGHT, CAPTION, GAP = 176, 26, 4  # pixels


def panel(frame: np.ndarray, attention: np.ndarray, caption: str, sure: bool) -> Image.Image:
    """One frame with its heatmap, and the video's answer under it."""
    width = round(frame.shape[1] * HEIGHT / frame.shape[0])
    small = cv2.resize(frame, (width, HEIGHT), interpolation=cv2.INTER_AREA)
    picture = Image.new("RGB", (width, HEIGHT + CAPTION), BACKGROUND)
    picture.paste(Image.fromarray(overlay(small, attention)))
    font = ImageFont.truetype(str(FONT), 14)
    ImageDraw.Draw(picture).text((8, HEIGHT + 4), caption, PLAIN if sure else MUTED, font)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--output", type=Path, required=True, help="ends in .webp or .gif")
    parser.add_argument("--run", default="jhmdb21", help="a run directory, or the name of a pretrained model")
    parser.add_argument("--pictures", type=int, default=45, help="at most so many, 15 a second")
    parser.add_argument("--quality", type=int, default=50, help="of a WebP, 0 to 100")
    args = parser.parse_args()

    run, columns = aa.load(args.run), []
    for video in args.videos:
        result = run.predict(video)
        answer = f"{result.answer or 'not sure'}, {percent(result.confidence)}%"
        seen = zip(result.read(), result.attention, strict=True)
        columns.append([panel(frame, attention, answer, result.answer is not None) for frame, attention in seen])

    width = sum(column[0].width + GAP for column in columns) - GAP
    pictures = []
    for number in range(min(args.pictures, max(map(len, columns)))):
        row, x = Image.new("RGB", (width, HEIGHT + CAPTION), "white"), 0
        for column in columns:  # a shorter video starts again
            row.paste(column[number % len(column)], (x, 0))
            x += column[0].width + GAP
        pictures.append(row)
    pictures[0].save(
        args.output, save_all=True, append_images=pictures[1:], duration=round(1000 / result.fps), loop=0,
        quality=args.quality, method=6,
    )  # fmt: skip
    print(f"{args.output}: {len(pictures)} pictures, {args.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
