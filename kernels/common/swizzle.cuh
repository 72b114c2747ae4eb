// Where the 16-byte chunks of a tile lie in shared memory.
//
// A tile has rows of `chunks` chunks (2, 4 or 8: rows of 32, 64 or 128 bytes). Shared memory serves eight
// chunks at once if they lie at eight different places modulo 128 bytes. A copy writes consecutive chunks of
// a row; `ldmatrix` and the f32 path read the same chunk of eight consecutive rows. XOR with the row's
// number, counted in lines of 128 bytes, makes both free of bank conflicts.
#pragma once
#include "common/storage.cuh"

// Byte offset of chunk `chunk` of row `row`.
template <int chunks> __device__ inline u32 swizzled(u32 row, u32 chunk) {
    static_assert(chunks == 2 || chunks == 4 || chunks == 8, "rows of 32, 64 or 128 bytes");
    return (row * chunks + (chunk ^ (row / (8 / chunks) % chunks))) * 16;
}
