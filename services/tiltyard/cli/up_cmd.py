"""``tiltyard up``: all of Tiltyard on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tiltyard.supervisor.app import UpSettings


def _say(text: str) -> None:
    click.echo(f"tiltyard: {text}", err=True)


async def _serve(settings: UpSettings) -> bool:
    from tiltyard.supervisor.app import build_up

    up = build_up(settings, say=_say)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asks that a closed terminal be no reason
            loop.add_signal_handler(number, up.stop)
    _say(f"starting; data and logs are in {up.data_dir}")
    return await up.serve(lambda address: click.echo(f"tiltyard: ready on {address}"))


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("~/.local/share/tiltyard"),
    show_default=True,
    help="Everything that is kept: models, databases, counters, logs. One `up` at a time.",
)
@click.option("--listen", default="127.0.0.1:8500", show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@click.option("--insecure-listen", is_flag=True, help="Allow an address other than loopback, in plaintext.")
@click.option(
    "--drain-limit",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long calls in flight may run on after a stop signal.",
)
def command(data_dir: Path, listen: str, insecure_listen: bool, drain_limit: float) -> None:
    """Run the whole of Tiltyard on this machine.

    Starts the router, the control plane, the outcomes service and the model server, and starts again whichever dies.
    Prints one line when it serves. SIGTERM and Ctrl-C stop them in order; a second one does not wait.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until something runs
    os.umask(0o077)  # what is kept, logs included, is the owner's alone
    from tiltyard.supervisor.app import UpSettings

    settings = UpSettings(data_dir=data_dir, listen=listen, insecure_listen=insecure_listen, drain_limit_s=drain_limit)
    sys.exit(0 if asyncio.run(_serve(settings)) else 1)
