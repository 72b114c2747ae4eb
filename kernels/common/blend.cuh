// Two taps of one output position of a bilinear resize with align_corners=False, in the CPU's operations and
// so with its bits: no multiply-add is contracted (src/image/mask_resize.rs).
#pragma once
#include "common/storage.cuh"

struct alignas(16) Blend {
    i32 low, high;
    float low_weight, high_weight;
};

__device__ inline float mix(float low_weight, float low, float high_weight, float high) {
    return __fadd_rn(__fmul_rn(low_weight, low), __fmul_rn(high_weight, high));
}

// Those of position `d`; `scale` is input / output, rounded to f32.
__device__ inline Blend blend(i32 d, i32 input, i32 output, float scale) {
    if (input == output) return Blend{d, d, 1.0f, 0.0f};
    const float position = fmaxf(__fsub_rn(__fmul_rn(scale, __fadd_rn(float(d), 0.5f)), 0.5f), 0.0f);
    const i32 low = min(i32(position), input - 1);
    const float fraction = fminf(fmaxf(__fsub_rn(position, float(low)), 0.0f), 1.0f);
    return Blend{low, min(low + 1, input - 1), __fsub_rn(1.0f, fraction), fraction};
}
