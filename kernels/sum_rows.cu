// y[row] = sum of x[row, i] over a row of `length` elements, f32: the end of sums that many blocks made parts
// of.
//
// A block a row: each of 256 threads adds every 256th element, their sums are added pairwise. An order that
// is fixed. Reads the parts once, from L2, where they have just been written.
#include "common/reduce.cuh"

#define THREADS 256

struct Params {
    u32 length;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    sum_rows(const float* __restrict__ x, float* __restrict__ y, const Params p) {
    __shared__ float partial[WARP];
    x += u64(blockIdx.x) * p.length;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < p.length; i += THREADS) sum += x[i];
    sum = block_sum(sum, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
