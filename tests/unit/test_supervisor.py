"""`tiltyard up` with small programs in the place of its children: starts, restarts, stops, and leaves nobody behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click import Command
from tiltyard.cli.main import cli
from tiltyard.cli.main import main as cli_main
from tiltyard.errors import ConfigError, DeadlineError, FailedPreconditionError, UnavailableError, UnsupportedError
from tiltyard.supervisor.app import Up, UpSettings, build_up
from tiltyard.supervisor.children import STOP_ORDER, ChildSpec, plan_children
from tiltyard.supervisor.folder import SOCKETS, DataFolder, open_folder
from tiltyard.supervisor.ports import hold_port
from tiltyard.supervisor.requirements import check_installed
from tiltyard.supervisor.spawn import describe_exit, tied_to_parent
from tiltyard.supervisor.supervise import Backoff, Child, tail
from tiltyard.testing.cluster import wait_until

NAMES = [name for names in STOP_ORDER for name in names]
NOW = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
SERVES = "import time; print('tiltyard: {name} ready on x', flush=True)\nwhile True: time.sleep(60)"


def ignore(text: str) -> None:
    del text


def hold(path: Path, say: Callable[[str], None] = ignore) -> DataFolder:
    return open_folder(path, listen="127.0.0.1:8500", now=NOW, say=say)


async def soon(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_held_port_can_be_listened_on_and_is_given_to_nobody_else() -> None:
    held = hold_port("127.0.0.1:0")
    port = int(held.address.rpartition(":")[2])
    try:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        for _ in range(2):  # the child's first life, and its second
            with socket.socket() as child:
                child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                child.bind(("127.0.0.1", port))
                child.listen()
                socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        held.close()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))


def test_a_port_on_which_somebody_listens_is_refused_with_what_to_do() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--listen 127.0.0.1:{port}: another process listens there"):
            hold_port(f"127.0.0.1:{port}")


def test_names_wildcards_and_hosts_that_are_not_here() -> None:
    held = hold_port("localhost:0")
    assert re.fullmatch(r"localhost:[1-9]\d*", held.address)
    held.close()
    wildcard = hold_port("0.0.0.0:0")
    assert wildcard.connect_address == wildcard.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    wildcard.close()
    with pytest.raises(ConfigError, match="no such address"):
        hold_port("203.0.113.77:0")
    with pytest.raises(ConfigError, match="cannot be resolved"):
        hold_port("no-such-host.invalid:0")


# -- the data folder ---------------------------------------------------------------------------------------------------


def test_the_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    folder = hold(tmp_path / "a" / "b")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.sockets.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert not folder.sockets.exists()


def test_a_second_holder_hears_who_the_first_is(tmp_path: Path) -> None:
    first = hold(tmp_path)
    with pytest.raises(FailedPreconditionError) as refused:
        hold(tmp_path)
    said = refused.value.message
    assert f"process {os.getpid()}" in said
    assert "2025-03-04" in said
    assert "serving 127.0.0.1:8500" in said
    assert f"kill {os.getpid()}" in said
    first.close()
    hold(tmp_path).close()


def test_a_second_up_hears_the_port_the_first_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tiltyard.supervisor.app.check_installed", lambda: None)
    settings = UpSettings(data_dir=tmp_path / "data", listen="127.0.0.1:0")
    up = build_up(settings, say=ignore)
    with pytest.raises(FailedPreconditionError) as refused:
        build_up(settings, say=ignore)
    assert not up.address.endswith(":0")
    assert f"serving {up.address})" in refused.value.message
    up._folder.close()
    up._front.close()
    up._model_server.close()


def test_a_shorter_address_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    folder = hold(tmp_path)
    folder.say_holder("127.0.0.1:50000")
    folder.say_holder("[::1]:1")
    with pytest.raises(FailedPreconditionError, match=r"serving \[::1\]:1\)"):
        hold(tmp_path)
    folder.close()


def test_an_empty_or_own_folder_that_others_may_read_is_closed_and_that_is_said(tmp_path: Path) -> None:
    path, said = tmp_path / "data", list[str]()
    path.mkdir()
    path.chmod(0o755)
    hold(path, said.append).close()
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o750)  # again, now that it has our lock file
    hold(path, said.append).close()
    assert path.stat().st_mode & 0o777 == 0o700
    assert [("0755" in line, "0750" in line) for line in said] == [(True, False), (False, True)]


def test_a_folder_of_other_things_that_others_may_read_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "home"
    path.mkdir()
    (path / "letter.txt").touch()
    path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"mode 0755.*chmod 700"):
        hold(path)
    assert path.stat().st_mode & 0o777 == 0o755
    assert os.listdir(path) == ["letter.txt"]
    with pytest.raises(ConfigError, match="cannot be used"):
        hold(path / "letter.txt")


@pytest.mark.parametrize("name", ["d" * 100, "with space", "per%20cent", "ümlaut"])
def test_sockets_go_elsewhere_when_the_path_does_not_suit_them(tmp_path: Path, name: str) -> None:
    folder = hold(tmp_path / name)
    assert folder.sockets.parent == Path("/tmp")
    assert folder.sockets.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert not folder.sockets.exists()


@pytest.mark.parametrize(("longest", "inside"), [(107, True), (108, False)])
def test_sockets_stay_inside_up_to_the_longest_path_they_may_have(tmp_path: Path, longest: int, inside: bool) -> None:
    room = longest - len(f"{tmp_path}//run/{max(SOCKETS, key=len)}")
    folder = hold(tmp_path / ("d" * room))
    assert (folder.sockets.parent == folder.path) == inside
    assert all(len(str(folder.sockets / name)) <= 107 for name in SOCKETS)
    folder.close()


def test_the_next_start_removes_the_sockets_of_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100)
    script = (
        "import sys, pathlib, datetime as d\n"
        "from tiltyard.supervisor.folder import open_folder\n"
        "f = open_folder(pathlib.Path(sys.argv[1]), listen='x', now=d.datetime.now(d.UTC), say=print)\n"
        "print(f.sockets, flush=True); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    hold(path).close()
    assert not left.exists()


def test_logs_of_earlier_starts_are_kept_a_while(tmp_path: Path) -> None:
    folder = hold(tmp_path)
    for start in range(8):
        folder.rotate_log("router").write_text(str(start))
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert logs == {"router.log": "7"} | {f"router.log.{age}": str(7 - age) for age in range(1, 6)}
    folder.close()


# -- what it needs, and what it runs -----------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_extra_that_brings_it() -> None:
    check_installed(lambda module: True)
    with pytest.raises(UnsupportedError, match=r"lacks tensorflow; run: pip install 'tiltyard\[serve\]'$"):
        check_installed(lambda module: module != "tensorflow")
    with pytest.raises(
        UnsupportedError, match=r"sqlalchemy, .*tensorflow; run: pip install 'tiltyard\[server,serve\]'"
    ):
        check_installed(lambda module: module == "tiltyard_router.core")
    with pytest.raises(UnsupportedError, match=r"no compiled router.*libnghttp2-dev"):
        check_installed(lambda module: module != "tiltyard_router.core")


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("yaml", "this installation lacks yaml; run: pip install 'tiltyard[server]'"),
        ("sqlalchemy.ext.asyncio", "this installation lacks sqlalchemy; run: pip install 'tiltyard[server]'"),
        ("tensorflow", "this installation lacks tensorflow; run: pip install 'tiltyard[serve]'"),
        ("tiltyard_router.core", "this installation has no compiled router"),
    ],
)
def test_a_command_that_lacks_a_part_says_what_to_install(
    module: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(**given: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("tiltyard.cli.main.cli", lacking)
    with pytest.raises(SystemExit, match=r"^1$"):
        cli_main()
    assert capsys.readouterr().err.startswith(f"tiltyard: {advice}")


def test_a_missing_module_of_our_own_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**given: str) -> None:
        raise ModuleNotFoundError("No module named 'tiltyard.nothing'", name="tiltyard.nothing")

    monkeypatch.setattr("tiltyard.cli.main.cli", broken)
    with pytest.raises(ModuleNotFoundError):
        cli_main()


def test_every_child_knows_the_flags_it_is_given(tmp_path: Path) -> None:
    folder = hold(tmp_path)
    specs = plan_children(
        folder,
        listen="0.0.0.0:1",
        model_server="127.0.0.1:2",
        insecure_listen=True,
        drain_limit_s=2.5,
    )
    assert {spec.name for spec in specs} == set(NAMES)
    for spec in specs:
        words = list(spec.command)
        subcommand, *arguments = words[words.index("tiltyard") + 1 :]
        found = cli.commands.get(subcommand) or cli.get_command(None, subcommand)  # type: ignore[arg-type]
        assert isinstance(found, Command)
        found.make_context(subcommand, list(arguments))  # exits on a flag it does not know
        assert ("--insecure-listen" in arguments) == (subcommand == "router")
    folder.close()


# -- one child ---------------------------------------------------------------------------------------------------------


def child_of(
    tmp_path: Path, script: str, *, say: Callable[[str], None] = ignore, stop_limit_s: float = 20.0, name: str = "c"
) -> Child:
    spec = ChildSpec(
        name=name, command=(sys.executable, "-c", script), log=tmp_path / f"{name}.log", stop_limit_s=stop_limit_s
    )
    return Child(spec, say=say, backoff=Backoff(first_s=0.02, most_s=0.05))


def test_pauses_double_up_to_a_limit_and_begin_again_after_a_healthy_life() -> None:
    backoff = Backoff()
    assert [backoff.pause_s(1.0) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [backoff.pause_s(lived) for lived in (30.0, 29.9)] == [0.2, 0.4]


async def test_a_child_that_is_killed_comes_back_and_its_last_words_are_said(tmp_path: Path) -> None:
    said = list[str]()
    child = child_of(tmp_path, "print('I live', flush=True);" + SERVES.format(name="c"), say=said.append)
    child.start()
    await asyncio.wait_for(child.ready.wait(), 20)
    pids = [child.pid or 0]
    os.kill(pids[0], signal.SIGKILL)
    await soon(lambda: not child.ready.is_set())
    await asyncio.wait_for(child.ready.wait(), 20)
    pids.append(child.pid or 0)
    assert len({0, *pids}) == 3
    assert not alive(pids[0])
    await child.stop()
    assert not alive(pids[1])
    assert "died (killed by SIGKILL" in said[0]
    assert "again in 0.02 s\n  c| I live\n  c| tiltyard: c ready on x" in said[0]
    assert said[1:] == ["c is back"]
    assert child.spec.log.read_text().count("I live") == 2  # one log for all lives of one start


async def test_a_child_that_ends_by_itself_before_it_was_ready_is_not_started_again(tmp_path: Path) -> None:
    said = list[str]()
    child = child_of(tmp_path, "import sys; sys.exit('the disk is on fire')", say=said.append)
    child.start()
    await asyncio.wait_for(child.failed.wait(), 20)
    assert "exit status 1" in said[0]
    assert "c| the disk is on fire" in said[0]
    assert await child.stop()
    assert len(said) == 1


async def test_a_child_that_was_ready_once_is_started_again_however_it_ends(tmp_path: Path) -> None:
    said = list[str]()
    child = child_of(tmp_path, "print('tiltyard: c ready on x', flush=True)", say=said.append)
    child.start()
    await soon(lambda: len([line for line in said if "died (exit status 0" in line]) >= 2)
    assert not child.failed.is_set()
    assert await child.stop()


async def test_a_child_that_ignores_sigterm_is_killed_after_its_limit(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVES.format(name="c")
    said = list[str]()
    child = child_of(tmp_path, script, say=said.append, stop_limit_s=0.3)
    child.start()
    await asyncio.wait_for(child.ready.wait(), 20)
    pid = child.pid
    assert pid is not None
    assert await child.stop() is False
    assert not alive(pid)
    assert said == ["c did not end within 0.3 s; killing it"]


async def test_a_stop_while_the_child_waits_to_be_started_again_does_not_wait(tmp_path: Path) -> None:
    said = list[str]()
    spec = ChildSpec(
        name="c",
        command=(sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        log=tmp_path / "c.log",
        stop_limit_s=5.0,
    )
    child = Child(spec, say=said.append, backoff=Backoff(first_s=60.0, most_s=60.0))
    child.start()
    await soon(lambda: bool(said))
    began = time.monotonic()
    assert await child.stop()
    assert time.monotonic() - began < 1.0


async def test_long_lines_and_lines_without_an_end_reach_the_log(tmp_path: Path) -> None:
    script = "import sys; sys.stdout.write('x' * 200000 + '\\n' + 'no end'); sys.exit(3)"
    child = child_of(tmp_path, script)
    child.start()
    await asyncio.wait_for(child.failed.wait(), 20)
    await child.stop()
    assert child.spec.log.read_text() == "x" * 200_000 + "\nno end"
    assert tail(child.spec.log, lines=1) == ["no end"]
    assert tail(tmp_path / "nothing") == []


def test_children_end_with_a_parent_that_is_killed() -> None:
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    script = (
        "import subprocess, sys\n"
        "from tiltyard.supervisor.spawn import tied_to_parent\n"
        f"subprocess.run(tied_to_parent([sys.executable, '-c', {grandchild!r}]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not alive(child), "the end of the child", 20)


def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    command = tied_to_parent([sys.executable, "-c", "print('started')"])
    parent = command.index(str(os.getpid()))
    command[parent] = "1"  # as if the starter had ended, and the system's first process had taken the child over
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_ends_in_words() -> None:
    assert [describe_exit(status) for status in (3, -9, -64, -70)] == [
        "exit status 3",
        "killed by SIGKILL",
        "killed by SIGRTMAX",
        "killed by signal 70",
    ]


# -- all of them -------------------------------------------------------------------------------------------------------

WRITES_ITS_END = """
import pathlib, signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as file:
        file.write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("tiltyard: {name} ready on x", flush=True)
while True:
    time.sleep(60)
"""
IGNORES = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVES


async def serves_at_once(router: str, model_server: str) -> None:
    del router, model_server


async def never_serves(router: str, model_server: str) -> None:
    del router, model_server
    await asyncio.Event().wait()


def up_of(tmp_path: Path, script: str, *, say: Callable[[str], None] = ignore, start_limit_s: float = 20.0) -> Up:
    folder = hold(tmp_path / "data")
    specs = [
        ChildSpec(
            name=name,
            command=(sys.executable, "-c", script.format(name=name), str(tmp_path / "ends")),
            log=folder.rotate_log(name),
            stop_limit_s=20.0,
        )
        for name in NAMES[::-1]
    ]
    settings = UpSettings(start_limit_s=start_limit_s)
    return Up(
        settings,
        folder,
        hold_port("127.0.0.1:0"),
        hold_port("127.0.0.1:0"),
        specs,
        say,
        until_serving=serves_at_once if start_limit_s > 1 else never_serves,
    )


async def test_children_are_stopped_in_order_and_the_folder_is_free_again(tmp_path: Path) -> None:
    up, addresses = up_of(tmp_path, WRITES_ITS_END), list[str]()
    serving = asyncio.create_task(up.serve(addresses.append))
    await soon(lambda: bool(addresses))
    assert addresses == [up.address]
    up.stop()
    assert await asyncio.wait_for(serving, 20)
    ends = (tmp_path / "ends").read_text().split()
    assert ends[:2] == ["router", "control"]
    assert sorted(ends[2:]) == ["modelserver", "outcomes"]
    hold(tmp_path / "data").close()
    hold_port(up.address).close()


async def test_a_second_stop_does_not_wait(tmp_path: Path) -> None:
    up, addresses = up_of(tmp_path, IGNORES), list[str]()
    serving = asyncio.create_task(up.serve(addresses.append))
    await soon(lambda: bool(addresses))
    pids = [child.pid for child in up._children.values()]
    began = time.monotonic()
    up.stop()
    await asyncio.sleep(0.05)
    assert not serving.done()
    up.stop()
    assert await asyncio.wait_for(serving, 20) is False
    assert time.monotonic() - began < 5.0
    assert not any(alive(pid) for pid in pids if pid is not None)


async def test_a_child_that_cannot_start_ends_all_and_nothing_is_called_ready(tmp_path: Path) -> None:
    script = WRITES_ITS_END.replace("def end", "if '{name}' == 'control': sys.exit('no such database')\ndef end")
    said, addresses = list[str](), list[str]()
    up = up_of(tmp_path, script, say=said.append)
    with pytest.raises(UnavailableError, match="control could not start"):
        await asyncio.wait_for(up.serve(addresses.append), 20)
    assert addresses == []
    assert "control| no such database" in said[0]
    assert [child.pid for child in up._children.values()] == [None] * 4


async def test_not_serving_in_time_ends_all(tmp_path: Path) -> None:
    up = up_of(tmp_path, "import time; time.sleep(60)", start_limit_s=0.3)
    with pytest.raises(DeadlineError, match=r"modelserver, outcomes, control, router not ready after 0.3 s"):
        await asyncio.wait_for(up.serve(ignore), 20)
    assert [child.pid for child in up._children.values()] == [None] * 4


async def test_a_stop_during_the_start_ends_all_without_a_ready_line(tmp_path: Path) -> None:
    up, addresses = up_of(tmp_path, "import time; time.sleep(60)"), list[str]()
    serving = asyncio.create_task(up.serve(addresses.append))
    await soon(lambda: all(child.pid for child in up._children.values()))
    up.stop()
    assert await asyncio.wait_for(serving, 20)
    assert addresses == []
