// Grouped features of objects: y[b, n, c] = sum of x[b, p, c] over the pixels p with masks[b, n, p] > 0.
//
// masks [B, N, P] are planar logits, x is [B, P, C], both f16 or bf16; y is f32. A product on tensor cores
// with objects as rows, channels as columns and pixels as terms. Logits are copied to shared memory as they
// are; a lane turns those it has loaded for a product into 0 and 1 (NaN, like 0, is 0), which f16 and bf16
// hold exactly, as they hold x: all rounding is that of the f32 sums. A feature that is not finite makes NaN
// of every object's sum, whether it owns the pixel or not.
//
// ABOVE_ZERO = 0: masks are factors as they are, y = sum of masks[b, n, p] x[b, p, c]: the gradient of a mask
// convolution's kernels, from that of its masks.
//
// A block computes 32 * BANDS objects by 128 channels with 2 x 4 warps over `split` pixels, 64 a stage.
// Pixels are shared among enough blocks to fill the device: each writes its sums to y [splits, B, N, C],
// added in order by sum_parts.cu.
//
// 2 B N P C FLOPs; x is read once for up to 160 objects, masks C / 128 times: at N = 100, P = 16800, C = 256
// that is 0.86 GFLOP and 15 MB, and as much again in partial sums as there are splits, through L2.
//
// Grid: splits, object tiles x channel tiles, images. Block: 256 threads. Shared memory: STAGES * 128 * (32 *
// BANDS + 128) bytes. Defines: STORAGE, ABOVE_ZERO, BANDS (1 to 5), STAGES, MASK_WIDE (P a multiple of 8),
// X_WIDE (C a multiple of 8).
#include "common/mma.cuh"
#include "mask/above_zero.cuh"
#include "mask/tile.cuh"

#define THREADS 256
#define BM (32 * BANDS)
#define BN 128
#define MASK_BYTES (BM * 128)
#define X_BYTES (2 * SLAB * 128)
#define STAGE_BYTES (MASK_BYTES + X_BYTES)

struct Params {
    u32 objects, channels, pixels;
    u32 split;         // pixels of a block, a multiple of 64
    u32 object_tiles;  // of an image
};

extern __shared__ __align__(128) unsigned char shared[];

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_pool(const storage_t* __restrict__ masks, const storage_t* __restrict__ x, float* __restrict__ y,
              const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp % 2, warp_n = warp / 2;
    const u32 object = blockIdx.y % p.object_tiles * BM, channel = blockIdx.y / p.object_tiles * BN;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    const u32 steps = (end - begin + SLAB - 1) / SLAB, base = shared_address(shared);
    masks += (u64(blockIdx.z) * p.objects + object) * p.pixels;
    x += u64(blockIdx.z) * p.pixels * p.channels + channel;

    const auto copy = [&](u32 step) {
        if (step < steps) {
            const u32 stage = base + step % STAGES * STAGE_BYTES, pixel = begin + step * SLAB;
            copy_tile<MASK_WIDE, 1, BM, THREADS>(stage, masks + pixel, p.pixels, p.objects - object,
                                                 end - pixel);
            copy_tile<X_WIDE, 2, SLAB, THREADS>(stage + MASK_BYTES, x + u64(pixel) * p.channels, p.channels,
                                                end - pixel, p.channels - channel);
        }
        commit_copies();
    };
#pragma unroll
    for (u32 step = 0; step < STAGES; ++step) copy(step);

    float sums[BANDS][4][4] = {};
    const u32 mask_at = swizzled<8>(warp_m * 16 * BANDS + lane % 16, lane / 16);
    // Channels of a warp: half a slab.
    const u32 x_at =
        MASK_BYTES + warp_n / 2 * (SLAB * 128) + swizzled<8>(lane % 16, warp_n % 2 * 4 + lane / 16);
    for (u32 step = 0; step < steps; ++step) {
        wait_copies<STAGES - 1>();
        __syncthreads();
        const u32 stage = base + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (u32 k = 0; k < SLAB / 16; ++k) {
            u32 a[BANDS][4], b[2][4];
#pragma unroll
            for (u32 i = 0; i < BANDS; ++i) {
                load_matrices(a[i], ((stage + mask_at) ^ (k * 32)) + i * 16 * 128);
#if ABOVE_ZERO
#pragma unroll
                for (u32 j = 0; j < 4; ++j) a[i][j] = above_zero(a[i][j], storage_t{});
#endif
            }
#pragma unroll
            for (u32 j = 0; j < 2; ++j)
                load_matrices_transposed(b[j], ((stage + x_at) ^ (j * 32)) + k * 16 * 128);
#pragma unroll
            for (u32 i = 0; i < BANDS; ++i) {
#pragma unroll
                for (u32 j = 0; j < 2; ++j) {
                    Mma<storage_t>::multiply(sums[i][2 * j], a[i], b[j][0], b[j][1]);
                    Mma<storage_t>::multiply(sums[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                }
            }
        }
        if (step + STAGES < steps) __syncthreads();
        copy(step + STAGES);
    }

    y += (u64(blockIdx.x) * gridDim.z + blockIdx.z) * p.objects * p.channels;
#pragma unroll
    for (u32 i = 0; i < BANDS; ++i) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = object + (warp_m * BANDS + i) * 16 + half * 8 + lane / 4;
            if (row >= p.objects) continue;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 column = channel + warp_n * 32 + j * 8 + lane % 4 * 2;
                float* to = y + u64(row) * p.channels + column;
                const float left = sums[i][j][2 * half], right = sums[i][j][2 * half + 1];
#if X_WIDE
                if (column < p.channels) *reinterpret_cast<float2*>(to) = make_float2(left, right);
#else
                if (column < p.channels) to[0] = left;
                if (column + 1 < p.channels) to[1] = right;
#endif
            }
        }
    }
}
