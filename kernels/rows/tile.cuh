// A tile of BM x BN results of a product of f32 rows: y[m, n] = sum over k of x[m, k] * w[n, k].
//
// Terms come in slabs of 32: BM rows of x, then BN rows of w, of 128 bytes each, swizzled. A block has
// WARPS_M x WARPS_N x WARPS_K warps; the WARPS_K that share a part of the tile take slabs in turn, and
// `finish` adds their sums in the order of the warps.
//
// MATH = 1: TF32 tensor cores (m16n8k8), operands rounded to nearest, f32 sums. MATH = 0: f32 throughout.
#pragma once
#include "common/async_copy.cuh"
#include "common/epilogue.cuh"
#include "common/reduce.cuh"
#include "common/warp_tile.cuh"

#define THREADS (WARP * WARPS_M * WARPS_N * WARPS_K)
#define WM (BM / WARPS_M)
#define WN (BN / WARPS_N)
#define SLAB_BYTES ((BM + BN) * 128)
// Pitch of the tile of sums: the pairs that tensor cores leave in each lane are stored without bank
// conflicts.
#define PITCH (BN + 8)
// Whether biases belong to rows, not columns.
#ifndef ROW_BIAS
#define ROW_BIAS 0
#endif

extern __shared__ __align__(128) unsigned char shared[];

#if MATH == 1
typedef WarpTile<float, WM / 16, WN / 16, 8> Sums;

__device__ inline void store_sums(const Sums& sums, float* tile, u32 lane) {
    const u32 to = shared_address(tile);
#pragma unroll
    for (int i = 0; i < WM / 16; ++i) {
        sums.for_pairs(i, lane, [=](float left, float right, u32 row, u32 column) {
            store_shared_pair(to + ((16 * i + row) * PITCH + column) * 4, left, right);
        });
    }
}
#else
typedef WarpTileF32<WM / 4, WN / 8, 8> Sums;

__device__ inline void store_sums(const Sums& sums, float* tile, u32 lane) {
    sums.for_each(lane, [=](float sum, u32 row, u32 column) { tile[row * PITCH + column] = sum; });
}
#endif

// Where a warp stands in the block.
struct Place {
    u32 m, n, k, lane;
};

__device__ inline Place place() {
    const u32 warp = threadIdx.x / WARP;
    return {warp % WARPS_M, warp / WARPS_M % WARPS_N, warp / (WARPS_M * WARPS_N), threadIdx.x % WARP};
}

// Adds the products of the slab at shared address `slab`.
__device__ inline void multiply(Sums& sums, u32 slab, const Place& at) {
    sums.multiply(slab, at.m * WM, slab, BM + at.n * WN, at.lane);
}

__device__ inline void load_sums(float (&x)[4], const float* from) {
    load_shared_floats(x, shared_address(from));
}
__device__ inline void load_sums(float (&x)[1], const float* from) { x[0] = *from; }

// Adds the warps' sums and writes the results from `row`, `column` on of the `rows` x `columns` of `tail.y`,
// `count` neighbours a thread.
template <int count>
__device__ inline void write_tile(const Epilogue<float>& tail, u32 row, u32 column, u32 rows, u32 columns) {
    const float* tile = reinterpret_cast<const float*>(shared);
#pragma unroll 2
    for (u32 i = threadIdx.x; i < BM * BN / count; i += THREADS) {
        // Where two rows are read at once, every other one: their pitch takes them to different halves of the
        // banks.
        constexpr bool two_rows = BN / count == 4;
        const u32 line = i / (BN / count), c = i % (BN / count) * count;
        const u32 r = two_rows ? line / 4 * 4 + line % 2 * 2 + line / 2 % 2 : line;
        if (row + r >= rows || column + c >= columns) continue;
        float sum[count] = {};
#pragma unroll
        for (u32 k = 0; k < WARPS_K; ++k) {
            float part[count];
            load_sums(part, tile + (k * BM + r) * PITCH + c);
#pragma unroll
            for (u32 j = 0; j < count; ++j) sum[j] += part[j];
        }
        Epilogue<float> last = tail;
        if (ROW_BIAS) {
            last.bias = nullptr;
            if (tail.bias) {
#pragma unroll
                for (u32 j = 0; j < count; ++j) sum[j] += tail.bias[row + r];
            }
        }
        const u64 at = u64(row + r) * columns + column + c;
        if constexpr (count == 4) {
            last.store_chunk_of<ACTIVATION>(sum, at, column + c);
        } else {
            last.store<ACTIVATION>(sum[0], at, column + c);
        }
    }
}

// The end of a tile. Shared memory is free for the sums: no warp multiplies and no copy is under way any
// more.
__device__ inline void finish(const Sums& sums, const Epilogue<float>& tail, u32 row, u32 column, u32 rows,
                              u32 columns) {
    const Place at = place();
    float* tile = reinterpret_cast<float*>(shared);
    store_sums(sums, tile + (at.k * BM + at.m * WM) * PITCH + at.n * WN, at.lane);
    __syncthreads();
    // Matrices of a batch begin on a multiple of `columns`, so that rows are whole chunks in all or in none.
    if (columns % 4 == 0) {
        write_tile<4>(tail, row, column, rows, columns);
    } else {
        write_tile<1>(tail, row, column, rows, columns);
    }
}
