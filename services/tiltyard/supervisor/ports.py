"""Ports that stay ours while nobody listens on them.

A child that died leaves its port free for a moment, and any process on the machine that asks for a free port, or opens
a connection, may be given it. So the supervisor binds each port, too, without listening: as both sockets allow reuse of
the address (libuv's and gRPC's listeners do), the child can bind and listen, and the kernel gives the port to nobody.
"""

from __future__ import annotations

import errno
import socket

from tiltyard.errors import ConfigError

__all__ = ["HeldPort", "hold_port"]

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class HeldPort:
    """A bound port; made by ``hold_port``.

    Attributes:
        address: ``HOST:PORT`` as it was asked for, with the port that was taken.
        connect_address: where a process on this machine reaches a listener there.
    """

    def __init__(self, sockets: list[socket.socket], address: str) -> None:
        self._sockets = sockets
        self.address = address
        host, _, port = address.rpartition(":")
        self.connect_address = {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, address)  # noqa: S104

    def close(self) -> None:
        """Let go of it. May be called twice."""
        for one in self._sockets:
            one.close()


def hold_port(address: str, *, flag: str = "--listen") -> HeldPort:
    """Take a port without listening on it.

    Args:
        address: ``HOST:PORT``; a name may stand for several addresses, of which all are taken. Port 0 picks a free one.
        flag: the option it came from, for messages.

    Raises:
        ConfigError: somebody listens there, the host means nothing, or this user may not.
    """
    text, _, port_text = address.rpartition(":")
    host, port = text.removeprefix("[").removesuffix("]"), int(port_text)
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{flag} {address}: {host!r} cannot be resolved ({error})") from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, target in dict.fromkeys(infos):
        try:
            sockets.append(_bind(family, (target[0], port, *target[2:]), both=len(infos) == 1 and host == "::"))
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:  # as ::1 for localhost on many machines
                missing = error
                continue
            HeldPort(sockets, address).close()
            raise ConfigError(f"{flag} {address}: {_reason(error)}") from error
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise ConfigError(f"{flag} {address}: this machine has no such address") from missing
    return HeldPort(sockets, f"{text}:{port}")


def _bind(family: int, target: tuple[object, ...], *, both: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)  # as the router does
        one.bind(target)
    except BaseException:
        one.close()
        raise
    return one


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another process listens there; stop it, or choose another port (0 picks a free one)"
    if error.errno == errno.EACCES:
        return "this user may not listen on that port; choose one from 1024"
    return error.strerror or str(error)
