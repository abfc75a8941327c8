/* Lanes are children: for few tokens of copies, with 8 lanes.
 *
 * They are the children's inputs of a column, and those of further tokens if there are less than 8
 * children; values are transposed.
 */

#ifndef FPE_PACKED_CHILDREN_H
#define FPE_PACKED_CHILDREN_H

#include "packed_list.h"
#include "transpose.h"

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
            transpose_square(value);
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
