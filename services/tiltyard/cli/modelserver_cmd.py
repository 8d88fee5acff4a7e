"""``tiltyard modelserver``: the embedded model server."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tiltyard.modelserver.app import ModelServerSettings


async def _serve(settings: ModelServerSettings) -> None:
    from tiltyard.modelserver.app import build_modelserver

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = build_modelserver(settings)
    try:
        await server.start()
        click.echo(f"tiltyard: modelserver ready on {server.address}")
        await stop.wait()
    finally:
        await server.stop()


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8500, show_default=True, help="0 picks a free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--insecure-listen", is_flag=True, help="Allow a host other than loopback, in plaintext.")
@click.option("--grpc_socket_path", default="", metavar="PATH", help="Also listen on this UNIX socket.")
@click.option("--model_name", default="", metavar="NAME", help="Serve this model from the start.")
@click.option("--model_base_path", default="", metavar="DIR", help="Its folder: one folder per version in it.")
def command(
    port: int, host: str, insecure_listen: bool, grpc_socket_path: str, model_name: str, model_base_path: str
) -> None:
    """Serve TensorFlow models with TensorFlow Serving's gRPC API.

    Without a model it starts empty and takes its models by HandleReloadConfigRequest. Prints one line when it serves.
    SIGTERM and Ctrl-C stop it once the calls in flight are done.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # TensorFlow takes seconds to load: a stop signal in that time just ends the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        from tiltyard.modelserver.app import ModelServerSettings
    except ImportError as error:
        raise click.ClickException(
            f"the model server needs TensorFlow: pip install 'tiltyard[serve]' ({error})"
        ) from error
    settings = ModelServerSettings(
        listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        insecure_listen=insecure_listen,
        socket_path=grpc_socket_path,
        model_name=model_name,
        model_base_path=model_base_path,
    )
    asyncio.run(_serve(settings))
