// Products of few rows: y[m, n] = activation(sum over k of x[m, k] * w[n, k] + bias + residual[m, n]), all f32 in memory.
//
// M is the number of objects (12 to 153), N and K are 80 to 2048: too little work for large tiles, so the aim is to have all
// of a block's operands in flight at once and every multiprocessor busy. A block computes BM x BN results with WARPS_M x
// WARPS_N x WARPS_K warps: WARPS_K of them share each part of the tile, every one takes its own slabs of K, and their sums are
// added in shared memory in the order of the warps. With PARTIAL, blocks also share K (`split` terms each) and write raw sums
// [split, M, N], which `linear_sum` adds in order.
//
// K passes through shared memory in STAGES stages of SLABS slabs of 32 terms. A slab holds BM rows of x and BN rows of w of
// 128 bytes, swizzled (common/swizzle.cuh), copied by cp.async with zeros beyond M, N and K. COPY = 4: rows are whole 16-byte
// chunks; COPY = 1: any K, 4 bytes a copy.
//
// MATH = 1: TF32 tensor cores (m16n8k8), operands rounded to nearest, f32 sums. MATH = 0: f32 throughout, 8 x 4 lanes with
// interleaved rows and columns, so that 16-byte reads of shared memory have no bank conflicts.
//
// The same kernel serves several matrices of a batch (grid z, STRIDED) and, for per-object masks in f32, a bias per row.
// 2 M N K FLOPs; x is read N / BN times and w M / BM times, from L2.
//
// Grid: column tiles, row tiles, batch or splits. Block: 32 * WARPS_M * WARPS_N * WARPS_K threads.
// Shared memory: STAGES * SLABS * (BM + BN) * 128 bytes.
// Defines: MATH, COPY, BM, BN, SLABS, STAGES, WARPS_M, WARPS_N, WARPS_K, PARTIAL, ROW_BIAS, ACTIVATION.
#include "common/async_copy.cuh"
#include "common/epilogue.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"

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
struct Sums {
    float at[WM / 16][WN / 8][4];

    // Adds the products of one slab. `rows` and `columns` are shared addresses of the warp's first rows of x and w.
    __device__ inline void multiply(u32 rows, u32 columns, u32 lane) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
            u32 a[WM / 16][4];
#pragma unroll
            for (u32 m = 0; m < WM / 16; ++m) {
                load_matrices(a[m], rows + swizzled<8>(16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
                for (u32 i = 0; i < 4; ++i) a[m][i] = to_tf32(a[m][i]);
            }
#pragma unroll
            for (u32 n = 0; n < WN / 8; n += 2) {
                u32 b[4];
                load_matrices(b, columns + swizzled<8>(8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
                for (u32 i = 0; i < 4; ++i) b[i] = to_tf32(b[i]);
#pragma unroll
                for (u32 m = 0; m < WM / 16; ++m) {
                    Mma<float>::multiply(at[m][n], a[m], b[0], b[1]);
                    Mma<float>::multiply(at[m][n + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    __device__ inline void store(float* tile, u32 lane) const {
#pragma unroll
        for (u32 m = 0; m < WM / 16; ++m) {
#pragma unroll
            for (u32 n = 0; n < WN / 8; ++n) {
                float* to = tile + (16 * m + lane / 4) * PITCH + 8 * n + lane % 4 * 2;
                *reinterpret_cast<float2*>(to) = make_float2(at[m][n][0], at[m][n][1]);
                *reinterpret_cast<float2*>(to + 8 * PITCH) = make_float2(at[m][n][2], at[m][n][3]);
            }
        }
    }
};
#else
struct Sums {
    float at[WM / 8][WN / 4];

    __device__ inline void multiply(u32 rows, u32 columns, u32 lane) {
        const unsigned char* x = shared + (rows - shared_address(shared));
        const unsigned char* w = shared + (columns - shared_address(shared));
#pragma unroll 2
        for (u32 chunk = 0; chunk < 8; ++chunk) {
            float a[WM / 8][4], b[WN / 4][4];
#pragma unroll
            for (u32 m = 0; m < WM / 8; ++m) {
                load_vector(reinterpret_cast<const float*>(x + swizzled<8>(8 * m + lane / 4, chunk)), a[m]);
            }
#pragma unroll
            for (u32 n = 0; n < WN / 4; ++n) {
                load_vector(reinterpret_cast<const float*>(w + swizzled<8>(4 * n + lane % 4, chunk)), b[n]);
            }
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                for (u32 m = 0; m < WM / 8; ++m) {
#pragma unroll
                    for (u32 n = 0; n < WN / 4; ++n) at[m][n] += a[m][i] * b[n][i];
                }
            }
        }
    }

    __device__ inline void store(float* tile, u32 lane) const {
#pragma unroll
        for (u32 m = 0; m < WM / 8; ++m) {
#pragma unroll
            for (u32 n = 0; n < WN / 4; ++n) tile[(8 * m + lane / 4) * PITCH + 4 * n + lane % 4] = at[m][n];
        }
    }
};
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
    Sums sums = {};
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
            sums.multiply(at + warp_m * WM * 128, at + (BM + warp_n * WN) * 128, lane);
        }
        free_slot = slot;
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    wait_copies<0>();
    __syncthreads();
    float* tile = reinterpret_cast<float*>(shared);
    sums.store(tile + (warp_k * BM + warp_m * WM) * PITCH + warp_n * WN, lane);
    __syncthreads();
    const Epilogue<float> tail = {bias, residual, y};
    const u64 out = u64(blockIdx.z) * p.y_stride;
    if (p.columns % 4 == 0 && p.y_stride % 4 == 0) {
        finish<4>(tile, row, column, out, tail, p);
    } else {
        finish<1>(tile, row, column, out, tail, p);
    }
}

struct SumParams {
    u32 count;  // results
    u32 columns;
    u32 splits;
};

// y = the tail of the sum of `splits` partial products [splits, M, N]; a thread an element.
extern "C" __global__ void __launch_bounds__(256)
    linear_sum(const float* __restrict__ partial, const float* __restrict__ bias, const float* __restrict__ residual,
               float* __restrict__ y, const SumParams p) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= p.count) return;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 split = 0; split < p.splits; ++split) sum += partial[u64(split) * p.count + i];
    const Epilogue<float> tail = {bias, residual, y};
    tail.store<ACTIVATION>(sum, i, i % p.columns);
}
