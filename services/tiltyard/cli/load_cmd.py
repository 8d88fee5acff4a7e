"""``tiltyard load``: load-test a gRPC inference service and check its answers."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tiltyard.errors import UnsupportedError
from tiltyard.testing.payload import predict_request

if TYPE_CHECKING:  # the compiled module may be missing; _loadgen says what to do then
    from tiltyard_router.loadgen import Latency, LoadConfig, LoadResult, Progress

__all__ = ["command", "result_json"]

_SHOW_AFTER_S = 2.0
_STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_FAILURE_TEXT = {
    "timeout": "no answer within the deadline",
    "connection": "connection lost",
    "reset": "stream reset by the server",
    "refused": "stream refused by the server",
    "http": "HTTP status other than 200",
    "no_status": "answer without grpc-status",
}


def _loadgen() -> Any:
    """The compiled module, or an error that says how to get it."""
    try:
        from tiltyard_router import loadgen
    except ImportError as error:
        raise UnsupportedError(
            "tiltyard load needs the compiled part of Tiltyard (tiltyard_router), which is not installed here: "
            f"{error}. Install a C compiler, pkg-config and the headers of Python, libuv, libnghttp2, openssl, "
            "libxxhash and zlib (Debian: gcc pkg-config python3-dev libuv1-dev libnghttp2-dev libssl-dev "
            "libxxhash-dev zlib1g-dev), then install Tiltyard again"
        ) from error
    return loadgen


def result_json(result: LoadResult) -> dict[str, Any]:
    """A result as JSON values: seconds, counts, statuses by their names."""
    values = dataclasses.asdict(result)
    for name in ("statuses", "messages"):
        values[name] = {_STATUS_NAMES.get(code, str(code)): value for code, value in values[name].items()}
    return {**values, "failed": result.failed, "ok_rate": result.ok_rate, "clean": result.clean}


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _latency_row(latency: Latency) -> list[str]:
    parts = (latency.p50_s, latency.p90_s, latency.p99_s, latency.p999_s, latency.max_s, latency.mean_s)
    return [_time(part) for part in parts]


def _count_rows(result: LoadResult) -> list[tuple[str, int, str]]:
    """Name, count and style of every count worth a line."""
    rows = [("OK", result.ok, "green")]
    for code, n in sorted(result.statuses.items()):
        said = result.messages.get(code, "")
        rows.append((f"{_STATUS_NAMES.get(code, str(code))}{': ' + said[:100] if said else ''}", n, "red"))
    rows += [(_FAILURE_TEXT.get(why, why), n, "red") for why, n in result.failures.items()]
    extra = (
        ("status OK, but the answer is cut off or not of the wanted size", result.wrong_size),
        ("not sent: too many in flight", result.not_sent),
        ("still open at the end", result.abandoned),
    )
    return rows + [(text, n, "red") for text, n in extra if n]


def _latency_table(result: LoadResult, *, open_loop: bool) -> Table:
    table = Table(show_header=True)
    for name in ("", "p50", "p90", "p99", "p99.9", "max", "mean"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("from planned time" if open_loop else "latency", *_latency_row(result.latency))
    if open_loop:
        table.add_row("sent late by", *_latency_row(result.send_lag))
    return table


def _show(result: LoadResult, config: LoadConfig, console: Console) -> None:
    console.print(f"{config.target}{config.path}", soft_wrap=True, highlight=False)
    counts = Table(show_header=False)
    counts.add_column("what")
    counts.add_column("calls", justify="right")
    counts.add_column("share", justify="right")
    for name, n, style in _count_rows(result):
        share = f"{100 * n / result.issued:.4g} %" if result.issued else ""
        counts.add_row(Text(name, style=style if n else ""), str(n), share)
    for arm, n in sorted(result.arms.items()):
        counts.add_row(Text(f"  arm {arm}"), str(n), f"{100 * n / result.ok:.4g} %" if result.ok else "")
    console.print(counts)
    if result.latency.count:
        console.print(_latency_table(result, open_loop=config.rps > 0))
    line = f"{result.ok_rate:,.1f} OK calls/s over {result.elapsed_s:.2f} s"
    if result.connect_errors or result.connections_lost:
        line += (
            f"; {result.connect_errors} connections failed, {result.connections_lost} were lost, "
            f"{result.reconnects} opened again ({result.detail})"
        )
    console.print(line, soft_wrap=True, highlight=False)
    if result.ended != "done":
        console.print(f"ended early: {result.ended}", style="red")


def _run(loadgen: Any, config: LoadConfig) -> LoadResult:
    """Run; on a terminal, show how it goes once it has taken two seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        result: LoadResult = loadgen.run(config)
        return result
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(now: Progress) -> None:
            if not now.measuring:
                live.update(Text("warming up"), refresh=True)
            elif now.elapsed_s >= _SHOW_AFTER_S:
                text = (
                    f"{now.elapsed_s:5.0f} s  {now.ok / now.elapsed_s:,.0f} OK/s  "
                    f"{now.issued - now.ok - now.in_flight} not OK  "
                    f"p50 {_time(now.p50_s)}  p99 {_time(now.p99_s)}"
                )
                live.update(Text(text), refresh=True)

        shown: LoadResult = loadgen.run(config, on_progress=show)
        return shown


def _payload(options: dict[str, Any]) -> bytes:
    """Takes the payload's options out of ``options``."""
    path: Path | None = options.pop("payload")
    model: str = options.pop("model")
    made = {name: options.pop(name) for name in ("rows", "floats", "input_name", "signature", "size")}
    if (path is None) == (not model):
        raise click.UsageError("give either --model NAME or --payload FILE")
    if path is not None:
        return path.read_bytes()
    return predict_request(model, **made)


def _config(loadgen: Any, target: str, options: dict[str, Any]) -> LoadConfig:
    pairs = []
    for item in options.pop("metadata"):
        name, equals, value = item.partition("=")
        if not equals:
            raise click.UsageError(f"--metadata {item}: write NAME=VALUE")
        pairs.append((name, value))
    size: str = options.pop("answer_size")
    if size not in ("any", "same") and not size.isdigit():
        raise click.UsageError("--answer-size is a number of bytes, 'same' or 'any'")
    if not options["requests"] and not options["duration_s"]:
        options["duration_s"] = 10.0
    answer_size = None if size == "any" else size if size == "same" else int(size)
    payload = _payload(options)
    try:
        config: LoadConfig = loadgen.LoadConfig(
            target=target, payload=payload, metadata=tuple(pairs), answer_size=answer_size, **options
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return config


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--rps", type=float, default=0.0, help="Open loop: calls a second in all. Default: closed loop."),
    click.option("--spacing", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True),
    click.option("--max-in-flight", type=int, default=10_000, show_default=True, help="Open loop: bound on calls."),
    click.option("--connections", "-c", type=int, default=8, show_default=True),
    click.option("--streams", "-m", type=int, default=16, show_default=True, help="Calls in flight per connection."),
    click.option("--requests", "-n", type=int, default=0, help="How many measured calls."),
    click.option("--duration", "-d", "duration_s", type=float, default=0.0, help="Measured seconds.  [default: 10]"),
    click.option("--warmup", "warmup_s", type=float, default=0.0, help="Seconds before, not counted."),
    click.option("--warmup-requests", type=int, default=0, help="Calls before, not counted."),
    click.option("--timeout", "timeout_s", type=float, default=10.0, show_default=True, help="Deadline of a call."),
    click.option("--time-limit", "time_limit_s", type=float, default=0.0, help="Longest the whole run may take."),
    click.option("--key-header", default="", help="Metadata name of the key; every call gets a new one."),
    click.option("--keys", type=int, default=0, help="Draw keys from a pool of so many instead."),
    click.option("--key-prefix", default="", help="What keys begin with; fixed, the pool is the same every run."),
    click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Further metadata; may be repeated."),
    click.option("--model", default="", help="Send a PredictRequest to this model or pipeline."),
    click.option("--input-name", default="x", show_default=True, help="Its input."),
    click.option("--signature", default="", help="Its signature."),
    click.option("--rows", type=int, default=1, show_default=True),
    click.option("--floats", type=int, default=32, show_default=True, help="Values of a row."),
    click.option("--size", type=int, default=0, help="Pad the PredictRequest to so many bytes."),
    click.option("--payload", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Send these bytes."),
    click.option("--path", default="/tensorflow.serving.PredictionService/Predict", show_default=True),
    click.option("--answer-size", default="any", show_default=True, help="Bytes of a right answer, 'same' or 'any'."),
    click.option("--arm-header", default="tiltyard-arm", show_default=True, help="Answer metadata that names the arm."),
    click.option("--max-reconnects", type=int, default=100, show_default=True),
    click.option("--seed", type=int, default=None, help="Of gaps and keys.  [default: random]"),
)


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target")
@_with_options
@click.option("--allow-errors", is_flag=True, help="Exit with 0 although calls failed.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(target: str, allow_errors: bool, output: str, **options: Any) -> None:
    """Load-test the gRPC service at TARGET (host:port) and check every answer.

    Exits with 1 when a call failed, was answered wrong or could not be sent, with 130 after Ctrl-C.
    """
    loadgen = _loadgen()
    config = _config(loadgen, target, options)
    try:
        result = _run(loadgen, config)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if output == "json":
        click.echo(json.dumps(result_json(result), indent=2))
    else:
        _show(result, config, Console())
    if result.ended == "stopped":
        sys.exit(130)
    if result.ended == "no connection" or not (result.clean or allow_errors):
        sys.exit(1)
