/* Lanes are tokens: for more of them.
 *
 * What values are multiplied with is listed, and the inputs of a column, times its value, are added
 * to the child's sum: once per value. A list for each child; values are spread first.
 */

#ifndef FPE_PACKED_TOKENS_WIDE_H
#define FPE_PACKED_TOKENS_WIDE_H

#include "packed_job.h"

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

#endif
