// Reductions over the lanes of a warp and the warps of a block (threads in x alone), in an order that never changes: the
// same operands give the same bits, on every lane.
#pragma once

#define WARP 32
#define ALL_LANES 0xffffffffu

// Over groups of `width` neighbouring lanes, a power of two. Every lane gets the result: lanes exchange operands in pairs,
// and a + b is b + a.
template <int width = WARP> __device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

// NaN loses against any number.
template <int width = WARP> __device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = width / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// Over a block of `warps` warps; every thread gets the result. `slots` is shared memory for one float a warp, free for the
// next call at once. All threads of the block must take part.
template <int warps> __device__ inline float block_sum(float x, float* slots) {
    x = warp_sum(x);
    if (warps == 1) return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = slots[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) sum += slots[i];
    return sum;
}

template <int warps> __device__ inline float block_max(float x, float* slots) {
    x = warp_max(x);
    if (warps == 1) return x;
    __syncthreads();
    if (threadIdx.x % WARP == 0) slots[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = slots[0];
#pragma unroll
    for (int i = 1; i < warps; ++i) max = fmaxf(max, slots[i]);
    return max;
}
