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
#include "common/vector.cuh"

#define TILE 64
#define STEP WARP
#define THREADS 256
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
    // Rows of classes are written down columns: one float more than the tile spreads them over the banks.
    __shared__ float weights[STEP][TILE + 1];
    __shared__ alignas(16) float features[STEP][TILE];
    const u32 first = blockIdx.y % p.class_tiles * TILE, channel = blockIdx.y / p.class_tiles * TILE;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    const u32 row = threadIdx.x / 16 * 4, column = threadIdx.x % 16 * 4;
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
#pragma unroll
        for (u32 i = threadIdx.x; i < TILE * STEP; i += THREADS) {
            const u32 at = i / TILE, c = i % TILE;
            const bool inside = channel + c < p.channels && pixel + at < end;
            features[at][c] = inside ? to_f32(x[u64(pixel + at) * p.channels + c]) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (u32 at = 0; at < STEP; ++at) {
            float b[4];
            load_vector(&features[at][column], b);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const float a = weights[at][row + i];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) sums[i][j] += a * b[j];
            }
        }
    }
    y += (u64(blockIdx.x) * gridDim.z + blockIdx.z) * p.classes * p.channels;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 n = first + row + i, c = channel + column + j;
            if (n < p.classes && c < p.channels) y[u64(n) * p.channels + c] = sums[i][j];
        }
    }
}
