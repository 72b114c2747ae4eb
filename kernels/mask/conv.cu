// Masks of objects: y[b, n, p] = sum over c of kernels[b, n, c] * x[b, p, c] + bias[n] for the pixels p of an
// image.
//
// Kernels are f32 (one set an image, or one for all: `kernel_stride` 0), x is [B, P, C] and y planar [B, N,
// P] in f16 or bf16. A product on tensor cores with objects as rows and pixels as columns: kernels are
// rounded to the storage type when they are put in shared memory, sums are f32.
//
// A block computes 32 * BANDS objects by 128 pixels with 2 x 4 warps. Channels come in slabs of 64. KEPT
// slabs of the kernels stay in shared memory (all 256 channels of K-Net, so that a block reads them once);
// slabs of x pass through STAGES stages filled by cp.async, all of them under way before the first product
// where STAGES covers C. Masks leave by shared memory, so that rows of pixels are written whole.
//
// 2 B N P C FLOPs; x is read once for up to 160 objects and y written once: at N = 100, P = 16800, C = 256
// that is 0.86 GFLOP and 12 MB.
//
// Grid: pixel tiles, object tiles, images. Block: 256 threads. Shared memory: 128 * (KEPT * 32 * BANDS +
// STAGES * 128) bytes.
// Defines: STORAGE, BANDS (1 to 5), KEPT, STAGES, X_WIDE (C a multiple of 8), Y_WIDE (P a multiple of 8).
#include "common/elements.cuh"
#include "common/warp_tile.cuh"
#include "mask/tile.cuh"

#define THREADS 256
#define BM (32 * BANDS)
#define BN 128
#define STAGE_BYTES (BN * 128)
// Bytes from one mask's pixels to the next in shared memory: fragments are stored without bank conflicts.
#define PITCH (BN * 2 + 16)

struct Params {
    u32 objects, channels, pixels;
    u32 kernel_stride;  // elements from one image's kernels to the next's
};

extern __shared__ __align__(128) unsigned char shared[];

// Rounds slabs `slab` .. `slab` + KEPT of the kernels of objects `first` .. `first` + BM into shared memory:
// neighbouring lanes take neighbouring pieces of four channels.
__device__ inline void round_kernels(unsigned char* to, const float* kernels, u32 first, u32 slab,
                                     const Params& p) {
    constexpr u32 pieces = KEPT * SLAB / 4;
#pragma unroll 8
    for (u32 each = 0; each < BM * pieces / THREADS; ++each) {
        const u32 i = each * THREADS + threadIdx.x, row = i / pieces, column = i % pieces * 4,
                  c = slab * SLAB + column;
        const float* source = kernels + u64(first + row) * p.channels + c;
        float k[4] = {};
        if (first + row < p.objects) {
#if X_WIDE
            if (c < p.channels) load_vector(source, k);
#else
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                if (c + j < p.channels) k[j] = source[j];
            }
#endif
        }
        const u32 at = column / SLAB * (BM * 128) + swizzled<8>(row, column % SLAB / 8) + column % 8 * 2;
        *reinterpret_cast<uint2*>(to + at) =
            make_uint2(pack2(k[0], k[1], storage_t{}), pack2(k[2], k[3], storage_t{}));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_conv(const float* __restrict__ kernels, const storage_t* __restrict__ x,
              const float* __restrict__ bias, storage_t* __restrict__ y, const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp % 2, warp_n = warp / 2;
    const u32 pixel = blockIdx.x * BN, object = blockIdx.y * BM;
    const u32 kept = shared_address(shared), stages = kept + KEPT * BM * 128;
    const u32 slabs = (p.channels + SLAB - 1) / SLAB;
    kernels += u64(blockIdx.z) * p.kernel_stride;
    x += (u64(blockIdx.z) * p.pixels + pixel) * p.channels;

    const auto copy = [&](u32 slab) {
        if (slab < slabs) {
            copy_tile<X_WIDE, 1, BN, THREADS>(stages + slab % STAGES * STAGE_BYTES, x + slab * SLAB,
                                              p.channels, p.pixels - pixel, p.channels - slab * SLAB);
        }
        commit_copies();
    };
#pragma unroll
    for (u32 slab = 0; slab < STAGES; ++slab) copy(slab);
    WarpTile<storage_t, BANDS, 2, 8> sums;
    sums.clear();
    for (u32 slab = 0; slab < slabs; ++slab) {
        // At a multiple of KEPT after the first, the barrier below the last product has passed.
        if (slab % KEPT == 0) round_kernels(shared, kernels, object, slab, p);
        wait_copies<STAGES - 1>();
        __syncthreads();
        sums.multiply(kept + slab % KEPT * (BM * 128), warp_m * 16 * BANDS,
                      stages + slab % STAGES * STAGE_BYTES, warp_n * 32, lane);
        if (slab + STAGES < slabs || slab % KEPT == KEPT - 1) __syncthreads();
        copy(slab + STAGES);
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < BANDS; ++i) {
        sums.for_pairs(i, lane, [&](float left, float right, u32 row, u32 column) {
            const u32 r = (warp_m * BANDS + i) * 16 + row;
            if (bias && object + r < p.objects) {
                left += bias[object + r];
                right += bias[object + r];
            }
            *reinterpret_cast<u32*>(shared + r * PITCH + (warp_n * 32 + column) * 2) =
                pack2(left, right, storage_t{});
        });
    }
    __syncthreads();
    y += (u64(blockIdx.z) * p.objects + object) * p.pixels + pixel;
    constexpr u32 count = Y_WIDE ? 8 : 1;
#pragma unroll 4
    for (u32 each = 0; each < BM * BN / count / THREADS; ++each) {
        const u32 i = each * THREADS + threadIdx.x, row = i / (BN / count), column = i % (BN / count) * count;
        if (object + row >= p.objects || pixel + column >= p.pixels) continue;
        const unsigned char* from = shared + row * PITCH + column * 2;
        storage_t* to = y + u64(row) * p.pixels + column;
#if Y_WIDE
        store_global_chunk(to, load_chunk(from));
#else
        *to = *reinterpret_cast<const storage_t*>(from);
#endif
    }
}
