// Gradient of a convolution's filter in true f32: filter_grad.cu for f32 maps, with FMA.
//
// A block computes 64 filters by 64 columns over `split` pixels, 32 at a time, in 256 threads of 4 x 4
// results each (mask/tile_f32.cuh). Sums of the splits go to dw [splits, K, R * S * C], added in order by
// sum_parts.cu.
//
// Grid: splits, tiles of filters x tiles of columns. Defines: STORAGE (F32), DEFORMED (see filter_grad.cu).
#include "conv/deformed.cuh"
#include "conv/gather.cuh"
#include "mask/tile_f32.cuh"

// The element of a column in the row of a pixel.
__device__ inline float element(const Params& p, const float* x, const float* offsets, const Column& column,
                                u32 pixel) {
#if DEFORMED
    const Sample at = sample_of(p, offsets, pixel, column.r, column.s, p.filter_h, p.filter_w);
    return at.element(p, x, column.channel);
#else
    const i32 place = column.place(p, pixel);
    return place < 0 ? 0.0f : x[place];
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    filter_grad_f32(const float* __restrict__ x, const float* __restrict__ dy,
                    const float* __restrict__ offsets, float* __restrict__ dw, const Params p) {
    __shared__ alignas(16) Features grads;
    __shared__ alignas(16) Features windows;
    const u32 filter = blockIdx.y % p.tiles * TILE, first_column = blockIdx.y / p.tiles * TILE;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    // A thread has one column and every fourth pixel.
    const u32 own = threadIdx.x % TILE;
    const Column column(p, first_column + own);
    const bool inside = first_column + own < p.columns;

    float sums[4][4] = {};
    for (u32 pixel = begin; pixel < end; pixel += STEP) {
        __syncthreads();
        load_features(grads, dy + filter, pixel, end, filter, p.filters);
#pragma unroll
        for (u32 at = threadIdx.x / TILE; at < STEP; at += THREADS / TILE) {
            const bool any = inside && pixel + at < end;
            windows[at][own] = any ? element(p, x, offsets, column, pixel + at) : 0.0f;
        }
        __syncthreads();
        multiply_step(grads, windows, sums);
    }
    dw += u64(blockIdx.x) * p.filters * p.columns;
    store_tile(dw, sums, filter, p.filters, first_column, p.columns);
}
