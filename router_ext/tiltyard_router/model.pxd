# The core's objects, and who owns what. Start here.
#
#   ty_loop       one per thread; owns everything below; freed when its uv loop has closed
#   ty_conn       one socket with one nghttp2 session: front (a client's) or back (to a model server).
#                 Owned by the loop (front) or its endpoint (back); freed in the handle's close callback
#   ty_stream     one call; links its front stream and its back stream; freed by stream_release once both are closed.
#                 Holds a reference on the route table it was routed by
#   ty_backend    one address text from the route table; owned by the loop while a table or a stream needs it
#   ty_endpoint   one resolved socket address of a backend, with its connections; owned by its backend
#
# Calls run in the direction of the request (front > stream > pool > back). What runs the other way goes through
# ty_hooks, so that the modules form no circle.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t

from tiltyard_router.c_nghttp2 cimport nghttp2_rcbuf, nghttp2_session
from tiltyard_router.c_uv cimport (
    sockaddr_storage, uv_async_t, uv_buf_t, uv_check_t, uv_connect_t, uv_getaddrinfo_t, uv_handle_t, uv_idle_t,
    uv_loop_t, uv_mutex_t, uv_pipe_t, uv_prepare_t, uv_stream_t, uv_tcp_t, uv_timer_t)
from tiltyard_router.mem cimport ty_buf, ty_mem
from tiltyard_router.receipt cimport TY_RECEIPT_CHARS, ty_signer
from tiltyard_router.routes cimport ty_arm, ty_pipeline, ty_routes
from tiltyard_router.score cimport ty_reader
from tiltyard_router.tap cimport ty_block, ty_second, ty_tap

cdef enum:
    TY_OUT_COPY = 196608           # bytes copied per flush round at the most
    TY_OUT_SOFT = 131072           # no new frame is begun beyond this; one frame fits in the rest
    TY_OUT_REF = 524288            # bytes referenced per flush round at the most
    TY_OUT_IOV = 512
    TY_COPY_BELOW = 2049           # payload pieces up to 2 KiB are copied, larger ones referenced
    TY_HDR_INLINE = 16             # fields of a message without an allocation
    TY_TRAILERS_INLINE = 8
    TY_H_TOKENS = 17               # kinds of fields that headers.pxd tells apart
    TY_HDR_MAX = 128               # header fields of one message
    TY_HDR_BYTES = 16384           # and their size, by HPACK's count (name + value + 32 each)
    TY_WHEEL_SLOTS = 512
    TY_WHEEL_TICK_MS = 10
    TY_WINDOW = 1048576            # initial stream window we offer on both sides
    TY_CONN_WINDOW = 16777216      # and connection window
    TY_STALL_MS = 60000            # a client that takes none of what waits for it this long is let go
    TY_CREDIT_STEP = 131072        # credit goes back in steps of this, an eighth of a stream's window
    TY_FRONT_STREAMS = 1000        # streams a client may have open on one connection
    TY_MAX_ADDRS = 16              # resolved addresses of one backend that are used
    TY_BACK_CONNS = 8              # connections to one endpoint
    TY_BACK_STREAMS = 1000         # streams on one of them, when the peer allows as many
    TY_WAITING_MAX = 4096          # calls that may wait for a connection to one backend
    TY_MSG_CAP = 256

cdef enum:                         # ty_conn.role
    TY_FRONT = 1
    TY_BACK = 2

cdef enum:                         # ty_stream.kind
    TY_KIND_NONE = 0               # headers not complete yet
    TY_KIND_PREDICT = 1            # routed by its model_spec; the request is gathered whole first
    TY_KIND_PASS = 2               # control plane or outcomes; streams through in both directions
    TY_KIND_HEALTH = 3             # answered here
    TY_KIND_REFUSED = 4            # answered with an error before it was routed

# The life of a call. ARCHITECTURE.md draws it.
cdef enum:                         # ty_stream.state
    TY_ST_HEADERS = 0              # reading request headers
    TY_ST_BODY = 1                 # gathering the request (predict)
    TY_ST_WAITING = 2              # waiting for a connection
    TY_ST_SENT = 3                 # handed to a backend's session
    TY_ST_ANSWERING = 4            # answer headers are with the client
    TY_ST_DONE = 5                 # the answer has ended, well or not; only closing is left

cdef struct ty_header:
    nghttp2_rcbuf *name_buf        # one reference each
    nghttp2_rcbuf *value_buf
    const char *name               # in them
    const char *value
    uint32_t name_len
    uint32_t value_len
    uint8_t token                  # TY_H_*

cdef struct ty_headers:            # what is read or sent on; fields of one hop only leave a mark
    ty_header *items               # own, or a block of TY_HDR_MAX that is owned
    ty_header *own                 # where its stream has room for the first ones
    uint32_t n
    uint32_t cap
    uint32_t bytes
    uint8_t overflow               # a limit was reached; the message is refused when its headers are complete
    uint8_t is_post                # :method is POST
    uint16_t status                # :status; 0: none
    uint8_t at[TY_H_TOKENS]        # 1 + index of the last field with this token; 0: none

cdef struct ty_seg:                # a slice of a buffer
    ty_seg *next
    ty_buf *buf                    # one reference
    const uint8_t *p
    size_t n

cdef struct ty_queue:              # bytes on their way from one side of a call to the other
    ty_seg *head                   # owned
    ty_seg *tail
    ty_seg *at                     # next to be sent; NULL when all are
    size_t at_off
    uint64_t unsent                # bytes from `at` on
    uint64_t held                  # bytes in all segments
    uint8_t keep                   # sent segments stay (for a second try) until queue_clear
    uint8_t ended                  # nothing more will be pushed
    uint8_t deferred               # the sending session waits for resume_data
    uint8_t to_back                # request direction; else answer direction
    ty_stream *stream              # whose queue this is

cdef struct ty_stream:
    ty_loop *loop
    ty_conn *front                 # NULL once its front stream is closed
    ty_conn *back                  # NULL while no back stream is open
    int32_t front_id
    int32_t back_id
    ty_stream *f_prev              # list of front.streams
    ty_stream *f_next
    ty_stream *b_prev              # list of back.streams, or of backend.waiting
    ty_stream *b_next
    ty_stream *w_prev              # list of one wheel slot
    ty_stream *w_next
    uint32_t w_slot                # 1 + slot; 0: on no list
    uint64_t begun_ms              # when its headers had come, by uv_now
    uint64_t deadline_ms           # by uv_now; 0: none
    uint64_t wait_ms               # when it began to wait for a connection
    size_t front_owed              # received bytes whose stream credit was not given back yet, on either side
    size_t back_owed
    uint8_t kind
    uint8_t state
    uint8_t request_ended          # END_STREAM came from the client
    uint8_t answered               # answer headers were handed to the front session
    uint8_t answer_ended           # the back side has ended (trailers or failure)
    uint8_t trailers_sent          # END_STREAM was handed to the front session
    uint8_t back_ended             # END_STREAM came from the backend
    uint8_t tries
    uint8_t final_head             # answer headers (not 1xx) were read completely
    uint8_t counted                # assigned in the tap and not settled yet
    uint8_t own_status             # trailers are made here, from status and msg
    uint8_t has_receipt
    uint8_t compressed             # the answer's message has the compressed flag
    uint8_t watching               # an open health watch
    ty_headers request
    ty_headers answer
    ty_headers trailers
    ty_queue out                   # request bytes for the backend
    ty_queue in_                   # answer bytes for the client
    uint8_t prefix[5]              # gRPC prefix of the request as it arrives
    uint8_t answer_prefix[5]
    uint8_t prefix_len
    uint8_t answer_prefix_len
    uint32_t msg_len               # of the request's message
    uint64_t msg_got
    uint64_t answer_left           # bytes left of the answer's message
    uint32_t answer_msgs
    ty_backend *waiting_on         # in this backend's waiting list
    ty_backend *pass_to            # kind PASS: the service's address
    ty_routes *routes              # one reference, from routing to the end
    ty_pipeline *pipeline          # in routes
    ty_arm *arm                    # in routes
    ty_block *block                # in the tap
    ty_second *second
    int status                     # gRPC status of our own trailers; its text is msg
    # From here on nothing is cleared when a stream is made: it would cost more than the rest of it.
    ty_reader reader               # begins when the call is routed
    char msg[TY_MSG_CAP]           # terminated
    char receipt[TY_RECEIPT_CHARS]
    ty_header request_room[TY_HDR_INLINE]
    ty_header answer_room[TY_HDR_INLINE]
    ty_header trailers_room[TY_TRAILERS_INLINE]

cdef union ty_handle:
    uv_handle_t handle
    uv_stream_t stream
    uv_tcp_t tcp
    uv_pipe_t pipe

cdef struct ty_conn:
    ty_handle h
    ty_loop *loop
    nghttp2_session *session       # owned; deleted in the close callback
    ty_conn *prev                  # list of the loop (front) or endpoint (back)
    ty_conn *next
    ty_conn *dirty_next            # list of loop.dirty or loop.later
    ty_stream *streams             # calls with an open stream here
    ty_stream *reading             # whose header block is being read
    uint64_t unsent                # front: answer bytes of its calls that wait here
    uint64_t moved_ms              # front: when such bytes last were sent, or began to wait
    size_t owed                    # received bytes whose connection credit was not given back yet
    uint64_t named                 # metadata names (by a hash) whose first value went into HPACK's table
    uint32_t n_streams
    ty_endpoint *endpoint          # back: NULL once the endpoint is gone
    uv_connect_t connect_req
    uint64_t dial_deadline_ms      # back: 0 once the peer's SETTINGS came, which say how many streams it takes
    uint8_t role
    uint8_t dirty
    uint8_t closing                # uv_close was called; nothing may be sent or submitted any more
    uint8_t write_busy             # an asynchronous write is under way; flush waits for it
    uint8_t connected
    uint8_t draining               # nothing new on it: GOAWAY came, or we said it
    uint8_t goaway_sent            # front: 1 notice, 2 final
    uint64_t goaway_final_ms       # front: when the final GOAWAY is due

cdef struct ty_endpoint:
    ty_backend *backend            # NULL once dropped
    ty_endpoint *next              # list of loop.dropped
    sockaddr_storage addr
    ty_conn *conns                 # owned
    uint32_t n_conns
    uint32_t n_dialling
    uint32_t in_flight             # streams on all its connections
    uint8_t down                   # the last dial failed; not used until one succeeds
    uint8_t gone                   # no longer resolved
    uint32_t fails                 # dials failed in a row
    uint64_t redial_ms             # when to try again

cdef struct ty_backend:
    ty_loop *loop
    ty_backend *next               # list of the loop
    char *text                     # owned: "host:port" or "unix:PATH"
    ty_endpoint *endpoints[TY_MAX_ADDRS]   # owned
    uint32_t n_endpoints
    uint32_t turn                  # where the search for the least loaded begins
    ty_stream *waiting             # calls waiting for a connection, oldest first
    ty_stream *waiting_tail
    uint32_t n_waiting
    uint32_t refs                  # tables that name it, and pass-through use
    uint8_t resolving
    uint8_t literal                # an IP address or UNIX socket: nothing to resolve
    uint8_t resolved               # at least once
    uint8_t dead                   # leave when resolving ends
    uint64_t resolve_ms            # when to resolve again
    uv_getaddrinfo_t resolve_req

cdef struct ty_hooks:              # calls against the direction of the request; set once by core
    int (*start_back)(ty_conn *conn) noexcept nogil
    int (*send_request)(ty_conn *conn, ty_stream *st) noexcept nogil
    void (*back_gone)(ty_conn *conn, int rv) noexcept nogil
    void (*front_gone)(ty_conn *conn, int rv) noexcept nogil
    void (*stream_failed)(ty_stream *st, int status, const char *msg) noexcept nogil
    void (*stream_expired)(ty_stream *st) noexcept nogil
    void (*queue_drained)(ty_queue *q, size_t n) noexcept nogil

cdef struct ty_listener:
    ty_handle h
    ty_loop *loop
    ty_listener *next
    uint8_t missed                 # a connection waits that could not be taken; the tick tries again

cdef struct ty_config:
    uint64_t drain_limit_ms
    uint64_t connect_timeout_ms
    uint64_t default_deadline_us
    uint64_t max_message_bytes
    uint64_t max_buffered_bytes    # of all calls together; a request beyond it is refused

cdef struct ty_loop:
    uv_loop_t uv
    uv_async_t wake                # other threads call uv_async_send on it
    uv_check_t check
    uv_prepare_t prepare
    uv_timer_t tick                # every 100 ms: backends, seconds, drain
    uv_timer_t wheel_timer         # every TY_WHEEL_TICK_MS while a deadline is set
    ty_config config
    ty_hooks hooks
    ty_mem mem
    ty_buf *read_buf               # one reference; replaced when somebody else holds one too
    ty_listener *listeners         # owned
    ty_conn *fronts                # owned
    uint32_t n_fronts
    uint32_t n_backs
    uint32_t n_streams
    uint32_t n_watching            # open health watches
    uint64_t buffered              # request and answer bytes in queues
    ty_backend *backends           # owned
    ty_endpoint *dropped           # owned: no backend's any more; freed when their last connections close
    ty_backend *control            # NULL: not given
    ty_backend *outcomes
    ty_routes *routes              # table in force; one reference
    ty_tap *tap                    # owned
    ty_signer *signer              # owned; NULL until a key came
    uint8_t boot_id[6]
    uint8_t key_secret[32]         # of the signer
    uint8_t key_number
    int64_t wall_offset_ms         # unix time minus uv_now; see clock.pxd
    uint64_t rng[3]                # two for draws, one for jitter
    ty_conn *dirty                 # to be flushed before the loop sleeps
    ty_conn *later                 # had their share of this iteration and have more to send
    uv_idle_t idle                 # active while `later` is not empty: the loop must not sleep then
    ty_stream *wheel_next          # where the walk over a slot goes on; moved when that stream leaves the slot
    ty_stream *wheel[TY_WHEEL_SLOTS]
    uint64_t wheel_at              # last tick handled
    uint32_t wheel_n
    # one flush at a time: what the connection being flushed sends
    uint8_t *out                   # owned, TY_OUT_COPY
    size_t out_len
    size_t out_mark
    size_t out_refs
    uv_buf_t iov[TY_OUT_IOV]
    uint32_t n_iov
    ty_buf *held[TY_OUT_IOV]
    uint32_t n_held
    uint8_t out_full
    # from other threads
    uv_mutex_t lock                # guards the next three
    ty_routes *pending
    uint32_t stop_calls
    uint64_t applied               # revision in force; read by other threads
    uint8_t draining
    uint8_t ending
    uint64_t drain_deadline_ms
    int failure                    # status that ended run, or 0
