// Products of few rows: y[m, n] = activation(sum over k of x[m, k] * w[n, k] + bias + residual[m, n]), all
// f32 in memory.
//
// M is the number of objects (12 to 153), N and K are 80 to 2048: too little work for large tiles, so the aim
// is to have all of a block's operands in flight at once and every multiprocessor busy. A block computes a
// tile (rows/tile.cuh); its warps may share K. With PARTIAL, blocks share it too (`split` terms each) and
// write raw sums [split, M, N], which sum_parts.cu adds in order.
//
// K passes through shared memory in STAGES stages of SLABS slabs of 32 terms, copied by cp.async with zeros
// beyond M, N and K. COPY = 4: rows are whole 16-byte chunks; COPY = 1: any K, 4 bytes a copy.
//
// The same kernel serves the matrices of a batch (grid z) and, for per-object masks in f32, biases of rows.
// 2 M N K FLOPs; x is read N / BN times and w M / BM times, from L2.
//
// Grid: column tiles, row tiles, batch or splits. Block: 32 * WARPS_M * WARPS_N * WARPS_K threads.
// Shared memory: STAGES * SLABS * (BM + BN) * 128 bytes.
// Defines: MATH, BM, BN, WARPS_M, WARPS_N, WARPS_K, COPY, SLABS, STAGES, PARTIAL, ROW_BIAS, ACTIVATION.
#include "rows/tile.cuh"

#define BK (32 * SLABS)
#define STAGE_BYTES (SLABS * SLAB_BYTES)

struct Params {
    u32 rows, columns, terms;
    u32 split;                         // terms of a split, a multiple of BK
    u32 x_stride, w_stride, y_stride;  // elements from one matrix of the batch to the next
};

// Copies terms `k` .. `k` + BK of the block's rows of x and w to a stage.
__device__ inline void copy_stage(u32 stage, const float* x, const float* w, u32 row, u32 column, u32 k,
                                  u32 end, const Params& p) {
    constexpr u32 pieces = BK / COPY, count = (BM + BN) * pieces / THREADS;
    static_assert((BM + BN) * pieces % THREADS == 0, "every thread copies as many pieces");
#pragma unroll (COPY == 4 ? count : 4)
    for (u32 each = 0; each < count; ++each) {
        const u32 i = each * THREADS + threadIdx.x, r = i / pieces, term = i % pieces * COPY;
        const bool of_x = r < BM;
        const u32 at = of_x ? row + r : column + r - BM;
        const bool take = at < (of_x ? p.rows : p.columns) && k + term < end;
        const u32 to = stage + term / 32 * SLAB_BYTES + swizzled<8>(r, term / 4 % 8) + term % 4 * 4;
        copy_async<COPY * 4>(to, (of_x ? x : w) + u64(at) * p.terms + k + term, take);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear(const float* __restrict__ x, const float* __restrict__ w, const float* __restrict__ bias,
           const float* __restrict__ residual, float* __restrict__ y, const Params p) {
    const Place at = place();
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
        if (ahead < steps)
            copy_stage(base + free_slot * STAGE_BYTES, x, w, row, column, begin + ahead * BK, end, p);
        commit_copies();
#pragma unroll
        for (u32 slab = at.k; slab < SLABS; slab += WARPS_K) {
            multiply(sums, base + slot * STAGE_BYTES + slab * SLAB_BYTES, at);
        }
        free_slot = slot;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();
    const Epilogue<float> tail = {bias, residual, y + u64(blockIdx.z) * p.y_stride};
    finish(sums, tail, row, column, p.rows, p.columns);
}
