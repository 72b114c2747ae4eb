// Gradient of a depthwise convolution's filter: dw[c, r, s] = sum over output pixels p of dy[p, c] * x[p
// under tap (r, s), c].
//
// A block takes LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1), one row of
// taps and `split` pixels; thread (lane, row) adds every ROWS-th pixel for all taps of the row, and the rows
// are then added pairwise (common/column_sums.cuh). Parts go to parts [splits, C, R, S], added in order by
// sum_parts.cu.
//
// 2 R S FLOPs an element of dy. dy is read R times and x R * S times, all but once from L1 and L2.
//
// Grid: tiles of vectors, R, splits. Block: LANES x ROWS threads. Defines: STORAGE, VECTOR, FILTER_W.
#include "common/column_sums.cuh"
#include "conv/gather.cuh"

extern "C" __global__ void __launch_bounds__(LANES* ROWS, 1)
    depthwise_filter_grad(const storage_t* __restrict__ x, const storage_t* __restrict__ dy,
                          float* __restrict__ parts, const Params p) {
    __shared__ ColumnSums sums;
    const u32 lane = threadIdx.x, row = threadIdx.y;
    const u32 channel = (blockIdx.x * LANES + lane) * VECTOR, r = blockIdx.y;
    const u32 begin = blockIdx.z * p.split, end = min(begin + p.split, p.pixels);
    const Column first(p, r * FILTER_W);
    float total[FILTER_W][VECTOR] = {};
    if (channel < p.channels) {
        for (u32 pixel = begin + row; pixel < end; pixel += ROWS) {
            float grad[VECTOR];
            load_elements(dy + u64(pixel) * p.channels + channel, grad);
            Column column = first;
#pragma unroll
            for (int s = 0; s < FILTER_W; ++s) {
                column.s = s;
                const i32 place = column.place(p, pixel);
                if (place < 0) continue;
                float value[VECTOR];
                load_elements(x + place + channel, value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) total[s][v] = __fmaf_rn(grad[v], value[v], total[s][v]);
            }
        }
    }
    float* part = parts + u64(blockIdx.z) * p.channels * p.columns + r * FILTER_W;
#pragma unroll
    for (int s = 0; s < FILTER_W; ++s) {
        add_rows(sums, total[s]);
        if (row == 0 && channel < p.channels) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) part[u64(channel + v) * p.columns + s] = sums[v][0][lane];
        }
        __syncthreads();
    }
}
