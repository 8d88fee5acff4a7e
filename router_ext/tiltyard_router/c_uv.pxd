# libuv 1.44 and later: what the core uses, under the library's own names.
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    cdef struct sockaddr_storage:
        unsigned short ss_family
    int AF_INET
    int AF_INET6
    int AF_UNSPEC
    int SOCK_STREAM

cdef extern from "netinet/in.h" nogil:
    cdef struct sockaddr_in:
        unsigned short sin_family
    cdef struct sockaddr_in6:
        unsigned short sin6_family

cdef extern from "netdb.h" nogil:
    cdef struct addrinfo:
        int ai_flags
        int ai_family
        int ai_socktype
        int ai_protocol
        socklen_t ai_addrlen
        sockaddr *ai_addr
        addrinfo *ai_next

cdef extern from "uv.h" nogil:
    int UV_EOF
    int UV_EAGAIN
    int UV_ECANCELED
    int UV_ETIMEDOUT
    int UV_ENOTCONN

    ctypedef enum uv_run_mode:
        UV_RUN_DEFAULT
        UV_RUN_ONCE
        UV_RUN_NOWAIT

    ctypedef struct uv_buf_t:
        char *base
        size_t len
    ctypedef struct uv_loop_t:
        void *data
    ctypedef struct uv_handle_t:
        void *data
        uv_loop_t *loop
    ctypedef struct uv_stream_t:
        void *data
    ctypedef struct uv_tcp_t:
        void *data
    ctypedef struct uv_pipe_t:
        void *data
    ctypedef struct uv_timer_t:
        void *data
    ctypedef struct uv_async_t:
        void *data
    ctypedef struct uv_check_t:
        void *data
    ctypedef struct uv_prepare_t:
        void *data
    ctypedef struct uv_idle_t:
        void *data
    ctypedef struct uv_write_t:
        void *data
        uv_stream_t *handle
    ctypedef struct uv_connect_t:
        void *data
        uv_stream_t *handle
    ctypedef struct uv_getaddrinfo_t:
        void *data
    ctypedef struct uv_mutex_t:
        pass

    ctypedef void (*uv_alloc_cb)(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) noexcept nogil
    ctypedef void (*uv_read_cb)(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf) noexcept nogil
    ctypedef void (*uv_write_cb)(uv_write_t *req, int status) noexcept nogil
    ctypedef void (*uv_connect_cb)(uv_connect_t *req, int status) noexcept nogil
    ctypedef void (*uv_connection_cb)(uv_stream_t *server, int status) noexcept nogil
    ctypedef void (*uv_close_cb)(uv_handle_t *handle) noexcept nogil
    ctypedef void (*uv_timer_cb)(uv_timer_t *handle) noexcept nogil
    ctypedef void (*uv_async_cb)(uv_async_t *handle) noexcept nogil
    ctypedef void (*uv_check_cb)(uv_check_t *handle) noexcept nogil
    ctypedef void (*uv_prepare_cb)(uv_prepare_t *handle) noexcept nogil
    ctypedef void (*uv_idle_cb)(uv_idle_t *handle) noexcept nogil
    ctypedef void (*uv_walk_cb)(uv_handle_t *handle, void *arg) noexcept nogil
    ctypedef void (*uv_getaddrinfo_cb)(uv_getaddrinfo_t *req, int status, addrinfo *res) noexcept nogil

    const char *uv_strerror(int err)
    int uv_loop_init(uv_loop_t *loop)
    int uv_loop_close(uv_loop_t *loop)
    int uv_run(uv_loop_t *loop, uv_run_mode mode)
    void uv_stop(uv_loop_t *loop)
    uint64_t uv_now(const uv_loop_t *loop)
    void uv_update_time(uv_loop_t *loop)
    uint64_t uv_hrtime()
    void uv_walk(uv_loop_t *loop, uv_walk_cb cb, void *arg)
    int uv_is_closing(const uv_handle_t *handle)
    int uv_is_active(const uv_handle_t *handle)
    void uv_close(uv_handle_t *handle, uv_close_cb cb)
    void uv_unref(uv_handle_t *handle)
    ctypedef struct uv_req_t:
        void *data
    int uv_cancel(uv_req_t *req)

    int uv_ip4_addr(const char *ip, int port, sockaddr_in *addr)
    int uv_ip6_addr(const char *ip, int port, sockaddr_in6 *addr)
    int uv_tcp_init(uv_loop_t *loop, uv_tcp_t *handle)
    int uv_tcp_open(uv_tcp_t *handle, int sock)
    int uv_tcp_nodelay(uv_tcp_t *handle, int enable)
    int uv_tcp_connect(uv_connect_t *req, uv_tcp_t *handle, const sockaddr *addr, uv_connect_cb cb)
    int uv_pipe_init(uv_loop_t *loop, uv_pipe_t *handle, int ipc)
    int uv_pipe_open(uv_pipe_t *handle, int fd)
    void uv_pipe_connect(uv_connect_t *req, uv_pipe_t *handle, const char *name, uv_connect_cb cb)
    int uv_listen(uv_stream_t *stream, int backlog, uv_connection_cb cb)
    int uv_accept(uv_stream_t *server, uv_stream_t *client)
    int uv_read_start(uv_stream_t *stream, uv_alloc_cb alloc_cb, uv_read_cb read_cb)
    int uv_read_stop(uv_stream_t *stream)
    int uv_try_write(uv_stream_t *stream, const uv_buf_t *bufs, unsigned int nbufs)
    int uv_write(uv_write_t *req, uv_stream_t *stream, const uv_buf_t *bufs, unsigned int nbufs, uv_write_cb cb)

    int uv_timer_init(uv_loop_t *loop, uv_timer_t *handle)
    int uv_timer_start(uv_timer_t *handle, uv_timer_cb cb, uint64_t timeout, uint64_t repeat)
    int uv_timer_stop(uv_timer_t *handle)
    int uv_async_init(uv_loop_t *loop, uv_async_t *handle, uv_async_cb cb)
    int uv_async_send(uv_async_t *handle)
    int uv_check_init(uv_loop_t *loop, uv_check_t *handle)
    int uv_check_start(uv_check_t *handle, uv_check_cb cb)
    int uv_prepare_init(uv_loop_t *loop, uv_prepare_t *handle)
    int uv_prepare_start(uv_prepare_t *handle, uv_prepare_cb cb)
    int uv_idle_init(uv_loop_t *loop, uv_idle_t *handle)
    int uv_idle_start(uv_idle_t *handle, uv_idle_cb cb)
    int uv_idle_stop(uv_idle_t *handle)

    int uv_getaddrinfo(uv_loop_t *loop, uv_getaddrinfo_t *req, uv_getaddrinfo_cb cb, const char *node,
                       const char *service, const addrinfo *hints)
    void uv_freeaddrinfo(addrinfo *ai)

    int uv_mutex_init(uv_mutex_t *handle)
    void uv_mutex_destroy(uv_mutex_t *handle)
    void uv_mutex_lock(uv_mutex_t *handle)
    void uv_mutex_unlock(uv_mutex_t *handle)
