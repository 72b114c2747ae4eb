// dx[o, i, n] = y[o, i, n] * (dy[o, i, n] - sum over j of y[o, j, n] * dy[o, j, n]) for y [outer, length,
// inner], a softmax over its middle axis.
//
// Blocks have 32 x SLICES threads. softmax_grad_rows (inner = 1): a warp a line. softmax_grad_columns: a lane
// a line, neighbouring lanes on neighbouring lines, so that all accesses are coalesced; the warps of a block
// share the elements of its lines, and their sums meet in shared memory. Either reads both operands twice,
// the second time from the caches. 4 operations an element. The order of the sums depends on shapes alone.
//
// Defines: STORAGE (of y and dx), DY_TYPE.
#include "common/reduce.cuh"

#define SLICES 8

typedef Storage<DY_TYPE>::type dy_t;

struct Params {
    u32 lines, length, inner;
};

extern "C" __global__ void __launch_bounds__(WARP* SLICES)
    softmax_grad_rows(const storage_t* __restrict__ y, const dy_t* __restrict__ dy,
                      storage_t* __restrict__ dx, const Params p) {
    const u32 line = blockIdx.x * SLICES + threadIdx.y;
    if (line >= p.lines) return;
    const u64 start = u64(line) * p.length;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < p.length; i += WARP) sum += to_f32(y[start + i]) * to_f32(dy[start + i]);
    sum = warp_sum(sum);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < p.length; i += WARP)
        dx[start + i] = from_f32<storage_t>(to_f32(y[start + i]) * (to_f32(dy[start + i]) - sum));
}

extern "C" __global__ void __launch_bounds__(WARP* SLICES)
    softmax_grad_columns(const storage_t* __restrict__ y, const dy_t* __restrict__ dy,
                         storage_t* __restrict__ dx, const Params p) {
    __shared__ float sums[SLICES][WARP];
    const u32 line = blockIdx.x * WARP + threadIdx.x;
    const u64 start = u64(line / p.inner) * p.length * p.inner + line % p.inner;
    float sum = 0.0f;
    if (line < p.lines) {
#pragma unroll 4
        for (u32 i = threadIdx.y; i < p.length; i += SLICES) {
            const u64 at = start + u64(i) * p.inner;
            sum += to_f32(y[at]) * to_f32(dy[at]);
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (line >= p.lines) return;
    sum = 0.0f;
#pragma unroll
    for (u32 slice = 0; slice < SLICES; ++slice) sum += sums[slice][threadIdx.x];
#pragma unroll 4
    for (u32 i = threadIdx.y; i < p.length; i += SLICES) {
        const u64 at = start + u64(i) * p.inner;
        dx[at] = from_f32<storage_t>(to_f32(y[at]) * (to_f32(dy[at]) - sum));
    }
}
