/* What is to be multiplied, and what all ways to do it read: values, places and owners. */

#ifndef FPE_PACKED_JOB_H
#define FPE_PACKED_JOB_H

#include "packed_bits.h"

#define WORD 64    /* columns whose bits are read at once; a multiple of LANES */
#define GROUP 8    /* most children that are summed at once */
#define AHEAD 4096 /* bytes; values are fetched into the second cache that long before their use */
#define BLOCK 1024 /* most columns that are listed at once; a multiple of WORD */

/* What the children of a row share, and what each has for itself. */
enum mode {
    PARTS,  /* up: children read the same inputs; their sums are apart */
    OWNED,  /* down, partitioned: a child has its own inputs; one sum */
    COPIES, /* down, replicated: a child has its own inputs and values, under one mask; one sum */
};

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

/* How many entries are kept from one to another. */
INLINE int64_t count_kept(const struct job *job, int64_t start, int64_t stop)
{
    return job->keep.size ? count_bits(job->keep, start, stop) : stop - start;
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

#endif
