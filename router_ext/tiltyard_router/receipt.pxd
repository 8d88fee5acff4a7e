# stream > [receipt] > front
#
# The inference id: 48 bytes, signed, base64url (64 characters). The layout stands in DESIGN and docs/receipts.md.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    TY_RECEIPT_CHARS = 64
    TY_RECEIPT_FORCED = 0x10
    TY_RECEIPT_FALLBACK = 0x20
    TY_RECEIPT_KEYED = 0x40

cdef struct ty_signer              # one keyed MAC context per loop; private to receipt.pyx

# secret is 32 bytes; boot_id 6. NULL when OpenSSL refuses or memory is out.
cdef ty_signer *signer_new(const uint8_t *secret, uint8_t key_number, const uint8_t *boot_id) noexcept nogil
cdef void signer_free(ty_signer *signer) noexcept nogil
# Another key from now on; the sequence goes on. 0 or a negative status.
cdef int signer_rekey(ty_signer *signer, const uint8_t *secret, uint8_t key_number) noexcept nogil
# Writes TY_RECEIPT_CHARS characters, no terminator. bucket: the key's analysis bucket; for keyless requests pass -1 and
# the bucket is made from the id. Contest is none (6 zero bytes).
cdef int receipt_write(ty_signer *signer, uint8_t arm_and_flags, int bucket, uint32_t epoch, uint32_t share_slots,
                       uint32_t unix_seconds, char *out) noexcept nogil
