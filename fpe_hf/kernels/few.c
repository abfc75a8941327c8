/* Projections of the `block` layout for a few tokens, in float32 or bfloat16: dot products that read
 * each weight once, in the order in which weights lie, which is as fast as memory.
 *
 * Nothing here can fail or allocate.
 */

#include <string.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "block.h"

#define HEIGHT 4 /* rows of weights, and */
#define TOKENS 4 /* tokens, in one product */

typedef float eight __attribute__((vector_size(32), aligned(4)));
typedef float four __attribute__((vector_size(16), aligned(4)));

static inline float sum_of(lanes value) {
#if LANES == 16
    const eight half = *(const eight *)&value + *((const eight *)&value + 1);
#elif LANES == 8
    const eight half = value;
#endif
#if LANES >= 8
    const four quarter = *(const four *)&half + *((const four *)&half + 1);
#else
    const four quarter = value;
#endif
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/* ---- numbers in float32 or, if `half`, bfloat16 ---- */

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));
typedef uint32_t wholes __attribute__((vector_size(4 * LANES)));

ALWAYS lanes load(int half, const void *from, int64_t at) {
    if (!half) return *(const lanes *)((const float *)from + at);
    const wholes bits =
        __builtin_convertvector(*(const halves *)((const uint16_t *)from + at), wholes) << 16;
    return (lanes)bits;
}

ALWAYS float number(int half, const void *from, int64_t at) {
    if (!half) return ((const float *)from)[at];
    const uint32_t bits = (uint32_t)((const uint16_t *)from)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

ALWAYS void copy_number(int half, const void *from, int64_t at, void *to, int64_t place) {
    if (half) ((uint16_t *)to)[place] = ((const uint16_t *)from)[at];
    else ((float *)to)[place] = ((const float *)from)[at];
}

/* Rounded to the nearest, to even ones where two are as near. */
static void round_all(const float *from, uint16_t *to, int64_t count) {
    SHARED for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        to[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
}

/* ---- dot products ---- */

#ifdef __AVX512BF16__
#define HALVES (2 * LANES) /* multiplied in pairs, whose products are added up in float32 */

ALWAYS __m512bh load_halves(const void *from, int64_t at, int64_t count) {
    const __mmask32 there = count < HALVES ? (1u << count) - 1 : ~0u;
    return (__m512bh)_mm512_maskz_loadu_epi16(there, (const uint16_t *)from + at);
}
#else
#define HALVES LANES
#endif

/* Numbers of each operand that are multiplied at once. */
ALWAYS int64_t step_of(int half) { return half ? HALVES : LANES; }

ALWAYS lanes add_products(int half, lanes sum, const void *a, int64_t i, const void *b, int64_t j) {
#ifdef __AVX512BF16__
    if (half)
        return (lanes)_mm512_dpbf16_ps(
            (__m512)sum, load_halves(a, i, HALVES), load_halves(b, j, HALVES));
#endif
    return sum + load(half, a, i) * load(half, b, j);
}

/* The sum of all lanes, and of products that are left, fewer than a step. */
ALWAYS float with_rest(
    int half, lanes sum, const void *a, int64_t i, const void *b, int64_t j, int64_t count) {
#ifdef __AVX512BF16__
    if (half)
        return sum_of((lanes)_mm512_dpbf16_ps(
            (__m512)sum, load_halves(a, i, count), load_halves(b, j, count)));
#endif
    float whole = sum_of(sum);
    for (int64_t k = 0; k < count; k++) whole += number(half, a, i + k) * number(half, b, j + k);
    return whole;
}

/* Dot products of rows of `a`, from number `at` on, with rows of `b`, from `from` on:
 * `to[token][row]`. Rows that are not there are computed, not written. */
ALWAYS void dots_of(
    int half, int tokens, int64_t rows, const void *a, int64_t at, int64_t a_row, const void *b,
    int64_t from, int64_t b_row, int64_t count, float to[TOKENS][HEIGHT]) {
    lanes sums[HEIGHT][TOKENS];
    int64_t left[HEIGHT];
    for (int i = 0; i < HEIGHT; i++) {
        left[i] = at + least(i, rows - 1) * a_row;
        for (int j = 0; j < tokens; j++) sums[i][j] = (lanes){0};
    }
    const int64_t step = step_of(half);
    int64_t k = 0;
    for (; k + step <= count; k += step)
        for (int i = 0; i < HEIGHT; i++)
            for (int j = 0; j < tokens; j++)
                sums[i][j] = add_products(half, sums[i][j], a, left[i] + k, b, from + j * b_row + k);
    for (int i = 0; i < HEIGHT; i++)
        for (int j = 0; j < tokens; j++)
            to[j][i] =
                with_rest(half, sums[i][j], a, left[i] + k, b, from + j * b_row + k, count - k);
}

/* The same of rows that lie one after the other, read in one go, which memory likes best. */
ALWAYS void dots_in_line(
    int half, int tokens, int64_t rows, const void *a, int64_t at, const void *b, int64_t from,
    int64_t b_row, int64_t count, float to[TOKENS][HEIGHT]) {
    const int ways = tokens == 1 ? 4 : tokens == 2 ? 2 : 1; /* enough sums that none is waited for */
    const int64_t step = step_of(half);
    for (int64_t i = 0; i < rows; i++) {
        lanes sums[TOKENS][4];
        for (int j = 0; j < tokens; j++)
            for (int way = 0; way < ways; way++) sums[j][way] = (lanes){0};
        const int64_t left = at + i * count;
        int64_t k = 0;
        for (; k + ways * step <= count; k += ways * step)
            for (int way = 0; way < ways; way++)
                for (int j = 0; j < tokens; j++)
                    sums[j][way] = add_products(
                        half, sums[j][way], a, left + k + way * step, b,
                        from + j * b_row + k + way * step);
        for (; k + step <= count; k += step)
            for (int j = 0; j < tokens; j++)
                sums[j][0] = add_products(half, sums[j][0], a, left + k, b, from + j * b_row + k);
        for (int j = 0; j < tokens; j++) {
            lanes whole = sums[j][0];
            for (int way = 1; way < ways; way++) whole += sums[j][way];
            to[j][i] = with_rest(half, whole, a, left + k, b, from + j * b_row + k, count - k);
        }
    }
}

#define LONG 4096 /* numbers of a row: several such rows are read at once, rather */

static void dots(
    int half, int64_t tokens, int64_t rows, const void *a, int64_t at, int64_t a_row, const void *b,
    int64_t from, int64_t b_row, int64_t count, float to[TOKENS][HEIGHT]) {
    const int in_line = a_row == count && count <= LONG;
#define DOTS(kind, number)                                                            \
    if (in_line) dots_in_line(kind, number, rows, a, at, b, from, b_row, count, to); \
    else dots_of(kind, number, rows, a, at, a_row, b, from, b_row, count, to)
    switch (tokens + (half ? TOKENS : 0)) {
        case 1: DOTS(0, 1); break;
        case 2: DOTS(0, 2); break;
        case 3: DOTS(0, 3); break;
        case 4: DOTS(0, 4); break;
        case 5: DOTS(1, 1); break;
        case 6: DOTS(1, 2); break;
        case 7: DOTS(1, 3); break;
        default: DOTS(1, 4);
    }
#undef DOTS
}

/* ---- the projections ---- */

static int64_t sum(const int64_t *counts, int64_t length) {
    int64_t total = 0;
    for (int64_t i = 0; i < length; i++) total += counts[i];
    return total;
}

/* Where a hidden neuron is in a row of the result of an up projection. */
static inline int64_t column_of(const Block *block, int64_t source, int64_t hidden) {
    if (block->interleaved) return hidden * block->sources + source;
    return source * block->alpha * block->starts[block->tiles] + hidden;
}

#define PARENTS 64 /* at a time: children of a parent are far from each other */

/* Couples the partial sums of a tile, and adds biases. */
static void couple(
    const Block *block, const Up *up, int half, int64_t tokens, int64_t tile, int64_t source,
    float *out) {
    const int64_t width = block->sources * block->alpha * block->starts[block->tiles];
    const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
    const int64_t step = block->interleaved ? block->sources : 1, groups = pieces(parents, PARENTS);
    SHARED for (int64_t item = 0; item < tokens * groups; item++) {
        const int64_t first = item % groups * PARENTS, count = least(PARENTS, parents - first);
        float *own = out + item / groups * width +
                     column_of(block, source, block->alpha * start + first);
        float mu[PARENTS], total[PARENTS] = {0};
        for (int64_t p = 0; p < count; p++)
            mu[p] = up->coupling
                ? number(half, up->coupling, coupling_at(block, tile, source, first + p))
                : (float)block->coupling;
        for (int64_t child = 0; child < block->alpha; child++)
            for (int64_t p = 0; p < count; p++) total[p] += own[(child * parents + p) * step];
        for (int64_t child = 0; child < block->alpha; child++) {
            const int64_t bias = bias_at(block, tile, source, child, first);
            for (int64_t p = 0; p < count; p++) {
                float *sum = own + (child * parents + p) * step;
                *sum += mu[p] * (total[p] - *sum);
                if (up->bias) *sum += number(half, up->bias, bias + p);
            }
        }
    }
}

/* `x` is `[tokens, in_features]`, `out` `[tokens, sources * hidden]`. `read` takes what the children of
 * a tile read, of all tokens, and, if `half`, `whole` the result before it is rounded. */
void fpe_up(
    const Block *block, const Up *up, int64_t half, int64_t tokens, int64_t threads, const void *x,
    void *out, void *read, float *whole) {
    const int64_t reads = sum(block->reads, block->alpha);
    const int64_t width = block->sources * block->alpha * block->starts[block->tiles];
    float *const result = half ? whole : (float *)out;
#pragma omp parallel num_threads((int)threads)
    {
        for (int64_t tile = 0; tile < block->tiles; tile++) {
            const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
            const int32_t *index = up->inputs + tile * reads;
            SHARED for (int64_t i = 0; i < tokens * reads; i++)
                copy_number((int)half, x, i / reads * block->in_features + index[i % reads], read, i);
            int64_t before = 0;
            for (int64_t child = 0; child < block->alpha; child++) {
                const int64_t own = block->reads[child], blocks = pieces(parents, HEIGHT);
                SHARED for (int64_t item = 0; item < block->sources * blocks; item++) {
                    const int64_t source = item / blocks, p = item % blocks * HEIGHT;
                    const int64_t rows = least(HEIGHT, parents - p);
                    const int64_t at = up_weights(block, tile, source, child, reads, before) + p * own;
                    const int64_t bias = bias_at(block, tile, source, child, p);
                    const int64_t hidden = block->alpha * start + child * parents + p;
                    for (int64_t token = 0; token < tokens; token += TOKENS) {
                        const int64_t count = least(TOKENS, tokens - token);
                        float found[TOKENS][HEIGHT];
                        dots(
                            (int)half, count, rows, up->weight, at, own,
                            read, token * reads + before, reads, own, found);
                        for (int64_t i = 0; i < rows; i++) {
                            const int apart = up->bias && !block->coupled;
                            const float more = apart ? number((int)half, up->bias, bias + i) : 0.0f;
                            const int64_t column = column_of(block, source, hidden + i);
                            for (int64_t j = 0; j < count; j++)
                                result[(token + j) * width + column] = found[j][i] + more;
                        }
                    }
                }
                before += own;
            }
            for (int64_t source = 0; block->coupled && source < block->sources; source++)
                couple(block, up, (int)half, tokens, tile, source, result);
        }
        if (half) round_all(result, out, tokens * width);
    }
}

/* `hidden` is `[tokens, hidden]`, `out` `[tokens, out_features]`. If `half`, `whole` takes the result
 * before it is rounded; else it may be NULL. */
void fpe_down(
    const Block *block, const Down *down, int64_t half, int64_t tokens, int64_t threads,
    const void *hidden, void *out, float *whole) {
    const int64_t width = block->alpha * block->starts[block->tiles];
    const int64_t writes = block->replicate ? block->writes[0] : sum(block->writes, block->alpha);
    const int64_t results = tokens * block->out_features;
    float *const result = half ? whole : (float *)out;
#pragma omp parallel num_threads((int)threads)
    {
        SHARED for (int64_t i = 0; i < results; i++)
            result[i] = down->bias ? number((int)half, down->bias, i % block->out_features) : 0.0f;
        for (int64_t tile = 0; tile < block->tiles; tile++) {
            int64_t before = 0;
            for (int64_t child = 0; child < (block->replicate ? 1 : block->alpha); child++) {
                int64_t stride;
                const int64_t at = down_weights(block, tile, child, writes, before, &stride);
                const int64_t own = block->alpha * block->starts[tile] + child * stride;
                const int32_t *index = down->outputs + tile * writes + before;
                SHARED for (int64_t o = 0; o < block->writes[child]; o += HEIGHT) {
                    const int64_t rows = least(HEIGHT, block->writes[child] - o);
                    for (int64_t token = 0; token < tokens; token += TOKENS) {
                        const int64_t count = least(TOKENS, tokens - token);
                        float found[TOKENS][HEIGHT];
                        dots(
                            (int)half, count, rows, down->weight, at + o * stride, stride,
                            hidden, own + token * width, width, stride, found);
                        for (int64_t j = 0; j < count; j++)
                            for (int64_t i = 0; i < rows; i++)
                                result[(token + j) * block->out_features + index[o + i]] +=
                                    found[j][i];
                    }
                }
                before += block->writes[child];
            }
        }
        if (half) round_all(result, out, results);
    }
}
