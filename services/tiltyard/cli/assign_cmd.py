"""``tiltyard assign``: which arm keys belong to."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiltyard.errors import EntityNotFoundError, InvalidArgumentError

if TYPE_CHECKING:
    from tiltyard.router.routes_file import PipelineRoutes


def assignments(pipeline: PipelineRoutes, lines: Iterable[bytes]) -> Iterator[bytes]:
    """For each line ``key<TAB>arm``, by the router's compiled function and the pipeline's first table.

    Args:
        pipeline: whose salt and table count.
        lines: keys, with or without a newline at the end.

    Raises:
        ImportError: the compiled router is not installed.
        InvalidArgumentError: a line is empty or longer than a key may be.
    """
    from tiltyard_router.split import MAX_KEY, Splitter

    from tiltyard.slots import first_table

    runs = first_table(pipeline.weights).runs() if pipeline.slots is None else pipeline.slots
    splitter = Splitter(runs, pipeline.salt)
    arms = [name.encode() for name in pipeline.arm_names]
    for number, line in enumerate(lines, 1):
        key = line[:-1] if line.endswith(b"\n") else line
        if not key:
            raise InvalidArgumentError(f"line {number} is empty; without a key the router draws the arm at random")
        if len(key) > MAX_KEY:
            raise InvalidArgumentError(f"line {number} has {len(key)} bytes; the router refuses keys above {MAX_KEY}")
        yield b"%b\t%b\n" % (key, arms[splitter.assign(key)[2]])


@click.command()
@click.option("--routes", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The routes file.")
@click.option("--pipeline", required=True, metavar="NAME", help="The pipeline, by its name in the file.")
def command(routes: Path, pipeline: str) -> None:
    """Say which arm each key on stdin belongs to, by the router's own function.

    Keys stand one a line and are taken byte for byte, without the newline. Each is printed with a tab and the name of
    its arm. The table is the one a router starts with; where weights were changed while it ran, and there are three or
    more arms, its table may differ (see docs/assignment.md).
    """
    from tiltyard.router.routes_file import load_routes

    file = load_routes(routes)
    found = next((entry for entry in file.pipelines if entry.name == pipeline), None)
    if found is None:
        names = ", ".join(entry.name for entry in file.pipelines[:10]) or "none"
        raise EntityNotFoundError(f"{file.path} has no pipeline {pipeline!r}; its pipelines are {names}")
    stdout = sys.stdout.buffer
    try:
        stdout.writelines(assignments(found, sys.stdin.buffer))
    except ImportError as error:
        raise click.ClickException(f"assign needs the compiled router, which is not installed ({error})") from error
    finally:
        stdout.flush()
