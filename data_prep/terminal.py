"""What programs print for people: on a terminal no line is longer than it is wide, and none is glued to a bar."""

import io
import logging
import shutil
import sys
from textwrap import fill
from typing import TextIO

from absl import logging as absl_logging
from tqdm import tqdm

# a bar's place in the work and the time it took and will take; what stands beside it says how fast
BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def width() -> int:
    """Columns of the terminal, or what COLUMNS says."""
    return shutil.get_terminal_size().columns


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text, to stdout or a stream; on a terminal its lines are broken between words."""
    print(fitted(text, stream or sys.stdout), file=stream or sys.stdout, flush=True)


def warn(text: str) -> None:
    """`say` on stderr that something may not be as it should."""
    say(f"WARNING: {text}", sys.stderr)


def fitted(text: str, stream: TextIO, indent: str = "  ") -> str:
    """Lines for a terminal's width if the stream is one. No word is broken: it may be a path."""
    if not stream.isatty():
        return text
    return "\n".join(
        fill(line, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def reflowed(text: str, stream: TextIO) -> str:
    """Paragraphs for a terminal's width if the stream is one; indented ones and commands keep their lines."""
    if not stream.isatty():
        return text
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(
        fitted(each, stream) if each.startswith((" ", "python")) else fitted(" ".join(each.split()), stream, "")
        for each in [*paragraphs, ""]
    )


def log_in_sentences() -> None:
    """Makes the lines of absl's log those of `say` and `warn`."""
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(_Sentence())
    handler.python_handler.setStream(_BesideBars())


class _Sentence(logging.Formatter):
    """What is said, and `WARNING: ` or the like before it where it is more than a note."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info:
            return text
        return fitted(text if record.levelno <= logging.INFO else f"{record.levelname}: {text}", sys.stderr)


class _BesideBars(io.TextIOBase):
    """stderr for lines that come while a progress bar is drawn there: the bar gives way, and is drawn anew below."""

    def write(self, text: str) -> int:
        with tqdm.external_write_mode(file=sys.stderr):
            return sys.stderr.write(text)
