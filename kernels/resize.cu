// Resizes maps [B, H, W, C] to [B, P, Q, C], with the semantics of PyTorch's `interpolate` (src/ops/resize.rs).
//
//   nearest   y[p, q] = x[floor(p * step_h), floor(q * step_w)], the product rounded to f32, as PyTorch decides it
//   bilinear  source = (p + offset) * step - offset, at least 0; low = floor(source), weight = source - low
//             y = (1 - wh) * ((1 - ww) * x[lh, lw] + ww * x[lh, hw]) + wh * ((1 - ww) * x[hh, lw] + ww * x[hh, hw])
//             offset is 1/2, or 0 where corners are aligned
//
// Weights come from coordinates of up to thousands of pixels, so a step rounded to f32 would cost them ten bits: it
// is the sum of two floats here, and the product is exact to 2^-46.
// One thread VECTOR channels of one output pixel (16 bytes where rows are whole chunks, else 1); blockIdx.x walks
// columns and channels of one output row, blockIdx.y rows, blockIdx.z images. The up to four taps of neighbours overlap in
// L1 and L2: device memory sees (x + y) * sizeof(storage_t) bytes; 9 FLOPs an output of the bilinear form.
//
// Defines: STORAGE, VECTOR, MODE.
#include "common/elements.cuh"

#define NEAREST 0
#define BILINEAR 1

struct Axis {
    u32 input, output;
    float step, step_rest;
};

struct Params {
    Axis vertical, horizontal;
    u32 vectors;  // of one pixel
    float offset;
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

extern "C" __global__ void resize(const storage_t* __restrict__ x, storage_t* __restrict__ y, const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.vectors;
    const u32 vector = at % p.vectors;
    if (column >= p.horizontal.output) return;
    const u32 row = blockIdx.y;
    const Taps v = taps(row, p.vertical, p.offset);
    const Taps h = taps(column, p.horizontal, p.offset);
    const u64 pixel = u64(p.vectors) * VECTOR;
    const u64 width = p.horizontal.input;
    const storage_t* image = x + u64(blockIdx.z) * p.vertical.input * width * pixel + u64(vector) * VECTOR;
    float value[VECTOR];
    load_elements(image + (v.low * width + h.low) * pixel, value);
    if (MODE == BILINEAR) {
        float right[VECTOR], below[VECTOR], diagonal[VECTOR];
        load_elements(image + (v.low * width + h.high) * pixel, right);
        load_elements(image + (v.high * width + h.low) * pixel, below);
        load_elements(image + (v.high * width + h.high) * pixel, diagonal);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const float upper = (1.0f - h.weight) * value[i] + h.weight * right[i];
            const float lower = (1.0f - h.weight) * below[i] + h.weight * diagonal[i];
            value[i] = (1.0f - v.weight) * upper + v.weight * lower;
        }
    }
    const u64 out = ((u64(blockIdx.z) * p.vertical.output + row) * p.horizontal.output + column) * pixel;
    store_elements(y + out + u64(vector) * VECTOR, value);
}
