"""``tiltyard control``: the control plane."""

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
    from tiltyard.control.app import ControlSettings


async def _serve(settings: ControlSettings) -> None:
    from tiltyard.control.app import build_control

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control = build_control(settings)
    try:
        await control.start()
        click.echo(f"tiltyard: control ready on {control.address}")
        await stop.wait()
    finally:
        await control.stop()


@click.command()
@click.option("--listen", default="127.0.0.1:8510", show_default=True, metavar="HOST:PORT", help="Port 0 picks one.")
@click.option(
    "--router-listen", default="", metavar="unix:PATH", help="Serve routers here; default: a socket in the data folder."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("~/.local/share/tiltyard"),
    show_default=True,
    help="Database, models and receipt key.",
)
@click.option("--model-server", "model_servers", multiple=True, metavar="HOST:PORT", help="May be given several times.")
@click.option("--insecure-listen", is_flag=True, help="Allow plaintext beyond loopback, and TCP for routers.")
def command(
    listen: str, router_listen: str, data_dir: Path, model_servers: tuple[str, ...], insecure_listen: bool
) -> None:
    """Serve the control plane: workspaces, models, pipelines, deployments.

    Prints one line when it serves. SIGTERM and Ctrl-C stop it once the calls in flight are done.
    """
    # Until the event loop takes over, a stop signal just ends the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log_to_stderr()
    logging.getLogger("alembic").setLevel(logging.WARNING)
    os.umask(0o077)  # database and models are the owner's alone
    try:
        from tiltyard.control.app import ControlSettings
    except ImportError as error:
        raise click.ClickException(f"the control plane needs: pip install 'tiltyard[server]' ({error})") from error
    settings = ControlSettings(
        listen=listen,
        router_listen=router_listen,
        data_dir=data_dir.expanduser(),
        model_servers=model_servers,
        insecure_listen=insecure_listen,
    )
    asyncio.run(_serve(settings))
