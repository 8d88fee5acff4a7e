"""How the demo shows itself: a live table in a terminal, lines elsewhere, nothing beside JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tiltyard.demo.run import DemoResult, Tally

__all__ = ["LinesView", "SilentView", "TerminalView", "tallies_table"]

_COLUMNS = ("arm", "requests", "errors", "main > 0.5", "agrees with the label")
_LINE_EVERY_S = 2.0


class TerminalView:
    """A progress bar and a live table."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def step(self, text: str) -> None:
        """One step begins."""
        self._console.print(f"[bold]{text}[/bold] ...")

    @contextmanager
    def replay(self, total: int) -> Iterator[Callable[[DemoResult], None]]:
        """Show the replay while the block runs."""
        bar = Progress(
            TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self._console
        )
        task = bar.add_task("replaying", total=total)
        with Live(bar, console=self._console, refresh_per_second=8) as live:

            def show(result: DemoResult) -> None:
                bar.update(task, completed=result.requests)
                live.update(Group(bar, tallies_table(result)))

            yield show


class LinesView:
    """A line for each step, and one every two seconds of the replay."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock

    def step(self, text: str) -> None:
        """One step begins."""
        self._print(f"{text} ...")

    @contextmanager
    def replay(self, total: int) -> Iterator[Callable[[DemoResult], None]]:
        """Print a line now and then while the block runs, and at its end."""
        last = self._clock()
        shown = 0

        def show(result: DemoResult) -> None:
            nonlocal last, shown
            over = result.requests == total and shown < total
            if over or (self._clock() - last >= _LINE_EVERY_S and result.requests > shown):
                last, shown = self._clock(), result.requests
                self._print(f"  {result.requests:5,} of {total:,}: " + "; ".join(_line(result)))

        yield show

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


class SilentView:
    """Nothing."""

    def step(self, text: str) -> None:
        """One step begins."""

    def replay(self, total: int) -> AbstractContextManager[Callable[[DemoResult], None]]:
        """Show nothing while the block runs."""
        del total
        return nullcontext(lambda result: None)


def tallies_table(result: DemoResult) -> Table:
    """What the client saw, by arm."""
    table = Table()
    for i, title in enumerate(_COLUMNS):
        table.add_column(title, justify="left" if i == 0 else "right", min_width=len(title))
    for arm, tally in result.arms.items():
        table.add_row(_name(arm), f"{tally.requests:,}", f"{tally.errors:,}", *_shares(tally))
    return table


def _line(result: DemoResult) -> Iterator[str]:
    for arm, tally in result.arms.items():
        flagged, correct = _shares(tally)
        yield f"{_name(arm)} {tally.requests:,} requests, {tally.errors} errors, main > 0.5 {flagged}, right {correct}"


def _name(arm: str) -> str:
    return arm or "(no arm)"


def _shares(tally: Tally) -> tuple[str, str]:
    flagged, accuracy = ("-" if share is None else f"{share:.1%}" for share in (tally.flagged_share, tally.accuracy))
    return flagged, accuracy
