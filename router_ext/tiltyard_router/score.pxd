# back > [score] > tap
#
# Reads the numbers that metrics ask for from the bytes of a PredictResponse as they stream by, in any chopping.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    TY_MAX_METRICS = 8

# Why an answer gave no value. The order is the order of the cells in the counters file.
cdef enum:
    TY_SCORED = 0
    TY_UNSCORED_ERROR = 1          # the call failed, timed out or was cancelled: there is no answer to read
    TY_UNSCORED_MISSING = 2        # the answer has no such output
    TY_UNSCORED_DTYPE = 3          # the output is no number
    TY_UNSCORED_INDEX = 4          # index out of range, or the rows do not divide the elements, or no rows
    TY_UNSCORED_NAN = 5            # not a number or infinite
    TY_UNSCORED_MALFORMED = 6      # the answer is no valid PredictResponse, or compressed
    TY_UNSCORED_LIMIT = 7          # memory or size limit
    TY_UNSCORED_REASONS = 8        # one past the last

cdef struct ty_metric:             # owned by the route table, immutable
    const char *name
    size_t name_len
    const char *output
    size_t output_len
    int64_t index
    uint8_t has_above
    double above

cdef struct ty_reader:             # one answer being read; lives inside its stream
    const ty_metric *metrics       # borrowed
    uint32_t n_metrics
    double values[TY_MAX_METRICS]
    uint8_t reasons[TY_MAX_METRICS]
    # private to score.pyx: the state of the scanner
    uint8_t state
    uint8_t shift                  # of the varint that is being read
    uint8_t failed                 # the message is malformed
    uint8_t n_open                 # groups around the current field; their numbers stand in `entry`
    uint64_t varint
    uint64_t left                  # bytes left of the field being skipped or collected
    uint8_t *entry                 # owned: the output entry being collected
    size_t entry_len
    size_t entry_cap

cdef void reader_init(ty_reader *r, const ty_metric *metrics, uint32_t n_metrics) noexcept nogil
# Next bytes of the message (without gRPC's 5-byte prefix). Never fails: trouble becomes a reason.
cdef void reader_feed(ty_reader *r, const uint8_t *p, size_t n) noexcept nogil
# End of the message: values[i] is set where reasons[i] is TY_SCORED.
cdef void reader_finish(ty_reader *r) noexcept nogil
# Frees what is owned; harmless on a zeroed or finished reader.
cdef void reader_clear(ty_reader *r) noexcept nogil
