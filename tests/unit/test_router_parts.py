"""What the router process is made of besides routes: addresses, the receipt key, the log's lines."""

from __future__ import annotations

import logging
import socket
import stat
import threading
from pathlib import Path

import pytest
from tiltyard.errors import ConfigError
from tiltyard.logs import OneLineFormatter
from tiltyard.router.addresses import address_fault, check_service_address, open_listeners
from tiltyard.router.keys import load_key, own_key
from tiltyard.router.spec import ReceiptKey


@pytest.mark.parametrize("address", ["127.0.0.1:1", "a.b-c.svc:65535", "[::1]:80", "x_y:9", "host.:1", "10:80"])
def test_addresses(address: str) -> None:
    assert (address_fault(address) == "") == (address != "10:80")


@pytest.mark.parametrize(
    "address",
    [
        *("", ":80", "host", "host:", "host:0", "host:080", "host:65536", "host:8x", "::1:80", "[::1]", "[1.2.3.4]:1"),
        *("1.2.3:80", "a b:80", "http://a:80", "-a:80", "a\n:80", "a:80\n", "[::1%e\n]:80", "é:80", "a" * 254 + ":1"),
    ],
)
def test_what_is_no_address(address: str) -> None:
    assert address_fault(address)


def test_services_may_be_unix_sockets() -> None:
    check_service_address("--control", "unix:/run/control.sock")
    check_service_address("--control", "localhost:1")
    with pytest.raises(ConfigError, match=r"--control 'x' is neither HOST:PORT nor unix:PATH"):
        check_service_address("--control", "x")
    for path in ("unix:", "unix:/" + "a" * 108):
        with pytest.raises(ConfigError, match="1 to 107 bytes"):
            check_service_address("--control", path)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_of_0_becomes_a_free_one_that_takes_connections(host: str) -> None:
    listeners, address = open_listeners(f"{host}:0")
    try:
        assert {one.getsockname()[1] for one in listeners} == {int(address.rpartition(":")[2])}
        assert address.startswith(f"{host}:")
        for one in listeners:
            with socket.create_connection(one.getsockname()[:2], timeout=1):
                assert not one.getblocking()
    finally:
        for one in listeners:
            one.close()


def test_an_address_that_cannot_be_had_is_named_with_the_reason() -> None:
    listeners, address = open_listeners("127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match=rf"--listen {address}: another process listens there"):
            open_listeners(address)
    finally:
        listeners[0].close()
    with pytest.raises(ConfigError, match="this machine has no such address"):
        open_listeners("192.0.2.1:0")
    with pytest.raises(ConfigError, match="cannot be resolved"):
        open_listeners("no-such-host.invalid:0")


def test_a_port_is_free_again_at_once() -> None:
    listeners, address = open_listeners("127.0.0.1:0")
    with socket.create_connection(listeners[0].getsockname()) as client:
        served, _ = listeners[0].accept()
        listeners[0].close()
        served.close()  # ends in TIME_WAIT on our side
        client.recv(1)
    again, _ = open_listeners(address)
    again[0].close()


def test_a_key_file_holds_32_bytes_or_their_hex_digits(tmp_path: Path) -> None:
    secret = bytes(range(32))
    for text in (secret, secret.hex().encode(), secret.hex().upper().encode() + b"\n"):
        (tmp_path / "key").write_bytes(text)
        assert load_key(tmp_path / "key") == ReceiptKey(0, secret)
    for text in (b"", secret[:31], secret + b"\n", secret.hex()[:-1].encode() + b"g", secret.hex().encode() * 2):
        (tmp_path / "key").write_bytes(text)
        with pytest.raises(ConfigError, match=rf"key: this holds {len(text)} bytes; a receipt key is 32 bytes"):
            load_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_key(tmp_path / "missing")


def test_a_key_never_shows_its_secret() -> None:
    assert "7" * 8 not in repr(ReceiptKey(3, b"7" * 32))


def test_the_own_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    key = own_key(tmp_path)
    assert len(key.secret) == 32
    assert own_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "receipt.key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["receipt.key"]


def test_routers_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    gate = threading.Barrier(8)
    keys: list[ReceiptKey] = []

    def start() -> None:
        gate.wait()
        keys.append(own_key(tmp_path))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len({key.secret for key in keys}) == 1


def test_a_log_event_is_one_line_with_its_facts() -> None:
    record = logging.LogRecord("tiltyard.x", logging.WARNING, "x.py", 1, "lost %s", ("it",), None)
    record.reason = "two\nlines"
    line = OneLineFormatter().format(record)
    assert line.endswith("WARNING tiltyard.x: lost it reason=two | lines")
    try:
        raise ValueError("inner")
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    line = OneLineFormatter().format(record)
    assert "\n" not in line
    assert line.endswith("ValueError: inner")
