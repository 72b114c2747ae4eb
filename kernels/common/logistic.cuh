// A logit as the probability that it stands for, that of the opposite, and their logarithms: each from an
// exponential that is at most 1, so that nothing overflows or cancels.
//
// The exponential and the reciprocal are the hardware's, and the exponential loses besides what rounding
// takes of x / ln 2: 2^-24 |x| of itself. ln(1 + e) is a polynomial, to 1.7e-7 of itself however small e
// is. These are some twenty instructions, a third of what the exact functions take.
#pragma once
#include "common/fast_math.cuh"
#include "common/storage.cuh"

// ln(1 + e) for e from 0 to 1: of polynomials of this degree, the one whose largest relative error is least.
__device__ inline float log1p_of_fraction(float e) {
    float sum = 0.00536640966f;
    sum = fmaf(sum, e, -0.0300716888f);
    sum = fmaf(sum, e, 0.0792133808f);
    sum = fmaf(sum, e, -0.13754487f);
    sum = fmaf(sum, e, 0.191539437f);
    sum = fmaf(sum, e, -0.24857229f);
    sum = fmaf(sum, e, 0.3332133f);
    sum = fmaf(sum, e, -0.499996483f);
    return fmaf(sum, e, 1.0f) * e;
}

struct Logistic {
    float p, q;          // 1 / (1 + exp(-x)) and 1 / (1 + exp(x))
    float log_p, log_q;  // -ln p and -ln q

    __device__ inline explicit Logistic(float x) {
        const float e = exp2_fast(fabsf(x) * -1.44269504f), likely = reciprocal_fast(1.0f + e);
        const float unlikely = e * likely, rest = log1p_of_fraction(e);
        p = x < 0.0f ? unlikely : likely;
        q = x < 0.0f ? likely : unlikely;
        log_p = fmaxf(-x, 0.0f) + rest;
        log_q = fmaxf(x, 0.0f) + rest;
    }
};
