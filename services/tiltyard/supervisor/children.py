"""The four children of ``tiltyard up``: their commands, and who reaches whom where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiltyard.supervisor.folder import SOCKETS, DataFolder
from tiltyard.supervisor.spawn import tiltyard_command

__all__ = ["STOP_ORDER", "ChildSpec", "plan_children"]

ROUTER, CONTROL, OUTCOMES, MODELSERVER = "router", "control", "outcomes", "modelserver"

STOP_ORDER = ((ROUTER,), (CONTROL,), (OUTCOMES, MODELSERVER))
"""Who is stopped after whom. The router first: it lets calls in flight finish, which need the model server, and sends
its last counts to the outcomes service. Then the control plane, which would miss the model server."""

_STOP_LIMITS_S = {CONTROL: 15.0, OUTCOMES: 10.0, MODELSERVER: 10.0}
_BEYOND_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """One child process.

    Attributes:
        name: what people call it; its ready line is ``tiltyard: <name> ready on ...``.
        command: program and arguments, the same for every start, addresses included.
        log: file that takes its stdout and stderr.
        stop_limit_s: how long it may take to end after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    stop_limit_s: float

    @property
    def ready_prefix(self) -> str:
        """How the line begins that it prints once it serves."""
        return f"tiltyard: {self.name} ready on "


def plan_children(
    folder: DataFolder, *, listen: str, model_server: str, insecure_listen: bool, drain_limit_s: float
) -> list[ChildSpec]:
    """The children, in the order they are started in.

    Args:
        folder: the data folder.
        listen: ``HOST:PORT`` of the router.
        model_server: ``HOST:PORT`` of the model server, which speaks to no UNIX socket of a router.
        insecure_listen: ``listen`` may be an address other than loopback.
        drain_limit_s: how long calls in flight may run on after a stop signal.
    """
    control, control_router, outcomes, outcomes_router = (f"unix:{folder.sockets / name}" for name in SOCKETS)
    host, _, port = model_server.rpartition(":")
    commands = {
        MODELSERVER: ["--host", host, "--port", port],
        CONTROL: ["--listen", control, "--router-listen", control_router, "--model-server", model_server],
        OUTCOMES: ["--listen", outcomes, "--router-listen", outcomes_router],
        ROUTER: ["--listen", listen, "--watch", control_router, "--control", control, "--outcomes", outcomes]
        + ["--outcomes-report", outcomes_router, "--name", "local", "--drain-limit", f"{drain_limit_s:g}"]
        + (["--insecure-listen"] if insecure_listen else []),
    }
    stop_limits = {ROUTER: drain_limit_s + _BEYOND_DRAIN_S, **_STOP_LIMITS_S}
    specs = []
    for name, arguments in commands.items():
        if name != MODELSERVER:  # it keeps nothing: the control plane tells it what to load
            arguments = [*arguments, "--data-dir", str(folder.make(name))]
        specs.append(
            ChildSpec(
                name=name,
                command=tuple(tiltyard_command(name, *arguments)),
                log=folder.rotate_log(name),
                stop_limit_s=stop_limits[name],
            )
        )
    return specs
