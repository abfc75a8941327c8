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
#include "transpose.h"

static inline int64_t this_thread(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#define APART 16 /* parents of a thread: their biases' gradients fill a line of the cache */
#define MOST_CHILDREN 256 /* MAX_ALPHA */
#define MOST_SOURCES 2

/* What follows from a description, and the working memory. */
typedef struct {
    const Block *block;
    const Up *ups;
    const Down *down;
    int64_t made;    /* children whose hidden activations are made: one if they are equal */
    int64_t sources; /* of all up projections */
    int kept, back;  /* whether sums are kept for the gradients, and whether these are made */
    int apart;       /* whether no child's activations depend on the sums of others */
    int64_t reads, writes; /* of all children of a tile */
    int64_t read_from[MOST_CHILDREN], write_from[MOST_CHILDREN]; /* where a child's begin */
    int64_t inputs_from[MOST_CHILDREN];                          /* the same in `tokens` */
    int64_t panels;  /* of the chunk */
    int64_t in_last; /* tokens in the last of them */
    float *turned[MOST_SOURCES]; /* by up projection: x, [panels, in_features, PANEL] */
    float *total;    /* result, or its gradient, [panels, out_features, PANEL] */
    float *read[MOST_SOURCES]; /* by up projection: what children read, [panels, reads, PANEL] */
    float *sums[MOST_SOURCES]; /* by source: partial sums, [panels, made * parents, PANEL], or NULL */
    float *hidden;             /* as these */
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
    w->kept = kept;
    w->back = back;
    w->apart = block->equal || !block->coupled;
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
    for (int64_t s = 0; s < w->sources; s++)
        w->sums[s] = kept || w->apart ? 0 : take(&scratch, rows);
    if (!back) {
        /* In the place of sums that nobody reads again: half as much stays in cache. */
        w->hidden = kept || w->apart ? take(&scratch, rows) : w->sums[block->activated];
        return scratch;
    }
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
    if (rows == LANES && columns == LANES) {
        lanes square[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) square[i] = *(const lanes *)(from + i * from_row);
        transpose_square(square);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) *(lanes *)(to + i * to_row) = square[i];
        return;
    }
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

/* Some rows of a panel: what a thread works at, at a time. */
typedef struct {
    int64_t panel, first, count;
} Bundle;

static inline int64_t bundles_of(int64_t rows, int64_t panels) { return pieces(rows, BUNDLE) * panels; }

static inline Bundle bundle_of(int64_t rows, int64_t panels, int64_t item) {
    const int64_t first = item / panels * BUNDLE;
    return (Bundle){item % panels, first, least(BUNDLE, rows - first)};
}

/* Numbers of a bundle of parents, for one child of each: they stay in cache. */
typedef float Numbers[BUNDLE * PANEL];

/* Where they are among those of all children. */
static inline int64_t numbers_at(const Work *w, const Part *part, int64_t child, Bundle own) {
    return ((own.panel * w->made + child) * part->count + own.first) * PANEL;
}

static inline float mu_of(
    const Work *w, const Part *part, const Up *up, int64_t source, int64_t p) {
    if (!up->coupling) return (float)w->block->coupling;
    return up->coupling[coupling_at(w->block, part->tile, source, part->first + p)];
}

/* Partial sums of a source, of one child or of all if they are equal. */
static void make_sums(
    const Work *w, const Part *part, int64_t s, int64_t made, Bundle own, float *to) {
    const Block *block = w->block;
    const int64_t up = s / block->sources, source = s % block->sources;
    const int64_t last = block->equal ? block->alpha : made + 1;
    for (int64_t child = made; child < last; child++) {
        const int64_t reads = block->reads[child];
        const float *weight = w->ups[up].weight + up_at(w, part, source, child) + own.first * reads;
        const float *read = w->read[up] + (own.panel * w->reads + w->read_from[child]) * PANEL;
        products(
            0, own.panel > 0, in_panel(w, own.panel), own.count, rows_of(weight, reads), read,
            in_one(reads), to, PANEL, child > made);
    }
}

/* Numbers of all children in total. */
static void total_of(
    const Work *w, const Part *part, Bundle own, const float *numbers, float *total) {
    const int64_t columns = wide(w, own.panel);
    memset(total, 0, own.count * PANEL * sizeof(float));
    for (int64_t child = 0; child < w->made; child++) {
        const float *each = numbers + numbers_at(w, part, child, own);
        for (int64_t p = 0; p < own.count * PANEL; p += PANEL)
            for (int64_t j = p; j < p + columns; j += LANES)
                *(lanes *)(total + j) += *(const lanes *)(each + j);
    }
}

/* Pre-activations from partial sums, in whose place they may be. */
static void finish(
    const Work *w, const Part *part, int64_t s, int64_t child, Bundle own, const float *sums,
    const float *total, float *pre) {
    const Up *up = &w->ups[s / w->block->sources];
    const int64_t source = s % w->block->sources, columns = wide(w, own.panel);
    const float *bias = up->bias
        ? up->bias + bias_at(w->block, part->tile, source, child, part->first + own.first)
        : 0;
    for (int64_t p = 0; p < own.count; p++) {
        const lanes more = (bias ? bias[p] : 0.0f) - (lanes){0}; /* in all lanes */
        const float mu = total ? mu_of(w, part, up, source, own.first + p) : 0.0f;
        for (int64_t j = p * PANEL; j < p * PANEL + columns; j += LANES) {
            const lanes sum = *(const lanes *)(sums + j);
            *(lanes *)(pre + j) =
                total ? sum + mu * (*(const lanes *)(total + j) - sum) + more : sum + more;
        }
    }
}

/* Columns are neurons, rows tokens. */
static void to_tokens(
    const Work *w, const Part *part, int64_t child, Bundle own, const float *hidden) {
    const int64_t rows = w->panels * PANEL, across = pieces(part->count, PANEL);
    for (int64_t p = 0; p < own.count; p += LANES) {
        const int64_t at = own.first + p, panel = child * across + at / PANEL;
        float *to = w->hidden_tokens + (panel * rows + own.panel * PANEL) * PANEL + at % PANEL;
        for (int64_t j = 0; j < wide(w, own.panel); j += LANES)
            transpose(
                hidden + p * PANEL + j, PANEL, least(LANES, own.count - p), LANES, to + j * PANEL,
                PANEL);
    }
}

/* Hidden activations of a child from its pre-activations; backward, the gradient of those from that
 * of these, in its place. */
static void activations(
    const Work *w, const Part *part, int64_t child, Bundle own, Numbers *pre) {
    const Block *block = w->block;
    const int gated = block->gate >= 0;
    const int64_t columns = wide(w, own.panel), at = numbers_at(w, part, child, own);
    const int64_t end = own.count * PANEL, step = columns == PANEL ? end : PANEL;
    const int64_t count = columns == PANEL ? end : columns; /* that lie one after the other */
    Numbers again;
    float *hidden = w->back ? again : w->hidden + at;
    for (int64_t j = 0; j < end; j += step) {
        const float *x = pre[block->activated] + j, *gate = gated ? pre[block->gate] + j : 0;
        if (w->back) {
            float *to_pre = w->to_pre[block->activated] + at + j;
            float *to_gate = gated ? w->to_pre[block->gate] + at + j : 0;
            activate_back(
                (int)block->kind, (float)block->scale, x, gate, to_pre, hidden + j, to_pre, to_gate,
                count);
        } else activate((int)block->kind, (float)block->scale, x, gate, hidden + j, count);
    }
    if (w->back && w->down->to_weight) to_tokens(w, part, child, own, hidden);
}

/* Gradient of the hidden activations, where that of the pre-activations will be. `ready`: the rows
 * that this thread has packed. */
static void hidden_back(
    const Work *w, const Part *part, int64_t made, Bundle own, int64_t *ready) {
    const Block *block = w->block;
    const int64_t last = block->equal ? block->alpha : made + 1;
    const int64_t wanted = made * part->count + own.first;
    float *packed = w->packed;
    for (int64_t child = made; child < last; child++) {
        const int64_t writes = block->writes[child];
        if (*ready != wanted) {
            int64_t stride;
            const float *weight = w->down->weight + down_at(w, part, child, &stride) + own.first;
            pack(weight, stride, writes, own.count, packed);
        }
        products(
            0, 1, in_panel(w, own.panel), own.count, packed_rows(packed, writes),
            w->written + (own.panel * w->writes + w->write_from[child]) * PANEL, in_one(writes),
            w->to_pre[block->activated] + numbers_at(w, part, made, own), PANEL, child > made);
        packed += writes * BUNDLE;
    }
    *ready = wanted;
}

/* All that happens to hidden neurons, forward or backward, while their numbers are in cache. If
 * children are coupled, their activations wait for the sums of all. */
static void hidden_neurons(const Work *w, const Part *part) {
    const int64_t bundles = bundles_of(part->count, w->panels);
    int64_t ready = -1;
    SHARED for (int64_t item = 0; item < w->made * bundles; item++) {
        const int64_t child = item / bundles;
        const Bundle own = bundle_of(part->count, w->panels, item % bundles);
        Numbers pre[MOST_SOURCES];
        if (w->back) hidden_back(w, part, child, own, &ready);
        for (int64_t s = 0; s < w->sources; s++) {
            float *sums = w->sums[s] ? w->sums[s] + numbers_at(w, part, child, own) : pre[s];
            if (!w->back || !w->kept) make_sums(w, part, s, child, own, sums);
            if (w->apart) finish(w, part, s, child, own, sums, 0, pre[s]);
        }
        if (w->apart) activations(w, part, child, own, pre);
    }
    if (w->apart) return;
    SHARED for (int64_t item = 0; item < bundles; item++) {
        const Bundle own = bundle_of(part->count, w->panels, item);
        Numbers total[MOST_SOURCES], pre[MOST_SOURCES];
        for (int64_t s = 0; s < w->sources; s++) total_of(w, part, own, w->sums[s], total[s]);
        for (int64_t child = 0; child < w->made; child++) {
            const int64_t at = numbers_at(w, part, child, own);
            for (int64_t s = 0; s < w->sources; s++)
                finish(w, part, s, child, own, w->sums[s] + at, total[s], pre[s]);
            activations(w, part, child, own, pre);
        }
    }
}

/* What the children write, or more of it. Those that write the same are added up in one product. Rows
 * are far apart: of more than one block of them, the caches would forget some. */
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
            for (int64_t group = 0; panel == 0 && group < together; group++)
                expect(weight + group * terms.left + (o + HEIGHT) * stride, HEIGHT, stride, count);
            product(
                in_panel(w, panel), least(HEIGHT, block->writes[child] - o),
                rows_of(weight + o * stride, stride),
                w->hidden + numbers_at(w, part, child_of(w, child), (Bundle){.panel = panel}), terms,
                w->written + (panel * w->writes + w->write_from[child] + o) * PANEL, PANEL,
                part->first > 0);
        }
    }
}

/* ---- backward ---- */

static inline float sum_of(const float *row, int64_t count) {
    lanes whole = {0};
    int64_t j = 0;
    for (; j + LANES <= count; j += LANES) whole += *(const lanes *)(row + j);
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += whole[i];
    for (; j < count; j++) sum += row[j];
    return sum;
}

/* Gradients of biases from those of pre-activations. */
static void bias_back(const Work *w, const Part *part, int64_t s, int64_t child, Bundle own) {
    const Block *block = w->block;
    const float *to_pre = w->to_pre[s] + numbers_at(w, part, child, own);
    float *to_bias =
        w->ups[s / block->sources].to_bias +
        bias_at(block, part->tile, s % block->sources, child, part->first + own.first);
    for (int64_t p = 0; p < own.count; p++)
        to_bias[p] += sum_of(to_pre + p * PANEL, in_panel(w, own.panel));
}

/* Gradients of coupled sums from those of pre-activations, in their place, and of the coupling. */
static void coupling_back(const Work *w, const Part *part, int64_t s, Bundle own) {
    const Up *up = &w->ups[s / w->block->sources];
    const int64_t source = s % w->block->sources, next = part->count * PANEL;
    const int64_t filled = in_panel(w, own.panel), at = numbers_at(w, part, 0, own);
    Numbers total, to_total;
    total_of(w, part, own, w->sums[s], total);
    total_of(w, part, own, w->to_pre[s], to_total);
    for (int64_t p = 0; p < own.count; p++) {
        const float mu = mu_of(w, part, up, source, own.first + p);
        const float *sums = w->sums[s] + at + p * PANEL;
        float *to_sums = w->to_pre[s] + at + p * PANEL, to_mu[PANEL] = {0};
        for (int64_t child = 0; child < w->made; child++, sums += next, to_sums += next)
            for (int64_t j = 0; j < filled; j++) {
                to_mu[j] += to_sums[j] * (total[p * PANEL + j] - sums[j]);
                to_sums[j] += mu * (to_total[p * PANEL + j] - to_sums[j]);
            }
        if (up->to_coupling)
            up->to_coupling[coupling_at(w->block, part->tile, source, part->first + own.first + p)] +=
                sum_of(to_mu, filled);
    }
}

/* Both, where they are wanted. Threads share parents, whose gradients are added up over panels. */
static void sums_back(const Work *w, const Part *part, int64_t s) {
    const int biases = w->ups[s / w->block->sources].to_bias != 0;
    SHARED for (int64_t first = 0; first < part->count; first += APART)
        for (int64_t panel = 0; panel < w->panels; panel++) {
            const Bundle own = {panel, first, least(APART, part->count - first)};
            for (int64_t child = 0; biases && child < w->made; child++)
                bias_back(w, part, s, child, own);
            if (!w->apart) coupling_back(w, part, s, own);
        }
}

/* Gradient of the outgoing weights. */
static void down_back(const Work *w, const Part *part, int add) {
    const Block *block = w->block;
    const int64_t rows = w->panels * PANEL, across = pieces(part->count, PANEL);
    const Terms terms = {w->panels, PANEL, w->in_last, w->writes * PANEL, PANEL * PANEL};
    for (int64_t child = 0; child < block->alpha; child++) {
        const int64_t writes = block->writes[child];
        int64_t stride;
        float *to = w->down->to_weight + down_at(w, part, child, &stride);
        SHARED for (int64_t item = 0; item < bundles_of(writes, across); item++) {
            const Bundle own = bundle_of(writes, across, item);
            const float *written = w->written + (w->write_from[child] + own.first) * PANEL;
            products(
                1, 1, least(PANEL, part->count - own.panel * PANEL), own.count,
                rows_of(written, PANEL),
                w->hidden_tokens + (child_of(w, child) * across + own.panel) * rows * PANEL, terms,
                to + own.first * stride + own.panel * PANEL, stride, add);
        }
    }
}

/* Gradient of the incoming weights of a source. */
static void up_back(const Work *w, const Part *part, int64_t s, int add) {
    const Block *block = w->block;
    const int64_t up = s / block->sources, source = s % block->sources;
    const int64_t rows = w->panels * PANEL;
    const Terms terms = {w->panels, PANEL, w->in_last, w->made * part->count * PANEL, PANEL * PANEL};
    for (int64_t child = 0; child < block->alpha; child++) {
        const int64_t reads = block->reads[child], across = pieces(reads, PANEL);
        float *to = w->ups[up].to_weight + up_at(w, part, source, child);
        SHARED for (int64_t item = 0; item < bundles_of(part->count, across); item++) {
            const Bundle own = bundle_of(part->count, across, item);
            const float *to_pre =
                w->to_pre[s] + numbers_at(w, part, child_of(w, child), (Bundle){.first = own.first});
            products(
                1, 1, least(PANEL, reads - own.panel * PANEL), own.count, rows_of(to_pre, PANEL),
                w->tokens[up] + w->inputs_from[child] + own.panel * rows * PANEL, terms,
                to + own.first * reads + own.panel * PANEL, reads, add);
        }
    }
}

/* Gradient of what the children read. */
static void read_back(const Work *w, const Part *part, int64_t up) {
    const Block *block = w->block;
    for (int64_t child = 0; child < block->alpha; child++) {
        const int64_t reads = block->reads[child];
        int64_t ready = -1; /* the rows that this thread has packed */
        SHARED for (int64_t item = 0; item < bundles_of(reads, w->panels); item++) {
            const Bundle own = bundle_of(reads, w->panels, item);
            const int64_t at = numbers_at(w, part, child_of(w, child), (Bundle){.panel = own.panel});
            float *packed = w->packed;
            for (int64_t source = 0; source < block->sources; source++) {
                const float *weight = w->ups[up].weight + up_at(w, part, source, child) + own.first;
                if (ready != own.first) pack(weight, reads, part->count, own.count, packed);
                products(
                    0, 1, in_panel(w, own.panel), own.count, packed_rows(packed, part->count),
                    w->to_pre[up * block->sources + source] + at, in_one(part->count),
                    w->to_read[up] +
                        (own.panel * w->reads + w->read_from[child] + own.first) * PANEL,
                    PANEL, part->first > 0 || source > 0);
                packed += part->count * BUNDLE;
            }
            ready = own.first;
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
                    hidden_neurons(w, &part);
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
                    hidden_neurons(w, &part);
                    for (int64_t s = 0; s < w->sources; s++)
                        sums_back(w, &part, s);
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
