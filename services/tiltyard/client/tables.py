"""How objects show themselves: small tables in a notebook, aligned text elsewhere."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["TableList", "card", "html_table", "shown", "text_table", "when"]

T = TypeVar("T")

Row = Sequence[object]


class TableList(list[T]):
    """A list that shows itself as a table in a notebook.

    Args:
        items: what the list holds.
        header: titles of the columns.
        row: the cells of one item.
    """

    def __init__(self, items: Iterable[T], header: Sequence[str], row: Callable[[T], Row]) -> None:
        super().__init__(items)
        self._header = header
        self._row = row

    def _repr_html_(self) -> str:
        return html_table(self._header, [self._row(item) for item in self])


def html_table(header: Sequence[str], rows: Iterable[Row]) -> str:
    """A table with titled columns; every cell is escaped."""
    head = "".join(f"<th>{_cell(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def card(fields: Iterable[tuple[str, object]]) -> str:
    """A table of one object: a title and a value in each row; every cell is escaped."""
    rows = "".join(f"<tr><th>{_cell(title)}</th><td>{_cell(value)}</td></tr>" for title, value in fields)
    return f"<table>{rows}</table>"


def text_table(header: Sequence[str], rows: Iterable[Row]) -> str:
    """The same as aligned text; columns of numbers stand to the right."""
    cells = [[shown(cell) for cell in row] for row in rows]
    table = [list(header), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    right = [bool(cells) and all(_numeric(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if flag else cell.ljust(width)
            for cell, width, flag in zip(row, widths, right, strict=True)
        )
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def shown(cell: object) -> str:
    """Text of one cell: times in UTC to the second, no ``None``."""
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return cell.strftime("%Y-%m-%d %H:%M:%S")
    return str(cell)


def when(time: Timestamp) -> datetime:
    """A protobuf time as an aware datetime in UTC."""
    return time.ToDatetime(tzinfo=UTC)


def _cell(value: object) -> str:
    return html.escape(shown(value))


def _numeric(text: str) -> bool:
    return not text or text.replace(".", "").replace("%", "").replace("-", "").isdigit()
