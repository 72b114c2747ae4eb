// Resizes maps [B, H, W, C] to [B, P, Q, C], with the semantics of PyTorch's `interpolate`
// (src/ops/resize.rs).
//
//   nearest   y[p, q] = x[floor(p * step_h), floor(q * step_w)], the product rounded to f32, as PyTorch
//             decides it
//   bilinear  source = (p + offset) * step - offset, at least 0; low = floor(source), weight = source - low
//             y = (1 - wh) * ((1 - ww) * x[lh, lw] + ww * x[lh, hw]) + wh * ((1 - ww) * x[hh, lw] + ww *
//             x[hh, hw]) offset is 1/2, or 0 where corners are aligned
//
// Which pixels and weights those are: common/resize_taps.cuh.
//
// One thread VECTOR channels of one output pixel (16 bytes where rows are whole chunks, else 1); blockIdx.x
// walks columns and channels of one output row, blockIdx.y rows, blockIdx.z images. The up to four taps of
// neighbours overlap in L1 and L2: device memory sees (x + y) * sizeof(storage_t) bytes; 7 FLOPs an output of
// the bilinear form.
//
// Defines: STORAGE, VECTOR, MODE.
#include "common/divisor.cuh"
#include "common/elements.cuh"
#include "common/resize_taps.cuh"

struct Params {
    Axis vertical, horizontal;
    u32 vectors;  // of one pixel
    Divisor by_vectors;
    float offset;
};

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
