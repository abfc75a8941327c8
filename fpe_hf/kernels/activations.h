/* Activations of hidden neurons in one pass over memory, with the product with a second projection
 * (a gated MLP), and backwards with the hidden activations themselves, which are not kept.
 *
 * Loops are plain C that compilers turn into vector instructions; nothing here can fail or allocate.
 * Errors are a few units in the last place of the largest term, as in float32 libraries.
 */

#ifndef FPE_ACTIVATIONS_H
#define FPE_ACTIVATIONS_H

#include <stdint.h>
#include <string.h>

enum { RELU = 0, SIGMOID_LINEAR = 1, GELU = 2, GELU_TANH = 3, RELU_SQUARED = 4 };

#define LOG2_E 1.44269504f
#define TANH_FACTOR 1.59576912f /* 2 * sqrt(2 / pi) */
#define TANH_CUBE 0.044715f

/* 2^x for |x| < 127. The polynomial is a minimax fit on [-1/2, 1/2]. */
static inline float power_of_two(float x) {
    const float shifted = x + 12582912.0f; /* 1.5 * 2^23: the last bits are x, rounded */
    const float rest = x - (shifted - 12582912.0f);
    const float square = rest * rest; /* two chains of products, which wait for themselves */
    float odd = 0.001326472731307149f, sum = 0.009671512991189957f;
    odd = odd * square + 0.05550733581185341f;
    sum = sum * square + 0.24022242426872253f;
    odd = odd * square + 0.6931470036506653f;
    sum = sum * square + 1.0f;
    sum = odd * rest + sum;
    uint32_t bits, power;
    memcpy(&bits, &sum, sizeof bits);
    memcpy(&power, &shifted, sizeof power);
    bits += power << 23; /* to the exponent */
    memcpy(&sum, &bits, sizeof sum);
    return sum;
}

/* With e^-x cut off far from numbers so small or large that processors are slow with them. */
static inline float sigmoid(float x) {
    float power = -LOG2_E * x;
    power = power < -115.0f ? -115.0f : power;
    power = power > 115.0f ? 115.0f : power;
    return 1.0f / (1.0f + power_of_two(power));
}

/* The probability of a standard normal variable above x, for 0 <= x <= 10: its logarithm is nearly a
 * square. A minimax fit up to 5.5, where x times the probability is 1e-7; it falls from there on. */
static inline float beyond(float x) {
    const float square = x * x;
    float odd = 1.0428247151139658e-05f, even = -6.140399477772007e-07f;
    odd = odd * square - 0.000530569814145565f;
    even = even * square - 3.6336186894914135e-05f;
    odd = odd * square - 0.052911948412656784f;
    even = even * square + 0.007620621472597122f;
    odd = odd * square - 1.151124119758606f;
    even = even * square - 0.4590609073638916f;
    even = even * square - 0.9999996423721313f;
    return power_of_two(odd * x + even);
}

/* The density at x, as a multiple of `beyond`. */
static inline float hazard(float x) {
    const float square = x * x;
    float odd = 1.3325752661330625e-05f, even = -0.0001677397667663172f;
    odd = odd * square + 0.0006878729909658432f;
    even = even * square + 0.000627649889793247f;
    odd = odd * square - 0.019716473296284676f;
    even = even * square + 0.10921275615692139f;
    odd = odd * square + 0.6365925073623657f;
    even = even * square + 0.7978851199150085f;
    return odd * x + even;
}

/* An activation and its derivative. NaN stays NaN in all of them. */
static inline void activation(int kind, float scale, float x, float *value, float *slope) {
    if (kind == RELU) {
        *value = x < 0.0f ? 0.0f : x;
        *slope = x > 0.0f ? 1.0f : 0.0f;
    } else if (kind == RELU_SQUARED) {
        const float above = x < 0.0f ? 0.0f : x;
        *value = above * above;
        *slope = 2.0f * above;
    } else if (kind == SIGMOID_LINEAR) {
        const float s = sigmoid(scale * x);
        *value = x * s;
        *slope = s + scale * x * s * (1.0f - s);
    } else if (kind == GELU) {
        float size = __builtin_fabsf(x);
        size = size > 10.0f ? 10.0f : size;
        const float above = beyond(size), rise = above - size * hazard(size) * above;
        *value = (x < 0.0f ? 0.0f : x) - size * above;
        *slope = x < 0.0f ? rise : 1.0f - rise;
    } else {
        const float inner = TANH_FACTOR * x * (1.0f + TANH_CUBE * x * x);
        const float s = sigmoid(inner);
        *value = x * s;
        *slope = s + x * s * (1.0f - s) * TANH_FACTOR * (1.0f + 3.0f * TANH_CUBE * x * x);
    }
}

/* The kind is a constant in each call, so that loops are compiled without branches. */
#define BY_KIND(call)                                     \
    switch (kind) {                                       \
        case RELU: call(RELU); break;                     \
        case SIGMOID_LINEAR: call(SIGMOID_LINEAR); break; \
        case GELU: call(GELU); break;                     \
        case RELU_SQUARED: call(RELU_SQUARED); break;     \
        default: call(GELU_TANH);                         \
    }

static inline __attribute__((always_inline)) void activate_kind(
    int kind, float scale, const float *pre, const float *up, float *out, int64_t count) {
    float slope;
    if (up) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) {
            float value;
            activation(kind, scale, pre[i], &value, &slope);
            out[i] = value * up[i];
        }
    } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) activation(kind, scale, pre[i], &out[i], &slope);
    }
}

static inline __attribute__((always_inline)) void activate_back_kind(
    int kind, float scale, const float *pre, const float *up, const float *to_out, float *out,
    float *to_pre, float *to_up, int64_t count) {
    if (up) {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) {
            float value, slope;
            activation(kind, scale, pre[i], &value, &slope);
            const float upstream = to_out[i];
            out[i] = value * up[i];
            to_up[i] = upstream * value;
            to_pre[i] = upstream * up[i] * slope;
        }
    } else {
#pragma GCC ivdep
        for (int64_t i = 0; i < count; i++) {
            float slope;
            activation(kind, scale, pre[i], &out[i], &slope);
            to_pre[i] = to_out[i] * slope;
        }
    }
}

/* Hidden activations. `up` may be NULL: no gate. */
static inline void activate(
    int kind, float scale, const float *pre, const float *up, float *out, int64_t count) {
#define CALL(k) activate_kind(k, scale, pre, up, out, count)
    BY_KIND(CALL)
#undef CALL
}

/* The same, and from `to_out`, the gradient of `out`, those of `pre` and `up`. */
static inline void activate_back(
    int kind, float scale, const float *pre, const float *up, const float *to_out, float *out,
    float *to_pre, float *to_up, int64_t count) {
#define CALL(k) activate_back_kind(k, scale, pre, up, to_out, out, to_pre, to_up, count)
    BY_KIND(CALL)
#undef CALL
}

#endif
