// y[b, c] = mean of x[b, .., c] over all pixels: [B, pixels, C] to f32 [B, C].
//
// A block takes LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1) of one image,
// and adds them in the order of common/column_sums.cuh.
// Reads x once: B * pixels * C * sizeof(storage_t) bytes, 1 FLOP an element.
//
// Defines: STORAGE, VECTOR. The block is LANES x ROWS threads.
#include "common/column_sums.cuh"

struct Params {
    u32 pixels;
    u32 vectors;  // of one pixel
};

extern "C" __global__ void global_avg_pool(const storage_t* __restrict__ x, float* __restrict__ y,
                                           const Params p) {
    __shared__ ColumnSums sums;
    const u32 lane = threadIdx.x, row = threadIdx.y;
    const u32 vector = blockIdx.x * LANES + lane;
    const u64 pixel = u64(p.vectors) * VECTOR;
    float total[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] = 0.0f;
    if (vector < p.vectors) {
        const storage_t* image = x + u64(blockIdx.y) * p.pixels * pixel + u64(vector) * VECTOR;
        add_pixels(p.pixels, [&](u32 i) { return image + i * pixel; }, total);
    }
    add_rows(sums, total);
    if (row == 0 && vector < p.vectors) {
        float* out = y + blockIdx.y * pixel + u64(vector) * VECTOR;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = sums[v][0][lane] / float(p.pixels);
    }
}
