"""A table as text: drawn by rich where that is installed, in plain columns where it is not."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH = 220  # where the output is no terminal


@dataclass(frozen=True)
class Column:
    """Numbers stand at the right of a column, texts (`left`) at its left."""

    name: str
    left: bool = False


def table(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], rich: bool | None = None
) -> str:
    """`rows` under their headings. `rich`: True, False, or None: if it is installed.

    Raises:
        ImportError: `rich` is True and it is not installed.
    """
    if rich is not False:
        try:
            return _by_rich(title, columns, rows)
        except ImportError:
            if rich:
                raise
    return _plain(title, columns, rows)


def _plain(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    names = [c.name for c in columns]
    widths = [max(len(row[n]) for row in (names, *rows)) for n in range(len(columns))]
    lines = [title] if title else []
    for row in (names, *rows):
        cells = (t.ljust(w) if c.left else t.rjust(w) for t, w, c in zip(row, widths, columns))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _by_rich(title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(
            column.name,
            justify="left" if column.left else "right",
            no_wrap=not column.left,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(t) for t in row))
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((_WIDTH, 50)).columns if terminal else _WIDTH
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=max(width, 100))
    if title:
        console.print(Text(title))
    console.print(drawn)
    return out.getvalue().rstrip("\n")
