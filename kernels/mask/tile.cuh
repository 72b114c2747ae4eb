// Tiles of 16-bit matrices in shared memory: slabs of 64 columns, in each slab rows of 128 bytes, swizzled.
#pragma once
#include "common/async_copy.cuh"
#include "common/reduce.cuh"
#include "common/swizzle.cuh"
#include "common/vector.cuh"

// Columns of a slab.
#define SLAB 64

// Fills `slabs` slabs of `rows` rows at `to` from the matrix whose rows lie `stride` elements apart at
// `from`; zeros from row `rows_left` and column `columns_left`. The whole block of `threads` threads takes
// part. `wide`: rows are whole aligned chunks, copied by cp.async; else element by element, at once.
template <bool wide, int slabs, int rows, int threads>
__device__ inline void copy_tile(u32 to, const storage_t* from, u32 stride, u32 rows_left, u32 columns_left) {
    constexpr u32 chunks = slabs * SLAB / 8;
    static_assert(rows * chunks % threads == 0, "every thread copies as many chunks");
#pragma unroll
    for (u32 each = 0; each < rows * chunks / threads; ++each) {
        const u32 i = each * threads + threadIdx.x, row = i / chunks, column = i % chunks * 8;
        const u32 at = to + column / SLAB * (rows * 128) + swizzled<8>(row, column % SLAB / 8);
        const storage_t* source = from + u64(row) * stride + column;
        if (wide) {
            copy_async<16>(at, source, row < rows_left && column < columns_left);
            continue;
        }
        Chunk chunk = {};
        if (row < rows_left) {
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
                if (column + j < columns_left) chunk.word[j / 2] |= u32(source[j].bits) << (j % 2 * 16);
            }
        }
        store_shared_chunk(at, chunk);
    }
}
