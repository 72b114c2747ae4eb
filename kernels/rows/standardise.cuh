// The heart of layer norm, for a row that a warp holds in registers.
#pragma once
#include "common/reduce.cuh"

// (x - mean) / sqrt(variance + eps) from the mean, or nearly the mean, and sums over deviations from it:
// their mean is what rounding the first left over, which counts where the mean is large against the
// deviations.
struct Standard {
    float mean, rest, scale;

    __device__ inline Standard(float mean, float deviations, float squares, float count, float eps)
        : mean(mean), rest(deviations / count) {
        scale = 1.0f / sqrtf(fmaxf(squares / count - rest * rest, 0.0f) + eps);
    }

    __device__ inline float of(float x) const { return (x - mean - rest) * scale; }
};

// Standardises a row of `count` elements in place: x[i] are the `width` elements from (32 i + lane) * width
// on. Those from `count` on stay as they are; `count` is a multiple of `width`.
template <int pieces, int width>
__device__ inline void standardise(float (&x)[pieces][width], u32 count, float eps) {
    const u32 lane = threadIdx.x % WARP;
    const auto inside = [&](u32 i) { return (i * WARP + lane) * width < count; };
    float sum = 0.0f, deviations = 0.0f, squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < pieces; ++i) {
#pragma unroll
        for (u32 j = 0; j < width; ++j) sum += inside(i) ? x[i][j] : 0.0f;
    }
    const float mean = warp_sum(sum) / float(count);
#pragma unroll
    for (u32 i = 0; i < pieces; ++i) {
#pragma unroll
        for (u32 j = 0; j < width; ++j) {
            const float deviation = inside(i) ? x[i][j] - mean : 0.0f;
            deviations += deviation;
            squares += deviation * deviation;
        }
    }
    const Standard standard(mean, warp_sum(deviations), warp_sum(squares), float(count), eps);
#pragma unroll
    for (u32 i = 0; i < pieces; ++i) {
#pragma unroll
        for (u32 j = 0; j < width; ++j) x[i][j] = inside(i) ? standard.of(x[i][j]) : x[i][j];
    }
}
