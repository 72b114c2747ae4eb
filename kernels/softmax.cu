// y[o, i, n] = exp(x[o, i, n] - max) / sum over i of exp(x[o, i, n] - max), for x [outer, length, inner].
//
// softmax_rows (inner = 1): a block of WARPS warps a row, the row's elements spread over its threads.
// softmax_columns: a thread a column, neighbouring threads on neighbouring columns, so that all accesses are
// coalesced. Either reads x three times, the last two from the caches, for any length: maximum, sum, result.
// About 8 operations an element. The order of the sums depends on the geometry alone.
//
// Defines: STORAGE, WARPS (of a block).
#include "common/reduce.cuh"

struct Params {
    u32 lines, length, inner;
};

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    softmax_rows(const storage_t* __restrict__ x, storage_t* __restrict__ y, const Params p) {
    __shared__ float partial[WARP];
    x += u64(blockIdx.x) * p.length;
    y += u64(blockIdx.x) * p.length;
    float max = __int_as_float(0xff800000), sum = 0.0f;
    for (u32 i = threadIdx.x; i < p.length; i += WARPS * WARP) max = fmaxf(max, to_f32(x[i]));
    max = WARPS == 1 ? warp_max(max) : block_max(max, partial, threadIdx.x, WARPS);
    for (u32 i = threadIdx.x; i < p.length; i += WARPS * WARP) sum += __expf(to_f32(x[i]) - max);
    sum = WARPS == 1 ? warp_sum(sum) : block_sum(sum, partial, threadIdx.x, WARPS);
    for (u32 i = threadIdx.x; i < p.length; i += WARPS * WARP) {
        y[i] = from_f32<storage_t>(__expf(to_f32(x[i]) - max) / sum);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    softmax_columns(const storage_t* __restrict__ x, storage_t* __restrict__ y, const Params p) {
    const u32 line = blockIdx.x * (WARPS * WARP) + threadIdx.x;
    if (line >= p.lines) return;
    const u64 start = u64(line / p.inner) * p.length * p.inner + line % p.inner;
    x += start;
    y += start;
    float max = __int_as_float(0xff800000), sum = 0.0f;
    for (u32 i = 0; i < p.length; ++i) max = fmaxf(max, to_f32(x[u64(i) * p.inner]));
    for (u32 i = 0; i < p.length; ++i) sum += __expf(to_f32(x[u64(i) * p.inner]) - max);
    for (u32 i = 0; i < p.length; ++i) {
        const u64 at = u64(i) * p.inner;
        y[at] = from_f32<storage_t>(__expf(to_f32(x[at]) - max) / sum);
    }
}
