// One head's channels of rows of objects, as rows of floats in shared memory.
//
// Rows that each lane reads one of, 16 bytes at a time, are PITCH floats apart, an odd number of 16-byte
// chunks, so that the reads have no bank conflicts. Defines: D (channels of a head), WARPS (of a block).
#pragma once
#include "common/async_copy.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

#define CHUNKS ((D + 3) / 4)
#define PADDED (4 * CHUNKS)
#define PITCH (4 * (CHUNKS | 1))
#define OWNED ((D + WARP - 1) / WARP)

// Copies `rows` rows of D floats, `stride` apart in memory and `pitch` in shared memory; zeros from row
// `take` and from column D.
__device__ inline void copy_rows(float* to, u32 pitch, const float* from, u32 stride, u32 rows, u32 take) {
    const u32 pieces = D % 4 == 0 ? CHUNKS : PADDED, width = D % 4 == 0 ? 4 : 1;
    for (u32 i = threadIdx.x; i < rows * pieces; i += WARPS * WARP) {
        const u32 row = i / pieces, column = i % pieces * width;
        const float* source = from + u64(row) * stride + column;
        copy_async<D % 4 == 0 ? 16 : 4>(shared_address(to + row * pitch + column), source,
                                        row < take && column < D);
    }
}
