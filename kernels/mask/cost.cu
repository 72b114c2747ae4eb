// Products of objects' soft masks with targets, for matching: with p = sigmoid(logits), both[b, n, g] = sum
// over pixels of p[b, n] t[b, g], and of every object and slot its sum and its sum of squares.
//
// Logits [B, N, P] and targets [B, G, P] are planar, both f16 or bf16. A product on tensor cores with objects
// as rows, slots as columns and pixels as terms. Both pass through STAGES stages of 64 pixels filled by
// cp.async; once they are there, threads turn logits into probabilities where they lie, rounded to the
// storage type (pixels beyond the end into 0), and add up rows of both as they go, eight threads a row; those
// sums are of probabilities before they were rounded.
//
// A block computes 32 * BANDS objects by 128 slots with 2 x 4 warps over `split` pixels. Pixels are shared
// among enough blocks to fill the device: each writes a record of sums to y [splits, record], which
// sum_parts.cu adds up in order; matching_cost.cu makes costs of the result. A record is `both` [B, N, G],
// then sum and sum of squares of [B, N] objects and [B, G] slots.
//
// 2 B N G P FLOPs and B N P sigmoids; logits are read G / 128 times, targets once for up to 160 objects: at N
// = 100, G = 30, P = 16800 that is 4.4 MB an image.
//
// Grid: splits, object tiles x slot tiles, images. Block: 256 threads. Shared memory: STAGES * 128 * (32 *
// BANDS + 128) bytes. Defines: STORAGE, BANDS (1 to 5), STAGES, WIDE (P a multiple of 8).
#include "common/activation.cuh"
#include "common/warp_tile.cuh"
#include "mask/tile.cuh"

#define THREADS 256
#define BM (32 * BANDS)
#define BN 128
#define STAGE_BYTES ((BM + BN) * 128)

struct Params {
    u32 objects, slots, pixels;
    u32 split;         // pixels of a block, a multiple of 64
    u32 object_tiles;  // of an image
    u32 record;        // floats of a split's sums
};

extern __shared__ __align__(128) unsigned char shared[];

// Sums of rows, eight threads a row: row threadIdx.x / 8 and every 32nd row after it.
template <u32 rows> struct RowSums {
    float sum[rows / 32], squares[rows / 32];

    // Adds the rows of a tile at `tile`. With `logits`, elements turn into probabilities first, and stay so;
    // those from column `columns_left` on into 0.
    template <bool logits> __device__ inline void add(unsigned char* tile, u32 columns_left) {
#pragma unroll
        for (u32 each = 0; each < rows / 32; ++each) {
            const u32 row = each * 32 + threadIdx.x / 8, chunk = threadIdx.x % 8;
            unsigned char* const at = tile + swizzled<8>(row, chunk);
            float x[8];
            unpack(load_chunk(at), x, storage_t{});
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
                if (logits) {
                    x[j] = chunk * 8 + j < columns_left ? activate<ACTIVATION_SIGMOID>(x[j]) : 0.0f;
                }
                sum[each] += x[j];
                squares[each] += x[j] * x[j];
            }
            if (logits) store_chunk(at, pack(x, storage_t{}));
        }
    }

    // To `to`, sum and sum of squares of each of the first `count` rows.
    __device__ inline void store(float* to, u32 count) const {
#pragma unroll
        for (u32 each = 0; each < rows / 32; ++each) {
            float a = sum[each], b = squares[each];
#pragma unroll
            for (u32 distance = 4; distance > 0; distance /= 2) {
                a += __shfl_xor_sync(FULL_MASK, a, distance);
                b += __shfl_xor_sync(FULL_MASK, b, distance);
            }
            const u32 row = each * 32 + threadIdx.x / 8;
            if (threadIdx.x % 8 > 0 || row >= count) continue;
            to[2 * row] = a;
            to[2 * row + 1] = b;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    mask_cost(const storage_t* __restrict__ logits, const storage_t* __restrict__ targets,
              float* __restrict__ y, const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp % 2, warp_n = warp / 2;
    const u32 object = blockIdx.y % p.object_tiles * BM, slot = blockIdx.y / p.object_tiles * BN;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    const u32 steps = (end - begin + SLAB - 1) / SLAB, base = shared_address(shared);
    logits += (u64(blockIdx.z) * p.objects + object) * p.pixels;
    targets += (u64(blockIdx.z) * p.slots + slot) * p.pixels;

    const auto copy = [&](u32 step) {
        if (step < steps) {
            const u32 stage = base + step % STAGES * STAGE_BYTES, pixel = begin + step * SLAB;
            copy_tile<WIDE, 1, BM, THREADS>(stage, logits + pixel, p.pixels, p.objects - object, end - pixel);
            copy_tile<WIDE, 1, BN, THREADS>(stage + BM * 128, targets + pixel, p.pixels, p.slots - slot,
                                            end - pixel);
        }
        commit_copies();
    };
#pragma unroll
    for (u32 step = 0; step < STAGES; ++step) copy(step);

    WarpTile<storage_t, BANDS, 2, 8> both;
    both.clear();
    RowSums<BM> of_objects = {};
    RowSums<BN> of_slots = {};
    for (u32 step = 0; step < steps; ++step) {
        wait_copies<STAGES - 1>();
        __syncthreads();
        const u32 stage = step % STAGES * STAGE_BYTES;
        of_objects.add<true>(shared + stage, end - begin - step * SLAB);
        of_slots.add<false>(shared + stage + BM * 128, SLAB);
        __syncthreads();
        both.multiply(base + stage, warp_m * 16 * BANDS, base + stage + BM * 128, warp_n * 32, lane);
        if (step + STAGES < steps) __syncthreads();
        copy(step + STAGES);
    }

    y += u64(blockIdx.x) * p.record;
    float* const pairs = y + u64(blockIdx.z) * p.objects * p.slots;
#pragma unroll
    for (int i = 0; i < BANDS; ++i) {
        both.for_pairs(i, lane, [&](float left, float right, u32 row, u32 column) {
            const u32 n = object + (warp_m * BANDS + i) * 16 + row, g = slot + warp_n * 32 + column;
            if (n >= p.objects) return;
            if (g < p.slots) pairs[n * p.slots + g] = left;
            if (g + 1 < p.slots) pairs[n * p.slots + g + 1] = right;
        });
    }
    y += u64(gridDim.z) * p.objects * p.slots;
    if (slot == 0) of_objects.store(y + 2 * (blockIdx.z * p.objects + object), p.objects - object);
    y += 2 * gridDim.z * p.objects;
    if (object == 0) of_slots.store(y + 2 * (blockIdx.z * p.slots + slot), p.slots - slot);
}
