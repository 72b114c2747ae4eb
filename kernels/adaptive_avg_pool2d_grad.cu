// Gradient of adaptive_avg_pool2d.cu in gather form: dx[h, w, c] = sum over the bins that pixel (h, w) lies
// in of dy[p, q, c] / (pixels of the bin), row by row.
//
// One thread VECTOR channels of one pixel of dx (16 bytes where rows are whole chunks, else 1); blockIdx.x
// walks columns and channels of one row, blockIdx.y rows, blockIdx.z images. dx is written once; dy, which is
// small, is read through L1 and L2.
//
// Defines: STORAGE, VECTOR.
#include "common/divisor.cuh"
#include "common/elements.cuh"

struct Params {
    u32 height, width;          // of dx
    u32 out_height, out_width;  // of dy
    u32 vectors;                // of one pixel
    Divisor by_vectors;
};

// The first bin of `count` over `input` pixels that pixel `at` lies in, and the one behind the last.
__device__ inline u32 first_bin(u32 input, u32 count, u32 at) { return at * count / input; }
__device__ inline u32 end_bin(u32 input, u32 count, u32 at) { return ((at + 1) * count + input - 1) / input; }

// Pixels of a bin along an axis.
__device__ inline u32 length(u32 input, u32 count, u32 bin) {
    return ((bin + 1) * input + count - 1) / count - bin * input / count;
}

extern "C" __global__ void adaptive_avg_pool2d_grad(const storage_t* __restrict__ dy,
                                                    storage_t* __restrict__ dx, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 column = i / p.by_vectors, vector = i - column * p.vectors, row = blockIdx.y;
    if (column >= p.width) return;
    const u32 pixel = p.vectors * VECTOR;
    dy += u64(blockIdx.z) * p.out_height * p.out_width * pixel + vector * VECTOR;
    float sum[VECTOR] = {};
    const u32 last_row = end_bin(p.height, p.out_height, row);
    const u32 last_column = end_bin(p.width, p.out_width, column);
    for (u32 r = first_bin(p.height, p.out_height, row); r < last_row; ++r) {
        const u32 rows = length(p.height, p.out_height, r);
        for (u32 q = first_bin(p.width, p.out_width, column); q < last_column; ++q) {
            const float share = 1.0f / float(rows * length(p.width, p.out_width, q));
            float grad[VECTOR];
            load_elements(dy + (r * p.out_width + q) * pixel, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += grad[v] * share;
        }
    }
    const u64 at = (u64(blockIdx.z) * p.height + row) * p.width + column;
    store_elements(dx + at * pixel + vector * VECTOR, sum);
}
