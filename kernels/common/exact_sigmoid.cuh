// The sigmoid and the exponential of post-processing, in the CPU's operations and so with its bits
// (src/image/mask_resize.rs).
#pragma once
#include "common/storage.cuh"

// exp(t) for t from -87 to 88, at the ends beyond (Cephes' expf), in the CPU's operations.
__device__ inline float exact_exp(float t) {
    const float round = 12582912.0f;
    t = t < -87.0f ? -87.0f : t;
    t = t > 88.0f ? 88.0f : t;
    const float shifted = __fadd_rn(__fmul_rn(t, 1.44269504088896340736f), round);
    const float n = __fsub_rn(shifted, round);
    float r = __fsub_rn(t, __fmul_rn(n, 355.0f / 512.0f));
    r = __fsub_rn(r, __fmul_rn(n, -2.1219444e-4f));
    float q = __fadd_rn(__fmul_rn(1.9875691e-4f, r), 1.3981999e-3f);
    q = __fadd_rn(__fmul_rn(q, r), 8.333452e-3f);
    q = __fadd_rn(__fmul_rn(q, r), 4.1665796e-2f);
    q = __fadd_rn(__fmul_rn(q, r), 1.6666665e-1f);
    q = __fadd_rn(__fmul_rn(q, r), 0.5f);
    const float exponential = __fadd_rn(__fadd_rn(__fmul_rn(q, __fmul_rn(r, r)), r), 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) + 127) << 23);
    return __fmul_rn(exponential, power);
}

// sigmoid(x) to a relative error of 2.4e-7, at most 0.5 for x <= 0.
__device__ inline float exact_sigmoid(float x) { return __fdiv_rn(1.0f, __fadd_rn(1.0f, exact_exp(-x))); }
