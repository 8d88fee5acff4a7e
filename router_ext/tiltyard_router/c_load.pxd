# Headers as the load generator uses them, under the libraries' own names. (Kept apart from c_uv.pxd and c_nghttp2.pxd:
# those declare the router's side, this the client's and Linux's timerfd.)
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport off_t

cdef extern from "<uv.h>" nogil:
    enum:
        UV_EAGAIN
        UV_EMFILE
        UV_ETIMEDOUT
        UV_READABLE
        UV_RUN_DEFAULT

    ctypedef struct uv_buf_t:
        char *base
        size_t len

    ctypedef struct uv_loop_t:
        void *data

    ctypedef struct uv_handle_t:
        void *data

    ctypedef struct uv_stream_t:
        void *data

    ctypedef struct uv_tcp_t:
        void *data

    ctypedef struct uv_timer_t:
        void *data

    ctypedef struct uv_async_t:
        void *data

    ctypedef struct uv_poll_t:
        void *data

    ctypedef struct uv_connect_t:
        void *data

    ctypedef struct uv_write_t:
        void *data

    ctypedef struct uv_mutex_t:
        pass

    struct sockaddr:
        pass

    ctypedef void (*uv_close_cb)(uv_handle_t *) noexcept nogil
    ctypedef void (*uv_walk_cb)(uv_handle_t *, void *) noexcept nogil
    ctypedef void (*uv_timer_cb)(uv_timer_t *) noexcept nogil
    ctypedef void (*uv_async_cb)(uv_async_t *) noexcept nogil
    ctypedef void (*uv_poll_cb)(uv_poll_t *, int, int) noexcept nogil
    ctypedef void (*uv_connect_cb)(uv_connect_t *, int) noexcept nogil
    ctypedef void (*uv_write_cb)(uv_write_t *, int) noexcept nogil
    ctypedef void (*uv_alloc_cb)(uv_handle_t *, size_t, uv_buf_t *) noexcept nogil
    ctypedef void (*uv_read_cb)(uv_stream_t *, ssize_t, const uv_buf_t *) noexcept nogil

    int uv_loop_init(uv_loop_t *loop)
    int uv_loop_close(uv_loop_t *loop)
    void uv_walk(uv_loop_t *loop, uv_walk_cb cb, void *arg)
    int uv_run(uv_loop_t *loop, int mode)
    uint64_t uv_hrtime()
    const char *uv_strerror(int err)
    void uv_close(uv_handle_t *handle, uv_close_cb cb)
    int uv_timer_init(uv_loop_t *loop, uv_timer_t *timer)
    int uv_timer_start(uv_timer_t *timer, uv_timer_cb cb, uint64_t timeout_ms, uint64_t repeat_ms)
    int uv_async_init(uv_loop_t *loop, uv_async_t *wake, uv_async_cb cb)
    int uv_async_send(uv_async_t *wake)
    int uv_poll_init(uv_loop_t *loop, uv_poll_t *poll, int fd)
    int uv_poll_start(uv_poll_t *poll, int events, uv_poll_cb cb)
    int uv_tcp_init(uv_loop_t *loop, uv_tcp_t *tcp)
    int uv_tcp_nodelay(uv_tcp_t *tcp, int enable)
    int uv_tcp_connect(uv_connect_t *req, uv_tcp_t *tcp, const sockaddr *addr, uv_connect_cb cb)
    int uv_read_start(uv_stream_t *stream, uv_alloc_cb alloc, uv_read_cb read)
    int uv_try_write(uv_stream_t *stream, const uv_buf_t *bufs, unsigned int n)
    int uv_write(uv_write_t *req, uv_stream_t *stream, const uv_buf_t *bufs, unsigned int n, uv_write_cb cb)
    int uv_mutex_init(uv_mutex_t *mutex)
    void uv_mutex_destroy(uv_mutex_t *mutex)
    void uv_mutex_lock(uv_mutex_t *mutex)
    void uv_mutex_unlock(uv_mutex_t *mutex)

cdef extern from "<netinet/in.h>" nogil:
    struct sockaddr_storage:
        pass
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    uint16_t htons(uint16_t value)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6

cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_NONBLOCK
        TFD_CLOEXEC
        TFD_TIMER_ABSTIME
    struct timespec:
        long tv_sec
        long tv_nsec
    struct itimerspec:
        timespec it_interval
        timespec it_value
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *new_value, itimerspec *old_value)

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_MONOTONIC

cdef extern from "<nghttp2/nghttp2.h>" nogil:
    enum:
        NGHTTP2_FLAG_NONE
        NGHTTP2_FLAG_END_STREAM
        NGHTTP2_FLAG_ACK
        NGHTTP2_DATA
        NGHTTP2_HEADERS
        NGHTTP2_SETTINGS
        NGHTTP2_GOAWAY
        NGHTTP2_NV_FLAG_NONE
        NGHTTP2_NV_FLAG_NO_INDEX
        NGHTTP2_NV_FLAG_NO_COPY_NAME
        NGHTTP2_NV_FLAG_NO_COPY_VALUE
        NGHTTP2_DATA_FLAG_EOF
        NGHTTP2_DATA_FLAG_NO_COPY
        NGHTTP2_NO_ERROR
        NGHTTP2_REFUSED_STREAM
        NGHTTP2_CANCEL
        NGHTTP2_ERR_WOULDBLOCK
        NGHTTP2_ERR_NOMEM
        NGHTTP2_ERR_PROTO
        NGHTTP2_SETTINGS_ENABLE_PUSH
        NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE

    ctypedef struct nghttp2_session:
        pass

    ctypedef struct nghttp2_session_callbacks:
        pass

    ctypedef struct nghttp2_nv:
        uint8_t *name
        uint8_t *value
        size_t namelen
        size_t valuelen
        uint8_t flags

    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value

    ctypedef struct nghttp2_frame_hd:
        size_t length
        int32_t stream_id
        uint8_t type
        uint8_t flags

    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd

    ctypedef union nghttp2_data_source:
        int fd
        void *ptr

    ctypedef ssize_t (*nghttp2_data_source_read_callback)(
        nghttp2_session *, int32_t, uint8_t *, size_t, uint32_t *, nghttp2_data_source *, void *) noexcept nogil

    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        nghttp2_data_source_read_callback read_callback

    ctypedef int (*nghttp2_on_frame_recv_callback)(
        nghttp2_session *, const nghttp2_frame *, void *) noexcept nogil
    ctypedef int (*nghttp2_on_header_callback)(
        nghttp2_session *, const nghttp2_frame *, const uint8_t *, size_t, const uint8_t *, size_t, uint8_t,
        void *) noexcept nogil
    ctypedef int (*nghttp2_on_data_chunk_recv_callback)(
        nghttp2_session *, uint8_t, int32_t, const uint8_t *, size_t, void *) noexcept nogil
    ctypedef int (*nghttp2_on_stream_close_callback)(
        nghttp2_session *, int32_t, uint32_t, void *) noexcept nogil
    ctypedef int (*nghttp2_send_data_callback)(
        nghttp2_session *, nghttp2_frame *, const uint8_t *, size_t, nghttp2_data_source *, void *) noexcept nogil

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks **out)
    void nghttp2_session_callbacks_del(nghttp2_session_callbacks *callbacks)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(
        nghttp2_session_callbacks *callbacks, nghttp2_on_frame_recv_callback cb)
    void nghttp2_session_callbacks_set_on_header_callback(
        nghttp2_session_callbacks *callbacks, nghttp2_on_header_callback cb)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
        nghttp2_session_callbacks *callbacks, nghttp2_on_data_chunk_recv_callback cb)
    void nghttp2_session_callbacks_set_on_stream_close_callback(
        nghttp2_session_callbacks *callbacks, nghttp2_on_stream_close_callback cb)
    void nghttp2_session_callbacks_set_send_data_callback(
        nghttp2_session_callbacks *callbacks, nghttp2_send_data_callback cb)
    int nghttp2_session_client_new(nghttp2_session **out, const nghttp2_session_callbacks *callbacks, void *user_data)
    void nghttp2_session_del(nghttp2_session *session)
    ssize_t nghttp2_session_mem_recv(nghttp2_session *session, const uint8_t *data, size_t n)
    ssize_t nghttp2_session_mem_send(nghttp2_session *session, const uint8_t **data)
    int nghttp2_session_want_read(nghttp2_session *session)
    int nghttp2_session_want_write(nghttp2_session *session)
    int nghttp2_session_check_request_allowed(nghttp2_session *session)
    uint32_t nghttp2_session_get_remote_settings(nghttp2_session *session, int settings_id)
    int nghttp2_session_set_local_window_size(
        nghttp2_session *session, uint8_t flags, int32_t stream_id, int32_t size)
    int nghttp2_submit_settings(
        nghttp2_session *session, uint8_t flags, const nghttp2_settings_entry *entries, size_t n)
    int32_t nghttp2_submit_request(
        nghttp2_session *session, const void *pri_spec, const nghttp2_nv *headers, size_t n,
        const nghttp2_data_provider *provider, void *stream_user_data)
    int nghttp2_submit_rst_stream(nghttp2_session *session, uint8_t flags, int32_t stream_id, uint32_t error_code)
    void *nghttp2_session_get_stream_user_data(nghttp2_session *session, int32_t stream_id)
    const char *nghttp2_strerror(int err)
