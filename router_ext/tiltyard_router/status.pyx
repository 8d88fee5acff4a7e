"""Names for the ints that the layers of the core return."""

from tiltyard_router cimport c_nghttp2 as ng
from tiltyard_router cimport c_uv as uv

cdef const char *status_text(int rv) noexcept nogil:
    """A static English text for any layer's status; never NULL."""
    if rv >= 0:
        return b"ok"
    if rv <= -10000:
        if rv == TY_ERR_NOMEM:
            return b"out of memory"
        if rv == TY_ERR_MALFORMED:
            return b"malformed protobuf message"
        if rv == TY_ERR_LIMIT:
            return b"a limit was reached"
        if rv == TY_ERR_NO_SPEC:
            return b"no model_spec"
        if rv == TY_ERR_KEY_DTYPE:
            return b"the key tensor is no string or integer"
        if rv == TY_ERR_KEY_SHAPE:
            return b"the key tensor holds different values"
        if rv == TY_ERR_KEY_LONG:
            return b"the key is longer than 1024 bytes"
        if rv == TY_ERR_NOT_FOUND:
            return b"not found"
        if rv == TY_ERR_CLOSED:
            return b"closed"
        if rv == TY_ERR_PROTOCOL:
            return b"broken gRPC framing"
        if rv == TY_ERR_TIMEOUT:
            return b"deadline exceeded"
        return b"unknown status"
    if -905 <= rv <= -501:
        return ng.nghttp2_strerror(rv)
    return uv.uv_strerror(rv)


def status_name(int rv):
    """Text for a status of any layer (libuv, nghttp2 or the core's own)."""
    return status_text(rv).decode("ascii", "replace")


#: The core's own statuses by name, for tests that hold the ranges apart.
OWN_STATUSES = {
    "TY_ERR_NOMEM": TY_ERR_NOMEM,
    "TY_ERR_MALFORMED": TY_ERR_MALFORMED,
    "TY_ERR_LIMIT": TY_ERR_LIMIT,
    "TY_ERR_NO_SPEC": TY_ERR_NO_SPEC,
    "TY_ERR_KEY_DTYPE": TY_ERR_KEY_DTYPE,
    "TY_ERR_KEY_SHAPE": TY_ERR_KEY_SHAPE,
    "TY_ERR_KEY_LONG": TY_ERR_KEY_LONG,
    "TY_ERR_NOT_FOUND": TY_ERR_NOT_FOUND,
    "TY_ERR_CLOSED": TY_ERR_CLOSED,
    "TY_ERR_PROTOCOL": TY_ERR_PROTOCOL,
    "TY_ERR_TIMEOUT": TY_ERR_TIMEOUT,
}
