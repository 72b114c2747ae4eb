// What an output position of a resize reads along an axis: two neighbouring pixels and the weight of the
// second.
//
// Weights come from coordinates of up to thousands of pixels, so a step rounded to f32 would cost them ten
// bits: it is the sum of two floats here, and the product is exact to 2^-46.
//
// Defines: MODE.
#pragma once
#include "common/storage.cuh"

#define NEAREST 0
#define BILINEAR 1

struct Axis {
    u32 input, output;
    float step, step_rest;
};

struct Taps {
    u32 low, high;
    float weight;
};

__device__ inline Taps taps(u32 index, const Axis& axis, float offset) {
    if (MODE == NEAREST) {
        const u32 low = min(u32(__fmul_rn(float(index), axis.step)), axis.input - 1);
        return Taps{low, low, 0.0f};
    }
    const float position = float(index) + offset;
    const float product = __fmul_rn(position, axis.step);
    // What the product lost in rounding, and the rest of the step.
    const float rest = fmaf(position, axis.step_rest, fmaf(position, axis.step, -product));
    const float source = product - offset;
    const u32 low = min(u32(fmaxf(source + rest, 0.0f)), axis.input - 1);
    const float weight = (source - float(low)) + rest;
    return Taps{low, min(low + 1, axis.input - 1), fminf(fmaxf(weight, 0.0f), 1.0f)};
}
