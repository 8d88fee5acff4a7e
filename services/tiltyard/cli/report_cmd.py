"""``tiltyard report``: what came of a pipeline's requests, per arm."""

from __future__ import annotations

import json

import click

from tiltyard.client import DEFAULT_ADDRESS, Client, Report

__all__ = ["command"]


@click.command()
@click.argument("pipeline")
@click.option("--address", default=DEFAULT_ADDRESS, show_default=True, help="Where `tiltyard up` or a router serves.")
@click.option(
    "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Form of the report."
)
def command(pipeline: str, address: str, output: str) -> None:
    """Show what came of the requests to PIPELINE (a name, or WORKSPACE/NAME), per arm.

    Counts are of the deployment heard of last, by completion, and about a second old.
    """
    with Client(address) as client:
        report = client.report(pipeline)
    if output == "json":
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _show(report)


def _show(report: Report) -> None:
    # rich and its table are loaded for people only; `--output json` starts faster without them.
    from rich.console import Console
    from rich.table import Table

    header, rows = report.table()
    table = Table(title=f"{report.pipeline}, counts so far", caption=_caption(report))
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def _caption(report: Report) -> str:
    when = f"as of {report.reported:%Y-%m-%d %H:%M:%S} UTC; " if report.reported else ""
    return f"{when}these are counts, not yet a verdict: a difference between arms may be chance"
