# stream > [receipt] > front
"""The inference id: what one answer can be recognised by, signed. The layout stands in docs/receipts.md.

The loop uses the C functions; :class:`Signer` shows them to tests.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from tiltyard_router cimport c_openssl as ssl
from tiltyard_router.c_xxhash cimport XXH3_64bits
from tiltyard_router.status cimport TY_ERR_NOMEM

cdef enum:
    RECEIPT_BYTES = 48
    SIGNED_BYTES = 32              # the MAC covers bytes 0 to 31
    MAC_BYTES = 16                 # of which so many are kept
    SECRET_BYTES = 32
    BOOT_BYTES = 6
    DIGEST_BYTES = 32

cdef struct ty_signer:
    ssl.EVP_MAC_CTX *mac           # owned; keyed once, started afresh for each receipt
    uint64_t sequence              # of the last receipt
    uint8_t head                   # version and key number
    uint8_t boot_id[BOOT_BYTES]

cdef const char *ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


cdef int mac_of(ssl.EVP_MAC_CTX *mac, const uint8_t *data, uint8_t *out) noexcept nogil:
    # EVP_MAC(3): init without a key starts again with the key of before, which saves the key set-up of each call.
    cdef size_t n = 0
    if ssl.EVP_MAC_init(mac, NULL, 0, NULL) != 1:
        return TY_ERR_NOMEM
    if ssl.EVP_MAC_update(mac, data, SIGNED_BYTES) != 1:
        return TY_ERR_NOMEM
    if ssl.EVP_MAC_final(mac, out, &n, DIGEST_BYTES) != 1 or n != DIGEST_BYTES:
        return TY_ERR_NOMEM
    return 0


cdef ssl.EVP_MAC_CTX *mac_new(const uint8_t *secret) noexcept nogil:
    """An HMAC-SHA-256 context with its key; NULL when OpenSSL refuses."""
    cdef ssl.OSSL_PARAM params[2]
    cdef ssl.EVP_MAC *algorithm = ssl.EVP_MAC_fetch(NULL, b"HMAC", NULL)
    cdef ssl.EVP_MAC_CTX *mac = NULL
    cdef uint8_t zeros[SIGNED_BYTES]
    cdef uint8_t keyed[DIGEST_BYTES]
    cdef uint8_t again[DIGEST_BYTES]
    cdef size_t n = 0
    cdef bint good = False
    if algorithm is not NULL:
        mac = ssl.EVP_MAC_CTX_new(algorithm)
        ssl.EVP_MAC_free(algorithm)              # the context holds its own reference
    if mac is not NULL:
        params[0] = ssl.OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
        params[1] = ssl.OSSL_PARAM_construct_end()
        memset(zeros, 0, SIGNED_BYTES)
        # The first MAC comes with the key, the second without: OpenSSL 3.0.0 to 3.0.2 gave another one then.
        good = (ssl.EVP_MAC_init(mac, secret, SECRET_BYTES, params) == 1
                and ssl.EVP_MAC_update(mac, zeros, SIGNED_BYTES) == 1
                and ssl.EVP_MAC_final(mac, keyed, &n, DIGEST_BYTES) == 1
                and mac_of(mac, zeros, again) == 0
                and memcmp(keyed, again, DIGEST_BYTES) == 0)
    if not good:
        ssl.EVP_MAC_CTX_free(mac)
        ssl.ERR_clear_error()
        return NULL
    return mac


cdef ty_signer *signer_new(const uint8_t *secret, uint8_t key_number, const uint8_t *boot_id) noexcept nogil:
    cdef ty_signer *signer = <ty_signer *>calloc(1, sizeof(ty_signer))
    if signer is NULL:
        return NULL
    signer.mac = mac_new(secret)
    if signer.mac is NULL:
        free(signer)
        return NULL
    signer.head = 0x10 | (key_number & 0x0F)
    memcpy(signer.boot_id, boot_id, BOOT_BYTES)
    return signer


cdef void signer_free(ty_signer *signer) noexcept nogil:
    if signer is NULL:
        return
    ssl.EVP_MAC_CTX_free(signer.mac)             # cleanses the key
    free(signer)


cdef int signer_rekey(ty_signer *signer, const uint8_t *secret, uint8_t key_number) noexcept nogil:
    cdef ssl.EVP_MAC_CTX *mac = mac_new(secret)
    if mac is NULL:
        return TY_ERR_NOMEM                      # the old key stays
    ssl.EVP_MAC_CTX_free(signer.mac)
    signer.mac = mac
    signer.head = 0x10 | (key_number & 0x0F)
    return 0


cdef inline void put_be(uint8_t *p, uint64_t value, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        p[i] = <uint8_t>(value >> (8 * (n - 1 - i)))


cdef void to_base64url(const uint8_t *raw, char *out) noexcept nogil:
    # 48 is a multiple of 3: there is no padding.
    cdef int i
    cdef uint32_t word
    for i in range(RECEIPT_BYTES // 3):
        word = (<uint32_t>raw[3 * i] << 16) | (<uint32_t>raw[3 * i + 1] << 8) | raw[3 * i + 2]
        out[4 * i] = ALPHABET[word >> 18]
        out[4 * i + 1] = ALPHABET[(word >> 12) & 63]
        out[4 * i + 2] = ALPHABET[(word >> 6) & 63]
        out[4 * i + 3] = ALPHABET[word & 63]


cdef int receipt_write(ty_signer *signer, uint8_t arm_and_flags, int bucket, uint32_t epoch, uint32_t share_slots,
                       uint32_t unix_seconds, char *out) noexcept nogil:
    cdef uint8_t raw[RECEIPT_BYTES]
    cdef uint8_t digest[DIGEST_BYTES]
    cdef int rv
    signer.sequence += 1
    raw[0] = signer.head
    raw[1] = arm_and_flags
    raw[3] = 0
    put_be(raw + 4, epoch, 4)
    memset(raw + 8, 0, 6)                        # no contest
    put_be(raw + 14, share_slots, 2)
    memcpy(raw + 16, signer.boot_id, BOOT_BYTES)
    put_be(raw + 22, signer.sequence, 6)
    put_be(raw + 28, unix_seconds, 4)
    raw[2] = <uint8_t>(XXH3_64bits(raw + 16, 12) >> 56) if bucket < 0 else <uint8_t>bucket
    rv = mac_of(signer.mac, raw, digest)
    if rv != 0:
        return rv
    memcpy(raw + SIGNED_BYTES, digest, MAC_BYTES)
    to_base64url(raw, out)
    return 0


@cython.final
cdef class Signer:
    """Writes receipts under one key, for one boot.

    Args:
        secret: the key, 32 bytes.
        number: the key's number, 0 to 15.
        boot_id: 6 bytes.

    Raises:
        ValueError: a length or the number is wrong.
        MemoryError: memory is out, or OpenSSL has no HMAC-SHA-256.
    """

    cdef ty_signer *_signer                      # owned, from __cinit__ to __dealloc__

    def __cinit__(self, bytes secret not None, int number, bytes boot_id not None):
        _check_key(secret, number)
        if len(boot_id) != BOOT_BYTES:
            raise ValueError(f"a boot id has {BOOT_BYTES} bytes, this one has {len(boot_id)}")
        self._signer = signer_new(<const uint8_t *>secret, <uint8_t>number, <const uint8_t *>boot_id)
        if self._signer is NULL:
            raise MemoryError("receipt signer")

    def __dealloc__(self):
        signer_free(self._signer)

    def write(self, *, int arm, uint32_t epoch, uint32_t share_slots, uint32_t unix_seconds, int flags=0,
              int bucket=-1):
        """Write the next receipt: 64 characters.

        Raises:
            RuntimeError: OpenSSL failed.
        """
        cdef char out[TY_RECEIPT_CHARS]
        if receipt_write(self._signer, <uint8_t>((arm & 0x0F) | flags), bucket, epoch, share_slots, unix_seconds,
                         out) != 0:
            raise RuntimeError("OpenSSL could not sign")
        return out[:TY_RECEIPT_CHARS]

    def rekey(self, bytes secret not None, int number):
        """Sign with another key from the next receipt on; the sequence goes on."""
        _check_key(secret, number)
        if signer_rekey(self._signer, <const uint8_t *>secret, <uint8_t>number) != 0:
            raise MemoryError("receipt signer")

    def write_many(self, int count):
        """Write ``count`` receipts and drop them: what one costs, without Python's share."""
        cdef char out[TY_RECEIPT_CHARS]
        cdef int i
        cdef int rv = 0
        with nogil:
            for i in range(count):
                rv |= receipt_write(self._signer, TY_RECEIPT_KEYED, i & 0xFF, 1, 5000, <uint32_t>i, out)
        if rv != 0:
            raise RuntimeError("OpenSSL could not sign")


def _check_key(bytes secret not None, int number):
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a receipt key has {SECRET_BYTES} bytes, this one has {len(secret)}")
    if not 0 <= number <= 15:
        raise ValueError(f"a receipt key's number is 0 to 15, not {number}")


FORCED = TY_RECEIPT_FORCED
FALLBACK = TY_RECEIPT_FALLBACK
KEYED = TY_RECEIPT_KEYED
