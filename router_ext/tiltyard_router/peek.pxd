# front > [peek] > routes
#
# Finds what the router must know in the bytes of a PredictRequest, without decoding tensors. The message lies in
# pieces (as DATA frames brought it) and is never put together.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from tiltyard_router.wire cimport ty_iov

cdef enum:
    TY_SPEC_MAX_CUTS = 64          # model_spec fields in one message; more is refused (TY_ERR_LIMIT)
    TY_SPEC_NAME_CAP = 256         # bytes of a name or label that are kept; no valid name is longer
    TY_SPEC_INLINE = 256           # bytes of other model_spec fields kept without an allocation
    TY_SPEC_REST_MAX = 65536       # and with one; more is refused (TY_ERR_LIMIT), and so is one longer model_spec
    TY_KEY_MAX = 1024

cdef struct ty_cut:
    uint64_t start                 # first byte of the field's tag, counted from the start of the message
    uint64_t end                   # first byte after the field

cdef struct ty_spec:               # all model_spec fields of one request, merged as protobuf does
    char name[TY_SPEC_NAME_CAP]    # not terminated
    size_t name_len                # as sent; min(name_len, cap) bytes are kept
    char label[TY_SPEC_NAME_CAP]   # version_label, when has_label
    size_t label_len
    uint8_t has_label              # version and version_label are a oneof: the last one wins
    uint8_t has_version
    int64_t version
    ty_cut cuts[TY_SPEC_MAX_CUTS]  # ascending, not overlapping
    uint32_t n_cuts
    uint8_t rest_inline[TY_SPEC_INLINE]
    uint8_t *rest                  # signature_name and unknown fields as sent; points to rest_inline or is owned
    size_t rest_len
    size_t rest_cap

# 0, or TY_ERR_MALFORMED, TY_ERR_LIMIT, TY_ERR_NOMEM, TY_ERR_NO_SPEC (no model_spec or an empty name). `spec` need not
# be initialised before; spec_clear must be called after, whatever came back.
cdef int peek_request(const ty_iov *iov, uint32_t n_iov, ty_spec *spec) noexcept nogil
cdef void spec_clear(ty_spec *spec) noexcept nogil

# The model_spec field (tag, length, content) that asks for this model and version and keeps the rest.
# Returns its size; writes it when cap is large enough.
cdef size_t spec_write(const ty_spec *spec, const char *model, size_t model_len, int64_t version,
                       uint8_t *out, size_t cap) noexcept nogil

# The key bytes of the input tensor `name` (DESIGN: a string element as it is; an integer in decimal ASCII; one element,
# or one per row all equal; the last of repeated map keys). Returns the length written to out (cap TY_KEY_MAX), 0 when
# there is no such tensor or the key is empty, or TY_ERR_KEY_DTYPE, TY_ERR_KEY_SHAPE, TY_ERR_KEY_LONG, TY_ERR_MALFORMED,
# TY_ERR_NOMEM.
cdef int peek_tensor_key(const ty_iov *iov, uint32_t n_iov, const char *name, size_t name_len,
                         uint8_t *out) noexcept nogil
