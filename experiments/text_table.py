"""Markdown tables as people read them on a terminal: aligned, and no wider than it is."""

import re
import sys
from textwrap import wrap

from absl import flags

from data_prep.terminal import say, width

FORMATS = ("text", "markdown")
GAP = 2  # spaces between columns
NUMBER = re.compile(r"-|[-+]?\d.*")
Rows = list[list[str]]


def define_format() -> None:
    flags.DEFINE_enum(
        "format", None, FORMATS, "how tables are printed [text on a terminal, Markdown in a pipe or a file]"
    )


def as_markdown() -> bool:
    return flags.FLAGS.format == "markdown" or (flags.FLAGS.format is None and not sys.stdout.isatty())


def show(text: str) -> None:
    """Prints text with Markdown tables as `--format` says."""
    say(text if as_markdown() else aligned(text, width()))


def aligned(text: str, columns: int) -> str:
    """The same text with its Markdown tables aligned, in lines of at most so many columns.

    Where a table is too wide, what its rows are called (its first columns, as far as they are words) stands on lines of
    its own above each row's numbers, and once where it is that of the row before; then cells are broken between words;
    then the columns are told in several tables, one below the other.
    """
    blocks, rows = [], Rows()
    for line in [*text.split("\n"), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip()[1:-1].split(" | ")])
            continue
        if rows:
            blocks.append(_table(rows[0], rows[2:], columns))  # a line of dashes stands after the head
            rows = []
        blocks.append("\n".join(_wrapped(line, columns)))
    return "\n".join(blocks).rstrip("\n")


def _table(head: list[str], rows: Rows, columns: int) -> str:
    full = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if _total(full) <= columns:
        return "\n".join(_lines(head, rows, full))
    names = next((n for n, cells in enumerate(zip(*rows, strict=True)) if _are_numbers(cells)), 0)
    parts = _parts(head, rows, names, columns)
    return "\n\n".join("\n".join(_part(head, rows, names, part, columns)) for part in parts)


def _part(head: list[str], rows: Rows, names: int, part: list[int], columns: int) -> list[str]:
    """Lines of the columns with the numbers `part`, below the first `names` ones, which are what rows are called."""
    grid = [[row[n] for n in part] for row in (head, *rows)]
    shown = _lines(grid[0], grid[1:], _widths(grid, columns), apart=True)
    if not names:
        return [line for of_row in shown for line in of_row]
    lines, before = [*_wrapped("; ".join(head[:names]), columns), *shown[0]], [""] * names
    for row, numbers in zip(rows, shown[1:], strict=True):
        lines += [""] if row[: names - 1] != before[:-1] or names == 1 else []
        for name, was in zip(row[:names], before, strict=True):
            lines += _wrapped(name, columns, "  ") if name != was or name == row[names - 1] else []
        lines, before = lines + numbers, row[:names]
    return lines


def _wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    return wrap(text, columns, subsequent_indent=indent, break_on_hyphens=False)


def _lines(head: list[str], rows: Rows, widths: list[int], apart: bool = False) -> list:
    """Aligned lines, of head and rows `apart` where that is asked for; cells too long go on in the next line."""
    numeric = [_are_numbers(cells) for cells in zip(*rows, strict=True)]
    shown = []
    for row in (head, *rows):
        cells = [wrap(cell, width, break_long_words=False) or [""] for cell, width in zip(row, widths, strict=True)]
        height = max(map(len, cells))
        empty = [[""] * (height - len(cell)) for cell in cells]
        filled = [less + cell if row is head else cell + less for cell, less in zip(cells, empty, strict=True)]
        shown.append(
            [
                (" " * GAP)
                .join(
                    text.rjust(width) if right else text.ljust(width)
                    for text, width, right in zip(line, widths, numeric, strict=True)
                )
                .rstrip()
                for line in zip(*filled, strict=True)
            ]
        )
    return shown if apart else [line for of_row in shown for line in of_row]


def _parts(head: list[str], rows: Rows, names: int, columns: int) -> list[list[int]]:
    """The numbers of the columns behind the names, as few parts as fit; without names each begins with the first."""
    key = [] if names else [0]
    parts = [list(key)]
    for n in range(names or 1, len(head)):
        grid = [[row[c] for c in (*parts[-1], n)] for row in (head, *rows)]
        if len(parts[-1]) > len(key) and _total(_least(grid)) > columns:
            parts.append(list(key))
        parts[-1].append(n)
    return parts


def _widths(grid: Rows, columns: int) -> list[int]:
    """Of the columns of head and rows: that of whole cells, less where the lines would be too long."""
    least = _least(grid)
    widths = [max(map(len, cells), default=0) for cells in zip(*grid[1:], strict=True)]
    widths = [max(pair) for pair in zip(widths, least, strict=True)]
    while _total(widths) > columns and widths != least:
        slack = [width - of for width, of in zip(widths, least, strict=True)]
        widths[slack.index(max(slack))] -= 1
    return widths


def _least(grid: Rows) -> list[int]:
    """The longest word of each column."""
    return [max((len(word) for cell in cells for word in cell.split()), default=0) for cells in zip(*grid, strict=True)]


def _total(widths: list[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _are_numbers(cells: tuple[str, ...]) -> bool:
    return all(NUMBER.fullmatch(cell) for cell in cells)
