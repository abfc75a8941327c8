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
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define INVERSE_SQRT_2PI 0.39894228f
#define TANH_FACTOR 1.59576912f /* 2 * sqrt(2 / pi) */
#define TANH_CUBE 0.044715f

/* e^x for |x| <= 80, cut off there: far from numbers so small that processors are slow with them. The
 * polynomial is a minimax fit on [-ln 2 / 2, ln 2 / 2]. */
static inline float exponential(float x) {
    x = x < -80.0f ? -80.0f : x;
    x = x > 80.0f ? 80.0f : x;
    const float whole = __builtin_rintf(x * LOG2_E);
    const float rest = x - whole * LN2_HIGH - whole * LN2_LOW;
    float sum = 0.001383681781589985f;
    sum = sum * rest + 0.008374824188649654f;
    sum = sum * rest + 0.04166822507977486f;
    sum = sum * rest + 0.16666419804096222f;
    sum = sum * rest + 0.49999991059303284f;
    sum = sum * rest + 1.0f;
    sum = sum * rest + 1.0f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* The probability of a standard normal variable below -x, for x >= 0, from e^(-x^2 / 2): a fit of
 * that quotient as a polynomial of 1 / (1 + 0.3 x). */
static inline float tail(float x, float decay) {
    const float t = 1.0f / (1.0f + 0.3f * x);
    float sum = 0.03567532360963018f;
    sum = sum * t - 0.15720526570645002f;
    sum = sum * t + 0.20635705581462865f;
    sum = sum * t - 0.053686694099441976f;
    sum = sum * t + 0.12856311690389993f;
    sum = sum * t + 0.09991307913893159f;
    sum = sum * t + 0.12075401603203406f;
    sum = sum * t + 0.11962929530283238f;
    return sum * t * decay;
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
        const float size = x < 0.0f ? -x : x;
        const float decay = exponential(-0.5f * x * x);
        const float below = tail(size, decay);
        const float share = x < 0.0f ? below : 1.0f - below;
        *value = x * share;
        *slope = share + x * decay * INVERSE_SQRT_2PI;
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
