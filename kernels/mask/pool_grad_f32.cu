// Gradient of mask pooling's features in true f32: dx[b, p, c] = sum of dy[b, n, c] over the objects n with
// masks[b, n, p] > 0, for f32 masks [B, N, P], dy [B, N, C] and dx [B, P, C]. The path for parity with
// reference data; mask/pool_grad.cu is the fast one.
//
// A block computes 64 pixels by 64 channels over all objects, 32 at a time, in 256 threads of 4 x 4 results
// each. Masks are planar, so that neighbouring threads put neighbouring pixels of an object into shared
// memory, as 0 and 1 (strictly above 0, so that NaN is 0).
//
// 2 B N P C FLOPs; masks are read C / 64 times and dy P / 64 times, from the caches but for the first. Grid:
// pixel tiles, channel tiles, images.
#include "mask/tile_f32.cuh"

struct Params {
    u32 objects, channels, pixels;
    u32 dy_stride;  // elements from one image's rows to the next's
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_pool_grad_f32(const float* __restrict__ masks, const float* __restrict__ dy,
                       float* __restrict__ dx, const Params p) {
    __shared__ Weights owned;
    __shared__ alignas(16) Features gradients;
    const u32 pixel = blockIdx.x * TILE, channel = blockIdx.y * TILE;
    masks += u64(blockIdx.z) * p.objects * p.pixels + pixel;
    dy += u64(blockIdx.z) * p.dy_stride + channel;

    float sums[4][4] = {};
    for (u32 object = 0; object < p.objects; object += STEP) {
        __syncthreads();
#pragma unroll
        for (u32 i = threadIdx.x; i < TILE * STEP; i += THREADS) {
            const u32 at = i / TILE, n = i % TILE;
            const bool inside = object + at < p.objects && pixel + n < p.pixels;
            owned[at][n] = inside && masks[u64(object + at) * p.pixels + n] > 0.0f ? 1.0f : 0.0f;
        }
        load_features(gradients, dy, object, p.objects, channel, p.channels);
        __syncthreads();
        multiply_step(owned, gradients, sums);
    }
    store_tile(dx + u64(blockIdx.z) * p.pixels * p.channels, sums, pixel, p.pixels, channel, p.channels);
}
