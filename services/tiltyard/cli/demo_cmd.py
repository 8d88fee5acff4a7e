"""``tiltyard demo``: a real A/B test of two TensorFlow models, from upload to counts."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tiltyard.demo.run import DemoResult, View

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as shells have it."""


@click.command()
@click.option("--address", metavar="HOST:PORT", help="Use the Tiltyard that runs there instead of starting one.")
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder with models/ and heldout.csv.  [default: examples/dga here or above]",
)
@click.option(
    "--threads", type=click.IntRange(1, 256), default=16, show_default=True, help="Requests in flight at a time."
)
@click.option(
    "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Form of the result."
)
def command(address: str | None, models: Path | None, threads: int, output: str) -> None:
    """Watch a real A/B test of two TensorFlow models, from upload to counts.

    Starts a Tiltyard of its own, uploads two models that judge domain names, splits the requests between them 2 to 1
    by session, replays 5,000 labelled names, and prints what was seen. Exit status 1 when anything failed, 130 when
    Ctrl-C stopped it; what it started is taken down in any case.
    """
    interrupts = _count_interrupts()
    try:
        problems = _run(address, models, threads, output)
    except KeyboardInterrupt:
        if len(interrupts) > 1:
            click.echo("tiltyard: stopped at once; something may not have been taken down", err=True)
        else:
            what = "everything was taken down" if address is None else f"nothing of it is deployed on {address}"
            click.echo(f"tiltyard: stopped; {what}", err=True)
        sys.exit(INTERRUPTED)
    for problem in problems:
        click.echo(f"tiltyard: {problem}", err=True)
    sys.exit(1 if problems else 0)


def _count_interrupts() -> list[int]:
    """What Ctrl-C has interrupted so far: the first the demo, a second one its taking down."""
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> None:
        interrupts.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise somebody wants it ignored
        signal.signal(signal.SIGINT, interrupt)
    return interrupts


def _run(address: str | None, models: Path | None, threads: int, output: str) -> list[str]:
    """Run it and show what came of it; what went wrong, for people."""
    from rich.console import Console

    from tiltyard.client import Client
    from tiltyard.demo.data import find_demo
    from tiltyard.demo.run import own_tiltyard, run_demo
    from tiltyard.supervisor.requirements import check_installed

    files = find_demo(models)
    if address is None:
        check_installed()
    console = Console()
    view = _view(console, output)
    with contextlib.ExitStack() as stack:
        # So that SIGTERM, too, undeploys, stops what was started and removes the temporary folder.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)))
        if address is None:
            view.step("starting Tiltyard: router, control plane, outcomes, model server")
            address = stack.enter_context(own_tiltyard())
        client = stack.enter_context(Client(address, interactive=False))
        result = run_demo(client, files, view, threads=threads)
    problems = result.problems()
    if output == "json":
        click.echo(json.dumps(_as_json(result, problems), indent=2))
    else:
        _show(console, result)
    return problems


def _view(console: Console, output: str) -> View:
    from tiltyard.demo.view import LinesView, SilentView, TerminalView

    if output == "json":
        return SilentView()
    return TerminalView(console) if console.is_terminal else LinesView(console)


def _show(console: Console, result: DemoResult) -> None:
    from rich.table import Table

    from tiltyard.demo.view import tallies_table

    rate = result.requests / result.seconds if result.seconds else 0.0
    console.print(
        f"\n{result.requests:,} requests of {result.sessions:,} sessions in {result.seconds:.1f} s ({rate:,.0f} a "
        f"second).\nSessions answered by more than one arm: {result.split_sessions}.",
        highlight=False,
    )
    console.print("\nWhat the client saw:")
    console.print(tallies_table(result))
    if result.report is not None:
        console.print("\nWhat the router counted as the answers passed:")
        header, rows = result.report.table()
        table = Table()
        for i, title in enumerate(header):
            table.add_column(title, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*map(str, row))
        console.print(table)
    console.print(
        "\nThis is what was seen, and no verdict: this version of Tiltyard counts, and does not yet say whether a "
        "difference like this is more than chance.",
        highlight=False,
    )


def _as_json(result: DemoResult, problems: list[str]) -> dict[str, Any]:
    return {
        "requests": result.requests,
        "errors": result.errors,
        "seconds": round(result.seconds, 3),
        "sessions": result.sessions,
        "sessions_on_several_arms": result.split_sessions,
        "arms": [
            {"arm": arm, **asdict(tally), "flagged_share": tally.flagged_share, "accuracy": tally.accuracy}
            for arm, tally in result.arms.items()
        ],
        "report": result.report.to_dict() if result.report is not None else None,
        "verdict": None,
        "problems": problems,
    }
