"""``tiltyard``: one command, its subcommands loaded only when they are used.

Each subcommand lives in ``tiltyard.cli.<name>_cmd`` as a click command called ``command``; the table below is the
list, so that ``tiltyard --help`` starts fast and a process imports only what it runs.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version

import click

from tiltyard.errors import TiltyardError

COMMANDS: dict[str, str] = {
    "up": "Run the whole of Tiltyard on this machine.",
    "demo": "Watch a real A/B test of two TensorFlow models, from upload to counts.",
    "load": "Load-test a gRPC inference service and check its answers.",
    "assign": "Say which arm each key on stdin belongs to, by the router's own function.",
    "router": "Serve requests: split them between champion and challengers.",
    "control": "Serve the control plane: workspaces, models, pipelines, deployments.",
    "outcomes": "Serve the outcomes service: counts per arm.",
    "modelserver": "Serve TensorFlow models with TensorFlow Serving's gRPC API.",
    "report": "Show what came of a pipeline's requests, per arm.",
    "pipelines": "List the pipelines and what is deployed.",
    "weights": "Change the shares of a deployed split.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tiltyard.cli.{cmd_name}_cmd")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"tiltyard.cli.{cmd_name}_cmd.command is no click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version() -> str:
    try:
        return version("tiltyard")
    except PackageNotFoundError:  # run from a source tree
        return "source tree"


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="tiltyard")
def cli() -> None:
    """Run contests between machine-learning models that serve live traffic."""


def main() -> None:
    """Entry point of the ``tiltyard`` command: errors are one line on stderr, exit status 1."""
    try:
        cli(prog_name="tiltyard")
    except TiltyardError as error:
        click.echo(f"tiltyard: {error.message}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        from tiltyard.supervisor.requirements import what_to_install

        advice = what_to_install(error.name or "")
        if advice is None:
            raise
        click.echo(f"tiltyard: {advice}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
