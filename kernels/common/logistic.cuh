// A logit as the probability that it stands for, that of the opposite, and their logarithms: each from an
// exponential that is at most 1, so that nothing overflows or cancels.
#pragma once
#include "common/storage.cuh"

struct Logistic {
    float p, q;          // 1 / (1 + exp(-x)) and 1 / (1 + exp(x))
    float log_p, log_q;  // -ln p and -ln q

    __device__ inline explicit Logistic(float x) {
        const float e = expf(-fabsf(x)), likely = 1.0f / (1.0f + e), unlikely = e * likely, rest = log1pf(e);
        p = x < 0.0f ? unlikely : likely;
        q = x < 0.0f ? likely : unlikely;
        log_p = fmaxf(-x, 0.0f) + rest;
        log_q = fmaxf(x, 0.0f) + rest;
    }
};
