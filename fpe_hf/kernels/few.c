/* Projections of the `block` layout for a few tokens, in float32: dot products that read each weight
 * once, in the order in which weights lie, which is as fast as memory.
 *
 * Nothing here can fail or allocate.
 */

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

/* Dot products of rows of `a` with rows of `b`: `to[token][row]`. Rows that are not there are computed,
 * not written. */
ALWAYS void dots_of(
    int tokens, int64_t rows, const float *a, int64_t a_row, const float *b, int64_t b_row,
    int64_t count, float to[TOKENS][HEIGHT]) {
    lanes sums[HEIGHT][TOKENS];
    const float *left[HEIGHT];
    for (int i = 0; i < HEIGHT; i++) {
        left[i] = a + least(i, rows - 1) * a_row;
        for (int j = 0; j < tokens; j++) sums[i][j] = (lanes){0};
    }
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES)
        for (int i = 0; i < HEIGHT; i++) {
            const lanes value = *(const lanes *)(left[i] + k);
            for (int j = 0; j < tokens; j++) sums[i][j] += value * *(const lanes *)(b + j * b_row + k);
        }
    for (int i = 0; i < HEIGHT; i++)
        for (int j = 0; j < tokens; j++) {
            float sum = sum_of(sums[i][j]);
            for (int64_t rest = k; rest < count; rest++) sum += left[i][rest] * b[j * b_row + rest];
            to[j][i] = sum;
        }
}

static void dots(
    int64_t tokens, int64_t rows, const float *a, int64_t a_row, const float *b, int64_t b_row,
    int64_t count, float to[TOKENS][HEIGHT]) {
    switch (tokens) {
        case 1: dots_of(1, rows, a, a_row, b, b_row, count, to); break;
        case 2: dots_of(2, rows, a, a_row, b, b_row, count, to); break;
        case 3: dots_of(3, rows, a, a_row, b, b_row, count, to); break;
        default: dots_of(TOKENS, rows, a, a_row, b, b_row, count, to);
    }
}

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

/* Couples the partial sums of a tile, and adds biases. */
static void couple(
    const Block *block, const Up *up, int64_t tokens, int64_t tile, int64_t source, float *out) {
    const int64_t width = block->sources * block->alpha * block->starts[block->tiles];
    const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
    SHARED for (int64_t parent = 0; parent < parents; parent++) {
        float mu = (float)block->coupling;
        if (up->coupling) mu = up->coupling[coupling_at(block, tile, source, parent)];
        for (int64_t token = 0; token < tokens; token++) {
            float *row = out + token * width, total = 0.0f;
            for (int64_t child = 0; child < block->alpha; child++)
                total += row[column_of(
                    block, source, block->alpha * start + child * parents + parent)];
            for (int64_t child = 0; child < block->alpha; child++) {
                float *own = row + column_of(
                    block, source, block->alpha * start + child * parents + parent);
                *own += mu * (total - *own);
                if (up->bias) *own += up->bias[bias_at(block, tile, source, child, parent)];
            }
        }
    }
}

/* `x` is `[tokens, in_features]`, `out` `[tokens, sources * hidden]`; `scratch` takes what the
 * children of a tile read, of all tokens. */
void fpe_up(
    const Block *block, const Up *up, int64_t tokens, int64_t threads, const float *x, float *out,
    float *scratch) {
    const int64_t reads = sum(block->reads, block->alpha);
    const int64_t width = block->sources * block->alpha * block->starts[block->tiles];
#pragma omp parallel num_threads((int)threads)
    for (int64_t tile = 0; tile < block->tiles; tile++) {
        const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
        SHARED for (int64_t i = 0; i < tokens * reads; i++)
            scratch[i] = x[i / reads * block->in_features + up->inputs[tile * reads + i % reads]];
        int64_t before = 0;
        for (int64_t child = 0; child < block->alpha; child++) {
            const int64_t own = block->reads[child], blocks = pieces(parents, HEIGHT);
            SHARED for (int64_t item = 0; item < block->sources * blocks; item++) {
                const int64_t source = item / blocks, p = item % blocks * HEIGHT;
                const int64_t rows = least(HEIGHT, parents - p);
                const float *weight =
                    up->weight + up_weights(block, tile, source, child, reads, before) + p * own;
                const int64_t hidden = block->alpha * start + child * parents + p;
                const float *bias = up->bias && !block->coupled
                    ? up->bias + bias_at(block, tile, source, child, p) : 0;
                for (int64_t token = 0; token < tokens; token += TOKENS) {
                    const int64_t count = least(TOKENS, tokens - token);
                    float found[TOKENS][HEIGHT];
                    dots(
                        count, rows, weight, own, scratch + token * reads + before, reads, own,
                        found);
                    for (int64_t j = 0; j < count; j++)
                        for (int64_t i = 0; i < rows; i++)
                            out[(token + j) * width + column_of(block, source, hidden + i)] =
                                found[j][i] + (bias ? bias[i] : 0.0f);
                }
            }
            before += own;
        }
        for (int64_t source = 0; block->coupled && source < block->sources; source++)
            couple(block, up, tokens, tile, source, out);
    }
}

/* `hidden` is `[tokens, hidden]`, `out` `[tokens, out_features]`. */
void fpe_down(
    const Block *block, const Down *down, int64_t tokens, int64_t threads, const float *hidden,
    float *out) {
    const int64_t width = block->alpha * block->starts[block->tiles];
    const int64_t writes = block->replicate ? block->writes[0] : sum(block->writes, block->alpha);
#pragma omp parallel num_threads((int)threads)
    {
        SHARED for (int64_t i = 0; i < tokens * block->out_features; i++)
            out[i] = down->bias ? down->bias[i % block->out_features] : 0.0f;
        for (int64_t tile = 0; tile < block->tiles; tile++) {
            const int64_t start = block->starts[tile];
            int64_t before = 0;
            for (int64_t child = 0; child < (block->replicate ? 1 : block->alpha); child++) {
                int64_t stride;
                const float *weight =
                    down->weight + down_weights(block, tile, child, writes, before, &stride);
                const float *met = hidden + block->alpha * start + child * stride;
                const int32_t *index = down->outputs + tile * writes + before;
                SHARED for (int64_t o = 0; o < block->writes[child]; o += HEIGHT) {
                    const int64_t rows = least(HEIGHT, block->writes[child] - o);
                    for (int64_t token = 0; token < tokens; token += TOKENS) {
                        const int64_t count = least(TOKENS, tokens - token);
                        float found[TOKENS][HEIGHT];
                        dots(
                            count, rows, weight + o * stride, stride, met + token * width, width,
                            stride, found);
                        for (int64_t j = 0; j < count; j++)
                            for (int64_t i = 0; i < rows; i++)
                                out[(token + j) * block->out_features + index[o + i]] += found[j][i];
                    }
                }
                before += block->writes[child];
            }
        }
    }
}
