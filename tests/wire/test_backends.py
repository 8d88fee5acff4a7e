"""Backends that share load, die, come back, have names, and go out of the table."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from wirebench.backend import Call, ScriptedBackend, echo, silence
from wirebench.benches import one_arm
from wirebench.client import RawClient
from wirebench.messages import OK, RESOURCE_EXHAUSTED, UNAVAILABLE, answer, request
from wirebench.routers import CoreRouter, arm, pipeline, routes_yaml, start_process
from wirebench.wires import LIMIT_S, SANITIZED, SLOW, wait_until

pytest.importorskip("tiltyard_router.core", exc_type=ImportError)
pytestmark = pytest.mark.router

CONTROL = "/tiltyard.api.control.v1.PipelineService/GetPipeline"


def serves(client: RawClient) -> bool:
    return client.call(request()).status == OK


def test_the_backends_of_an_arm_share_its_load() -> None:
    with ScriptedBackend() as one, ScriptedBackend() as two, ScriptedBackend() as three:
        backends = (one, two, three)
        table = pipeline(arm("a", [backend.address for backend in backends]))
        with CoreRouter(table) as router, RawClient(router.address) as client:
            wait_until(lambda: all(backend.open_connections for backend in backends), "all to be connected")
            assert all(serves(client) for _ in range(150))
            assert [len(backend.calls) for backend in backends] == [50, 50, 50]
            for _ in range(5):
                batch = [client.start(request()) for _ in range(60)]
                assert {got.status for got in client.finish_all(batch)} == {OK}
            assert min(len(backend.calls) for backend in backends) > 100


def test_a_slow_backend_gets_less_of_it() -> None:
    with ScriptedBackend(silence) as slow, ScriptedBackend() as quick:
        table = pipeline(arm("a", [slow.address, quick.address]))
        with CoreRouter(table) as router, RawClient(router.address) as client:
            wait_until(lambda: bool(slow.open_connections and quick.open_connections), "both to be connected")
            first = [client.start(request()) for _ in range(20)]
            wait_until(lambda: len(slow.calls) + len(quick.calls) == 20, "the first calls")
            client.pump(lambda: sum(client.streams[stream].ended for stream in first) == len(quick.calls))
            stuck = len(slow.calls)
            assert 0 < stuck <= 10
            assert all(serves(client) for _ in range(30))
            assert len(slow.calls) == stuck
            for stream in first:
                client.cancel(stream)


def test_a_backend_that_dies_takes_only_its_own_calls_with_it() -> None:
    async def slow_echo(call: Call) -> None:
        await call.request()
        await call.until(lambda: len(call.conn.backend.calls) > 1_000)

    with ScriptedBackend(slow_echo) as one, ScriptedBackend() as two:
        table = pipeline(arm("a", [one.address, two.address]))
        with CoreRouter(table) as router, RawClient(router.address) as client:
            wait_until(lambda: bool(one.open_connections and two.open_connections), "both to be connected")
            streams = [client.start(request()) for _ in range(40)]
            wait_until(lambda: len(one.calls) + len(two.calls) == 40, "the calls")
            lost = len(one.calls)
            assert lost > 0
            one.die()
            statuses = Counter(got.status for got in client.finish_all(streams))
            assert statuses == {OK: 40 - lost, UNAVAILABLE: lost}
            assert all(serves(client) for _ in range(100))
            one.script = echo
            one.listen()
            before = len(one.calls)
            wait_until(lambda: serves(client) and len(one.calls) > before, "the dead one to be used again")


def test_backends_known_to_be_down_are_unavailable_at_once_and_used_when_they_are_back() -> None:
    with one_arm() as (backend, _, client):
        assert serves(client)
        backend.die()
        wait_until(lambda: not serves(client), "it to be gone")
        times = []
        for _ in range(30):
            started = time.perf_counter()
            got = client.call(request())
            times.append(time.perf_counter() - started)
            assert (got.status, got.message) == (UNAVAILABLE, "no backend of this arm can be reached")
        assert sorted(times)[7] < 0.010 * SLOW  # the quickest quarter: the machine may be busy
        backend.listen()
        started = time.monotonic()
        wait_until(lambda: serves(client), "it to be used again")
        assert time.monotonic() - started < 7 * SLOW


def test_a_backend_that_was_never_there_is_unavailable_within_the_connect_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    with CoreRouter(pipeline(arm("a", address))) as router, RawClient(router.address) as client:
        assert client.call(request()).status == UNAVAILABLE
        assert time.monotonic() - started < 1.0 + 2.0 * SLOW
        with ScriptedBackend(address=address):
            wait_until(lambda: serves(client), "it to be used")


def test_calls_do_not_wait_for_ever_in_ever_longer_lines() -> None:
    mute = {"on_connect": lambda conn: None}
    with one_arm(backend=mute, connect_timeout_s=60.0) as (_, router, _):
        clients = [RawClient(router.address) for _ in range(5)]
        try:
            for client in clients:
                client.ping()
            streams = [(client, client.start(request())) for client in clients for _ in range(900)]
            for client in clients:
                client.ping()
            ended = [client.streams[stream] for client, stream in streams if client.streams[stream].ended]
            assert len(ended) == 4_500 - 4_096
            assert {(got.status, got.message) for got in ended} == {
                (RESOURCE_EXHAUSTED, "too many calls wait for a connection to the backend")
            }
        finally:
            for client in clients:
                client.close()


def test_localhost_is_resolved_and_nonsense_is_unavailable() -> None:
    with ScriptedBackend() as backend:
        port = backend.address.rpartition(":")[2]
        with CoreRouter(pipeline(arm("a", f"localhost:{port}"))) as router, RawClient(router.address) as client:
            assert serves(client)
            assert backend.calls[0].get(":authority") == f"localhost:{port}"
            started = time.monotonic()
            router.apply(pipeline(arm("a", f"no-such-host.invalid:{port}")))
            assert client.call(request()).status == UNAVAILABLE
            assert time.monotonic() - started < 5 * SLOW
            router.apply(pipeline(arm("a", [f"no-such-host.invalid:{port}", backend.address])))
            assert all(serves(client) for _ in range(10))


def test_an_address_of_ipv6() -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with one_arm(backend={"address": "[::1]:0"}) as (backend, _, client):
        assert serves(client)
        assert backend.address.startswith("[::1]:")


def test_services_may_listen_on_unix_sockets(tmp_path: Path) -> None:
    with (
        ScriptedBackend(address=f"unix:{tmp_path}/s") as service,
        CoreRouter(control=service.address) as router,
        RawClient(router.address) as client,
    ):
        assert client.call(b"", path=CONTROL).status == OK
        assert service.calls[0].get(":authority") == "localhost"


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int lookup_fn(const char *, const char *, const struct addrinfo *, struct addrinfo **);

/* The name "many.test" has the addresses in the file $MANY_TEST, one a line; all else is asked as ever. */
int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
    lookup_fn *real = (lookup_fn *)dlsym(RTLD_NEXT, "getaddrinfo");
    struct addrinfo **link = out;
    char line[64];
    FILE *file;
    if (host == NULL || strcmp(host, "many.test") != 0)
        return real(host, service, hints, out);
    *out = NULL;
    file = fopen(getenv("MANY_TEST"), "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        if (real(line, service, hints, link) == 0)
            link = &(*link)->ai_next;
    }
    if (file != NULL)
        fclose(file);
    return *out == NULL ? EAI_NONAME : 0;
}
"""


@pytest.mark.skipif(SANITIZED, reason="a second preloaded library gets in the sanitizers' way")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_all_addresses_of_a_name_are_used_and_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shim.c").write_text(SHIM)
    command = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "shim.so"), str(tmp_path / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    names = tmp_path / "names"
    names.write_text("127.0.0.1\n127.0.0.2\n")
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "shim.so"))
    monkeypatch.setenv("MANY_TEST", str(names))
    with ScriptedBackend() as one:
        port = one.address.rpartition(":")[2]
        with (
            ScriptedBackend(address=f"127.0.0.2:{port}") as two,
            ScriptedBackend(address=f"127.0.0.3:{port}") as three,
            start_process(routes_yaml(pipeline(arm("a", f"many.test:{port}"))), folder=tmp_path) as process,
            RawClient(process.address) as client,
        ):
            wait_until(lambda: serves(client) and min(len(one.calls), len(two.calls)) > 0, "both addresses to be used")
            assert all(serves(client) for _ in range(40))
            assert abs(len(one.calls) - len(two.calls)) <= len(one.calls + two.calls) // 2
            assert three.connections == []
            names.write_text("127.0.0.1\n127.0.0.3\n")
            two.die()  # a failure: the name is looked up before its 30 s are over
            wait_until(lambda: serves(client) and len(three.calls) > 0, "the new address to be used", LIMIT_S)
            before = len(two.connections)
            two.listen()
            time.sleep(0.1)
            assert all(serves(client) for _ in range(20))
            assert len(two.connections) == before  # it is no address of that name any more


# ---------------------------------------------------------------- tables that change


def test_a_backend_that_leaves_the_table_finishes_its_calls_and_is_let_go() -> None:
    async def held(call: Call) -> None:
        await call.request()
        await call.until(lambda: let_go)
        await call.reply(answer())

    let_go = False
    with one_arm(held) as (old, router, client), ScriptedBackend() as new:
        streams = [client.start(request()) for _ in range(5)]
        wait_until(lambda: len(old.calls) == 5, "the calls")
        router.apply(pipeline(arm("a", new.address)))
        assert all(serves(client) for _ in range(5))
        assert len(new.calls) == 5
        client.idle(0.3)
        assert not any(client.streams[stream].ended for stream in streams)
        let_go = True
        old.wake()
        assert {got.status for got in client.finish_all(streams)} == {OK}
        wait_until(lambda: not old.open_connections, "the old backend's connection to be closed")
        wait_until(lambda: router.stats()["backend_connections"] == 1, "the router to let it go")


def test_the_end_comes_also_to_calls_of_a_table_that_is_gone() -> None:
    with ScriptedBackend(silence) as old, ScriptedBackend() as new:
        router = CoreRouter(pipeline(arm("a", old.address)))
        with RawClient(router.address) as client:
            streams = [client.start(request()) for _ in range(5)]
            wait_until(lambda: len(old.calls) == 5, "the calls")
            router.apply(pipeline(arm("a", new.address)))
            client.idle(0.3)
            router.end()
            client.wait_closed()
            assert not any(client.streams[stream].ended for stream in streams)
        wait_until(lambda: not old.open_connections, "the old backend's connection to be closed")


def test_tables_change_under_load_and_no_call_is_lost() -> None:
    with ScriptedBackend() as one, ScriptedBackend() as two, ScriptedBackend() as three:
        backends = [one, two, three]
        with CoreRouter(pipeline(arm("a", one.address))) as router, RawClient(router.address) as client:
            statuses: Counter[int] = Counter()
            for number in range(60):
                batch = [client.start(request()) for _ in range(8)]
                some = [backends[number % 3].address, backends[number // 3 % 3].address]
                router.apply(pipeline(arm("a", sorted(set(some)), model=f"m{number}"), epoch=number + 2))
                statuses.update(got.status for got in client.finish_all(batch))
            assert statuses == {OK: 480}
            router.apply(pipeline(arm("a", one.address)))
            wait_until(lambda: router.stats()["backend_connections"] <= 1, "the others to be let go")
