/* Where the inputs of a row's values are. */

#ifndef FPE_PACKED_LIST_H
#define FPE_PACKED_LIST_H

#include "packed_job.h"

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

#endif
