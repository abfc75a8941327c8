/* Vectors of LANES numbers, and what instruction sets do with them. Nothing else knows of these.
 *
 * There are two kinds: WIDE, where masks are numbers and instructions spread values over the lanes of
 * a mask, and others, where masks are vectors and values go where a table says.
 */

#ifndef FPE_PACKED_LANES_H
#define FPE_PACKED_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX__) || defined(__BMI2__)
#include <immintrin.h>
#endif

#if defined(__BMI2__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE 1
#define LANES 16
#if defined(__AVX512VBMI2__)
#define HALVES 1 /* lanes of 16 bits can be spread and packed, too */
#endif
#else
#define LANES 8
#endif

#define ALL_LANES ((1u << LANES) - 1)
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t lane_bits __attribute__((vector_size(4 * LANES)));
#ifdef WIDE
typedef uint16_t lane_mask;
typedef lane_mask owned_mask; /* which lanes a child owns, in the form that sums take it */
#else
typedef uint8_t lane_mask;
typedef lane_bits owned_mask;
#endif

INLINE lanes load(const float *x)
{
    lanes loaded;
    memcpy(&loaded, x, sizeof loaded);
    return loaded;
}

INLINE void store(float *x, lanes stored) { memcpy(x, &stored, sizeof stored); }

/* `x` in the lanes of the mask, zero in the others. */
INLINE lanes masked(lane_mask mask, lanes x)
{
#ifdef WIDE
    return (lanes)_mm512_maskz_mov_ps(mask, (__m512)x);
#else
    const lane_bits bit = {1, 2, 4, 8, 16, 32, 64, 128};
    if (mask == ALL_LANES) /* but for the last columns */
        return x;
    return (lanes)((lane_bits)x & (lane_bits)((bit & mask) != 0));
#endif
}

/* sum + value * x in the lanes of the mask. */
INLINE lanes add_product(lanes sum, owned_mask mask, lanes value, lanes x)
{
#ifdef WIDE
    return (lanes)_mm512_mask3_fmadd_ps((__m512)value, (__m512)x, (__m512)sum, mask);
#else
    return sum + (lanes)(mask & (lane_bits)value) * x;
#endif
}

INLINE float total(lanes sum)
{
    float parts[LANES];
    memcpy(parts, &sum, sizeof parts);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            parts[i] += parts[i + half];
    return parts[0];
}

#ifdef WIDE
/* The next values, one for each lane of the mask, and zeros. */
INLINE lanes spread_floats(const float *values, lane_mask there)
{
    return (lanes)_mm512_maskz_expandloadu_ps(there, values);
}

/* The same for bfloat16, the upper half of a float. `left` are in memory. */
INLINE lanes spread_halves(const uint16_t *values, int64_t left, lane_mask there)
{
#ifdef HALVES
    (void)left;
    const __m256i halves = _mm256_maskz_expandloadu_epi16(there, values);
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    uint32_t spread[LANES] = {0};
    if (left >= LANES) { /* without branches; reads a value that may not be wanted */
        for (int i = 0; i < LANES; values += there >> i++ & 1)
            spread[i] = (uint32_t)*values << 16;
    } else {
        for (int i = 0; i < LANES; i++)
            if (there >> i & 1)
                spread[i] = (uint32_t)*values++ << 16;
    }
    lanes floats;
    memcpy(&floats, spread, sizeof floats);
    return masked(there, floats);
#endif
}

/* Writes the numbers of the lanes of the mask, plus `first`, to `list`, and maybe something after
 * them. Returns how many they are. */
INLINE int list_lanes(uint16_t *list, lane_mask mask, int first)
{
#ifdef HALVES
    const __m256i lane = _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m256i number = _mm256_add_epi16(lane, _mm256_set1_epi16((short)first));
    _mm256_storeu_si256((__m256i *)list, _mm256_maskz_compress_epi16(mask, number));
#else
    for (unsigned rest = mask, i = 0; rest; rest &= rest - 1)
        list[i++] = (uint16_t)(first + __builtin_ctz(rest));
#endif
    return __builtin_popcount(mask);
}

/* Every second of 32 bits, close together. */
INLINE lane_mask every_second(uint64_t bits) { return (lane_mask)_pext_u64(bits, 0x55555555u); }

/* The first 8 codes of 4 bits, in 8 bits each. */
INLINE uint64_t in_bytes(uint64_t codes) { return _pdep_u64(codes, 0x0F0F0F0F0F0F0F0Fu); }

/* Lanes whose 8-bit code is `child`. */
INLINE owned_mask equal_codes(const uint64_t codes[2], int child)
{
    return _mm_cmpeq_epi8_mask(
        _mm_set_epi64x((long long)codes[1], (long long)codes[0]), _mm_set1_epi8((char)child));
}

#else

/* For every mask of 8 lanes: */
static int8_t ranks[1 << LANES][LANES];    /* how many are before each of them; -1 for the others */
static uint8_t numbers[1 << LANES][LANES]; /* their numbers, close together, and something else */

__attribute__((constructor)) static void fill_tables(void)
{
    for (int mask = 0; mask < 1 << LANES; mask++)
        for (int lane = 0, count = 0; lane < LANES; lane++) {
            const int there = mask >> lane & 1;
            ranks[mask][lane] = (int8_t)(there ? count : -1);
            numbers[mask][count] = (uint8_t)lane;
            count += there;
        }
}

/* The first values, one for each lane of the mask, and zeros. */
INLINE lanes spread_lanes(lanes values, lane_mask there)
{
#ifdef __AVX2__
    const __m256i rank = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)ranks[there]));
    const __m256 spread = _mm256_permutevar8x32_ps((__m256)values, rank);
    return (lanes)_mm256_blendv_ps(spread, _mm256_setzero_ps(), (__m256)rank);
#else
    float close[LANES], spread[LANES];
    store(close, values);
    for (int i = 0; i < LANES; i++)
        spread[i] = ranks[there][i] < 0 ? 0.0f : close[ranks[there][i]];
    return load(spread);
#endif
}

/* The next values. `left` are in memory; zeros follow. */
INLINE lanes next_floats(const float *values, int64_t left)
{
    lanes next;
    if (left >= LANES)
        return load(values);
    for (int i = 0; i < LANES; i++)
        next[i] = i < left ? values[i] : 0.0f;
    return next;
}

/* The same for bfloat16, the upper half of a float. */
INLINE lanes next_halves(const uint16_t *values, int64_t left)
{
    uint16_t next __attribute__((vector_size(2 * LANES)));
    if (left >= LANES)
        memcpy(&next, values, sizeof next);
    else
        for (int i = 0; i < LANES; i++)
            next[i] = i < left ? values[i] : 0;
    return (lanes)(__builtin_convertvector(next, lane_bits) << 16);
}

/* Writes `x` in the lanes of the mask to `list`, close together, and maybe something after it. */
INLINE void list_close(uint32_t *list, lane_mask there, lane_bits x)
{
    const uint8_t *number = numbers[there];
#ifdef __AVX2__
    const __m256i close = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)number));
    _mm256_storeu_si256((__m256i *)list, _mm256_permutevar8x32_epi32((__m256i)x, close));
#else
    for (int i = 0; i < LANES; i++)
        list[i] = x[number[i]];
#endif
}

/* Lanes of `yes` where the sign is set, else of `no`. */
INLINE lanes where(lane_bits sign, lanes yes, lanes no)
{
#ifdef __AVX__
    return (lanes)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)sign);
#else
    const lane_bits set = (lane_bits)(sign >> 31 != 0);
    return (lanes)((set & (lane_bits)yes) | (~set & (lane_bits)no));
#endif
}

/* The first codes of `width` bits, one in each lane. */
INLINE lane_bits lane_codes(uint64_t codes, const int width)
{
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    const lane_bits lane = {0, 1, 2, 3, 4, 5, 6, 7};
    if (width == 8)
        return __builtin_convertvector((bytes)codes, lane_bits);
    return ((lane_bits){0} + (uint32_t)codes) >> lane * (uint32_t)width & ((1u << width) - 1);
}

#endif

#endif
