/* A square of LANES vectors of LANES numbers: rows and columns change places. Whoever includes this has
 * defined LANES, which is 4, 8 or 16, and the type `lanes`.
 */

#ifndef FPE_TRANSPOSE_H
#define FPE_TRANSPOSE_H

#include <stdint.h>

#ifdef __clang__
static inline void transpose_square(lanes *square) {
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < i; j++) {
            const float number = square[i][j];
            square[i][j] = square[j][i];
            square[j][i] = number;
        }
}
#else
/* Where the numbers of two vectors go: every second of them, pair, four or eight changes places with its
 * neighbour. The first two kinds stay within quarters of 16, which is one instruction where those of
 * the others are two. */
#define FIRST(i) ((i) / 4 * 4 + (i) % 4 / 2 + (i) % 2 * LANES)
#define SECOND(i) ((i) / 4 * 4 + (i) % 2 + (i) % 4 / 2 * LANES)
#define FOURTH(i) ((i) & 4 ? (i) - 4 + LANES : (i))
#define EIGHTH(i) ((i) & 8 ? (i) - 8 + LANES : (i))
#define FOUR_OF(kind, i) kind(i), kind(i + 1), kind(i + 2), kind(i + 3)
#if LANES == 4
#define ALL_OF(kind) FOUR_OF(kind, 0)
#elif LANES == 8
#define ALL_OF(kind) FOUR_OF(kind, 0), FOUR_OF(kind, 4)
#else
#define ALL_OF(kind) FOUR_OF(kind, 0), FOUR_OF(kind, 4), FOUR_OF(kind, 8), FOUR_OF(kind, 12)
#endif
#define SWAP(step, kind, further)                                     \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) {        \
        const positions low = {ALL_OF(kind)}, high = low + (further); \
        if (i & (step)) continue;                                     \
        const lanes one = square[i], other = square[i + (step)];      \
        square[i] = __builtin_shuffle(one, other, low);               \
        square[i + (step)] = __builtin_shuffle(one, other, high);     \
    }

static inline __attribute__((always_inline)) void transpose_square(lanes *square) {
    typedef int32_t positions __attribute__((vector_size(4 * LANES)));
    SWAP(1, FIRST, 2)
    SWAP(2, SECOND, 2)
#if LANES > 4
    SWAP(4, FOURTH, 4)
#endif
#if LANES > 8
    SWAP(8, EIGHTH, 8)
#endif
#pragma GCC unroll 4
    for (int i = 1; i < LANES; i += 4) { /* so far, the second and third of four are the other way */
        const lanes second = square[i + 1];
        square[i + 1] = square[i];
        square[i] = second;
    }
}
#endif

#endif
