/* An MLP of the `block` layout as one operation, forward and backward, in float32.
 *
 * Tokens are taken a chunk at a time, hidden neurons a part at a time: as many as stay in cache.
 * Every product has the same form: a few rows of a matrix, read as they lie, times a panel of columns.
 * What children read is gathered into panels once per chunk; what they make is a panel already; what
 * they write is added up in panels and leaves them once per chunk.
 *
 * All threads run the same program and share its loops; sums are made in one order, whatever their
 * number. Nothing here can fail or allocate.
 */

#ifdef _OPENMP
#include <omp.h>
#endif

#include "activations.h"
#include "block.h"
#include "products.h"

#define AT_ONCE (128 / PANEL) /* rows of a panel whose activations are made at a time */
#define APART 16 /* parents of a thread: their biases' gradients fill a line of the cache */

static inline int64_t this_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#define MOST_CHILDREN 256 /* MAX_ALPHA */
#define MOST_SOURCES 2

/* What follows from a description, and the working memory. */
typedef struct {
    const Block *block;
    const Up *ups;
    const Down *down;
    int64_t made;    /* children whose hidden activations are made: one if they are equal */
    int64_t sources; /* of all up projections */
    int64_t reads, writes; /* of all children of a tile */
    int64_t read_from[MOST_CHILDREN], write_from[MOST_CHILDREN]; /* where a child's begin */
    int64_t inputs_from[MOST_CHILDREN];                          /* the same in `tokens` */
    int64_t panels;  /* of the chunk */
    int64_t in_last; /* tokens in the last of them */
    float *turned[MOST_SOURCES]; /* by up projection: x, [panels, in_features, PANEL] */
    float *total;    /* result, or its gradient, [panels, out_features, PANEL] */
    float *read[MOST_SOURCES]; /* by up projection: what children read, [panels, reads, PANEL] */
    float *sums[MOST_SOURCES]; /* by source: partial sums, [panels, made * parents, PANEL] */
    float *hidden;             /* [panels, made * parents, PANEL] */
    float *written;            /* what children write, or its gradient, [panels, writes, PANEL] */
    float *to_pre[MOST_SOURCES];  /* gradients of the sums, as these */
    float *hidden_tokens;         /* hidden activations, by child: columns are neurons, rows tokens */
    float *tokens[MOST_SOURCES];  /* what children read, the same way */
    float *packed;                /* weights of a few rows of a product, for this thread */
    float *to_read[MOST_SOURCES]; /* gradient of what they read */
    float *to_x[MOST_SOURCES];    /* gradient of x, [panels, in_features, PANEL] */
} Work;

/* A part of a tile: some parents with all their children. */
typedef struct {
    int64_t tile, first, count; /* the tile, the first parent within it, and how many */
} Part;

static inline Part part_of(const Work *w, int64_t tile, int64_t first) {
    const int64_t parents = w->block->starts[tile + 1] - w->block->starts[tile];
    return (Part){tile, first, least(w->block->part, parents - first)};
}

static inline int64_t in_panel(const Work *w, int64_t panel) {
    return panel == w->panels - 1 ? w->in_last : PANEL;
}

/* Columns of a panel that hold anything, in whole vectors. The others are never read. */
static inline int64_t wide(const Work *w, int64_t panel) {
    return pieces(in_panel(w, panel), LANES) * LANES;
}

static inline int64_t child_of(const Work *w, int64_t child) { return w->block->equal ? 0 : child; }

/* A child's incoming weights of a source, from the part's first parent on. */
static inline int64_t up_at(const Work *w, const Part *part, int64_t source, int64_t child) {
    const int64_t before = w->read_from[child], skipped = part->first * w->block->reads[child];
    return up_weights(w->block, part->tile, source, child, w->reads, before) + skipped;
}

/* A child's outgoing weights, from the part's first parent on, and the distance of their rows. */
static inline int64_t down_at(const Work *w, const Part *part, int64_t child, int64_t *stride) {
    const int64_t before = w->write_from[child];
    return down_weights(w->block, part->tile, child, w->writes, before, stride) + part->first;
}

/* ---- memory ---- */

static float *take(float **next, int64_t count) {
    float *own = *next;
    *next += pieces(count, LANES) * LANES;
    return own;
}

/* Lays out the working memory from `scratch` on; returns its end. */
static float *lay_out(
    Work *w, const Block *block, const Up *ups, const Down *down, float *scratch, int kept, int back) {
    *w = (Work){.block = block, .ups = ups, .down = down};
    w->made = block->equal ? 1 : block->alpha;
    w->sources = block->ups * block->sources;
    const int64_t chunk = pieces(least(block->chunk, block->tokens), PANEL) * PANEL;
    int64_t written = 0, inputs = 0;
    for (int64_t child = 0; child < block->alpha; child++) {
        w->read_from[child] = w->reads;
        w->write_from[child] = block->replicate ? 0 : w->writes;
        w->inputs_from[child] = inputs;
        w->reads += block->reads[child];
        w->writes = block->replicate ? block->writes[0] : w->writes + block->writes[child];
        written += block->writes[child];
        inputs += pieces(block->reads[child], PANEL) * PANEL * chunk;
    }
    const int64_t rows = chunk * w->made * block->part;
    w->total = take(&scratch, chunk * block->out_features);
    w->written = take(&scratch, chunk * w->writes);
    for (int64_t up = 0; up < block->ups; up++) {
        w->turned[up] = take(&scratch, chunk * block->in_features);
        w->read[up] = take(&scratch, chunk * w->reads);
    }
    for (int64_t s = 0; s < w->sources; s++) w->sums[s] = kept ? 0 : take(&scratch, rows);
    /* In the place of sums that nobody reads again: half as much stays in cache. */
    w->hidden = kept || back ? take(&scratch, rows) : w->sums[block->activated];
    if (!back) return scratch;
    w->hidden_tokens = take(&scratch, chunk * w->made * pieces(block->part, PANEL) * PANEL);
    const int64_t packed = BUNDLE * most(written, block->sources * block->part);
    w->packed = take(&scratch, block->threads * packed) + this_thread() * packed;
    for (int64_t s = 0; s < w->sources; s++) w->to_pre[s] = take(&scratch, rows);
    for (int64_t up = 0; up < block->ups; up++) {
        w->tokens[up] = take(&scratch, inputs);
        w->to_read[up] = take(&scratch, chunk * w->reads);
        w->to_x[up] = take(&scratch, chunk * block->in_features);
    }
    return scratch;
}

/* How many numbers the caller is to provide: the partial sums, if they are kept, and the working
 * memory forward and backward, with the sums kept and without. */
typedef struct {
    int64_t sums, forward[2], back[2];
} Sizes;

void fpe_mlp_sizes(const Block *block, Sizes *sizes) {
    Work w;
    for (int kept = 0; kept < 2; kept++) {
        sizes->forward[kept] = lay_out(&w, block, 0, 0, 0, kept, 0) - (float *)0;
        sizes->back[kept] = lay_out(&w, block, 0, 0, 0, kept, 1) - (float *)0;
    }
    const int64_t rows = w.sources * w.made * block->starts[block->tiles];
    sizes->sums = rows * pieces(block->tokens, PANEL) * PANEL;
}

/* ---- into panels and out of them ---- */

/* `to[j][i] = from[i][j]` for `rows` and `columns` up to LANES. */
static void transpose(
    const float *from, int64_t from_row, int64_t rows, int64_t columns, float *to, int64_t to_row) {
#ifndef __clang__
    if (rows == LANES && columns == LANES) {
        /* Halves, quarters and so on change places: all numbers of a stage are moved at once. */
        typedef int32_t places __attribute__((vector_size(4 * LANES)));
        lanes line[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) line[i] = *(const lanes *)(from + i * from_row);
#pragma GCC unroll 4
        for (int step = 1; step < LANES; step *= 2) {
            places low, high;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) {
                low[i] = i & step ? i - step + LANES : i;
                high[i] = i & step ? i + LANES : i + step;
            }
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (!(i & step)) {
                    const lanes one = line[i], other = line[i + step];
                    line[i] = __builtin_shuffle(one, other, low);
                    line[i + step] = __builtin_shuffle(one, other, high);
                }
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) *(lanes *)(to + i * to_row) = line[i];
        return;
    }
#endif
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = 0; i < rows; i++) to[j * to_row + i] = from[i * from_row + j];
}

/* `[tokens, features]` from token `first` on -> `[panels, features, PANEL]`. */
static void turn(const Work *w, const float *from, int64_t features, int64_t first, float *to) {
    const int64_t groups = pieces(features, LANES);
    SHARED for (int64_t item = 0; item < w->panels * groups; item++) {
        const int64_t panel = item / groups, begin = item % groups * LANES;
        const int64_t end = least(begin + LANES, features), filled = in_panel(w, panel);
        float *own = to + panel * features * PANEL;
        for (int64_t j = 0; j < filled; j += LANES)
            transpose(
                from + (first + panel * PANEL + j) * features + begin, features,
                least(LANES, filled - j), end - begin, own + begin * PANEL + j, PANEL);
        for (int64_t f = begin; f < end; f++)
            for (int64_t j = filled; j < PANEL; j++) own[f * PANEL + j] = 0.0f;
    }
}

/* The reverse, with biases if there are any. */
static void turn_back(
    const Work *w, const float *from, const float *bias, int64_t features, int64_t first, float *to) {
    const int64_t groups = pieces(features, LANES);
    SHARED for (int64_t item = 0; item < w->panels * groups; item++) {
        const int64_t panel = item / groups, begin = item % groups * LANES;
        const int64_t end = least(begin + LANES, features), filled = in_panel(w, panel);
        const float *own = from + panel * features * PANEL;
        for (int64_t j = 0; j < filled; j += LANES) {
            const int64_t count = least(LANES, filled - j);
            float *rows = to + (first + panel * PANEL + j) * features;
            transpose(own + begin * PANEL + j, PANEL, end - begin, count, rows + begin, features);
            for (int64_t i = 0; bias && i < count; i++)
                for (int64_t f = begin; f < end; f++) rows[i * features + f] += bias[f];
        }
    }
}

/* Rows of `[panels, features, PANEL]` -> `[panels, count, PANEL]`. */
static void gather(
    const Work *w, const float *from, int64_t features, const int32_t *index, int64_t count, float *to) {
    SHARED for (int64_t item = 0; item < w->panels * count; item++) {
        const int64_t panel = item / count;
        const float *own = from + (panel * features + index[item % count]) * PANEL;
        memcpy(to + item * PANEL, own, PANEL * sizeof(float));
    }
}

/* The reverse, adding. Children may share an index, so threads share columns, not rows. */
static void scatter(
    const Work *w, const float *from, int64_t features, const int32_t *index, int64_t count, float *to) {
    SHARED for (int64_t item = 0; item < w->panels * WIDE; item++) {
        const int64_t panel = item / WIDE, column = item % WIDE * LANES;
        if (column >= in_panel(w, panel)) continue;
        for (int64_t row = 0; row < count; row++) {
            const float *own = from + (panel * count + row) * PANEL + column;
            lanes *sum = (lanes *)(to + (panel * features + index[row]) * PANEL + column);
            *sum += *(const lanes *)own;
        }
    }
}

static void clear(const Work *w, float *to, int64_t features) {
    SHARED for (int64_t panel = 0; panel < w->panels; panel++)
        memset(to + panel * features * PANEL, 0, features * PANEL * sizeof(float));
}

/* What a child reads, token by token: columns are its inputs, in panels. */
static void gather_tokens(const Work *w, int64_t up, int64_t tile, int64_t first) {
    const Block *block = w->block;
    const int64_t rows = w->panels * PANEL, filled = (w->panels - 1) * PANEL + w->in_last;
    for (int64_t child = 0; child < block->alpha; child++) {
        const int32_t *index = w->ups[up].inputs + tile * w->reads + w->read_from[child];
        const int64_t reads = block->reads[child], panels = pieces(reads, PANEL);
        float *to = w->tokens[up] + w->inputs_from[child];
        SHARED for (int64_t row = 0; row < rows; row++) {
            const float *x = w->ups[up].x + (first + row) * block->in_features;
            for (int64_t panel = 0; panel < panels; panel++) {
                float *own = to + (panel * rows + row) * PANEL;
                const int32_t *from = index + panel * PANEL;
                const int64_t count = row < filled ? least(PANEL, reads - panel * PANEL) : 0;
                for (int64_t j = 0; j < count; j++) own[j] = x[from[j]];
                for (int64_t j = count; j < PANEL; j++) own[j] = 0.0f;
            }
        }
    }
}

/* ---- the steps of a part ---- */

/* Partial sums of a source. */
static void make_sums(const Work *w, const Part *part, int64_t s) {
    const Block *block = w->block;
    const int64_t up = s / block->sources, source = s % block->sources;
    const int64_t blocks = pieces(part->count, HEIGHT), each = blocks * w->panels;
    float *sums = w->sums[s];
    SHARED for (int64_t item = 0; item < w->made * each; item++) {
        const int64_t made = item / each, p = item % each / w->panels * HEIGHT;
        const int64_t panel = item % w->panels, rows = least(HEIGHT, part->count - p);
        float *to = sums + ((panel * w->made + made) * part->count + p) * PANEL;
        const int64_t last = block->equal ? block->alpha : made + 1;
        for (int64_t child = made; child < last; child++) {
            const int64_t reads = block->reads[child];
            const float *weight = w->ups[up].weight + up_at(w, part, source, child) + p * reads;
            if (panel == 0) expect(weight + HEIGHT * reads, HEIGHT, reads, reads);
            const float *read = w->read[up] + (panel * w->reads + w->read_from[child]) * PANEL;
            product(
                in_panel(w, panel), rows, (Rows){weight, reads, 1}, read, in_one(reads), to, PANEL,
                child > made);
        }
    }
}

/* A parent's partial sums of a source in a panel, child after child. */
static inline const float *sums_at(const Work *w, const Part *part, int64_t s, int64_t panel, int64_t p) {
    return w->sums[s] + (panel * w->made * part->count + p) * PANEL;
}

static inline float mu_of(
    const Work *w, const Part *part, const Up *up, int64_t source, int64_t p) {
    if (!up->coupling) return (float)w->block->coupling;
    return up->coupling[coupling_at(w->block, part->tile, source, part->first + p)];
}

/* Some children of some parents in a panel. */
typedef struct {
    int64_t panel, parent, parents, first, last;
} Kin;

/* Rows of a panel as runs of numbers that lie one after the other: all in one if they are full. */
typedef struct {
    int64_t end, step, length;
} Runs;

static inline Runs runs_of(int64_t rows, int64_t columns) {
    const int64_t end = rows * PANEL;
    return columns == PANEL ? (Runs){end, end, end} : (Runs){end, PANEL, columns};
}

/* Their partial sums in total, where that is needed: `[parents, PANEL]`. */
static inline void total_of(
    const Work *w, const Part *part, int64_t parents, int64_t columns, const float *sums, float *total) {
    if (!w->block->coupled || w->block->equal) return;
    memset(total, 0, parents * PANEL * sizeof(float));
    for (int64_t child = 0; child < w->made; child++)
        for (int64_t p = 0; p < parents; p++)
            for (int64_t j = 0; j < columns; j += LANES)
                *(lanes *)(total + p * PANEL + j) +=
                    *(const lanes *)(sums + (child * part->count + p) * PANEL + j);
}

/* Pre-activations of one child of each parent: `[parents, PANEL]`. */
static inline void finish(
    const Work *w, const Part *part, int64_t s, int64_t child, Kin kin, int64_t columns,
    const float *total, float *pre) {
    const Up *up = &w->ups[s / w->block->sources];
    const int64_t source = s % w->block->sources;
    const float *own = sums_at(w, part, s, kin.panel, kin.parent) + child * part->count * PANEL;
    const float *bias = up->bias
        ? up->bias + bias_at(w->block, part->tile, source, child, part->first + kin.parent)
        : 0;
    const int coupled = w->block->coupled && !w->block->equal;
    for (int64_t p = 0; p < kin.parents; p++) {
        const lanes more = (bias ? bias[p] : 0.0f) - (lanes){0}; /* in all lanes */
        const float mu = coupled ? mu_of(w, part, up, source, kin.parent + p) : 0.0f;
        for (int64_t j = p * PANEL; j < p * PANEL + columns; j += LANES) {
            const lanes sum = *(const lanes *)(own + j);
            *(lanes *)(pre + j) =
                coupled ? sum + mu * (*(const lanes *)(total + j) - sum) + more : sum + more;
        }
    }
}

/* Pre-activations of all sources. */
static inline void finish_all(
    const Work *w, const Part *part, int64_t child, Kin kin, int64_t columns,
    float total[][AT_ONCE * PANEL], float pre[][AT_ONCE * PANEL]) {
    for (int64_t s = 0; s < w->sources; s++) {
        if (child == kin.first)
            total_of(
                w, part, kin.parents, columns, sums_at(w, part, s, kin.panel, kin.parent), total[s]);
        finish(w, part, s, child, kin, columns, total[s], pre[s]);
    }
}

static void make_hidden(const Work *w, const Part *part) {
    const Block *block = w->block;
    const int64_t groups = pieces(part->count, AT_ONCE);
    SHARED for (int64_t item = 0; item < w->panels * groups; item++) {
        const int64_t panel = item / groups, p = item % groups * AT_ONCE, columns = wide(w, panel);
        const Kin kin = {panel, p, least(AT_ONCE, part->count - p), 0, w->made};
        float total[MOST_SOURCES][AT_ONCE * PANEL], pre[MOST_SOURCES][AT_ONCE * PANEL];
        for (int64_t child = 0; child < w->made; child++) {
            finish_all(w, part, child, kin, columns, total, pre);
            float *hidden = w->hidden + ((panel * w->made + child) * part->count + p) * PANEL;
            const Runs runs = runs_of(kin.parents, columns);
            for (int64_t j = 0; j < runs.end; j += runs.step)
                activate(
                    (int)block->kind, (float)block->scale, pre[block->activated] + j,
                    block->gate < 0 ? 0 : pre[block->gate] + j, hidden + j, runs.length);
        }
    }
}

/* What the children write, or more of it. Those that write the same are added up in one product. */
static void write(const Work *w, const Part *part) {
    const Block *block = w->block;
    const int64_t count = part->count, together = block->replicate ? block->alpha : 1;
    for (int64_t child = 0; child < block->alpha; child += together) {
        const int64_t blocks = pieces(block->writes[child], HEIGHT);
        int64_t stride;
        const float *weight = w->down->weight + down_at(w, part, child, &stride);
        const Terms terms = {
            together, count, count, stride / together, block->equal ? 0 : count * PANEL};
        SHARED for (int64_t item = 0; item < blocks * w->panels; item++) {
            const int64_t panel = item % w->panels, o = item / w->panels * HEIGHT;
            const int64_t row = (panel * w->made + child_of(w, child)) * count;
            for (int64_t group = 0; panel == 0 && group < together; group++)
                expect(weight + group * terms.left + (o + HEIGHT) * stride, HEIGHT, stride, count);
            product(
                in_panel(w, panel), least(HEIGHT, block->writes[child] - o),
                (Rows){weight + o * stride, stride, 1}, w->hidden + row * PANEL, terms,
                w->written + (panel * w->writes + w->write_from[child] + o) * PANEL, PANEL,
                part->first > 0);
        }
    }
}

/* ---- backwards ---- */

/* Gradient of the hidden activations, where that of the pre-activations will be. */
static void hidden_back(const Work *w, const Part *part) {
    const Block *block = w->block;
    const int64_t blocks = pieces(part->count, HEIGHT), each = blocks * w->panels;
    int64_t ready = -1; /* the rows that are packed */
    SHARED for (int64_t item = 0; item < w->made * each; item++) {
        const int64_t made = item / each, p = item % each / w->panels * HEIGHT;
        const int64_t panel = item % w->panels, rows = least(HEIGHT, part->count - p);
        float *to = w->to_pre[w->block->activated] +
                    ((panel * w->made + made) * part->count + p) * PANEL;
        float *packed = w->packed;
        const int64_t last = block->equal ? block->alpha : made + 1;
        const int64_t begin = p / BUNDLE * BUNDLE, wanted = made * part->count + begin;
        for (int64_t child = made; child < last; child++) {
            const int64_t writes = block->writes[child];
            if (ready != wanted) {
                int64_t stride;
                const float *weight = w->down->weight + down_at(w, part, child, &stride) + begin;
                pack(weight, stride, writes, part->count - begin, packed);
            }
            product(
                in_panel(w, panel), rows, packed_rows(packed, p, writes),
                w->written + (panel * w->writes + w->write_from[child]) * PANEL, in_one(writes), to,
                PANEL, child > made);
            packed += writes * BUNDLE;
        }
        ready = wanted;
    }
}

static inline float sum_of(const float *row, int64_t count) {
    lanes whole = {0};
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) whole += *(const lanes *)(row + j);
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += whole[i];
    for (; j < count; j++) sum += row[j];
    return sum;
}

/* Gradients of the sums from those of the pre-activations, and of biases and coupling. */
static void sums_back(const Work *w, const Part *part, int64_t s, Kin kin) {
    const Block *block = w->block;
    const Up *up = &w->ups[s / block->sources];
    const int64_t source = s % block->sources, next = part->count * PANEL;
    const int64_t filled = in_panel(w, kin.panel);
    for (int64_t p = kin.parent; p < kin.parent + kin.parents; p++) {
        float *to_pre = w->to_pre[s] + (kin.panel * w->made * part->count + p) * PANEL;
        for (int64_t child = kin.first; up->to_bias && child < kin.last; child++)
            up->to_bias[bias_at(block, part->tile, source, child, part->first + p)] +=
                sum_of(to_pre + child * next, filled);
        if (!block->coupled || block->equal) continue;
        const float *sums = sums_at(w, part, s, kin.panel, p);
        const float mu = mu_of(w, part, up, source, p);
        float total[PANEL], to_total[PANEL], to_mu[PANEL] = {0};
        total_of(w, part, 1, wide(w, kin.panel), sums, total);
        total_of(w, part, 1, wide(w, kin.panel), to_pre, to_total);
        for (int64_t child = kin.first; child < kin.last; child++)
            for (int64_t j = 0; j < filled; j++) {
                float *own = &to_pre[child * next + j];
                to_mu[j] += *own * (total[j] - sums[child * next + j]);
                *own += mu * (to_total[j] - *own);
            }
        if (up->to_coupling)
            up->to_coupling[coupling_at(block, part->tile, source, part->first + p)] +=
                sum_of(to_mu, filled);
    }
}

/* Their hidden activations once more, and back through them. */
static void children_back(const Work *w, const Part *part, Kin kin) {
    const Block *block = w->block;
    const int64_t columns = wide(w, kin.panel);
    float total[MOST_SOURCES][AT_ONCE * PANEL], pre[MOST_SOURCES][AT_ONCE * PANEL];
    for (int64_t child = kin.first; child < kin.last; child++) {
        finish_all(w, part, child, kin, columns, total, pre);
        const int64_t at = ((kin.panel * w->made + child) * part->count + kin.parent) * PANEL;
        const Runs runs = runs_of(kin.parents, columns);
        for (int64_t j = 0; j < runs.end; j += runs.step) {
            float *to_pre = w->to_pre[block->activated] + at + j;
            const int gated = block->gate >= 0;
            activate_back(
                (int)block->kind, (float)block->scale, pre[block->activated] + j,
                gated ? pre[block->gate] + j : 0, to_pre, w->hidden + at + j, to_pre,
                gated ? w->to_pre[block->gate] + at + j : 0, runs.length);
        }
    }
    for (int64_t s = 0; s < w->sources; s++) sums_back(w, part, s, kin);
}

/* The same of all children, in the order in which their numbers lie where they do not depend on each
 * other. */
static void activation_back(const Work *w, const Part *part) {
    const int64_t group = w->block->coupled ? w->made : 1;
    SHARED for (int64_t begin = 0; begin < part->count; begin += APART)
        for (int64_t panel = 0; panel < w->panels; panel++)
            for (int64_t child = 0; child < w->made; child += group)
                for (int64_t p = begin; p < least(begin + APART, part->count); p += AT_ONCE)
                    children_back(
                        w, part,
                        (Kin){panel, p, least(AT_ONCE, part->count - p), child, child + group});
}

/* Gradient of the outgoing weights. */
static void down_back(const Work *w, const Part *part, int add) {
    const Block *block = w->block;
    const int64_t rows = w->panels * PANEL, across = pieces(part->count, PANEL);
    SHARED for (int64_t item = 0; item < w->made * across * w->panels; item++) {
        const int64_t made = item / (across * w->panels), begin = item / w->panels % across * PANEL;
        const int64_t panel = item % w->panels, count = least(PANEL, part->count - begin);
        const float *from =
            w->hidden + ((panel * w->made + made) * part->count + begin) * PANEL;
        float *to = w->hidden_tokens +
                    ((made * across + begin / PANEL) * rows + panel * PANEL) * PANEL;
        for (int64_t p = 0; p < count; p += LANES)
            for (int64_t j = 0; j < wide(w, panel); j += LANES)
                transpose(
                    from + p * PANEL + j, PANEL, least(LANES, count - p), LANES,
                    to + j * PANEL + p, PANEL);
    }
    const Terms terms = {w->panels, PANEL, w->in_last, w->writes * PANEL, PANEL * PANEL};
    for (int64_t child = 0; child < block->alpha; child++) {
        int64_t stride;
        float *to = w->down->to_weight + down_at(w, part, child, &stride);
        const int64_t blocks = pieces(block->writes[child], HEIGHT);
        SHARED for (int64_t item = 0; item < blocks * across; item++) {
            const int64_t o = item / across * HEIGHT, own = item % across;
            const float *written = w->written + (w->write_from[child] + o) * PANEL;
            product_within(
                least(PANEL, part->count - own * PANEL), least(HEIGHT, block->writes[child] - o),
                (Rows){written, PANEL, 1},
                w->hidden_tokens + (child_of(w, child) * across + own) * rows * PANEL, terms,
                to + o * stride + own * PANEL, stride, add);
        }
    }
}

/* Gradient of the incoming weights of a source. */
static void up_back(const Work *w, const Part *part, int64_t s, int add) {
    const Block *block = w->block;
    const int64_t up = s / block->sources, source = s % block->sources;
    const float *to_pre = w->to_pre[s];
    const int64_t rows = w->panels * PANEL, blocks = pieces(part->count, HEIGHT);
    const Terms terms = {w->panels, PANEL, w->in_last, w->made * part->count * PANEL, PANEL * PANEL};
    for (int64_t child = 0; child < block->alpha; child++) {
        const int64_t reads = block->reads[child], across = pieces(reads, PANEL);
        float *to = w->ups[up].to_weight + up_at(w, part, source, child);
        SHARED for (int64_t item = 0; item < blocks * across; item++) {
            const int64_t p = item / across * HEIGHT, own = item % across;
            product_within(
                least(PANEL, reads - own * PANEL), least(HEIGHT, part->count - p),
                (Rows){to_pre + (child_of(w, child) * part->count + p) * PANEL, PANEL, 1},
                w->tokens[up] + w->inputs_from[child] + own * rows * PANEL, terms,
                to + p * reads + own * PANEL, reads, add);
        }
    }
}

/* Gradient of what the children read. */
static void read_back(const Work *w, const Part *part, int64_t up) {
    const Block *block = w->block;
    for (int64_t child = 0; child < block->alpha; child++) {
        const int64_t reads = block->reads[child], blocks = pieces(reads, HEIGHT);
        int64_t ready = -1; /* the rows that are packed */
        SHARED for (int64_t item = 0; item < blocks * w->panels; item++) {
            const int64_t panel = item % w->panels, k = item / w->panels * HEIGHT;
            const int64_t row = (panel * w->made + child_of(w, child)) * part->count;
            const int64_t rows = least(HEIGHT, reads - k), begin = k / BUNDLE * BUNDLE;
            float *to = w->to_read[up] + (panel * w->reads + w->read_from[child] + k) * PANEL;
            float *packed = w->packed;
            for (int64_t source = 0; source < block->sources; source++) {
                const float *weight = w->ups[up].weight + up_at(w, part, source, child) + begin;
                if (ready != begin) pack(weight, reads, part->count, reads - begin, packed);
                product(
                    in_panel(w, panel), rows, packed_rows(packed, k, part->count),
                    w->to_pre[up * block->sources + source] + row * PANEL, in_one(part->count), to,
                    PANEL, part->first > 0 || source > 0);
                packed += part->count * BUNDLE;
            }
            ready = begin;
        }
    }
}

/* ---- the whole ---- */

static void begin_chunk(Work *w, int64_t first) {
    const int64_t tokens = least(w->block->chunk, w->block->tokens - first);
    w->panels = pieces(tokens, PANEL);
    w->in_last = tokens - (w->panels - 1) * PANEL;
}

/* What the children of a tile read, of all up projections. */
static void read_tile(const Work *w, int64_t tile, int64_t first) {
    const Block *block = w->block;
    for (int64_t up = 0; up < block->ups; up++) {
        const Up *own = &w->ups[up];
        if (tile == 0) turn(w, own->x, block->in_features, first, w->turned[up]);
        gather(
            w, w->turned[up], block->in_features, own->inputs + tile * w->reads, w->reads,
            w->read[up]);
    }
}

/* Points the sums at what is kept of a part, if they are kept, and goes on to what follows. */
static float *keep(Work *w, const Part *part, float *kept) {
    for (int64_t s = 0; kept && s < w->sources; s++) {
        w->sums[s] = kept;
        kept += w->panels * w->made * part->count * PANEL;
    }
    return kept;
}

/* `out` is `[tokens, out_features]`; `kept` takes the partial sums (see `Sizes`), or is NULL. */
void fpe_mlp(
    const Block *block, const Up *ups, const Down *down, float *out, float *kept, float *scratch) {
#pragma omp parallel num_threads((int)block->threads)
    {
        Work work, *w = &work;
        float *sums = kept;
        lay_out(w, block, ups, down, scratch, kept != 0, 0);
        for (int64_t first = 0; first < block->tokens; first += block->chunk) {
            begin_chunk(w, first);
            clear(w, w->total, block->out_features);
            for (int64_t tile = 0; tile < block->tiles; tile++) {
                read_tile(w, tile, first);
                const int64_t parents = block->starts[tile + 1] - block->starts[tile];
                for (int64_t from = 0; from < parents; from += block->part) {
                    const Part part = part_of(w, tile, from);
                    sums = keep(w, &part, sums);
                    for (int64_t s = 0; s < w->sources; s++)
                        make_sums(w, &part, s);
                    make_hidden(w, &part);
                    write(w, &part);
                }
                scatter(
                    w, w->written, block->out_features, down->outputs + tile * w->writes, w->writes,
                    w->total);
            }
            turn_back(w, w->total, down->bias, block->out_features, first, out);
        }
    }
}

/* `to_out` is the gradient of `out`; those of the parameters are to be zero, except the weights'. */
void fpe_mlp_back(
    const Block *block, const Up *ups, const Down *down, const float *to_out, float *kept,
    float *scratch) {
#pragma omp parallel num_threads((int)block->threads)
    {
        Work work, *w = &work;
        float *sums = kept;
        lay_out(w, block, ups, down, scratch, kept != 0, 1);
        for (int64_t first = 0; first < block->tokens; first += block->chunk) {
            begin_chunk(w, first);
            turn(w, to_out, block->out_features, first, w->total);
            for (int64_t up = 0; up < block->ups; up++)
                if (ups[up].to_x) clear(w, w->to_x[up], block->in_features);
            for (int64_t tile = 0; tile < block->tiles; tile++) {
                if (!kept) read_tile(w, tile, first);
                for (int64_t up = 0; up < block->ups; up++)
                    if (ups[up].to_weight) gather_tokens(w, up, tile, first);
                gather(
                    w, w->total, block->out_features, down->outputs + tile * w->writes, w->writes,
                    w->written);
                const int64_t parents = block->starts[tile + 1] - block->starts[tile];
                for (int64_t from = 0; from < parents; from += block->part) {
                    const Part part = part_of(w, tile, from);
                    sums = keep(w, &part, sums);
                    for (int64_t s = 0; !kept && s < w->sources; s++)
                        make_sums(w, &part, s);
                    hidden_back(w, &part);
                    activation_back(w, &part);
                    if (down->to_weight) down_back(w, &part, first > 0);
                    for (int64_t s = 0; s < w->sources; s++)
                        if (ups[s / block->sources].to_weight) up_back(w, &part, s, first > 0);
                    for (int64_t up = 0; up < block->ups; up++)
                        if (ups[up].to_x) read_back(w, &part, up);
                }
                for (int64_t up = 0; up < block->ups; up++)
                    if (ups[up].to_x)
                        scatter(
                            w, w->to_read[up], block->in_features,
                            ups[up].inputs + tile * w->reads, w->reads, w->to_x[up]);
            }
            for (int64_t up = 0; up < block->ups; up++)
                if (ups[up].to_x)
                    turn_back(w, w->to_x[up], 0, block->in_features, first, ups[up].to_x);
        }
    }
}
