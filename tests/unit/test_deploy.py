"""The systemd units in ``deploy/``: what they start exists, and what they promise fits the program."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click import Command
from tiltyard.cli.main import cli
from tiltyard.supervisor.children import STOP_ORDER, plan_children
from tiltyard.supervisor.folder import DataFolder

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAM = "/opt/tiltyard/bin/tiltyard"


def service_of(unit: Path) -> configparser.SectionProxy:
    # Strict: a setting given twice is an error. systemd's `%` and case are its own.
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
    return parser["Service"]


def started_by(service: configparser.SectionProxy, state: Path) -> tuple[str, dict[str, object]]:
    """The subcommand and its parameters as the program reads them; exits on a flag it does not know."""
    program, subcommand, *arguments = shlex.split(service["ExecStart"].replace("%S", str(state)))
    assert program == PROGRAM
    command = cli.get_command(None, subcommand)  # type: ignore[arg-type]
    assert isinstance(command, Command)
    return subcommand, command.make_context(subcommand, arguments).params


def test_both_units_are_there_and_the_readme_names_them() -> None:
    assert [unit.name for unit in UNITS] == ["tiltyard-router.service", "tiltyard.service"]
    readme = (DEPLOY / "README.md").read_text()
    for unit in UNITS:
        assert f"systemd/{unit.name}" in readme
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (DEPLOY / link).exists(), link
    assert PROGRAM in readme


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_what_there_is_and_keeps_data_where_it_may(unit: Path, tmp_path: Path) -> None:
    service = service_of(unit)
    subcommand, params = started_by(service, tmp_path)
    assert subcommand == {"tiltyard": "up", "tiltyard-router": "router"}[unit.stem]
    assert params["data_dir"] == tmp_path / service["StateDirectory"]
    assert (params["insecure_listen"], params["listen"]) == (False, "127.0.0.1:8500")
    if subcommand == "router":
        assert params["routes"] == Path("/etc/tiltyard/routes.yaml")
        assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
        assert service["RestartPreventExitStatus"] == "2"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_leaves_time_to_stop(unit: Path, tmp_path: Path) -> None:
    service = service_of(unit)
    subcommand, params = started_by(service, tmp_path)
    drain_s = params["drain_limit"]
    assert isinstance(drain_s, float)
    needed_s = drain_s
    if subcommand == "up":
        tmp_path.joinpath("run").mkdir()
        specs = plan_children(
            DataFolder(tmp_path, -1, tmp_path / "run"),
            listen="127.0.0.1:1",
            model_server="127.0.0.1:2",
            insecure_listen=False,
            drain_limit_s=drain_s,
        )
        limits = {spec.name: spec.stop_limit_s for spec in specs}
        needed_s = sum(max(limits[name] for name in names) for names in STOP_ORDER)
    assert float(service["TimeoutStopSec"]) > needed_s
    assert service["KillMode"] == "mixed", "children of `up` are stopped by `up`, in order"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_hardened_and_starts_again(unit: Path) -> None:
    service = service_of(unit)
    assert (service["Type"], service["Restart"]) == ("simple", "on-failure")
    assert (service["StateDirectoryMode"], service["UMask"]) == ("0700", "0077")
    assert service["CapabilityBoundingSet"] == ""
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectHome", "RestrictSUIDSGID"):
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    # `up` reaches its children by UNIX sockets, and everybody by TCP.
    assert {"AF_UNIX", "AF_INET", "AF_INET6"} <= set(service["RestrictAddressFamilies"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_knows_every_setting(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))  # the program must exist
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, unit.name in done.stderr) == (0, False), done.stderr
