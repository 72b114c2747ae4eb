// Sums and maxima over the lanes of a warp and the threads of a block, in an order that is fixed by the
// geometry alone.
#pragma once
#include "common/storage.cuh"

#define WARP 32
#define FULL_MASK 0xffffffffu

// The butterfly gives every lane the same bits: both partners of each exchange add the same two numbers.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(FULL_MASK, x, distance);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, distance));
    }
    return x;
}

// Sum over a block of `warps * 32` threads (up to 1024), the same in every thread. `partial` is 32 floats of
// shared memory; it may be used again at once.
__device__ inline float block_sum(float x, float* partial, u32 thread, u32 warps) {
    x = warp_sum(x);
    __syncthreads();
    if (thread % WARP == 0) partial[thread / WARP] = x;
    __syncthreads();
    return warp_sum(thread % WARP < warps ? partial[thread % WARP] : 0.0f);
}

// Maximum over a block, as `block_sum`. NaN loses against any number.
__device__ inline float block_max(float x, float* partial, u32 thread, u32 warps) {
    x = warp_max(x);
    __syncthreads();
    if (thread % WARP == 0) partial[thread / WARP] = x;
    __syncthreads();
    return warp_max(partial[thread % WARP < warps ? thread % WARP : 0]);
}
