// Mean and spread of parts of a group, and how parts are put together without losing digits.
//
// Means are relative to an `origin`, an element of the group that all parts share: a mean far above the
// deviation would otherwise use up the digits of a float. `m2` is the sum of squares of the distances from
// the part's own mean, so parts of n_i elements make
//
//   n = sum n_i,   mean = sum n_i mean_i / n,   m2 = sum (m2_i + n_i (mean_i - mean)^2)
#pragma once
#include "common/reduce.cuh"

// Pixels of a part where moments are a result of their own, as in src/ops/fused_conv2d.rs.
constexpr u32 PART_PIXELS = 64;

struct alignas(8) Moments {
    float mean;
    float m2;
};

// Of `count` values from the sums of (x - first) and its square, for the origin `first - offset`. Zero if
// there are none.
__device__ inline Moments moments_of(float sum, float squares, float count, float offset) {
    if (count == 0.0f) return Moments{0.0f, 0.0f};
    const float shift = __fdividef(sum, count);
    return Moments{offset + shift, fmaxf(squares - sum * shift, 0.0f)};
}

// 1 / sqrt(x): the approximation of 2 ulp, refined once.
__device__ inline float inverse_root(float x) {
    const float r = rsqrtf(x);
    return r * (1.5f - 0.5f * x * r * r);
}
