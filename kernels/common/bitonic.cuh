// Sorting of 64-bit keys in shared memory, and keys that order as floats do. Nothing depends on timing.
#pragma once
#include "common/reduce.cuh"

// Unsigned integers that order as floats do: -0 below +0, NaN at the ends.
__device__ inline u32 order_of(float x) {
    const u32 bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Descending order of keys is that of the upper words, of equal ones that of indices, ascending. 0 stands for
// no element and comes last: no index reaches 2^32 - 1.
__device__ inline u64 key_of(u32 order, u32 index) { return u64(order) << 32 | ~index; }
__device__ inline u32 index_of(u64 key) { return ~u32(key); }

__device__ inline void order_pair(u64* keys, u32 low, u32 high, bool descending) {
    const u64 a = keys[low], b = keys[high];
    if ((a < b) == descending) {
        keys[low] = b;
        keys[high] = a;
    }
}

// Sorts by a bitonic network of size / 2 threads, which orders one pair a thread and step. While partners are
// at most 32 apart, a warp's pairs stay within its own 64 keys, so only steps at distances of 64 and more
// need barriers of the block around them: 20 for the 66 steps of size = 2048.
template <u32 size> __device__ inline void sort_descending(u64* keys, u32 thread) {
    __syncthreads();
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 distance = run / 2; distance > 0; distance /= 2) {
            const u32 low = thread / distance * distance * 2 + thread % distance;
            order_pair(keys, low, low + distance, (low & run) == 0);
            // A barrier of the warp is enough where neither this step nor the next leaves its keys.
            const u32 next = distance > 1 ? distance / 2 : run;
            if (distance > WARP || next > WARP) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
}
