// Gradient of resize.cu in gather form: dx[h, w] = sum of dy[p, q] * (weight of h in row p) * (weight of w in
// column q) over the outputs that read input pixel (h, w), row by row.
//
// Which outputs may read a pixel comes of the inverse of the coordinate map, with an output more on either
// side for its rounding; which do, and with which weight, of the very taps of the forward pass
// (common/resize_taps.cuh). Pixels of the map's edge also take the outputs beyond it. One thread VECTOR
// channels of one pixel of dx (16 bytes where rows are whole chunks, else 1); blockIdx.x walks columns and
// channels of one row, blockIdx.y rows, blockIdx.z images. dy is read by up to four neighbours, through L1
// and L2, and dx written once; 8 FLOPs an element of dy of the bilinear form.
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

// Outputs that may read a pixel: from `begin` up to `end`.
struct Readers {
    u32 begin, end;

    __device__ inline Readers(u32 at, const Axis& axis, float offset) : begin(0), end(axis.output) {
        // Position of output p is (p + offset) * step - offset, and reads pixels less than one away.
        const float low = (float(at) - 1.0f + offset) / axis.step - offset;
        const float high = (float(at) + 1.0f + offset) / axis.step - offset;
        if (at > 0) begin = u32(fminf(fmaxf(floorf(low) - 1.0f, 0.0f), float(axis.output)));
        if (at + 1 < axis.input) end = u32(fminf(fmaxf(ceilf(high) + 2.0f, 0.0f), float(axis.output)));
    }
};

// Weight of pixel `at` in output `index`.
__device__ inline float weight_of(u32 at, u32 index, const Axis& axis, float offset) {
    const Taps t = taps(index, axis, offset);
    return (t.low == at ? 1.0f - t.weight : 0.0f) + (t.high == at ? t.weight : 0.0f);
}

extern "C" __global__ void resize_grad(const storage_t* __restrict__ dy, storage_t* __restrict__ dx,
                                       const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = i / p.by_vectors, vector = i - column * p.vectors, row = blockIdx.y;
    if (column >= p.horizontal.input) return;
    const u32 pixel = p.vectors * VECTOR;
    const Readers rows(row, p.vertical, p.offset), columns(column, p.horizontal, p.offset);
    const storage_t* image =
        dy + u64(blockIdx.z) * p.vertical.output * p.horizontal.output * pixel + vector * VECTOR;
    float sum[VECTOR] = {};
    for (u32 r = rows.begin; r < rows.end; ++r) {
        const float of_row = weight_of(row, r, p.vertical, p.offset);
        if (of_row == 0.0f) continue;
        for (u32 c = columns.begin; c < columns.end; ++c) {
            const float weight = of_row * weight_of(column, c, p.horizontal, p.offset);
            if (weight == 0.0f) continue;
            float grad[VECTOR];
            load_elements(image + (r * p.horizontal.output + c) * pixel, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += weight * grad[v];
        }
    }
    const u64 at = (u64(blockIdx.z) * p.vertical.input + row) * p.horizontal.input + column;
    store_elements(dx + at * pixel + vector * VECTOR, sum);
}
