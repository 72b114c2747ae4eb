// Gradient of mask pooling's features: dx[b, p, c] = sum of dy[b, n, c] over the objects n with masks[b, n,
// p] > 0.
//
// masks [B, N, P] are planar logits, dx is [B, P, C], both f16 or bf16; dy [B, N, C] is f32. A product on
// tensor cores with pixels as rows, channels as columns and objects as terms. Masks lie in shared memory as
// they are, object by object: a lane loads them turned and makes 0 and 1 of them (NaN, like 0, is 0). Every
// dy is the sum of two bf16 numbers, 16 bits of it and the whole range of f32, which gradients need; the
// mask's product with either is exact, sums are f32.
//
// ABOVE_ZERO = 0: masks are factors as they are, dx = sum of masks[b, n, p] dy[b, n, c]: the gradient of a
// mask convolution's features, from that of its masks and from its kernels, of which there may be one set
// for all images (`dy_stride` 0). These are sums of two numbers of the masks' type then, which they are
// rounded to in the convolution.
//
// A block computes 128 pixels by 64 channels with 4 x 2 warps, 64 objects at a time. Its result leaves by
// shared memory, so that rows of channels are written whole.
//
// 4 B N P C FLOPs; masks are read C / 64 times and dy P / 128 times, from L2 but for the first; dx is written
// once: at N = 100, P = 16800, C = 256 that is 1.7 GFLOP and 12 MB.
//
// Grid: pixel tiles, channel tiles, images. Block: 256 threads. Defines: STORAGE, ABOVE_ZERO, MASK_WIDE
// (P a multiple of 8), X_WIDE (C a multiple of 8).
#include "common/elements.cuh"
#include "common/mma.cuh"
#include "mask/above_zero.cuh"
#include "mask/tile.cuh"

#define THREADS 256
#define BM 128
#define BN 64
#define OBJECTS 64
#define MASK_BYTES (OBJECTS * BM * 2)
#define DY_BYTES (OBJECTS * 128)
// Bytes from one pixel's channels to the next in shared memory: fragments are stored without bank conflicts.
#define PITCH (BN * 2 + 16)

struct Params {
    u32 objects, channels, pixels;
    u32 dy_stride;  // elements from one image's rows to the next's
};

#if ABOVE_ZERO
typedef bf16 factor_t;

// 1 or 0 as bf16, for each of two logits.
__device__ inline u32 factors(u32 pair) {
    const u32 ones = above_zero(pair, storage_t{});
    // Of f16, whose 1 is 0x3c00: that of bf16 is 0x3f80.
    return STORAGE == F16 ? ones | (ones >> 3 & 0x03800380) : ones;
}
#else
typedef storage_t factor_t;

__device__ inline u32 factors(u32 pair) { return pair; }
#endif

// Puts objects `first` .. into shared memory as two tiles, the larger parts and what they leave; zeros beyond
// the operand.
__device__ inline void split_gradients(unsigned char* to, const float* dy, u32 first, u32 channel,
                                       const Params& p) {
#pragma unroll
    for (u32 each = 0; each < OBJECTS * BN / 4 / THREADS; ++each) {
        const u32 i = each * THREADS + threadIdx.x, row = i / (BN / 4), column = i % (BN / 4) * 4;
        const float* const source = dy + u64(first + row) * p.channels + channel + column;
        float g[4] = {};
        if (first + row < p.objects) {
#if X_WIDE
            if (channel + column < p.channels) load_vector(source, g);
#else
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                if (channel + column + j < p.channels) g[j] = source[j];
            }
#endif
        }
        u32 high[2], low[2];
#pragma unroll
        for (u32 j = 0; j < 2; ++j) {
            high[j] = pack2(g[2 * j], g[2 * j + 1], factor_t{});
            low[j] = pack2(g[2 * j] - to_f32(factor_t{u16(high[j])}),
                           g[2 * j + 1] - to_f32(factor_t{u16(high[j] >> 16)}), factor_t{});
        }
        unsigned char* const at = to + swizzled<8>(row, column / 8) + column % 8 * 2;
        *reinterpret_cast<uint2*>(at) = make_uint2(high[0], high[1]);
        *reinterpret_cast<uint2*>(at + DY_BYTES) = make_uint2(low[0], low[1]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    mask_pool_grad(const storage_t* __restrict__ masks, const float* __restrict__ dy,
                   storage_t* __restrict__ dx, const Params p) {
    __shared__ alignas(128) unsigned char shared[MASK_BYTES + 2 * DY_BYTES];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp % 4, warp_n = warp / 4;
    const u32 pixel = blockIdx.x * BM, channel = blockIdx.y * BN, base = shared_address(shared);
    masks += u64(blockIdx.z) * p.objects * p.pixels + pixel;
    dy += u64(blockIdx.z) * p.dy_stride;

    float sums[2][4][4] = {};
    // Pixels of a warp: half a slab. Objects are the rows of either tile.
    const u32 mask_at = warp_m / 2 * (OBJECTS * 128) +
                        swizzled<8>(lane / 16 * 8 + lane % 8, warp_m % 2 * 4 + lane / 8 % 2);
    const u32 dy_at = MASK_BYTES + swizzled<8>(lane % 16, warp_n * 4 + lane / 16);
    for (u32 object = 0; object < p.objects; object += OBJECTS) {
        __syncthreads();
        copy_tile<MASK_WIDE, 2, OBJECTS, THREADS>(base, masks + u64(object) * p.pixels, p.pixels,
                                                  p.objects - object, p.pixels - pixel);
        commit_copies();
        split_gradients(shared + MASK_BYTES, dy, object, channel, p);
        wait_copies<0>();
        __syncthreads();
#pragma unroll
        for (u32 k = 0; k < OBJECTS / 16; ++k) {
            u32 a[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                load_matrices_transposed(a[i], ((base + mask_at) ^ (i * 32)) + k * 16 * 128);
#pragma unroll
                for (u32 j = 0; j < 4; ++j) a[i][j] = factors(a[i][j]);
            }
#pragma unroll
            for (u32 part = 0; part < 2; ++part) {
#pragma unroll
                for (u32 j = 0; j < 2; ++j) {
                    u32 b[4];
                    load_matrices_transposed(b, ((base + dy_at) ^ (j * 32)) + part * DY_BYTES + k * 16 * 128);
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) {
                        Mma<factor_t>::multiply(sums[i][2 * j], a[i], b[0], b[1]);
                        Mma<factor_t>::multiply(sums[i][2 * j + 1], a[i], b[2], b[3]);
                    }
                }
            }
        }
    }
    __syncthreads();

#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 row = warp_m * 32 + i * 16 + half * 8 + lane / 4;
                const u32 column = warp_n * 32 + j * 8 + lane % 4 * 2;
                *reinterpret_cast<u32*>(shared + row * PITCH + column * 2) =
                    pack2(sums[i][j][2 * half], sums[i][j][2 * half + 1], storage_t{});
            }
        }
    }
    __syncthreads();
    dx += (u64(blockIdx.z) * p.pixels + pixel) * p.channels + channel;
    constexpr u32 count = X_WIDE ? 8 : 1;
#pragma unroll 4
    for (u32 each = 0; each < BM * BN / count / THREADS; ++each) {
        const u32 i = each * THREADS + threadIdx.x, row = i / (BN / count), column = i % (BN / count) * count;
        if (pixel + row >= p.pixels || channel + column >= p.channels) continue;
        const unsigned char* from = shared + row * PITCH + column * 2;
        storage_t* to = dx + u64(row) * p.channels + column;
#if X_WIDE
        store_global_chunk(to, load_chunk(from));
#else
        *to = *reinterpret_cast<const storage_t*>(from);
#endif
    }
}
