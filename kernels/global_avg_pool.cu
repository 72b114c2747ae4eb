// y[b, c] = mean of x[b, .., c] over all pixels: [B, pixels, C] to f32 [B, C].
//
// A block takes LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1) of one image:
// thread (lane, row) adds the pixels row, row + ROWS, ..; the ROWS sums are then added pairwise in shared
// memory, so that the order depends on nothing but the shape. Sums of 32 pixels are made first and added up
// after, which keeps a sum of n terms to the rounding of n / 32.
// Reads x once: B * pixels * C * sizeof(storage_t) bytes, 1 FLOP an element.
//
// Defines: STORAGE, VECTOR. The block is LANES x ROWS threads.
#include "common/elements.cuh"

#define LANES 8
#define ROWS 32
#define RUN 32

struct Params {
    u32 pixels;
    u32 vectors;  // of one pixel
};

extern "C" __global__ void global_avg_pool(const storage_t* __restrict__ x, float* __restrict__ y,
                                           const Params p) {
    __shared__ float sums[VECTOR][ROWS][LANES];
    const u32 lane = threadIdx.x, row = threadIdx.y;
    const u32 vector = blockIdx.x * LANES + lane;
    const u64 pixel = u64(p.vectors) * VECTOR;
    float total[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] = 0.0f;
    if (vector < p.vectors) {
        const storage_t* image = x + u64(blockIdx.y) * p.pixels * pixel + u64(vector) * VECTOR;
        for (u32 from = row; from < p.pixels; from += ROWS * RUN) {
            const u32 to = min(p.pixels, from + ROWS * RUN);
            float sum[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] = 0.0f;
#pragma unroll 4
            for (u32 i = from; i < to; i += ROWS) {
                float value[VECTOR];
                load_elements(image + i * pixel, value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sum[v] += value[v];
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) total[v] += sum[v];
        }
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] = total[v];
    for (u32 half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (row < half) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] += sums[v][row + half][lane];
        }
    }
    if (row == 0 && vector < p.vectors) {
        float* out = y + blockIdx.y * pixel + u64(vector) * VECTOR;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = sums[v][0][lane] / float(p.pixels);
    }
}
