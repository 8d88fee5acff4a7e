"""``tiltyard outcomes``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiltyard.logs import log_to_stderr

if TYPE_CHECKING:
    from tiltyard.outcomes.app import OutcomesSettings


@click.command("outcomes")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Address for users; port 0 picks a free one.")
@click.option("--router-listen", help="Where routers report, unix:PATH.  [default: outcomes.sock in the data folder]")
@click.option(
    "--data-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the database."
)
@click.option("--insecure-listen", is_flag=True, help="Allow plaintext on another address than loopback.")
def command(listen: str, router_listen: str | None, data_dir: Path, insecure_listen: bool) -> None:
    """Serve the outcomes service: counts per arm.

    Prints one line when it serves. SIGTERM and Ctrl-C stop it once the calls in flight are done.
    """
    # Until the event loop takes over, a stop signal just ends the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log_to_stderr()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # the database and the routers' socket are for this user only
    try:
        from tiltyard.outcomes.app import OutcomesSettings
    except ImportError as error:
        raise click.ClickException(f"the outcomes service needs: pip install 'tiltyard[server]' ({error})") from error
    settings = OutcomesSettings(
        data_dir=data_dir.expanduser(), listen=listen, router_listen=router_listen, insecure_listen=insecure_listen
    )
    asyncio.run(_serve(settings))


async def _serve(settings: OutcomesSettings) -> None:
    from tiltyard.outcomes.app import build_outcomes

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    outcomes = build_outcomes(settings)
    await outcomes.start()
    click.echo(f"tiltyard: outcomes ready on {outcomes.address}")
    await stop.wait()
    await outcomes.stop()
