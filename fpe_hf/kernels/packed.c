/* Matrices whose kept entries are packed: products with a few vectors, and filling in the zeros.
 *
 * Values are read once, in the order in which they are stored, with a bit for every entry that says
 * whether it is kept, and a code that says which child it belongs to. Rows are independent and always
 * summed in the same order, so results depend neither on the number of threads nor on the run.
 * Instruction sets differ in the first part; nothing after it knows of them.
 */

#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#ifdef __AVX512F__
#define LANES 16
#define SUMS 16 /* vectors that registers hold beside the others */
#else
#define LANES 8
#define SUMS 8
#endif
#define WORD 64 /* entries whose bits are read at once */
#define ALL_LANES ((1u << LANES) - 1)
#define MOST_CHILDREN 16 /* of a product */
#define MOST_THREADS 256

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t lane_bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t lane_halves __attribute__((vector_size(2 * LANES)));

#if LANES == 16
static const lane_bits lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
static const lane_bits lane_numbers = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

#if LANES == 8
/* For every mask of lanes, how many are before each of them; -1 for the others. */
static int32_t ranks[1 << LANES][LANES];

__attribute__((constructor)) static void fill_ranks(void)
{
    for (int mask = 0; mask < 1 << LANES; mask++)
        for (int lane = 0, count = 0; lane < LANES; lane++)
            ranks[mask][lane] = mask >> lane & 1 ? count++ : -1;
}
#endif

/* The first values, one for each lane of the mask, in their order; zeros in the other lanes. */
INLINE lanes expand(lanes values, uint32_t there)
{
#if defined(__AVX512F__)
    return (lanes)_mm512_maskz_expand_ps((__mmask16)there, (__m512)values);
#elif defined(__AVX2__)
    const __m256i rank = _mm256_loadu_si256((const __m256i *)ranks[there]);
    const __m256 spread = _mm256_permutevar8x32_ps((__m256)values, rank);
    return (lanes)_mm256_blendv_ps(spread, _mm256_setzero_ps(), (__m256)rank);
#else
    lanes spread;
    for (int lane = 0; lane < LANES; lane++)
        spread[lane] = ranks[there][lane] < 0 ? 0.0f : values[ranks[there][lane]];
    return spread;
#endif
}

/* The next halves as upper halves of floats, which is what bfloat16 is. */
INLINE lanes widened(const char *values)
{
#ifdef __AVX512F__ /* GCC 12 makes six instructions of the other way */
    const __m256i halves = _mm256_loadu_si256((const __m256i *)values);
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#else
    lane_halves halves;
    memcpy(&halves, values, sizeof halves);
    return (lanes)(__builtin_convertvector(halves, lane_bits) << 16);
#endif
}

/* sum + value * x in the lanes whose code is `child`. */
INLINE lanes add_owned(lanes sum, lanes value, lanes x, lane_bits codes, uint32_t child)
{
#ifdef __AVX512F__
    const __mmask16 own = _mm512_cmpeq_epi32_mask((__m512i)codes, _mm512_set1_epi32((int)child));
    return (lanes)_mm512_mask3_fmadd_ps((__m512)value, (__m512)x, (__m512)sum, own);
#else
    return sum + (lanes)((lane_bits)(codes == child) & (lane_bits)value) * x;
#endif
}

struct bits {
    const uint8_t *bytes; /* the first bit is the lowest of the first byte */
    int64_t size;
};

/* The rows of a matrix are counted along three nested axes. Here `fpe_hf/kernels/packed.py` says
 * along which of them another row has another place in something. */
struct strides {
    int64_t along[3];
};

struct job {
    int64_t axes[3];
    int64_t columns, children, threads;
    void *values;  /* [count] */
    int64_t count;
    int64_t width; /* bytes of a value. Products: 2 is bfloat16, 4 is float */
    struct bits keep; /* [entries]; no bytes if everything is kept */
    struct strides keep_row;
    struct bits owner; /* codes; no bytes if there is one child */
    struct strides owner_row;
    int64_t code_bits;

    void *dense; /* [rows, children, columns] in the order of these: */
    struct strides dense_row;
    int64_t dense_child;

    const float *x; /* [inputs of rows, columns / WORD, tokens, inputs of children, WORD] */
    struct strides x_row;
    int64_t tokens, own; /* own: each child has its own input, rounded up to 2, 4, 8, 16 */
    float *sums; /* [tokens, children, rows] */

    int64_t found; /* set by every call: how many values there should be */
};

INLINE int64_t rows_of(const struct job *job) { return job->axes[0] * job->axes[1] * job->axes[2]; }

INLINE int64_t at(const struct job *job, const struct strides *strides, int64_t row)
{
    const int64_t inner = job->axes[2], middle = job->axes[1];
    return row / (middle * inner) * strides->along[0] + row / inner % middle * strides->along[1] +
           row % inner * strides->along[2];
}

/* The 64 bits from bit `place` on; zeros after the last byte. */
INLINE uint64_t bits_at(const struct bits *bits, int64_t place)
{
    const int64_t byte = place >> 3;
    const int shift = place & 7;
    uint64_t low = 0, high = 0;
    if (byte + 9 <= bits->size) {
        memcpy(&low, bits->bytes + byte, 8);
        high = bits->bytes[byte + 8];
    } else {
        for (int64_t i = bits->size - 1; i >= byte; i--) {
            high = low >> 56;
            low = low << 8 | bits->bytes[i];
        }
    }
    return shift ? low >> shift | high << (64 - shift) : low;
}

/* Which of the WORD entries from `column` on are kept, in the row whose mask begins at `first`. */
INLINE uint64_t kept_at(const struct job *job, int64_t first, int64_t column)
{
    const int64_t left = job->columns - column;
    const uint64_t inside = left < WORD ? ~(~0ULL << left) : ~0ULL;
    return job->keep.size ? inside & bits_at(&job->keep, first + column) : inside;
}

static int64_t count_kept(const struct job *job, int64_t row, int64_t stop)
{
    int64_t last = -1, count = 0, all = 0;
    for (; row < stop; row++, all += count) {
        const int64_t first = at(job, &job->keep_row, row);
        if (first == last) /* copies have one mask */
            continue;
        last = first, count = 0;
        for (int64_t column = 0; column < job->columns; column += WORD)
            count += __builtin_popcountll(kept_at(job, first, column));
    }
    return all;
}

/* Calls `work(job, row, place of its first value)` for every row; it returns the place of the next
 * row's. */
typedef int64_t work_function(const struct job *, int64_t row, int64_t place);

static void each_row(struct job *job, work_function *work)
{
    const int64_t rows = rows_of(job);
    int64_t counts[MOST_THREADS] = {0};
    job->found = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(job->threads < MOST_THREADS ? (int)job->threads : MOST_THREADS)
#endif
    {
#ifdef _OPENMP
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
#else
        const int64_t thread = 0, threads = 1;
#endif
        const int64_t start = rows * thread / threads, stop = rows * (thread + 1) / threads;
        int64_t place = 0;
        if (thread + 1 < threads) /* the others begin after these */
            counts[thread] = count_kept(job, start, stop);
#ifdef _OPENMP
#pragma omp barrier
#endif
        for (int64_t before = 0; before < thread; before++)
            place += counts[before];
        const int64_t begun = place;
        for (int64_t row = start; row < stop; row++)
            place = work(job, row, place);
#ifdef _OPENMP
#pragma omp atomic
#endif
        job->found += place - begun;
    }
}

/* Where the values of the next WORD entries can be read: in place, or the last ones, copied to `few`
 * and followed by zeros. */
INLINE const char *next_values(const struct job *job, int64_t place, const int width, char *few)
{
    const int64_t left = job->count - place;
    const char *values = job->values;
    if (left >= WORD)
        return values + place * width;
    memset(few, 0, (size_t)(WORD * width));
    if (left > 0)
        memcpy(few, values + place * width, (size_t)(left * width));
    return few;
}

/* The same for the codes of WORD entries. */
INLINE const char *next_codes(const struct bits *owner, int64_t entry, const int bits, char *few)
{
    const int64_t place = entry * bits;
    if (place % 8 == 0 && place / 8 + WORD / 8 * bits <= owner->size)
        return (const char *)owner->bytes + place / 8;
    for (int i = 0; i < bits; i++) {
        const uint64_t word = bits_at(owner, place + WORD * i);
        memcpy(few + 8 * i, &word, 8);
    }
    return few;
}

INLINE lanes load_values(const char *values, const int width)
{
    if (width == 2)
        return widened(values);
    lanes loaded;
    memcpy(&loaded, values, sizeof loaded);
    return loaded;
}

/* The codes of a chunk, 1, 2 or 4 bits each. */
INLINE lane_bits load_codes(const char *codes, const int chunk, const int bits)
{
    const lane_bits zero = {0}, lane = lane_numbers;
    const int place = chunk * LANES * bits; /* its word is the one with its first bit */
    uint32_t words[2] = {0};
    memcpy(words, codes + place / 32 * 4, LANES * bits > 32 ? 8 : 4);
    lane_bits all = zero + words[0];
    if (LANES * bits > 32) /* two words: the lanes take turns */
        all = (all & (lane_bits)(lane < 8)) | ((zero + words[1]) & (lane_bits)(lane >= 8));
    return all >> ((lane * (uint32_t)bits + (uint32_t)(place % 32)) & 31) & ((1u << bits) - 1);
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

/* Sums up a row for some tokens. What follows `token` is constant in every instance, so that sums
 * stay in registers. There may be fewer children; `own`: each has its own input. */
INLINE int64_t sum_row(
    const struct job *job, int64_t row, int64_t place, int64_t token, const int width,
    const int children, const int own, const int tokens)
{
    const int bits = children <= 2 ? 1 : children <= 4 ? 2 : 4;
    const int inputs = own ? children : 1;
    const int apart = children * tokens >= 4 ? 1 : 4 / (children * tokens); /* additions overlap */
    const int64_t first = at(job, &job->keep_row, row);
    const int64_t first_code = at(job, &job->owner_row, row);
    const float *x = job->x + at(job, &job->x_row, row) + token * inputs * WORD;
    char few_values[WORD * 4], few_codes[WORD / 2];
    lanes sum[SUMS][MOST_CHILDREN] = {{{0}}};
    for (int64_t column = 0; column < job->columns; column += WORD) {
        const uint64_t kept = kept_at(job, first, column);
        const char *values = next_values(job, place, width, few_values), *codes = NULL;
        if (children > 1)
            codes = next_codes(&job->owner, first_code + column, bits, few_codes);
        UNROLL
        for (int chunk = 0; chunk < WORD / LANES; chunk++) {
            const uint32_t there = kept >> chunk * LANES & ALL_LANES;
            lanes value = load_values(values, width);
            lane_bits owner = {0};
            __builtin_prefetch(values + 4096, 0, 2);
            values += __builtin_popcount(there) * width;
            if (kept != ~0ULL)
                value = expand(value, there);
            if (children > 1)
                owner = load_codes(codes, chunk, bits);
            UNROLL
            for (int c = 0; c < children; c++)
                UNROLL
                for (int t = 0; t < tokens; t++) {
                    lanes *to = &sum[t][c + chunk % apart * children], input;
                    memcpy(&input, x + (t * inputs + c % inputs) * WORD + chunk * LANES, sizeof input);
                    *to = children == 1 ? *to + value * input
                                        : add_owned(*to, value, input, owner, (uint32_t)c);
                }
        }
        place += __builtin_popcountll(kept);
        x += job->tokens * inputs * WORD;
    }
    UNROLL
    for (int t = 0; t < tokens; t++)
        UNROLL
        for (int c = 0; c < children; c++) {
            for (int more = 1; more < apart; more++)
                sum[t][c] += sum[t][c + more * children];
            if (c < job->children)
                job->sums[((token + t) * job->children + c) * rows_of(job) + row] = total(sum[t][c]);
        }
    return place;
}

/* Tokens whose sums fit into registers, if there is more than one. */
#define AT_ONCE(children) (SUMS / (children) > 4 ? 4 : SUMS / (children) ? SUMS / (children) : 1)

#define ROW(width, children, own)                                                                  \
    static int64_t row_##width##_##children##_##own(                                               \
        const struct job *job, int64_t row, int64_t place)                                         \
    {                                                                                              \
        int64_t token = 0, next = place;                                                           \
        for (; token + AT_ONCE(children) <= job->tokens; token += AT_ONCE(children))               \
            next = sum_row(job, row, place, token, width, children, own, AT_ONCE(children));       \
        for (; token < job->tokens; token++)                                                       \
            next = sum_row(job, row, place, token, width, children, own, 1);                       \
        return next;                                                                               \
    }
#define EACH(what, width, own)                                                                     \
    what(width, 1, own) what(width, 2, own) what(width, 4, own) what(width, 8, own)                \
    what(width, 16, own)
#define NAME(width, children, own) row_##width##_##children##_##own,
EACH(ROW, 2, 0)
EACH(ROW, 2, 1)
EACH(ROW, 4, 0)
EACH(ROW, 4, 1)

/* Sums of the products of every row with every token, for each child. */
void fpe_packed_sums(struct job *job)
{
    static work_function *const rows[2][2][5] = {
        {{EACH(NAME, 2, 0)}, {EACH(NAME, 2, 1)}}, {{EACH(NAME, 4, 0)}, {EACH(NAME, 4, 1)}}};
    int size = 0;
    while (1 << size < job->children)
        size++;
    each_row(job, rows[job->width == 4][job->own][size]);
}

INLINE void store_values(char *to, lane_bits values, int64_t count, const int width)
{
    const lane_halves halves = __builtin_convertvector(values >> 16, lane_halves);
    const void *from = width == 2 ? (const void *)&halves : (const void *)&values;
    if (count >= LANES)
        memcpy(to, from, LANES * width);
    else
        memcpy(to, from, (size_t)(count * width));
}

/* Writes a row of the matrix, zeros included. */
INLINE int64_t fill_row(
    const struct job *job, int64_t row, int64_t place, const int width, const int bits)
{
    const int64_t first = at(job, &job->keep_row, row);
    const int64_t first_code = at(job, &job->owner_row, row);
    char *dense = (char *)job->dense + at(job, &job->dense_row, row) * width;
    char few_values[WORD * 4], few_codes[WORD / 2];
    lane_bits wrong = {0};
    for (int64_t column = 0; column < job->columns; column += WORD) {
        const uint64_t kept = kept_at(job, first, column);
        const char *values = next_values(job, place, width, few_values), *codes = NULL;
        if (bits)
            codes = next_codes(&job->owner, first_code + column, bits, few_codes);
        UNROLL
        for (int chunk = 0; chunk < WORD / LANES; chunk++) {
            const int64_t start = column + chunk * LANES;
            if (start >= job->columns)
                break;
            const uint32_t there = kept >> chunk * LANES & ALL_LANES;
            const lane_bits value = (lane_bits)expand(load_values(values, width), there);
            lane_bits owner = {0};
            values += __builtin_popcount(there) * width;
            if (bits)
                owner = load_codes(codes, chunk, bits);
            for (uint32_t c = 0; c < (uint32_t)job->children; c++)
                store_values(
                    dense + (c * job->dense_child + start) * width,
                    value & (lane_bits)(owner == c), job->columns - start, width);
            wrong |= (lane_bits)(owner >= (uint32_t)job->children);
        }
        place += __builtin_popcountll(kept);
    }
    for (int lane = 0; lane < LANES; lane++)
        if (wrong[lane])
            return place + job->count + 1; /* so that more are found than there are */
    return place;
}

/* Moves the values of a row into the matrix (`fill`), whose other entries become zero, or out of
 * it. */
INLINE int64_t move_row(
    const struct job *job, int64_t row, int64_t place, const int fill, const int width)
{
    const int64_t first = at(job, &job->keep_row, row), bits = job->code_bits;
    const int64_t first_code = at(job, &job->owner_row, row);
    char *dense = (char *)job->dense + at(job, &job->dense_row, row) * width;
    char *values = (char *)job->values;
    if (fill)
        for (int64_t c = 0; c < job->children; c++)
            memset(dense + c * job->dense_child * width, 0, (size_t)(job->columns * width));
    for (int64_t column = 0; column < job->columns; column += WORD) {
        uint64_t kept = kept_at(job, first, column);
        for (; kept && place < job->count; kept &= kept - 1, place++) {
            const int64_t entry = column + __builtin_ctzll(kept), code = first_code + entry;
            int64_t child = 0;
            if (job->owner.size)
                child = job->owner.bytes[code * bits >> 3] >> (code * bits & 7) & ((1 << bits) - 1);
            if (child >= job->children)
                return place + job->count + 1; /* so that more are found than there are */
            char *one = dense + (child * job->dense_child + entry) * width;
            memcpy(fill ? one : values + place * width, fill ? values + place * width : one, width);
        }
        place += __builtin_popcountll(kept);
    }
    return place;
}

#define MOVE(fill, width)                                                                          \
    static int64_t move_##fill##_##width(const struct job *job, int64_t row, int64_t place)        \
    {                                                                                              \
        return move_row(job, row, place, fill, width);                                             \
    }
#define MOVES(width) MOVE(0, width) MOVE(1, width)
MOVES(2)
MOVES(4)
MOVES(8)

#define FILL(width, bits)                                                                          \
    static int64_t fill_##width##_##bits(const struct job *job, int64_t row, int64_t place)        \
    {                                                                                              \
        return fill_row(job, row, place, width, bits);                                             \
    }
#define FILLS(width) FILL(width, 0) FILL(width, 1) FILL(width, 2) FILL(width, 4)
FILLS(2)
FILLS(4)

/* Writes the whole matrix. */
void fpe_packed_fill(struct job *job)
{
    static work_function *const rows[3][5] = {
        {fill_2_0, fill_2_1, fill_2_2, move_1_2, fill_2_4},
        {fill_4_0, fill_4_1, fill_4_2, move_1_4, fill_4_4},
        {move_1_8, move_1_8, move_1_8, move_1_8, move_1_8}};
    work_function *const other[3] = {move_1_2, move_1_4, move_1_8};
    const int64_t bits = job->owner.size ? job->code_bits : 0;
    each_row(job, bits > 4 ? other[job->width / 4] : rows[job->width / 4][bits]);
}

/* Reads the values out of the matrix. */
void fpe_packed_take(struct job *job)
{
    static work_function *const rows[3] = {move_0_2, move_0_4, move_0_8};
    each_row(job, rows[job->width / 4]);
}
