"""The façade: one loop as a Python object. Statuses become exceptions here and nowhere else."""

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

cimport cython

from tiltyard_router.c_uv cimport uv_mutex_lock, uv_mutex_unlock
from tiltyard_router.listener cimport listener_add
from tiltyard_router.loop cimport loop_apply, loop_free, loop_new, loop_run, loop_stop
from tiltyard_router.model cimport ty_config
from tiltyard_router.pool cimport backend_get
from tiltyard_router.routes cimport RouteTable, ty_routes
from tiltyard_router.status cimport TY_ERR_NOMEM, status_text

__all__ = ["Router"]


cdef int check(int rv, str what) except -1:
    if rv == TY_ERR_NOMEM:
        raise MemoryError(what)
    if rv < 0:
        raise OSError(-rv if rv > -4000 else 0, f"{what}: {status_text(rv).decode()}")
    return 0


@cython.final
cdef class Router:
    """Owns one proxy loop. Only ``run`` blocks; everything else may be called from any thread."""

    def __cinit__(self, *, list listen_fds, bytes boot_id, counters_path=None, control=None, outcomes=None,
                  double drain_limit_s=30.0, double connect_timeout_s=1.0, double default_deadline_s=60.0,
                  uint64_t max_message_bytes=67_108_864, uint64_t max_buffered_bytes=1_073_741_824,
                  size_t max_counter_bytes=268_435_456):
        cdef ty_config config
        cdef int err = 0
        cdef bytes path = None if counters_path is None else counters_path.encode()
        cdef const char *c_path = NULL
        if len(boot_id) != 6:
            raise ValueError("boot_id must be 6 bytes")
        if path is not None:
            c_path = path
        config.drain_limit_ms = <uint64_t>(drain_limit_s * 1000)
        config.connect_timeout_ms = <uint64_t>(connect_timeout_s * 1000)
        config.default_deadline_us = <uint64_t>(default_deadline_s * 1_000_000)
        config.max_message_bytes = max_message_bytes
        config.max_buffered_bytes = max_buffered_bytes
        self._loop = loop_new(&config, boot_id, c_path, max_counter_bytes, &err)
        if self._loop is NULL:
            check(err, f"counters file {counters_path}")
            raise MemoryError("router loop")
        self._connect(control, outcomes)
        for fd in listen_fds:
            check(listener_add(self._loop, fd), "listening socket")

    def __dealloc__(self):
        loop_free(self._loop)

    cdef int _connect(self, control, outcomes) except -1:
        cdef bytes text
        if control is not None:
            text = control.encode()
            self._loop.control = backend_get(self._loop, text)
        if outcomes is not None:
            text = outcomes.encode()
            self._loop.outcomes = backend_get(self._loop, text)
        return 0

    def run(self):
        cdef int rv
        with nogil:
            rv = loop_run(self._loop)
        check(rv, "router loop")

    def apply(self, RouteTable table not None):
        cdef ty_routes *routes = table.take()
        if routes is NULL:
            raise ValueError("this table was applied before")
        loop_apply(self._loop, routes)

    def applied_revision(self):
        cdef uint64_t revision
        uv_mutex_lock(&self._loop.lock)
        revision = self._loop.applied
        uv_mutex_unlock(&self._loop.lock)
        return revision

    def stop(self):
        loop_stop(self._loop)

    def stats(self):
        """Read without a lock: each number is right at some moment, not all at the same one."""
        return {
            "connections": self._loop.n_fronts,
            "backend_connections": self._loop.n_backs,
            "streams": self._loop.n_streams,
            "buffered_bytes": self._loop.buffered,
            "memory_bytes": self._loop.mem.live_bytes,
        }
