// Features that classes gather softly: y[b, n, c] = sum over p of w[b, n, p] x[b, p, c], where w[b, :, p] is
// the softmax of the logits masks[b, :, p]. masks [B, N, P], x [B, P, C], y f32.
//
// Two launches. soft_mask_norms: maximum and inverse sum of exponentials of each pixel, f32 [B, P, 2]. A
// block takes 32 pixels; each of its 8 warps every eighth class, whose maxima and sums come together in
// shared memory. soft_mask_pool: the product. A block computes 64 classes by 64 channels over `split` pixels,
// 32 at a time, in 256 threads of 4 x 4 results each, f32 FMA; weights are made of logits and norms when they
// are put in shared memory, turned, so that a thread reads its four classes at once, and are never rounded to
// less than f32. Sums of the splits go to y [splits, B, N, C], added in order by sum_parts.cu.
//
// 2 B N P C FLOPs and 5 B N P for the softmax. soft_mask_norms reads logits twice, the second time from the
// caches; soft_mask_pool reads logits C / 64 times and x N / 64 times: at N = 150, P = 4096, C = 512 in f16
// that is 0.63 GFLOP, 5.4 MB from device memory and 25 MB through L2.
//
// Grid: pixels / 32, images; splits, class tiles x channel tiles, images. Block: 256 threads. Defines:
// STORAGE (of x), MASK_STORAGE.
#include "common/reduce.cuh"
#include "mask/tile_f32.cuh"

#define WARPS (THREADS / WARP)

typedef Storage<MASK_STORAGE>::type mask_t;

struct Params {
    u32 classes, channels, pixels;
    u32 split;        // pixels of a block
    u32 class_tiles;  // of an image
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    soft_mask_norms(const mask_t* __restrict__ masks, float2* __restrict__ norms, const Params p) {
    __shared__ float partial[WARPS][WARP];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, pixel = blockIdx.x * WARP + lane;
    masks += u64(blockIdx.y) * p.classes * p.pixels + pixel;
    float max = __int_as_float(0xff800000), sum = 0.0f;
    if (pixel < p.pixels) {
#pragma unroll 8
        for (u32 n = warp; n < p.classes; n += WARPS) max = fmaxf(max, to_f32(masks[u64(n) * p.pixels]));
    }
    partial[warp][lane] = max;
    __syncthreads();
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) max = fmaxf(max, partial[w][lane]);
    if (pixel < p.pixels) {
#pragma unroll 8
        for (u32 n = warp; n < p.classes; n += WARPS) sum += __expf(to_f32(masks[u64(n) * p.pixels]) - max);
    }
    __syncthreads();
    partial[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || pixel >= p.pixels) return;
#pragma unroll
    for (u32 w = 1; w < WARPS; ++w) sum += partial[w][lane];
    norms[u64(blockIdx.y) * p.pixels + pixel] = make_float2(max, 1.0f / sum);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    soft_mask_pool(const mask_t* __restrict__ masks, const storage_t* __restrict__ x,
                   const float2* __restrict__ norms, float* __restrict__ y, const Params p) {
    __shared__ Weights weights;
    __shared__ alignas(16) Features features;
    const u32 first = blockIdx.y % p.class_tiles * TILE, channel = blockIdx.y / p.class_tiles * TILE;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    masks += (u64(blockIdx.z) * p.classes + first) * p.pixels;
    norms += u64(blockIdx.z) * p.pixels;
    x += u64(blockIdx.z) * p.pixels * p.channels + channel;

    float sums[4][4] = {};
    for (u32 pixel = begin; pixel < end; pixel += STEP) {
        __syncthreads();
        // A thread's pixel is the same in every round: THREADS is a multiple of STEP.
        const u32 own = pixel + threadIdx.x % STEP;
        const float2 norm = own < end ? norms[own] : make_float2(0.0f, 0.0f);
#pragma unroll
        for (u32 i = threadIdx.x; i < TILE * STEP; i += THREADS) {
            const u32 n = i / STEP;
            const bool inside = first + n < p.classes && own < end;
            const float logit = inside ? to_f32(masks[u64(n) * p.pixels + own]) : 0.0f;
            weights[i % STEP][n] = inside ? __expf(logit - norm.x) * norm.y : 0.0f;
        }
        load_features(features, x, pixel, end, channel, p.channels);
        __syncthreads();
        multiply_step(weights, features, sums);
    }
    y += (u64(blockIdx.x) * gridDim.z + blockIdx.z) * p.classes * p.channels;
    store_tile(y, sums, first, p.classes, channel, p.channels);
}
