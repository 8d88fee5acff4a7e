"""``tiltyard router``: the router process."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiltyard.errors import ConfigError

if TYPE_CHECKING:
    from tiltyard.router.app import RouterProcess, RouterSettings

_DATA_DIR = Path("~/.local/share/tiltyard/router")


def _ready(address: str) -> None:
    click.echo(f"tiltyard: router ready on {address}")


async def _serve(settings: RouterSettings) -> bool:
    from tiltyard.router.app import build_router

    router: RouterProcess = build_router(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, router.stop)
    loop.add_signal_handler(signal.SIGHUP, router.reload)
    return await router.serve(_ready)


@click.command()
@click.option("--listen", default="127.0.0.1:8500", show_default=True, metavar="HOST:PORT", help="Port 0: a free one.")
@click.option("--routes", type=click.Path(path_type=Path), metavar="FILE", help="Routes file; SIGHUP reads it again.")
@click.option("--watch", default="", metavar="ADDR", help="Control plane's router-facing address to get routes from.")
@click.option("--loops", type=click.IntRange(1), default=1, show_default=True, help="Proxy loops; only 1 so far.")
@click.option("--control", default="", metavar="ADDR", help="Where calls to the control plane are passed on to.")
@click.option("--outcomes", default="", metavar="ADDR", help="Where calls to the outcomes service are passed on to.")
@click.option("--outcomes-report", default="", metavar="ADDR", help="Outcomes service's router-facing address.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DATA_DIR,
    show_default=True,
    help="Counters and the receipt key.",
)
@click.option("--receipt-key-file", type=click.Path(path_type=Path), metavar="FILE", help="32 bytes, or 64 hex digits.")
@click.option(
    "--drain-limit",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long calls in flight may run on after SIGTERM.",
)
@click.option("--name", default="", help="Its name in reports; keep it over restarts.  [default: host name:port]")
@click.option("--insecure-listen", is_flag=True, help="Allow an address other than loopback, in plaintext.")
def command(
    *,
    listen: str,
    routes: Path | None,
    watch: str,
    loops: int,
    control: str,
    outcomes: str,
    outcomes_report: str,
    data_dir: Path,
    receipt_key_file: Path | None,
    drain_limit: float,
    name: str,
    insecure_listen: bool,
) -> None:
    """Serve requests: split them between champion and challengers.

    Routes come from a file (--routes; docs/routes-file.md) or from the control plane (--watch). Prints one line when
    it serves. SIGHUP reads the routes file again. SIGTERM and Ctrl-C let calls in flight finish; a second one does not
    wait. Exit status 2: a flag or the routes file is wrong.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until it serves
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the file has not been read yet
    from tiltyard.logs import log_to_stderr
    from tiltyard.router.app import RouterSettings

    log_to_stderr()
    _allow_many_files()
    try:
        if loops != 1:
            raise ConfigError(f"--loops {loops}: this version runs one loop; leave the flag out")
        settings = RouterSettings(
            listen=listen,
            routes=routes,
            watch=watch,
            control=control,
            outcomes=outcomes,
            outcomes_report=outcomes_report,
            data_dir=data_dir.expanduser(),
            receipt_key_file=receipt_key_file,
            name=name,
            drain_limit_s=drain_limit,
            insecure_listen=insecure_listen,
        )
        asked_to_end = asyncio.run(_serve(settings))
    except ConfigError as error:
        click.echo(f"tiltyard: {error.message}", err=True)
        sys.exit(2)
    except OSError as error:  # a socket or file that the core could not use
        click.echo(f"tiltyard: the router could not start: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if asked_to_end else 1)


def _allow_many_files() -> None:
    """Every connection is a descriptor: use all that this process may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
