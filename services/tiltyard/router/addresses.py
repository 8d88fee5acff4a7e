"""Addresses: what a backend's may look like, and the sockets a router listens on."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket

from tiltyard.errors import ConfigError

__all__ = ["address_fault", "check_service_address", "open_listeners"]

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]{1,32})?")  # the part after % may name a network card
_BACKLOG = 1024


def address_fault(address: str) -> str:
    """Why this is no ``HOST:PORT`` to connect to; empty when it is one."""
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        return "write for example 127.0.0.1:9001, model-a.default.svc:8500 or [::1]:9001"
    if not _PORT.fullmatch(port) or int(port) > 65535:
        return f"the port is {port!r}, and must be 1 to 65535"
    if host.startswith("[") and host.endswith("]"):
        return "" if _IPV6.fullmatch(host[1:-1]) and _is_ip(6, host[1:-1]) else f"{host} is no IPv6 address"
    if ":" in host:
        return "an IPv6 address goes in brackets, [::1]:9001"
    if not _HOST.fullmatch(host):
        return f"{host!r} is no host name"
    if re.fullmatch(r"[0-9.]+", host) and not _is_ip(4, host):
        return f"{host} is no IPv4 address"
    return ""


def check_service_address(flag: str, address: str) -> None:
    """Refuse an address of a service that is neither ``HOST:PORT`` nor ``unix:PATH``.

    Raises:
        ConfigError: it is neither; the message names the flag.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not 0 < len(path.encode()) < 108:  # what a sockaddr_un holds
            raise ConfigError(f"{flag} {address!r}: the path of a UNIX socket has 1 to 107 bytes")
    elif reason := address_fault(address):
        raise ConfigError(f"{flag} {address!r} is neither HOST:PORT nor unix:PATH: {reason}")


def open_listeners(address: str) -> tuple[list[socket.socket], str]:
    """Listen on every address that ``HOST:PORT`` means.

    Args:
        address: the host may be an IPv4 address, an IPv6 address in brackets, or a name. Port 0 picks a free one, the
            same for all addresses.

    Returns:
        The sockets, and the address with the port that was taken.

    Raises:
        ConfigError: the name means nothing, or an address cannot be had.
    """
    text, _, port_text = address.rpartition(":")
    host, port = text.removeprefix("[").removesuffix("]"), int(port_text)
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--listen {address}: {host!r} cannot be resolved ({error})") from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, target in dict.fromkeys(infos):
            try:
                sockets.append(_listen(family, (target[0], port, *target[2:]), both=len(infos) == 1 and host == "::"))
            except OSError as error:
                # A name may stand for an address this machine does not have, as localhost does for ::1.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
                continue
            port = sockets[0].getsockname()[1]
        if missing is not None and not sockets:
            raise missing
    except OSError as error:
        for one in sockets:
            one.close()
        raise ConfigError(f"--listen {address}: {_reason(error)}") from error
    return sockets, f"{text}:{port}"


def _listen(family: int, target: tuple[object, ...], *, both: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        one.setblocking(False)
        one.bind(target)
        one.listen(_BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there; stop it, or choose another port (0 picks a free one)"
    if error.errno == errno.EACCES:
        return "this user may not listen on that port; choose one from 1024"
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return "this machine has no such address"
    return error.strerror or str(error)


def _is_ip(version: int, text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
