// Resizes maps [B, H, W, C] to [B, P, Q, C], with the semantics of PyTorch's `interpolate`
// (src/ops/resize.rs).
//
//   nearest   y[p, q] = x[floor(p * step_h), floor(q * step_w)], the product rounded to f32, as PyTorch
//             decides it
//   bilinear  source = (p + offset) * step - offset, at least 0; low = floor(source), weight = source - low
//             y = (1 - wh) * ((1 - ww) * x[lh, lw] + ww * x[lh, hw]) + wh * ((1 - ww) * x[hh, lw] + ww *
//             x[hh, hw]) offset is 1/2, or 0 where corners are aligned
//
// Weights come from coordinates of up to thousands of pixels, so a step rounded to f32 would cost them ten
// bits: it is the sum of two floats here, and the product is exact to 2^-46.
// One thread VECTOR channels of one output pixel (16 bytes where rows are whole chunks, else 1); blockIdx.x
// walks columns and channels of one output row, blockIdx.y rows, blockIdx.z images. The up to four taps of
// neighbours overlap in L1 and L2: device memory sees (x + y) * sizeof(storage_t) bytes; 7 FLOPs an output of
// the bilinear form.
//
// Defines: STORAGE, VECTOR, MODE.
#include "common/divisor.cuh"
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
    Divisor by_vectors;
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

extern "C" __global__ void resize(const storage_t* __restrict__ x, storage_t* __restrict__ y,
                                  const Params p) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = at / p.by_vectors, vector = at - column * p.vectors;
    if (column >= p.horizontal.output) return;
    const u32 row = blockIdx.y;
    const Taps v = taps(row, p.vertical, p.offset);
    const Taps h = taps(column, p.horizontal, p.offset);
    // Offsets within an image have 31 bits.
    const u32 pixel = p.vectors * VECTOR, width = p.horizontal.input;
    const storage_t* image = x + u64(blockIdx.z) * p.vertical.input * width * pixel + vector * VECTOR;
    storage_t* out = y +
                     ((u64(blockIdx.z) * p.vertical.output + row) * p.horizontal.output + column) * pixel +
                     vector * VECTOR;
    const storage_t* from = image + (v.low * width + h.low) * pixel;
#if MODE == NEAREST && VECTOR > 1
    store_global_chunk(out, load_chunk(from));
#elif MODE == NEAREST
    *out = *from;
#else
    float value[VECTOR], right[VECTOR], below[VECTOR], diagonal[VECTOR];
    load_elements(from, value);
    load_elements(image + (v.low * width + h.high) * pixel, right);
    load_elements(image + (v.high * width + h.low) * pixel, below);
    load_elements(image + (v.high * width + h.high) * pixel, diagonal);
    // The weights of the four, the same for all channels: one product and three FMAs each.
    const float of_left = 1.0f - h.weight, of_upper = 1.0f - v.weight;
    const float a = of_upper * of_left, b = of_upper * h.weight, c = v.weight * of_left,
                d = v.weight * h.weight;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) value[i] = a * value[i] + b * right[i] + c * below[i] + d * diagonal[i];
    store_elements(out, value);
#endif
}
