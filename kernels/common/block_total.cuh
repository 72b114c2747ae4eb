// Sum over a block in f64, added pairwise in shared memory, the same in every thread: for the few sums that
// are of millions of terms, or that cancel. The block is `threads` threads, a power of two.
#pragma once
#include "common/storage.cuh"

template <u32 threads> __device__ inline double block_total(double x) {
    __shared__ double sums[threads];
    __syncthreads();
    sums[threadIdx.x] = x;
    for (u32 half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}
