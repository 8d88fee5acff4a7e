"""``tiltyard outcomes``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

import click

from tiltyard.outcomes.app import OutcomesSettings, build_outcomes


@click.command("outcomes")
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Address for users; port 0 picks a free one.")
@click.option("--router-listen", help="Where routers report, unix:PATH.  [default: outcomes.sock in the data folder]")
@click.option(
    "--data-dir", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for the database."
)
@click.option("--insecure-listen", is_flag=True, help="Allow plaintext on another address than loopback.")
def command(listen: str, router_listen: str | None, data_dir: Path, insecure_listen: bool) -> None:
    """Serve the outcomes service: counts per arm."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # the database and the routers' socket are for this user only
    settings = OutcomesSettings(
        data_dir=data_dir, listen=listen, router_listen=router_listen, insecure_listen=insecure_listen
    )
    asyncio.run(_serve(settings))


async def _serve(settings: OutcomesSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    outcomes = build_outcomes(settings)
    await outcomes.start()
    click.echo(f"tiltyard: outcomes ready on {outcomes.address}")
    await stop.wait()
    await outcomes.stop()
