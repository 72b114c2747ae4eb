// The end of a product whose sums were shared among blocks: y[m, n] = activation(sum over s of parts[s, m, n]
// + bias[n] + residual[m, n]), all f32.
//
// A block takes 32 neighbouring results. Each of its 8 warps adds every eighth part, the first warp adds the
// warps' sums: an order that is fixed, with eight times the reads under way. Reads the parts once, from L2,
// where they have just been written.
//
// Defines: ACTIVATION.
#include "common/epilogue.cuh"
#include "common/reduce.cuh"

#define WARPS 8

struct Params {
    u32 count;    // results
    u32 columns;  // n
    u32 parts;
};

extern "C" __global__ void __launch_bounds__(WARP* WARPS)
    sum_parts(const float* __restrict__ parts, const float* __restrict__ bias,
              const float* __restrict__ residual, float* __restrict__ y, const Params p) {
    __shared__ float sums[WARPS][WARP];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, i = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (i < p.count) {
#pragma unroll 8
        for (u32 part = warp; part < p.parts; part += WARPS) sum += parts[u64(part) * p.count + i];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || i >= p.count) return;
#pragma unroll
    for (u32 w = 1; w < WARPS; ++w) sum += sums[w][lane];
    const Epilogue<float> tail = {bias, residual, y};
    tail.store<ACTIVATION>(sum, i, i % p.columns);
}
