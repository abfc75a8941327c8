/* Products of a few rows of a matrix, read as they lie, with a panel of columns.
 *
 * A matrix in panels is `[panels, rows, PANEL]`: its columns in groups, the last filled up with zeros.
 */

#ifndef FPE_PRODUCTS_H
#define FPE_PRODUCTS_H

#include <string.h>

#include "block.h"

#if LANES == 8
#define WIDE 2 /* there are 16 registers, and 32 elsewhere */
#else
#define WIDE 4
#endif
#define PANEL (LANES * WIDE)
#define HEIGHT 6 /* rows of a product at a time: HEIGHT * WIDE sums fill the registers */
#define BUNDLE (8 * HEIGHT) /* rows that are multiplied with a panel before the next one, */
#define DEEP 384 /* and about as many terms at a time: both stay in cache */
#define AHEAD 4 /* columns that are asked for before they are packed */

/* The left operand of a product: the k-th of a row are `step` apart, rows `row`, and after HEIGHT
 * rows the next ones begin, at `next`. */
typedef struct {
    const float *start;
    int64_t row, step, next;
} Rows;

static inline Rows rows_of(const float *start, int64_t row) {
    return (Rows){start, row, 1, HEIGHT * row};
}

/* Terms of a product: `groups` of `each`, the last of `last`; from one group to the next the operands
 * advance by `left` and `right`. */
typedef struct {
    int64_t groups, each, last, left, right;
} Terms;

static inline Terms in_one(int64_t count) { return (Terms){1, count, count, 0, 0}; }

ALWAYS void product_wide(
    int wide, int64_t rows, Rows a, const float *b, Terms terms, float *c, int64_t stride, int add) {
    lanes sums[HEIGHT][WIDE];
    int64_t at[HEIGHT];
    for (int i = 0; i < HEIGHT; i++) {
        at[i] = least(i, rows - 1) * a.row; /* those that are not there are computed, not stored */
        for (int j = 0; j < wide; j++) sums[i][j] = (lanes){0};
        if (add) __builtin_prefetch(c + i * stride, 1);
    }
    for (int64_t group = 0; group < terms.groups; group++) {
        const int64_t count = group == terms.groups - 1 ? terms.last : terms.each;
        const float *left = a.start + group * terms.left, *right = b + group * terms.right;
        for (int64_t k = 0; k < count; k++) {
            lanes column[WIDE];
            for (int j = 0; j < wide; j++) column[j] = *(const lanes *)(right + LANES * j);
            for (int i = 0; i < HEIGHT; i++) {
                const lanes value = left[at[i]] - (lanes){0}; /* in all lanes */
                for (int j = 0; j < wide; j++) sums[i][j] += value * column[j];
            }
            left += a.step;
            right += PANEL;
        }
    }
    for (int i = 0; i < HEIGHT; i++) {
        if (i >= rows) break;
        for (int j = 0; j < wide; j++) {
            lanes *target = (lanes *)(c + i * stride + LANES * j);
            *target = add ? *target + sums[i][j] : sums[i][j];
        }
    }
}

/* `c = a b`, or `c += a b`: up to HEIGHT rows, `columns` of a panel `b`. All lanes of the last vector
 * of a row of `c` are written, whatever `columns`. */
static void product(
    int64_t columns, int64_t rows, Rows a, const float *b, Terms terms, float *c, int64_t stride,
    int add) {
    switch (pieces(columns, LANES)) {
        case 1: product_wide(1, rows, a, b, terms, c, stride, add); break;
#if WIDE > 1
        case 2: product_wide(2, rows, a, b, terms, c, stride, add); break;
#endif
#if WIDE > 2
        case 3: product_wide(3, rows, a, b, terms, c, stride, add); break;
        case 4: product_wide(4, rows, a, b, terms, c, stride, add); break;
#endif
        default: break;
    }
}

/* The same, and nothing beside the columns is written. */
static void product_within(
    int64_t columns, int64_t rows, Rows a, const float *b, Terms terms, float *c, int64_t stride,
    int add) {
    if (columns % LANES == 0) {
        product(columns, rows, a, b, terms, c, stride, add);
        return;
    }
    float whole[HEIGHT * PANEL];
    product(columns, rows, a, b, terms, whole, PANEL, 0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            c[i * stride + j] = whole[i * PANEL + j] + (add ? c[i * stride + j] : 0.0f);
}

/* Asks for rows of a matrix before they are needed: with few columns there is little to do meanwhile. */
static inline void expect(const float *start, int64_t rows, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < count; k += 16) __builtin_prefetch(start + i * stride + k);
}

/* Any number of rows. `within`: as above; `expected`: rows have been asked for. */
ALWAYS void products(
    int within, int expected, int64_t columns, int64_t rows, Rows a, const float *b, Terms terms,
    float *c, int64_t stride, int add) {
    const int64_t many = most(1, DEEP / most(1, terms.each)); /* groups at a time */
    for (int64_t group = 0; group < terms.groups; group += many) {
        const int64_t groups = least(many, terms.groups - group);
        const int64_t last = group + groups == terms.groups ? terms.last : terms.each;
        const int64_t deep = pieces(last, most(1, pieces(last, DEEP))); /* equal pieces of a group */
        int64_t done = 0;
        do {
            Terms some = {groups, terms.each, last, terms.left, terms.right};
            if (groups == 1) some = in_one(least(deep, last - done));
            const float *right = b + group * terms.right + done * PANEL;
            Rows left = a;
            left.start += group * terms.left + done * a.step;
            for (int64_t i = 0; i < rows; i += HEIGHT, left.start += a.next) {
                if (!expected) expect(left.start + a.next, HEIGHT, a.row, some.last);
                (within ? product_within : product)(
                    columns, least(HEIGHT, rows - i), left, right, some, c + i * stride, stride, add);
            }
            done += deep;
            add = 1;
        } while (groups == 1 && done < last);
    }
}

/* Columns of a matrix as rows of products: `[blocks of HEIGHT columns, rows, HEIGHT]`. */
static void pack(const float *from, int64_t stride, int64_t rows, int64_t columns, float *to) {
    for (int64_t k = 0; k < rows; k++, from += stride) {
        for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(from + AHEAD * stride + j);
        for (int64_t j = 0; j < columns; j += HEIGHT) {
            float *own = to + j * rows + k * HEIGHT;
            if (columns - j >= HEIGHT) memcpy(own, from + j, HEIGHT * sizeof(float));
            else memcpy(own, from + j, (columns - j) * sizeof(float));
        }
    }
}

static inline Rows packed_rows(const float *packed, int64_t terms) {
    return (Rows){packed, 1, HEIGHT, HEIGHT * terms};
}

#endif
