/* Lanes are tokens: for more of them.
 *
 * What values are multiplied with is listed, and the inputs of a column, times its value, are added
 * to the child's sum: once per value. One list for all children; values are read where they are.
 */

#ifndef FPE_PACKED_TOKENS_H
#define FPE_PACKED_TOKENS_H

#include "packed_list.h"

#define CACHED (512 << 10) /* bytes of inputs that the second cache may keep */

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

#endif
