// Grouped features of objects in true f32: y[b, n, c] = sum of x[b, p, c] over the pixels p with masks[b, n,
// p] > 0, for f32 masks [B, N, P] and features [B, P, C]. The path for parity with reference data;
// mask/pool.cu is the fast one.
//
// A block computes 64 objects by 64 channels over `split` pixels, 32 at a time, in 256 threads of 4 x 4
// results each. Masks are thresholded to 0 and 1 when they are put in shared memory (strictly above 0, so
// that NaN is 0), turned, so that a thread reads its four objects at once. Sums of the splits go to y
// [splits, B, N, C], added in order by sum_parts.cu.
//
// 2 B N P C FLOPs; x is read N / 64 times and masks C / 64 times. Grid: splits, object tiles x channel tiles,
// images.
#include "mask/tile_f32.cuh"

struct Params {
    u32 objects, channels, pixels;
    u32 split;         // pixels of a block
    u32 object_tiles;  // of an image
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_pool_f32(const float* __restrict__ masks, const float* __restrict__ x, float* __restrict__ y,
                  const Params p) {
    __shared__ Weights owned;
    __shared__ alignas(16) Features features;
    const u32 object = blockIdx.y % p.object_tiles * TILE, channel = blockIdx.y / p.object_tiles * TILE;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    masks += (u64(blockIdx.z) * p.objects + object) * p.pixels;
    x += u64(blockIdx.z) * p.pixels * p.channels + channel;

    float sums[4][4] = {};
    for (u32 pixel = begin; pixel < end; pixel += STEP) {
        __syncthreads();
#pragma unroll
        for (u32 i = threadIdx.x; i < TILE * STEP; i += THREADS) {
            const u32 n = i / STEP, at = i % STEP;
            const bool inside = object + n < p.objects && pixel + at < end;
            owned[at][n] = inside && masks[u64(n) * p.pixels + pixel + at] > 0.0f ? 1.0f : 0.0f;
        }
        load_features(features, x, pixel, end, channel, p.channels);
        __syncthreads();
        multiply_step(owned, features, sums);
    }
    y += (u64(blockIdx.x) * gridDim.z + blockIdx.z) * p.objects * p.channels;
    store_tile(y, sums, object, p.objects, channel, p.channels);
}
