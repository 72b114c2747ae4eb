// Sums over rows, in parts: y[part, j] = sum of x[i, j] over the rows i of a part, x being `count` elements
// in rows of `vectors` vectors, of which the last may be ragged: it belongs to the last part.
//
// A row here is one of the operator's, or as many of them, side by side, as make rows of whole chunks that
// fill a warp's loads: their columns are parts too. A block takes LANES vectors of `share` rows and adds them
// in the order of common/column_sums.cuh. sum_parts.cu adds up the parts.
//
// Reads x once; 1 FLOP an element. Grid: LANES vectors of a row, parts. Block: LANES x ROWS threads.
// Defines: STORAGE, VECTOR.
#include "common/column_sums.cuh"

struct Params {
    u32 count;
    u32 vectors;  // of a row
    u32 share;    // rows of a part
};

extern "C" __global__ void __launch_bounds__(LANES* ROWS)
    reduce_sum(const storage_t* __restrict__ x, float* __restrict__ y, const Params p) {
    __shared__ ColumnSums sums;
    const u32 lane = threadIdx.x, row = threadIdx.y, vector = blockIdx.x * LANES + lane;
    const u32 width = p.vectors * VECTOR, rows = p.count / width;
    const u32 first = blockIdx.y * p.share, last = min(first + p.share, rows);
    float total[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] = 0.0f;
    if (vector < p.vectors) {
        const storage_t* column = x + vector * VECTOR;
        add_pixels(last - first, [&](u32 i) { return column + u64(first + i) * width; }, total);
        const u32 ragged = rows * width + vector * VECTOR;
        if (row == 0 && blockIdx.y == gridDim.y - 1 && ragged < p.count) {
            float value[VECTOR];
            load_elements(x + ragged, value);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) total[v] += value[v];
        }
    }
    add_rows(sums, total);
    if (row == 0 && vector < p.vectors) {
        float out[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) out[v] = sums[v][0][lane];
        store_elements(y + u64(blockIdx.y) * width + vector * VECTOR, out);
    }
}
