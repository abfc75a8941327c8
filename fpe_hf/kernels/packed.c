/* Products of a few vectors with a matrix whose kept entries are packed, as fast as memory allows.
 *
 * Every packed value is read once, with one bit that says where it belongs and a code that says to
 * which child. There are three ways, a header each: lanes of vectors are columns, tokens or children.
 *
 * Rows are independent and always summed in the same order, so the result depends neither on the
 * number of threads nor on the run.
 */

#ifdef _OPENMP
#include <omp.h>
#endif

#include "packed_columns.h"
#ifdef WIDE
#include "packed_tokens_wide.h"
#else
#include "packed_children.h"
#include "packed_tokens.h"
#endif

enum way { COLUMNS, TOKENS, CHILDREN };

INLINE void all_rows(
    const struct job *job, int64_t row, int64_t stop, const enum way way, const enum mode mode,
    const int children)
{
    int64_t start = count_kept(job, 0, row * job->columns);
    for (; row < stop; row++) {
        const int64_t first = row * job->columns;
        const int64_t kept = count_kept(job, first, first + job->columns);
        const int64_t place = mode == COPIES ? start * job->children : start;
        if (way == COLUMNS)
            row_by_columns(job, row, place, kept, mode, children);
#ifdef WIDE
        else if (mode == COPIES)
            copies_by_tokens(job, row, place, kept);
        else
            row_by_tokens(job, row, place, mode, children);
#else
        else
            row_by_children(job, row, place, kept, children);
#endif
        start += kept;
    }
}

typedef void rows_function(const struct job *, int64_t, int64_t);

#define EACH_GROUP(what, way, mode)                                                                \
    what(way, mode, 1) what(way, mode, 2) what(way, mode, 4) what(way, mode, 8)
#define EACH(what, way)                                                                            \
    EACH_GROUP(what, way, PARTS) EACH_GROUP(what, way, OWNED) EACH_GROUP(what, way, COPIES)

#define INSTANCE(way, mode, children)                                                              \
    static void rows_##way##_##mode##_##children(const struct job *job, int64_t row, int64_t stop) \
    {                                                                                              \
        all_rows(job, row, stop, way, mode, children);                                             \
    }
#define ENTRY(way, mode, children) [way][mode][children] = rows_##way##_##mode##_##children,
#ifdef WIDE
EACH(INSTANCE, COLUMNS)
EACH(INSTANCE, TOKENS)
static rows_function *const instances[2][3][GROUP + 1] = {EACH(ENTRY, COLUMNS) EACH(ENTRY, TOKENS)};
#else
#define FEW(what)                                                                                  \
    EACH_GROUP(what, COLUMNS, PARTS) EACH_GROUP(what, COLUMNS, OWNED)                              \
    what(COLUMNS, COPIES, 1) what(COLUMNS, COPIES, 2)                                              \
    what(CHILDREN, COPIES, 4) what(CHILDREN, COPIES, 8)
#define BY_TOKENS(mode, run) [TOKENS][mode] = {[1] = run, [2] = run, [4] = run, [8] = run},
FEW(INSTANCE)
static rows_function *const instances[3][3][GROUP + 1] = {
    FEW(ENTRY) BY_TOKENS(PARTS, parts_by_tokens) BY_TOKENS(OWNED, owned_by_tokens)
    BY_TOKENS(COPIES, copies_by_tokens)};
#endif

/* How many lanes the inputs are to be arranged for. */
void fpe_packed_lanes(int64_t *lanes) { *lanes = LANES; }

/* Multiplies; see `struct job`. `threads` share the rows. */
void fpe_packed_rows(
    int way, int mode, int half, const void *values, int64_t count, const uint8_t *keep,
    int64_t keep_bytes, const uint8_t *owner, int64_t owner_bytes, int owner_width,
    int64_t owner_rows, const float *x, int64_t inputs, float *out, int64_t tokens, int64_t rows,
    int64_t columns, int children, int vectors, int threads)
{
    const struct job job = {
        half, values, count, {keep, keep_bytes}, {owner, owner_bytes}, owner_width, owner_rows,
        x, inputs, out, tokens, rows, columns, children, vectors,
    };
    const int group = children <= 2 ? children : children <= 4 ? 4 : GROUP;
    rows_function *const run = instances[way][mode][group];
    (void)threads;
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t here = omp_get_thread_num(), all = omp_get_num_threads();
            run(&job, rows * here / all, rows * (here + 1) / all);
        }
        return;
    }
#endif
    run(&job, 0, rows);
}
