"""The router's loop: the only part of the core that Python sees."""

from typing import Self, final

from tiltyard_router.routes import RouteTable

__all__ = ["Router"]

@final
class Router:
    """Owns one proxy loop. Only ``run`` blocks; everything else may be called from any thread.

    Args:
        listen_fds: listening sockets (bound and listening); the loop takes its own duplicates.
        counters_path: file to count in, made by the loop; ``None`` counts in memory only.
        boot_id: 6 random bytes, in every receipt and in the counters file.
        control: ``host:port`` or ``unix:PATH`` that ``/tiltyard.api.control.*`` is passed to, or ``None``.
        outcomes: the same for ``/tiltyard.api.outcomes.*``.
        drain_limit_s: how long calls in flight may run on after ``stop``.
        connect_timeout_s: how long a connection to a backend may take.
        default_deadline_s: longest a call may take when its pipeline says nothing.
        max_message_bytes: largest request or answer, without gRPC's 5-byte prefix.
        max_buffered_bytes: of all requests and answers at once; calls that would go beyond it fail.
        max_counter_bytes: largest counters file.

    Raises:
        OSError: a socket or file could not be used.
        MemoryError: memory is out.
    """

    def __new__(
        cls,
        *,
        listen_fds: list[int],
        boot_id: bytes,
        counters_path: str | None = None,
        control: str | None = None,
        outcomes: str | None = None,
        drain_limit_s: float = 30.0,
        connect_timeout_s: float = 1.0,
        default_deadline_s: float = 60.0,
        max_message_bytes: int = 67_108_864,
        max_buffered_bytes: int = 1_073_741_824,
        max_counter_bytes: int = 268_435_456,
    ) -> Self: ...
    def run(self) -> None:
        """Serve until stopped. Releases the GIL.

        Raises:
            OSError: the loop could not go on.
        """

    def apply(self, table: RouteTable) -> None:
        """Put a table in force; the loop does so within one iteration. The table object is used up.

        Raises:
            ValueError: the table was applied before.
        """

    def applied_revision(self) -> int:
        """Revision of the table in force; 0 before the first."""

    def stop(self) -> None:
        """First call: say goodbye to clients (two-step GOAWAY), let calls in flight finish, then end ``run``.

        Second call: end ``run`` at once.
        """

    def stats(self) -> dict[str, int]:
        """What is live now: ``connections``, ``streams``, ``backend_connections``, ``buffered_bytes``."""
