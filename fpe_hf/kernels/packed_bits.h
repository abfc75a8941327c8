/* Packed bits: little-endian, as `fpe_hf/packing.py` writes them. Rows need not start with a byte. */

#ifndef FPE_PACKED_BITS_H
#define FPE_PACKED_BITS_H

#include "packed_lanes.h"

struct bits {
    const uint8_t *bytes;
    int64_t size;
};

INLINE uint64_t join(uint64_t low, uint64_t high, int shift)
{
    return shift ? low >> shift | high << (64 - shift) : low;
}

#ifdef WIDE
static __attribute__((noinline)) uint64_t last_bits(struct bits packed, int64_t byte, int shift)
{
    uint8_t rest[9] = {0};
    uint64_t low;
    if (byte < packed.size)
        memcpy(rest, packed.bytes + byte, (size_t)(packed.size - byte));
    memcpy(&low, rest, 8);
    return join(low, rest[8], shift);
}
#else
/* Where less than 9 bytes are left. No call: around one, sums do not stay in registers. */
INLINE uint64_t last_bits(struct bits packed, int64_t byte, int shift)
{
    uint64_t bits = 0;
    _Pragma("GCC unroll 1")
    for (int64_t i = packed.size; i-- > byte;)
        bits = bits << 8 | packed.bytes[i];
    return bits >> shift;
}
#endif

/* The 64 bits from bit `place` on, zeros after the last byte. */
INLINE uint64_t bits_at(struct bits packed, int64_t place)
{
    const int64_t byte = place >> 3;
    uint64_t low;
    if (byte + 9 > packed.size)
        return last_bits(packed, byte, place & 7);
    memcpy(&low, packed.bytes + byte, 8);
    return join(low, packed.bytes[byte + 8], place & 7);
}

static int64_t count_bits(struct bits packed, int64_t start, int64_t stop)
{
    int64_t count = 0;
    for (; start + 64 <= stop; start += 64)
        count += __builtin_popcountll(bits_at(packed, start));
    if (start < stop)
        count += __builtin_popcountll(bits_at(packed, start) & ~(~0ULL << (stop - start)));
    return count;
}

#endif
