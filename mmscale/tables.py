"""Tables for terminals, notebooks and logs: what objects print themselves with."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from mmscale.shown import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

# Columns of a text that goes to no terminal.
_WIDTH = 100


def size_text(shape: Sequence[int]) -> str:
    """The size of an image (height, width) or of a text (length) in words.

    Example:
        >>> size_text((224, 224)), size_text((800, 1344)), size_text((128,))
        ('224 px', '800 x 1344 px', '128 tokens')
    """
    if len(shape) == 1:
        return f'{shape[0]} tokens'
    height, width = shape
    return f'{height} px' if height == width else f'{height} x {width} px'


def make_table(
    title: str | None,
    columns: Sequence[str],
    rows: Iterable[Sequence[object] | None],
    total: Sequence[object] | None = None,
    dense: bool = False,
) -> Table:
    """A table whose first column is text and whose other columns are numbers.

    Args:
        title: What stands above it.
        columns: Names of the columns; a table whose names are all empty has no header.
        rows: Cells by row, None is an empty cell; None for a row is a gap.
        total: A last row, set apart.
        dense: Whether many columns have to fit into 80 characters; none of them is broken.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def text(cell: object) -> Text:
        # Names of files and of networks are no markup, whatever brackets they have.
        return Text('' if cell is None else visible(cell))

    # Without vertical lines, 14 digits fit into the 80 columns of a pipe.
    table = Table(
        title=title and text(title), box=box.SIMPLE_HEAD, pad_edge=False, title_justify='left',
        show_header=any(columns), show_edge=not dense, padding=(0, 1, 0, 0) if dense else (0, 1),
    )  # fmt: skip
    for i, column in enumerate(columns):
        table.add_column(column, justify='right' if i else 'left', overflow='fold', no_wrap=dense)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(text, row))
    if total is not None:
        table.add_section()
        table.add_row(*map(text, total), style='bold')
    return table


class AsText:
    """Shows in a notebook what ``print`` shows."""

    def _repr_html_(self) -> str:
        return f'<pre>{html.escape(visible_lines(self))}</pre>'


class Printed:
    """Prints itself as tables and lines: on a terminal, in a notebook and as text."""

    def renderables(self) -> Sequence[RenderableType]:
        """Tables and lines of text, from top to bottom."""
        raise NotImplementedError

    def __rich_console__(self, console: Console, _: object) -> Iterator[RenderableType]:
        from rich.text import Text

        for part in self.renderables():
            if isinstance(part, str):
                part = Text(visible_lines(part))
            yield part

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return '\n'.join(line.rstrip() for line in self._recorded().export_text().splitlines())

    def _repr_html_(self) -> str:
        return self._recorded().export_html(inline_styles=True, code_format='<pre>{code}</pre>')

    def _recorded(self) -> Console:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=_WIDTH, record=True)
        # A line is not broken: it may hold a path that is to be copied.
        console.print(self, soft_wrap=True)
        return console
