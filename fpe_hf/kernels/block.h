/* A block of the `block` layout, as the caller describes it, and where its numbers lie. */

#ifndef FPE_BLOCK_H
#define FPE_BLOCK_H

#include <stdint.h>

#ifdef __AVX512F__
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
#define ALWAYS static inline __attribute__((always_inline))
#define SHARED _Pragma("omp for schedule(static)")

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

typedef struct {
    const float *x;        /* [tokens, in_features] */
    const int32_t *inputs; /* what children read, [tiles, all children's] */
    const float *weight;   /* tile after tile, child after child: [sources, parents, reads] */
    const float *bias;     /* [sources, hidden or parents], or NULL */
    const float *coupling; /* [sources, parents], or NULL: that of the block */
    float *to_x, *to_weight, *to_bias, *to_coupling; /* gradients, or NULL: not wanted */
} Up;

typedef struct {
    const int32_t *outputs; /* what children write, [tiles, all children's, or any child's] */
    const float *weight;    /* tile after tile: [writes, children, parents], or, child after child,
                               [writes, parents] */
    const float *bias;      /* [out_features] or NULL */
    float *to_weight;       /* gradient, or NULL */
} Down;

typedef struct {
    int64_t tokens, in_features, out_features, alpha, tiles;
    int64_t ups, sources;          /* up projections, and up-type matrices in each */
    int64_t replicate;             /* whether the children of a tile write the same outputs */
    int64_t coupled, equal;        /* whether children are, and whether that makes them equal */
    int64_t child_bias;            /* whether every child has biases of its own */
    int64_t interleaved;           /* whether the sources of an up projection alternate */
    int64_t kind, activated, gate; /* the activation, its source, and the other source or -1 */
    int64_t chunk, part, threads;  /* tokens and parents at a time */
    double scale, coupling;
    const int64_t *starts;         /* first parent of each tile, and the number of parents */
    const int64_t *reads, *writes; /* of each child */
} Block;

/* Where a child's incoming weights of a source begin. `before`: inputs of the children before it. */
static inline int64_t up_weights(
    const Block *block, int64_t tile, int64_t source, int64_t child, int64_t reads, int64_t before) {
    const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
    const int64_t own = parents * (block->sources * before + source * block->reads[child]);
    return block->sources * start * reads + own;
}

/* Where a child's outgoing weights begin, and the distance of their rows. `before`: outputs of the
 * children before it. */
static inline int64_t down_weights(
    const Block *block, int64_t tile, int64_t child, int64_t writes, int64_t before, int64_t *stride) {
    const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
    *stride = block->replicate ? block->alpha * parents : parents;
    if (block->replicate) return block->alpha * start * writes + child * parents;
    return start * writes + parents * before;
}

/* Where the bias of a parent's child is. `parent` counts within the tile. */
static inline int64_t bias_at(
    const Block *block, int64_t tile, int64_t source, int64_t child, int64_t parent) {
    const int64_t alpha = block->alpha, all = block->starts[block->tiles];
    const int64_t start = block->starts[tile], parents = block->starts[tile + 1] - start;
    if (!block->child_bias) return source * all + start + parent;
    return source * alpha * all + alpha * start + child * parents + parent;
}

/* Where the coupling of a parent is. */
static inline int64_t coupling_at(const Block *block, int64_t tile, int64_t source, int64_t parent) {
    return source * block->starts[block->tiles] + block->starts[tile] + parent;
}

#endif
