/* Products of a few vectors with a matrix whose kept entries are packed, as fast as memory allows.
 *
 * Every packed value is read once, with one bit that says where it belongs and a code that says to
 * which child. There are three ways:
 *
 *   columns:  for very few tokens. A row is worked through in chunks of LANES columns, and its
 *             values are spread over the lanes that they belong to. They are multiplied by the
 *             inputs and added to the sums of the children that own them, once per child, or by
 *             the inputs that the owners have there.
 *   tokens:   for more, the lanes are LANES tokens. What values are multiplied with is listed, and
 *             the inputs of a column, times its value, are added to the child's sum: once per
 *             value.
 *   children: for few tokens of copies, with 8 lanes. The lanes are the children's inputs of a
 *             column, and those of further tokens if there are less than 8 children.
 *
 * Rows are independent and always summed in the same order, so the result depends neither on the
 * number of threads nor on the run. Only the primitives right below know of instruction sets, of
 * which there are two kinds: WIDE, where masks are numbers and instructions spread values over the
 * lanes of a mask, and others, where masks are vectors and values go where a table says.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

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
#define WORD 64    /* columns whose bits are read at once; a multiple of LANES */
#define GROUP 8    /* most children that are summed at once */
#define AHEAD 4096 /* bytes; values are fetched into the second cache that long before their use */
#define BLOCK 1024 /* most columns that are listed at once; a multiple of WORD */
#define CACHED (512 << 10) /* bytes of inputs that the second cache may keep */
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* What the children of a row share, and what each has for itself. */
enum mode {
    PARTS,  /* up: children read the same inputs; their sums are apart */
    OWNED,  /* down, partitioned: a child has its own inputs; one sum */
    COPIES, /* down, replicated: a child has its own inputs and values, under one mask; one sum */
};

/* ---- primitives ------------------------------------------------------------------------- */

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

/* Swaps rows and columns. */
INLINE void transpose(lanes *square)
{
#ifdef __AVX__
    __m256 pair[LANES], four[LANES];
    UNROLL
    for (int i = 0; i < LANES; i += 2) {
        pair[i] = _mm256_unpacklo_ps((__m256)square[i], (__m256)square[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps((__m256)square[i], (__m256)square[i + 1]);
    }
    UNROLL
    for (int i = 0; i < LANES; i++) {
        const __m256d low = (__m256d)pair[i / 4 * 4 + i / 2 % 2];
        const __m256d high = (__m256d)pair[i / 4 * 4 + i / 2 % 2 + 2];
        four[i] = (__m256)(i % 2 ? _mm256_unpackhi_pd(low, high) : _mm256_unpacklo_pd(low, high));
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        square[i] = (lanes)_mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        square[i + 4] = (lanes)_mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
#else
    for (int i = 0; i < LANES; i++)
        for (int k = 0; k < i; k++) {
            const float swapped = square[i][k];
            square[i][k] = square[k][i];
            square[k][i] = swapped;
        }
#endif
}

#endif

/* ---- packed bits ------------------------------------------------------------------------ */

/* Little-endian, as `fpe_hf/packing.py` writes them. Rows need not start with a byte. */
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

/* Reads the codes of WORD columns: `width` words. */
INLINE void read_codes(uint64_t *codes, struct bits owner, const int width, int64_t entry)
{
    UNROLL
    for (int i = 0; i < width; i++)
        codes[i] = bits_at(owner, width * entry + WORD * i);
}

/* Who owns the lanes of a chunk: the lanes of each child, or the child of each lane. */
#ifdef WIDE
typedef owned_mask owners[GROUP];
#else
typedef lane_bits owners[1];
#endif

/* Who of `children` children from `first` on owns the lanes of chunk `k`. */
INLINE void owned_lanes(
    owners owned, const uint64_t *codes, int width, int k, int first, const int children)
{
#ifdef WIDE
    /* The codes of up to 2 or 4 children are planes of 1 or 2 bits, which say it directly. */
    if (children == 1) {
        owned[0] = ALL_LANES;
    } else if (children == 2) {
        owned[1] = (lane_mask)(codes[0] >> LANES * k);
        owned[0] = (lane_mask)~owned[1];
    } else if (children == 4) {
        const uint64_t pairs = codes[k / 2] >> k % 2 * 32;
        const lane_mask low = every_second(pairs), high = every_second(pairs >> 1);
        owned[0] = (lane_mask) ~(low | high);
        owned[1] = (lane_mask)(low & ~high);
        owned[2] = (lane_mask)(high & ~low);
        owned[3] = low & high;
    } else {
        uint64_t bytes[2] = {codes[2 * k % GROUP], codes[(2 * k + 1) % GROUP]};
        if (width == 4) {
            bytes[0] = in_bytes(codes[k]);
            bytes[1] = in_bytes(codes[k] >> 32);
        }
        UNROLL
        for (int c = 0; c < GROUP; c++)
            owned[c] = equal_codes(bytes, first + c);
    }
#else
    const int place = LANES * width * k;
    (void)children;
    owned[0] = lane_codes(codes[place / 64] >> place % 64, width) - (uint32_t)first;
#endif
}

/* The lanes of child `c` of the group. */
INLINE owned_mask owned_by(const owners owned, const int c, const int children)
{
#ifdef WIDE
    (void)children;
    return owned[c];
#else
    return children == 1 ? ~(lane_bits){0} : (lane_bits)(owned[0] == (uint32_t)c);
#endif
}

#ifndef WIDE
/* For each lane, the input of the child of the group that owns it. `x`: the children's vectors. */
INLINE lanes owners_choice(const owners owned, const float *x, const int children)
{
    lanes own[GROUP];
    UNROLL
    for (int c = 0; c < children; c++)
        own[c] = load(x + c * LANES);
    UNROLL
    for (int bit = 0; 1 << bit < children; bit++)
        UNROLL
        for (int c = 0; c < children >> (bit + 1); c++)
            own[c] = where(owned[0] << (31 - bit), own[2 * c + 1], own[2 * c]);
    return own[0];
}
#endif

/* ---- the job ---------------------------------------------------------------------------- */

struct job {
    int half;           /* values are bfloat16, else float */
    const void *values; /* [count] */
    int64_t count;
    struct bits keep;   /* [rows, columns]; no bytes if everything is kept */
    struct bits owner;  /* [owner_rows, columns]; unused where there is one child, or copies */
    int owner_width;    /* bits per code */
    int64_t owner_rows; /* row r has the codes of row r % owner_rows */
    const float *x;     /* columns: [columns / LANES, tokens, inputs, LANES], whole WORDs of columns */
                        /* children: [inputs / group, columns, vectors, LANES] */
                        /* tokens: [tiles, inputs, columns, vectors, LANES] */
    int64_t inputs;     /* 1, or the children, if each has its own; rounded up to a whole group */
    float *out;         /* columns, children: [tokens, sums, rows] */
                        /* tokens: [tiles, sums, rows, vectors, LANES] */
    int64_t tokens;     /* a multiple of those that are summed at once */
    int64_t rows, columns;
    int children;       /* sums: as many if they are apart, else 1 */
    int vectors;        /* tokens: those of a tile, 1, 2 or 4; children: those of a column */
};

#ifdef WIDE
INLINE lanes spread(const struct job *job, int64_t place, lane_mask there, int64_t ahead)
{
    const int64_t left = job->count - place;
    if (job->half) {
        const uint16_t *halves = (const uint16_t *)job->values + place;
        __builtin_prefetch(halves + ahead, 0, 2);
        return spread_halves(halves, left, there);
    }
    const float *floats = (const float *)job->values + place;
    __builtin_prefetch(floats + ahead, 0, 2);
    if (!job->keep.size && left >= LANES)
        return masked(there, load(floats));
    return spread_floats(floats, there);
}
#else
INLINE lanes next_values(const struct job *job, int64_t place, int64_t ahead)
{
    const int64_t left = job->count - place;
    if (job->half) {
        const uint16_t *halves = (const uint16_t *)job->values + place;
        __builtin_prefetch(halves + ahead, 0, 2);
        return next_halves(halves, left);
    }
    const float *floats = (const float *)job->values + place;
    __builtin_prefetch(floats + ahead, 0, 2);
    return next_floats(floats, left);
}

INLINE lanes spread(const struct job *job, int64_t place, lane_mask there, int64_t ahead)
{
    const lanes next = next_values(job, place, ahead);
    return job->keep.size ? spread_lanes(next, there) : masked(there, next);
}
#endif

/* Which of WORD columns are kept. */
INLINE uint64_t kept_columns(const struct job *job, int64_t row, int64_t column)
{
    const int64_t left = job->columns - column;
    const uint64_t inside = left < WORD ? ~(~0ULL << left) : ~0ULL;
    return job->keep.size ? inside & bits_at(job->keep, row * job->columns + column) : inside;
}

/* ---- lanes are columns ------------------------------------------------------------------ */

/* Adds up a row for `tokens` tokens from `token` on and `children` children from `first` on.
 *
 * What follows `mode` is constant in every instance, so that the sums stay in registers. There may
 * be fewer children than that; the last one is then computed repeatedly. */
INLINE void sum_columns(
    const struct job *given, int64_t row, int64_t start, int64_t kept, int64_t token, int first,
    const enum mode mode, const int children, const int tokens)
{
    const struct job job = *given; /* which nothing can change meanwhile */
    const int count = job.children - first < children ? job.children - first : children;
    const int width = children == 2 ? 1 : children == 4 ? 2 : job.owner_width;
    const int64_t codes_row = row % job.owner_rows * job.columns;
    const int64_t step = job.tokens * job.inputs * LANES;
    const int64_t per_token = mode == PARTS ? LANES : job.inputs * LANES;
    const int64_t ahead = mode == COPIES ? job.children * kept : AHEAD / (job.half ? 2 : 4);
    const float *x = job.x + token * per_token + (mode == PARTS ? 0 : first * LANES);
    int64_t place[GROUP];
    lanes sum[GROUP][GROUP];
    UNROLL
    for (int c = 0; c < children; c++) {
        place[c] = start + (mode == COPIES ? (c < count ? first + c : first) * kept : 0);
        UNROLL
        for (int t = 0; t < tokens; t++)
            sum[t][c] = (lanes){0};
    }
    for (int64_t column = 0; column < job.columns; column += WORD) {
        uint64_t here = kept_columns(&job, row, column);
        uint64_t codes[GROUP] = {0};
        if (mode != COPIES && children > 1)
            read_codes(codes, job.owner, width, codes_row + column);
        for (int k = 0; k < WORD / LANES; k++, x += step, here >>= LANES) {
            const lane_mask there = (lane_mask)here;
            owners owned;
            if (mode != COPIES)
                owned_lanes(owned, codes, width, k, first, children);
            lanes value;
#ifndef WIDE
            if (mode == OWNED && children > 1) { /* cheaper than a product for every child */
                value = spread(&job, place[0], there, ahead);
                place[0] += __builtin_popcount(there);
                if (job.children > children)
                    value = (lanes)((lane_bits)value & (lane_bits)(owned[0] < (uint32_t)children));
                UNROLL
                for (int t = 0; t < tokens; t++)
                    sum[t][0] += value * owners_choice(owned, x + t * per_token, children);
                continue;
            }
#endif
            UNROLL
            for (int c = 0; c < children; c++) {
                if (c == 0 || mode == COPIES) {
                    value = spread(&job, place[c], there, ahead);
                    place[c] += __builtin_popcount(there);
                }
                UNROLL
                for (int t = 0; t < tokens; t++) {
                    const lanes own = load(x + t * per_token + (mode == PARTS ? 0 : c * LANES));
                    if (mode == COPIES)
                        sum[t][c] += value * own;
                    else
                        sum[t][c] = add_product(
                            sum[t][c], owned_by(owned, c, children), value, own);
                }
            }
        }
    }
    UNROLL
    for (int t = 0; t < tokens; t++) {
        const int64_t sums = mode == PARTS ? job.children : 1;
        float *out = job.out + (token + t) * sums * job.rows + row;
        lanes all = {0};
        UNROLL
        for (int c = 0; c < children; c++) {
            if (c < count && mode == PARTS)
                out[(first + c) * job.rows] = total(sum[t][c]);
            if (c < count)
                all += sum[t][c];
        }
        if (mode != PARTS)
            *out = first ? *out + total(all) : total(all);
    }
}

/* Tokens that are summed at once, if there is more than one: those that registers allow. */
INLINE int tokens_at_once(const int children)
{
    return children == GROUP || (LANES == 8 && children > 2) ? 2 : 4;
}

INLINE void row_by_columns(
    const struct job *job, int64_t row, int64_t start, int64_t kept, const enum mode mode,
    const int children)
{
    const int most = tokens_at_once(children);
    for (int first = 0; first < job->children; first += children) {
        if (job->tokens == 1)
            sum_columns(job, row, start, kept, 0, first, mode, children, 1);
        else
            for (int64_t token = 0; token < job->tokens; token += most)
                sum_columns(job, row, start, kept, token, first, mode, children, most);
    }
}

/* ---- lanes are tokens ------------------------------------------------------------------- */

#ifdef WIDE
/* Adds the inputs of the listed columns, each times its value, to what is there or to nothing. */
static void add_listed(
    float *out, int fresh, const float *values, const uint16_t *list, int count, const float *x)
{
    lanes sum[4] = {{0}}; /* one would wait for itself */
    int i = 0;
    for (; i + 4 <= count; i += 4)
        UNROLL
        for (int k = 0; k < 4; k++) {
            const size_t column = list[i + k];
            sum[k] += values[column] * load(x + column * LANES);
        }
    for (; i < count; i++)
        sum[0] += values[list[i]] * load(x + list[i] * LANES);
    const lanes all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    store(out, fresh ? all : load(out) + all);
}

INLINE void row_by_tokens(
    const struct job *job, int64_t row, int64_t start, const enum mode mode,
    const int children)
{
    float values[BLOCK];
    uint16_t list[GROUP][BLOCK + LANES];
    const int64_t codes_row = row % job->owner_rows * job->columns;
    const int64_t sums = mode == PARTS ? job->children : 1;
    for (int64_t column = 0; column < job->columns; column += BLOCK) {
        const int64_t rest = job->columns - column;
        const int width = rest < BLOCK ? (int)rest : BLOCK;
        int64_t done = 0;
        for (int first = 0; first < job->children; first += children) {
            int count[GROUP] = {0};
            done = 0;
            for (int i = 0; i < width; i += WORD) {
                uint64_t here = kept_columns(job, row, column + i);
                uint64_t codes[GROUP] = {0};
                if (children > 1)
                    read_codes(codes, job->owner, job->owner_width, codes_row + column + i);
                for (int k = 0; k < WORD / LANES; k++, here >>= LANES) {
                    const lane_mask there = (lane_mask)here;
                    const int at = i + k * LANES;
                    owners owned;
                    owned_lanes(owned, codes, job->owner_width, k, first, children);
                    for (int c = 0; c < children; c++)
                        count[c] += list_lanes(list[c] + count[c], owned[c] & there, at);
                    store(values + at, spread(job, start + done, there, AHEAD / 4));
                    done += __builtin_popcount(there);
                }
            }
            for (int64_t tile = 0; tile < job->tokens / LANES; tile++)
                for (int c = 0; c < children && first + c < job->children; c++) {
                    const int64_t input = tile * job->inputs + (mode == PARTS ? 0 : first + c);
                    const float *x = job->x + (input * job->columns + column) * LANES;
                    const int64_t sum = tile * sums + (mode == PARTS ? first + c : 0);
                    float *out = job->out + (sum * job->rows + row) * LANES;
                    const int fresh = column == 0 && (mode == PARTS || first + c == 0);
                    add_listed(out, fresh, values, list[c], count[c], x);
                }
        }
        start += done;
    }
}

/* The same for copies: the columns are the same for all children, the values are not. */
static void copies_by_tokens(const struct job *job, int64_t row, int64_t start, int64_t kept)
{
    float values[BLOCK];
    uint16_t list[BLOCK + LANES];
    for (int64_t column = 0; column < job->columns; column += BLOCK) {
        const int64_t rest = job->columns - column;
        const int width = rest < BLOCK ? (int)rest : BLOCK;
        int count = 0;
        for (int i = 0; i < width; i += WORD) {
            uint64_t here = kept_columns(job, row, column + i);
            for (int at = i; here; at += LANES, here >>= LANES)
                count += list_lanes(list + count, (lane_mask)here, at);
        }
        for (int c = 0; c < job->children; c++) {
            int64_t place = start + c * kept;
            for (int i = 0; i < width; i += WORD) {
                uint64_t here = kept_columns(job, row, column + i);
                for (int at = i; here; at += LANES, here >>= LANES) {
                    const lane_mask there = (lane_mask)here;
                    store(values + at, spread(job, place, there, AHEAD / 4));
                    place += __builtin_popcount(there);
                }
            }
            for (int64_t tile = 0; tile < job->tokens / LANES; tile++) {
                const int64_t input = tile * job->inputs + c;
                const float *x = job->x + (input * job->columns + column) * LANES;
                float *out = job->out + (tile * job->rows + row) * LANES;
                add_listed(out, column == 0 && c == 0, values, list, count, x);
            }
        }
        start += count;
    }
}
#else
/* Lists, for the values of a row in `width` columns, where the inputs are that each is multiplied
 * with, and the sum to which that is added. Returns how many they are. */
static int list_values(
    uint32_t *from, uint32_t *to, const struct job *job, int64_t row, int64_t column, int width,
    const enum mode mode, const int step)
{
    const lane_bits lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const int64_t codes_row = row % job->owner_rows * job->columns;
    int count = 0;
    for (int i = 0; i < width; i += WORD) {
        uint64_t here = kept_columns(job, row, column + i);
        uint64_t codes[GROUP] = {0};
        if (job->owner.size)
            read_codes(codes, job->owner, job->owner_width, codes_row + column + i);
        for (int k = 0; k < WORD / LANES; k++, here >>= LANES) {
            lane_bits place = lane + (uint32_t)(i + k * LANES);
            if (mode != COPIES) {
                owners owner;
                owned_lanes(owner, codes, job->owner_width, k, 0, job->children);
                /* Whatever the codes are, only what is the job's is touched. */
                owner[0] &= (lane_bits)(owner[0] < (uint32_t)job->children);
                if (mode == OWNED)
                    place += owner[0] * (uint32_t)job->columns;
                else
                    list_close(to + count, (lane_mask)here, owner[0] * (uint32_t)step);
            }
            list_close(from + count, (lane_mask)here, place * (uint32_t)step);
            count += __builtin_popcount((lane_mask)here);
        }
    }
    return count;
}

/* The next values as floats, in memory or in `floats`. */
INLINE const float *floats_at(
    const struct job *job, int64_t place, int count, int64_t ahead, float *floats)
{
    if (!job->half) {
        const float *values = (const float *)job->values + place;
        for (int i = 0; i < count; i += 16)
            __builtin_prefetch(values + i + ahead, 0, 2);
        return values;
    }
    for (int i = 0; i < count; i += LANES)
        store(floats + i, next_values(job, place + i, ahead));
    return floats;
}

/* Adds a vector to what is in memory, or to nothing. */
INLINE void add_to(float *out, int fresh, lanes sum) { store(out, fresh ? sum : load(out) + sum); }

/* Adds up values times the inputs that belong to them. */
INLINE void add_values(
    float *out, int fresh, const float *values, const uint32_t *from, int count, const float *x,
    const int vectors)
{
    const int apart = vectors <= 2 ? 4 : 2; /* one would wait for itself */
    lanes sum[4][4] = {{{0}}};
    int i = 0;
    for (; i + apart <= count; i += apart)
        UNROLL
        for (int k = 0; k < apart; k++)
            UNROLL
            for (int v = 0; v < vectors; v++)
                sum[k][v] += values[i + k] * load(x + from[i + k] + v * LANES);
    for (; i < count; i++)
        UNROLL
        for (int v = 0; v < vectors; v++)
            sum[0][v] += values[i] * load(x + from[i] + v * LANES);
    UNROLL
    for (int v = 0; v < vectors; v++)
        add_to(out + v * LANES, fresh, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
}

/* The same with a sum for each child. */
INLINE void add_parts(
    float *out, int64_t stride, int children, int fresh, const float *values,
    const uint32_t *from, const uint32_t *to, int count, const float *x, const int vectors)
{
    float sum[256 * 4 * LANES] __attribute__((aligned(4 * LANES)));
    const int size = children * vectors * LANES;
    const int apart = children <= GROUP ? 4 : 1; /* few would often wait for themselves */
    memset(sum, 0, sizeof(float) * (size_t)(apart * size));
    int i = 0;
    for (; i + 4 <= count; i += 4)
        UNROLL
        for (int k = 0; k < 4; k++) {
            float *own = sum + (apart == 1 ? 0 : k * size) + to[i + k];
            UNROLL
            for (int v = 0; v < vectors; v++)
                add_to(own + v * LANES, 0, values[i + k] * load(x + from[i + k] + v * LANES));
        }
    for (; i < count; i++)
        UNROLL
        for (int v = 0; v < vectors; v++)
            add_to(sum + to[i] + v * LANES, 0, values[i] * load(x + from[i] + v * LANES));
    for (int c = 0; c < children; c++)
        for (int v = 0; v < vectors; v++) {
            const float *own = sum + (c * vectors + v) * LANES;
            lanes all = load(own);
            for (int k = 1; k < apart; k++)
                all += load(own + k * size);
            add_to(out + c * stride + v * LANES, fresh, all);
        }
}

INLINE int64_t count_kept(const struct job *job, int64_t start, int64_t stop)
{
    return job->keep.size ? count_bits(job->keep, start, stop) : stop - start;
}

/* Multiplies the values of a row in `width` columns, of which the first is at `place`. */
INLINE void row_by_tokens(
    const struct job *job, int64_t row, int64_t place, int64_t kept, int64_t column, int width,
    const enum mode mode, const int vectors)
{
    uint32_t from[BLOCK + LANES], to[BLOCK + LANES];
    float floats[BLOCK + LANES];
    const int step = vectors * LANES;
    const int copies = mode == COPIES ? job->children : 1;
    const int64_t sums = mode == PARTS ? job->children : 1;
    const int count = list_values(from, to, job, row, column, width, mode, step);
    for (int c = 0; c < copies; c++) {
        const float *values = floats_at(job, place + c * kept, count, copies * kept, floats);
        for (int64_t tile = 0; tile < job->tokens / step; tile++) {
            const float *x = job->x + ((tile * job->inputs + c) * job->columns + column) * step;
            float *out = job->out + (tile * sums * job->rows + row) * step;
            const int fresh = column == 0 && c == 0;
            if (mode == PARTS)
                add_parts(
                    out, job->rows * step, job->children, fresh, values, from, to, count, x,
                    vectors);
            else
                add_values(out, fresh, values, from, count, x, vectors);
        }
    }
}

/* All rows for some columns, then for the next, so that their inputs stay in the cache. */
INLINE void rows_by_tokens(const struct job *job, int64_t first, int64_t stop, const enum mode mode)
{
    const int64_t inputs = job->tokens * job->inputs * (int64_t)sizeof(float);
    const int64_t fit = CACHED / inputs / WORD * WORD;
    const int64_t most = fit < WORD ? WORD : fit < BLOCK ? fit : BLOCK;
    for (int64_t column = 0; column < job->columns; column += most) {
        const int64_t rest = job->columns - column;
        const int width = (int)(rest < most ? rest : most);
        int64_t start = count_kept(job, 0, first * job->columns);
        for (int64_t row = first; row < stop; row++) {
            const int64_t entry = row * job->columns;
            const int64_t kept = count_kept(job, entry, entry + job->columns);
            const int64_t before = count_kept(job, entry, entry + column);
            const int64_t place = start * (mode == COPIES ? job->children : 1) + before;
            if (job->vectors == 1)
                row_by_tokens(job, row, place, kept, column, width, mode, 1);
            else if (job->vectors == 2)
                row_by_tokens(job, row, place, kept, column, width, mode, 2);
            else
                row_by_tokens(job, row, place, kept, column, width, mode, 4);
            start += kept;
        }
    }
}

static void parts_by_tokens(const struct job *job, int64_t first, int64_t stop)
{
    rows_by_tokens(job, first, stop, PARTS);
}

static void owned_by_tokens(const struct job *job, int64_t first, int64_t stop)
{
    rows_by_tokens(job, first, stop, OWNED);
}

static void copies_by_tokens(const struct job *job, int64_t first, int64_t stop)
{
    rows_by_tokens(job, first, stop, COPIES);
}

/* ---- lanes are children ----------------------------------------------------------------- */

/* Adds up a row of copies for the tokens of `vectors` vectors from `vector` on. */
INLINE void sum_copies(
    const struct job *job, int64_t row, int64_t start, int64_t kept, int first, int vector,
    const int children, const int vectors)
{
    uint32_t from[BLOCK + LANES];
    lanes sum[2][4] = {{{0}}};
    const int count = job->children - first < children ? job->children - first : children;
    const int step = job->vectors * LANES;
    const float *x = job->x + first / children * job->columns * step + vector * LANES;
    for (int64_t column = 0; column < job->columns; column += BLOCK, x += BLOCK * step) {
        const int64_t rest = job->columns - column;
        const int width = rest < BLOCK ? (int)rest : BLOCK;
        const int listed = list_values(from, NULL, job, row, column, width, COPIES, step);
        for (int i = 0; i < listed; i += LANES) {
            const int more = listed - i;
            lanes value[LANES];
            UNROLL
            for (int c = 0; c < LANES; c++) {
                const int child = first + (c % children < count ? c % children : 0);
                const lanes next = next_values(job, start + child * kept + i, job->children * kept);
                value[c] = masked((lane_mask)(more < LANES ? (1u << more) - 1 : ALL_LANES), next);
            }
            transpose(value);
            for (int k = more; k < LANES; k++)
                from[i + k] = from[i];
            UNROLL
            for (int k = 0; k < LANES; k++)
                UNROLL
                for (int v = 0; v < vectors; v++)
                    sum[k % 2][v] += value[k] * load(x + from[i + k] + v * LANES);
        }
        start += listed;
    }
    UNROLL
    for (int v = 0; v < vectors; v++) {
        const lanes both = sum[0][v] + sum[1][v];
        for (int t = 0; t < LANES / children; t++) {
            float *out = job->out + ((vector + v) * (LANES / children) + t) * job->rows + row;
            float all = first ? *out : 0.0f;
            for (int c = 0; c < count; c++)
                all += both[t * children + c];
            *out = all;
        }
    }
}

INLINE void row_by_children(
    const struct job *job, int64_t row, int64_t start, int64_t kept, const int children)
{
    for (int first = 0; first < job->children; first += children) {
        if (job->vectors == 1)
            sum_copies(job, row, start, kept, first, 0, children, 1);
        else if (job->vectors == 2)
            sum_copies(job, row, start, kept, first, 0, children, 2);
        else
            for (int vector = 0; vector < job->vectors; vector += 4)
                sum_copies(job, row, start, kept, first, vector, children, 4);
    }
}
#endif

/* ---- rows ------------------------------------------------------------------------------- */

enum way { COLUMNS, TOKENS, CHILDREN };

INLINE void all_rows(
    const struct job *job, int64_t row, int64_t stop, const enum way way, const enum mode mode,
    const int children)
{
    const int pruned = job->keep.size > 0;
    int64_t start = pruned ? count_bits(job->keep, 0, row * job->columns) : row * job->columns;
    for (; row < stop; row++) {
        const int64_t first = row * job->columns;
        const int64_t kept =
            pruned ? count_bits(job->keep, first, first + job->columns) : job->columns;
        const int64_t place = mode == COPIES ? start * job->children : start;
        if (way == COLUMNS)
            row_by_columns(job, row, place, kept, mode, children);
#ifdef WIDE
        else if (mode == COPIES)
            copies_by_tokens(job, row, place, kept);
        else
            row_by_tokens(job, row, place, mode, children);
#else
        else
            row_by_children(job, row, place, kept, children);
#endif
        start += kept;
    }
}

typedef void rows_function(const struct job *, int64_t, int64_t);

#define EACH_GROUP(what, way, mode)                                                                \
    what(way, mode, 1) what(way, mode, 2) what(way, mode, 4) what(way, mode, 8)
#define EACH(what, way)                                                                            \
    EACH_GROUP(what, way, PARTS) EACH_GROUP(what, way, OWNED) EACH_GROUP(what, way, COPIES)

#define INSTANCE(way, mode, children)                                                              \
    static void rows_##way##_##mode##_##children(const struct job *job, int64_t row, int64_t stop) \
    {                                                                                              \
        all_rows(job, row, stop, way, mode, children);                                             \
    }
#define ENTRY(way, mode, children) [way][mode][children] = rows_##way##_##mode##_##children,
#ifdef WIDE
EACH(INSTANCE, COLUMNS)
EACH(INSTANCE, TOKENS)
static rows_function *const instances[2][3][GROUP + 1] = {EACH(ENTRY, COLUMNS) EACH(ENTRY, TOKENS)};
#else
#define FEW(what)                                                                                  \
    EACH_GROUP(what, COLUMNS, PARTS) EACH_GROUP(what, COLUMNS, OWNED)                              \
    what(COLUMNS, COPIES, 1) what(COLUMNS, COPIES, 2)                                              \
    what(CHILDREN, COPIES, 4) what(CHILDREN, COPIES, 8)
#define BY_TOKENS(mode, run) [TOKENS][mode] = {[1] = run, [2] = run, [4] = run, [8] = run},
FEW(INSTANCE)
static rows_function *const instances[3][3][GROUP + 1] = {
    FEW(ENTRY) BY_TOKENS(PARTS, parts_by_tokens) BY_TOKENS(OWNED, owned_by_tokens)
    BY_TOKENS(COPIES, copies_by_tokens)};
#endif

/* How many lanes the inputs are to be arranged for. */
void fpe_packed_lanes(int64_t *lanes) { *lanes = LANES; }

/* Multiplies; see `struct job`. `threads` share the rows. */
void fpe_packed_rows(
    int way, int mode, int half, const void *values, int64_t count, const uint8_t *keep,
    int64_t keep_bytes, const uint8_t *owner, int64_t owner_bytes, int owner_width,
    int64_t owner_rows, const float *x, int64_t inputs, float *out, int64_t tokens, int64_t rows,
    int64_t columns, int children, int vectors, int threads)
{
    const struct job job = {
        half, values, count, {keep, keep_bytes}, {owner, owner_bytes}, owner_width, owner_rows,
        x, inputs, out, tokens, rows, columns, children, vectors,
    };
    const int group = children <= 2 ? children : children <= 4 ? 4 : GROUP;
    rows_function *const run = instances[way][mode][group];
    (void)threads;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t here = omp_get_thread_num(), all = omp_get_num_threads();
            run(&job, rows * here / all, rows * (here + 1) / all);
        }
        return;
    }
#endif
    run(&job, 0, rows);
}
