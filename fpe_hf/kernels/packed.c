/* Products of a few vectors with a matrix whose kept entries are packed, as fast as memory allows.
 *
 * Every packed value is read once, with one bit that says where it belongs and a code that says to
 * which child. A row is worked through in chunks of LANES columns, and its values are spread over
 * the lanes that they belong to. From there on there are two ways:
 *
 *   columns: for very few tokens, the lanes go on being columns. They are multiplied by the inputs
 *            and added to the sums of the children that own them, once per child.
 *   tokens:  for more, the lanes are LANES tokens. The columns of each child are listed, and the
 *            inputs of a column, times its value, are added to the child's sum: once per value.
 *
 * Rows are independent and always summed in the same order, so the result depends neither on the
 * number of threads nor on the run. Only the primitives right below know of instruction sets.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __BMI2__
#include <immintrin.h>
#endif

#if defined(__BMI2__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define WIDE 1
#if defined(__AVX512VBMI2__)
#define HALVES 1 /* lanes of 16 bits can be spread and packed, too */
#endif
#endif

#define LANES 16
#define ALL_LANES 0xFFFFu
#define WORD 64    /* columns whose bits are read at once; a multiple of LANES */
#define GROUP 8    /* most children that are summed at once */
#define AHEAD 4096 /* bytes; values are fetched into the second cache that long before their use */
#define BLOCK 1024 /* most columns that are listed at once; a multiple of WORD */
#ifdef WIDE
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL /* a lane is several instructions then */
#endif
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
typedef uint16_t lane_mask;

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
    const lane_bits one = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
                           32768};
    return (lanes)((lane_bits)x & (lane_bits)((one & mask) != 0));
#endif
}

/* sum + value * x in the lanes of the mask. */
INLINE lanes add_product(lanes sum, lane_mask mask, lanes value, lanes x)
{
#ifdef WIDE
    return (lanes)_mm512_mask3_fmadd_ps((__m512)value, (__m512)x, (__m512)sum, mask);
#else
    return sum + masked(mask, value) * x;
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

/* The next values, one for each lane of the mask, and zeros. `left` are in memory. */
INLINE lanes spread_floats(const float *values, int64_t left, lane_mask there)
{
#ifdef WIDE
    (void)left;
    return (lanes)_mm512_maskz_expandloadu_ps(there, values);
#else
    float spread[LANES] = {0};
    if (there == ALL_LANES)
        return load(values);
    if (left >= LANES) { /* without branches; reads a value that may not be wanted */
        for (int i = 0; i < LANES; values += there >> i++ & 1)
            spread[i] = *values;
        return masked(there, load(spread));
    }
    for (int i = 0; i < LANES; i++)
        if (there >> i & 1)
            spread[i] = *values++;
    return load(spread);
#endif
}

/* The same for bfloat16, the upper half of a float. */
INLINE lanes spread_halves(const uint16_t *values, int64_t left, lane_mask there)
{
#ifdef HALVES
    (void)left;
    const __m256i halves = _mm256_maskz_expandloadu_epi16(there, values);
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    uint32_t spread[LANES] = {0};
    if (left >= LANES) {
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

/* Lanes whose 8-bit code is `child`. */
INLINE lane_mask equal_codes(const uint64_t codes[2], int child)
{
#ifdef WIDE
    return _mm_cmpeq_epi8_mask(
        _mm_set_epi64x((long long)codes[1], (long long)codes[0]), _mm_set1_epi8((char)child));
#else
    unsigned equal = 0;
    for (int i = 0; i < LANES; i++)
        equal |= (unsigned)((codes[i / 8] >> i % 8 * 8 & 0xFF) == (unsigned)child) << i;
    return (lane_mask)equal;
#endif
}

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

static __attribute__((noinline)) uint64_t last_bits(struct bits packed, int64_t byte, int shift)
{
    uint8_t rest[9] = {0};
    uint64_t low;
    if (byte < packed.size)
        memcpy(rest, packed.bytes + byte, (size_t)(packed.size - byte));
    memcpy(&low, rest, 8);
    return join(low, rest[8], shift);
}

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

/* Every second of 32 bits, close together. */
INLINE lane_mask every_second(uint64_t bits)
{
#ifdef __BMI2__
    return (lane_mask)_pext_u64(bits, 0x55555555u);
#else
    bits &= 0x55555555u;
    bits = (bits | bits >> 1) & 0x33333333u;
    bits = (bits | bits >> 2) & 0x0F0F0F0Fu;
    bits = (bits | bits >> 4) & 0x00FF00FFu;
    return (lane_mask)(bits | bits >> 8);
#endif
}

/* The first 8 codes of 4 bits, in 8 bits each. */
INLINE uint64_t in_bytes(uint64_t codes)
{
#ifdef __BMI2__
    return _pdep_u64(codes, 0x0F0F0F0F0F0F0F0Fu);
#else
    codes &= 0xFFFFFFFFu;
    codes = (codes | codes << 16) & 0x0000FFFF0000FFFFu;
    codes = (codes | codes << 8) & 0x00FF00FF00FF00FFu;
    return (codes | codes << 4) & 0x0F0F0F0F0F0F0F0Fu;
#endif
}

/* Reads the codes of WORD columns: `width` words. */
INLINE void read_codes(uint64_t *codes, struct bits owner, const int width, int64_t entry)
{
    UNROLL
    for (int i = 0; i < width; i++)
        codes[i] = bits_at(owner, width * entry + WORD * i);
}

/* Lanes of chunk `k` that belong to each of `children` children from `first` on. The codes of up
 * to 2 or 4 children are planes of 1 or 2 bits, which say it directly. */
INLINE void owned_lanes(
    lane_mask *owned, const uint64_t *codes, int width, int k, int first, const int children)
{
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
}

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
                        /* tokens: [tokens / LANES, inputs, columns, LANES] */
    int64_t inputs;     /* 1, or the children, if each has its own; rounded up to a whole group */
    float *out;         /* columns: [tokens, sums, rows] */
                        /* tokens: [tokens / LANES, sums, rows, LANES] */
    int64_t tokens;     /* a multiple of LANES, or of the tokens that are summed at once */
    int64_t rows, columns;
    int children;       /* sums: as many if they are apart, else 1 */
};

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
    return spread_floats(floats, left, there);
}

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
            lane_mask owned[GROUP];
            if (mode != COPIES)
                owned_lanes(owned, codes, width, k, first, children);
            lanes value;
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
                        sum[t][c] = add_product(sum[t][c], owned[c], value, own);
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

/* Tokens that are summed at once, if there is more than one. */
INLINE int tokens_at_once(const int children) { return children == GROUP ? 2 : 4; }

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
                    lane_mask owned[GROUP];
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

/* ---- rows ------------------------------------------------------------------------------- */

enum way { COLUMNS, TOKENS };

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
        else if (mode == COPIES)
            copies_by_tokens(job, row, place, kept);
        else
            row_by_tokens(job, row, place, mode, children);
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
EACH(INSTANCE, COLUMNS)
EACH(INSTANCE, TOKENS)

#define ENTRY(way, mode, children) [way][mode][children] = rows_##way##_##mode##_##children,
static rows_function *const instances[2][3][GROUP + 1] = {EACH(ENTRY, COLUMNS) EACH(ENTRY, TOKENS)};

/* Multiplies; see `struct job`. `threads` share the rows. */
void fpe_packed_rows(
    int way, int mode, int half, const void *values, int64_t count, const uint8_t *keep,
    int64_t keep_bytes, const uint8_t *owner, int64_t owner_bytes, int owner_width,
    int64_t owner_rows, const float *x, int64_t inputs, float *out, int64_t tokens, int64_t rows,
    int64_t columns, int children, int threads)
{
    const struct job job = {
        half, values, count, {keep, keep_bytes}, {owner, owner_bytes}, owner_width, owner_rows,
        x, inputs, out, tokens, rows, columns, children,
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
