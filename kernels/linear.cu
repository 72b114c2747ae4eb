// Products of few rows: y[m, n] = activation(sum over k of x[m, k] * w[n, k] + bias + residual[m, n]), all f32 in memory.
//
// M is the number of objects (12 to 153), N and K are 80 to 2048: too little work for large tiles, so the aim is to have all
// of a block's operands in flight at once and every multiprocessor busy. A block computes BM x BN results with WARPS_M x
// WARPS_N x WARPS_K warps: WARPS_K of them share each part of the tile, every one takes its own slabs of K, and their sums are
// added in shared memory in the order of the warps. With PARTIAL, blocks also share K (`split` terms each) and write raw sums
// [split, M, N], which sum_parts.cu adds in order.
//
// K passes through shared memory in STAGES stages of SLABS slabs of 32 terms. A slab holds BM rows of x and BN rows of w of
// 128 bytes, swizzled (common/swizzle.cuh), copied by cp.async with zeros beyond M, N and K. COPY = 4: rows are whole 16-byte
// chunks; COPY = 1: any K, 4 bytes a copy.
//
// MATH = 1: TF32 tensor cores (m16n8k8), operands rounded to nearest, f32 sums. MATH = 0: f32 throughout.
//
// The same kernel serves several matrices of a batch (grid z, STRIDED) and, for per-object masks in f32, a bias per row.
// 2 M N K FLOPs; x is read N / BN times and w M / BM times, from L2.
//
// Grid: column tiles, row tiles, batch or splits. Block: 32 * WARPS_M * WARPS_N * WARPS_K threads.
// Shared memory: STAGES * SLABS * (BM + BN) * 128 bytes.
// Defines: MATH, COPY, BM, BN, SLABS, STAGES, WARPS_M, WARPS_N, WARPS_K, PARTIAL, ROW_BIAS, ACTIVATION.
#include "common/async_copy.cuh"
#include "common/epilogue.cuh"
#include "common/reduce.cuh"
#include "common/warp_tile.cuh"

#define THREADS (WARP * WARPS_M * WARPS_N * WARPS_K)
#define ROWS (BM + BN)
#define BK (32 * SLABS)
#define WM (BM / WARPS_M)
#define WN (BN / WARPS_N)
#define STAGE_BYTES (SLABS * ROWS * 128)
// Pitch of the tile of sums: the pairs that tensor cores leave in each lane are stored without bank conflicts.
#define PITCH (BN + 8)

struct Params {
    u32 rows, columns, terms;
    u32 split;                         // terms of a split, a multiple of BK
    u32 x_stride, w_stride, y_stride;  // elements from one matrix of the batch to the next
};

extern __shared__ __align__(128) unsigned char shared[];

// Copies terms `k` .. `k` + BK of the block's rows of x and w to a stage.
__device__ inline void copy_stage(u32 stage, const float* x, const float* w, u32 row, u32 column, u32 k, u32 end,
                                  const Params& p) {
    constexpr u32 pieces = BK / COPY;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < ROWS * pieces; i += THREADS) {
        const u32 r = i / pieces, term = i % pieces * COPY;
        const bool of_x = r < BM;
        const u32 at = of_x ? row + r : column + r - BM;
        const bool take = at < (of_x ? p.rows : p.columns) && k + term < end;
        const u32 to = stage + term / 32 * (ROWS * 128) + swizzled<8>(r, term / 4 % 8) + term % 4 * 4;
        copy_async<COPY * 4>(to, (of_x ? x : w) + u64(at) * p.terms + k + term, take);
    }
}

#if MATH == 1
typedef WarpTile<float, WM / 16, WN / 16, 8> Sums;

__device__ inline void store_sums(const Sums& sums, float* tile, u32 lane) {
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) {
        sums.for_pairs(i, lane, [=](float left, float right, u32 row, u32 column) {
            *reinterpret_cast<float2*>(tile + (16 * i + row) * PITCH + column) = make_float2(left, right);
        });
    }
}
#else
typedef WarpTileF32<WM / 4, WN / 8, 8> Sums;

__device__ inline void store_sums(const Sums& sums, float* tile, u32 lane) {
    sums.for_each(lane, [=](float sum, u32 row, u32 column) { tile[row * PITCH + column] = sum; });
}
#endif

// Adds the warps' sums of K and finishes the tile: `count` neighbouring results a thread, 4 where rows of y allow it.
template <int count>
__device__ inline void finish(const float* tile, u32 row, u32 column, u64 base, const Epilogue<float>& tail,
                              const Params& p) {
#pragma unroll 2
    for (u32 i = threadIdx.x; i < BM * BN / count; i += THREADS) {
        const u32 r = i / (BN / count), c = i % (BN / count) * count;
        if (row + r >= p.rows || column + c >= p.columns) continue;
        float sum[count] = {};
#pragma unroll
        for (u32 k = 0; k < WARPS_K; ++k) {
#pragma unroll
            for (u32 j = 0; j < count; ++j) sum[j] += tile[(k * BM + r) * PITCH + c + j];
        }
        const u64 at = base + u64(row + r) * p.columns + column + c;
        Epilogue<float> last = tail;
#if ROW_BIAS
        if (tail.bias) {
#pragma unroll
            for (u32 j = 0; j < count; ++j) sum[j] += tail.bias[row + r];
        }
        last.bias = nullptr;
#endif
        if constexpr (count == 4) {
            last.store_chunk_of<ACTIVATION>(sum, at, column + c);
        } else {
            last.store<ACTIVATION>(sum[0], at, column + c);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
           const float* __restrict__ residual, float* __restrict__ y, const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_m = warp % WARPS_M, warp_n = warp / WARPS_M % WARPS_N, warp_k = warp / (WARPS_M * WARPS_N);
    const u32 row = blockIdx.y * BM, column = blockIdx.x * BN;
    const u32 begin = PARTIAL ? blockIdx.z * p.split : 0, matrix = PARTIAL ? 0 : blockIdx.z;
    const u32 end = PARTIAL && begin + p.split < p.terms ? begin + p.split : p.terms;
    const u32 steps = (end - begin + BK - 1) / BK;
    const u32 base = shared_address(shared);
    x += u64(matrix) * p.x_stride;
    w += u64(matrix) * p.w_stride;

#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) {
        if (step < steps) copy_stage(base + step * STAGE_BYTES, x, w, row, column, begin + step * BK, end, p);
        commit_copies();
    }
    Sums sums;
    sums.clear();
    u32 slot = 0, free_slot = STAGES - 1;
    for (u32 step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        const u32 ahead = step + STAGES - 1;
        if (ahead < steps) copy_stage(base + free_slot * STAGE_BYTES, x, w, row, column, begin + ahead * BK, end, p);
        commit_copies();
#pragma unroll
        for (u32 slab = warp_k; slab < SLABS; slab += WARPS_K) {
            const u32 at = base + slot * STAGE_BYTES + slab * (ROWS * 128);
            sums.multiply(at, warp_m * WM, at, BM + warp_n * WN, lane);
        }
        free_slot = slot;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();
    float* tile = reinterpret_cast<float*>(shared);
    store_sums(sums, tile + (warp_k * BM + warp_m * WM) * PITCH + warp_n * WN, lane);
    __syncthreads();
    const Epilogue<float> tail = {bias, residual, y};
    const u64 out = u64(blockIdx.z) * p.y_stride;
    if (p.columns % 4 == 0 && p.y_stride % 4 == 0) {
        finish<4>(tile, row, column, out, tail, p);
    } else {
        finish<1>(tile, row, column, out, tail, p);
    }
}
