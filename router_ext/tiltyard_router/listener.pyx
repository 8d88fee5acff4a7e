# client > [listener] > front
"""Listening sockets."""

from libc.string cimport memset

from tiltyard_router.c_sys cimport close, dup
from tiltyard_router.c_uv cimport uv_close, uv_handle_t, uv_listen, uv_stream_t, uv_tcp_init, uv_tcp_open
from tiltyard_router.front cimport front_accept
from tiltyard_router.mem cimport mem_alloc, mem_free
from tiltyard_router.model cimport ty_listener, ty_loop
from tiltyard_router.status cimport TY_ERR_NOMEM

cdef enum:
    BACKLOG = 1024


cdef int listener_add(ty_loop *loop, int fd) noexcept nogil:
    cdef ty_listener *listener = <ty_listener *>mem_alloc(&loop.mem, sizeof(ty_listener))
    cdef int rv, own
    if listener is NULL:
        return TY_ERR_NOMEM
    memset(listener, 0, sizeof(ty_listener))
    listener.loop = loop
    rv = uv_tcp_init(&loop.uv, &listener.h.tcp)
    if rv != 0:
        mem_free(&loop.mem, listener)
        return rv
    listener.h.handle.data = listener
    own = dup(fd)
    rv = uv_tcp_open(&listener.h.tcp, own)
    if rv != 0:
        close(own)
    else:
        rv = uv_listen(&listener.h.stream, BACKLOG, on_connection)
    if rv != 0:
        uv_close(&listener.h.handle, on_closed)
        return rv
    listener.next = loop.listeners
    loop.listeners = listener
    return 0


cdef void on_connection(uv_stream_t *server, int status) noexcept nogil:
    cdef ty_listener *listener = <ty_listener *>server.data
    if status == 0:
        listener.missed = front_accept(listener.loop, server) != 0


cdef void listener_tick(ty_loop *loop) noexcept nogil:
    cdef ty_listener *listener = loop.listeners
    while listener is not NULL:
        if listener.missed:
            listener.missed = front_accept(loop, &listener.h.stream) != 0
        listener = listener.next


cdef void listener_close_all(ty_loop *loop) noexcept nogil:
    cdef ty_listener *listener
    while loop.listeners is not NULL:
        listener = loop.listeners
        loop.listeners = listener.next
        uv_close(&listener.h.handle, on_closed)


cdef void on_closed(uv_handle_t *handle) noexcept nogil:
    cdef ty_listener *listener = <ty_listener *>handle.data
    mem_free(&listener.loop.mem, listener)
