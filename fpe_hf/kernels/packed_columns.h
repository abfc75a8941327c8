/* Lanes are columns: for very few tokens.
 *
 * A row is worked through in chunks of LANES columns, and its values are spread over the lanes that
 * they belong to. They are multiplied by the inputs and added to the sums of the children that own
 * them, once per child, or by the inputs that the owners have there.
 */

#ifndef FPE_PACKED_COLUMNS_H
#define FPE_PACKED_COLUMNS_H

#include "packed_job.h"

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

#endif
