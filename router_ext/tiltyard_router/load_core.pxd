# loadgen > [load_core] > load_calls > load_hist
#
# The load generator: one libuv loop, HTTP/2 client connections on nghttp2, calls paced by the answers (closed loop) or
# by the clock (open loop). Runs once, on one thread, without the GIL. Errors are libuv's and nghttp2's own ints.
#
# Who owns what: the engine owns all connections and calls, in two arrays made once; a call is in exactly one of
# free, pending (planned, not sent) and live (sent, not settled), or in none (settled, its stream not closed yet).
# A connection owns its session and its handle. Everything in ld_config belongs to the façade.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from tiltyard_router.c_load cimport (
    nghttp2_nv, nghttp2_session, nghttp2_session_callbacks, sockaddr_storage, uv_async_t, uv_buf_t, uv_connect_t,
    uv_loop_t, uv_mutex_t, uv_poll_t, uv_tcp_t, uv_timer_t, uv_write_t)
from tiltyard_router.load_hist cimport ld_hist

cdef enum:
    LD_ARMS = 32                   # arms told apart; further ones are counted together as the last
    LD_ARM_NAME = 64
    LD_STATUSES = 17               # gRPC status 0 to 16; a number beyond them counts as UNKNOWN
    LD_MESSAGE = 240               # bytes kept of the first grpc-message of each status
    LD_KEY = 128
    LD_KEY_DIGITS = 12
    LD_NV = 64                     # header fields of a request
    LD_SEGS = 64                   # pieces of one write
    LD_OUT = 131072                # bytes of one write that are copied: heads and small bodies
    LD_OUT_RESERVE = 20480         # more than nghttp2 returns at once
    LD_READ = 262144
    LD_COPY_BODY = 2048            # bodies up to this are copied into the frame, longer ones referenced
    LD_ANY_SIZE = -1               # ld_config.answer_size: a well-framed answer of any size is right
    LD_SAME_SIZE = -2              # every answer of an arm must be as long as its first

cdef enum:                         # why a call failed without a gRPC status from the server
    LD_FAIL_TIMEOUT = 0            # not answered by its deadline
    LD_FAIL_CONNECTION = 1         # its connection was lost
    LD_FAIL_RESET = 2              # the server reset the stream
    LD_FAIL_REFUSED = 3            # the server did not take the stream (REFUSED_STREAM)
    LD_FAIL_HTTP = 4               # an HTTP status other than 200
    LD_FAIL_NO_STATUS = 5          # the answer ended without grpc-status
    LD_FAILS = 6

cdef enum:                         # how a run ended
    LD_END_DONE = 1
    LD_END_STOPPED = 2
    LD_END_LIMIT = 3
    LD_END_NO_CONNECTION = 4

cdef struct ld_config:
    sockaddr_storage addr
    const uint8_t *body            # gRPC's 5-byte prefix and the message
    size_t body_len
    nghttp2_nv nv[LD_NV]           # all fields of a request; with a key header, the key's is the last
    size_t n_nv
    bint keyed
    uint64_t n_keys                # 0: every call its own key
    const char *key_prefix         # at most LD_KEY - LD_KEY_DIGITS bytes
    size_t key_prefix_len
    const char *arm_header         # empty: arms are not told apart
    size_t arm_header_len
    int64_t answer_size            # message bytes without the prefix, LD_ANY_SIZE or LD_SAME_SIZE
    uint32_t n_conns
    uint32_t streams               # most calls in flight on one connection
    uint32_t max_in_flight         # open loop: most calls planned or in flight
    double gap_ns                  # open loop: mean time between calls; 0 is closed loop
    bint poisson
    uint64_t calls                 # measured calls; 0 is no limit
    uint64_t duration_ns           # measured time; 0 is no limit
    uint64_t warmup_calls
    uint64_t warmup_ns
    uint64_t timeout_ns            # of a call
    uint64_t connect_timeout_ns
    uint64_t limit_ns              # of the whole run
    uint64_t max_reconnects
    uint64_t seed

cdef struct ld_arm:
    char name[LD_ARM_NAME]
    size_t name_len
    uint64_t ok
    int64_t size                   # of its first good answer, -1 before

cdef struct ld_totals:             # of measured calls; issued = ok + wrong_size + statuses + fails + not_sent + open
    uint64_t issued
    uint64_t ok
    uint64_t wrong_size            # status OK, but broken framing or not the wanted size
    uint64_t statuses[LD_STATUSES]
    uint64_t fails[LD_FAILS]
    uint64_t not_sent              # planned while max_in_flight calls were under way
    uint64_t abandoned             # still open when the run ended early
    uint64_t connect_errors        # these three: of the whole run, warm-up included
    uint64_t connections_lost
    uint64_t reconnects

cdef struct ld_progress:           # what another thread may see of a run
    ld_totals totals
    uint64_t elapsed_ns
    uint64_t in_flight
    uint64_t p50_ns
    uint64_t p99_ns
    bint measuring

cdef struct ld_conn
cdef struct ld_engine

cdef struct ld_call:
    ld_call *prev
    ld_call *next
    ld_call *conn_prev             # calls of one connection whose stream is not closed
    ld_call *conn_next
    ld_conn *conn
    ld_arm *arm                    # NULL until the answer names one
    uint64_t planned_ns
    uint64_t sent_ns
    size_t sent                    # bytes of the body handed to nghttp2
    uint64_t got                   # bytes of the answer's body
    int32_t stream_id
    int32_t http_status
    int32_t grpc_status            # -1 until seen
    uint8_t head[5]                # the answer's gRPC prefix
    bint measured
    bint done
    char key[LD_KEY]

cdef struct ld_list:
    ld_call *head
    ld_call *tail
    uint64_t n

cdef enum:                         # ld_conn.state
    LD_DOWN = 0                    # no handle; opened again at retry_ns
    LD_CONNECTING = 1
    LD_UP = 2
    LD_CLOSING = 3                 # handle closing; becomes LD_DOWN in its close callback
    LD_DEAD = 4                    # no handle, not opened again

cdef struct ld_conn:
    ld_engine *engine
    uv_tcp_t tcp
    uv_connect_t connect_req
    uv_write_t write_req
    nghttp2_session *session       # owned; NULL unless up
    ld_call *calls
    uint32_t n_calls
    int state
    bint tried                     # opened before: the next opening is a reconnect
    bint greeted                   # the server's SETTINGS are here: calls may be sent
    bint draining                  # GOAWAY seen: nothing new
    bint dirty                     # has new requests to flush
    bint writing                   # a write is under way; segs and out must stay
    uint32_t fails                 # in a row, for the back-off
    uint64_t opened_ns             # start of the connect
    uint64_t since_ns              # start of the write under way
    uint64_t retry_ns
    uv_buf_t segs[LD_SEGS]
    unsigned int n_segs
    size_t out_len
    char *out                      # LD_OUT bytes, owned

cdef struct ld_engine:
    const ld_config *cfg
    uv_loop_t loop
    uv_timer_t tick
    uv_async_t wake                # open between run's start and end; `lock` guards wake_open
    uv_poll_t pacer
    int pacer_fd
    uv_mutex_t lock                # guards wake_open, stop_asked and shown
    bint wake_open
    bint stop_asked
    ld_progress shown
    nghttp2_session_callbacks *callbacks
    nghttp2_nv nv[LD_NV]
    ld_conn *conns
    uint32_t n_dead
    uint32_t turn                  # connection whose turn it is, open loop
    ld_call *calls
    size_t n_calls
    ld_list free
    ld_list pending
    ld_list live
    uint64_t now_ns
    uint64_t start_ns
    uint64_t begun_ns              # first connection greeted; 0 before
    uint64_t measure_ns            # first measured call
    uint64_t last_ns               # last measured call settled
    uint64_t next_ns               # open loop: when the next call is due
    uint64_t shown_ns
    uint64_t issued                # calls of the whole run, warm-up included
    uint64_t next_key
    uint64_t random
    bint measuring
    bint issuing_over
    bint closing
    int end
    int error                      # last status of a connection that failed
    ld_totals totals
    ld_arm arms[LD_ARMS]
    uint32_t n_arms
    ld_arm no_arm                  # answers that name none
    ld_hist latency                # measured calls answered OK or given up at their deadline, from planned_ns
    ld_hist lag                    # open loop: from planned_ns to the sending
    ld_call *message_call          # whose grpc-message stands in message
    char message[LD_MESSAGE]
    size_t message_len
    char messages[LD_STATUSES][LD_MESSAGE]
    size_t message_lens[LD_STATUSES]
    char *read_buf                 # LD_READ bytes, owned

# cfg must outlive the engine. NULL when memory is out.
cdef ld_engine *engine_new(const ld_config *cfg) noexcept nogil
# Accepts NULL; not while engine_run is running.
cdef void engine_free(ld_engine *e) noexcept nogil
# Runs to the end, once. A negative status means that the loop could not start; results are read from the engine.
cdef int engine_run(ld_engine *e) noexcept nogil
# From any thread, before, during or after the run: the run ends at once and keeps what it has.
cdef void engine_stop(ld_engine *e) noexcept nogil
# From any thread: what the run last published, at most 0.1 s old.
cdef void engine_progress(ld_engine *e, ld_progress *out) noexcept nogil
