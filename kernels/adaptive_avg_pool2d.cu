// y[b, p, q, c] = mean of x[b, i, j, c] over the bin of rows floor(p H / P) <= i < ceil((p + 1) H / P) and
// columns floor(q W / Q) <= j < ceil((q + 1) W / Q): [B, H, W, C] to [B, P, Q, C].
//
// A block takes LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1) of one bin,
// and adds its pixels, counted along the bin's rows, in the order of common/column_sums.cuh.
// Reads every bin once: B H W C elements, and those that bins share again, through L2; 1 FLOP an element.
// blockIdx.x walks vectors and the bins of a row of bins, blockIdx.y rows of bins, blockIdx.z images.
//
// Defines: STORAGE, VECTOR. The block is LANES x ROWS threads.
#include "common/column_sums.cuh"

struct Params {
    u32 height, width;  // of x
    u32 out_height, out_width;
    u32 vectors;  // of one pixel
    u32 tiles;    // of LANES vectors
};

// The first pixel of bin `index` of `count` over `input` pixels, and the one behind its last. The product of
// `count` and `input` is below 2^31.
__device__ inline u32 bin_begin(u32 input, u32 count, u32 index) { return index * input / count; }
__device__ inline u32 bin_end(u32 input, u32 count, u32 index) {
    return ((index + 1) * input + count - 1) / count;
}

extern "C" __global__ void __launch_bounds__(LANES* ROWS, 1)
    adaptive_avg_pool2d(const storage_t* __restrict__ x, storage_t* __restrict__ y, const Params p) {
    __shared__ ColumnSums sums;
    const u32 lane = threadIdx.x, row = threadIdx.y;
    const u32 column = blockIdx.x / p.tiles, vector = (blockIdx.x - column * p.tiles) * LANES + lane;
    const u32 top = bin_begin(p.height, p.out_height, blockIdx.y);
    const u32 left = bin_begin(p.width, p.out_width, column);
    const u32 width = bin_end(p.width, p.out_width, column) - left;
    const u32 pixels = (bin_end(p.height, p.out_height, blockIdx.y) - top) * width;
    const u64 pixel = u64(p.vectors) * VECTOR;
    float total[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) total[v] = 0.0f;
    if (vector < p.vectors) {
        const storage_t* corner = x + ((u64(blockIdx.z) * p.height + top) * p.width + left) * pixel;
        corner += u64(vector) * VECTOR;
        // Place in the bin, and how far the next pixel of the thread is.
        u32 i = row / width, j = row - i * width;
        const u32 down = ROWS / width, across = ROWS - down * width;
        const auto next = [&](u32) {
            const storage_t* at = corner + (u64(i) * p.width + j) * pixel;
            i += down;
            j += across;
            if (j >= width) {
                j -= width;
                ++i;
            }
            return at;
        };
        add_pixels(pixels, next, total);
    }
    add_rows(sums, total);
    if (row == 0 && vector < p.vectors) {
        const u64 bin = (u64(blockIdx.z) * p.out_height + blockIdx.y) * p.out_width + column;
        float mean[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) mean[v] = sums[v][0][lane] / float(pixels);
        store_elements(y + bin * pixel + u64(vector) * VECTOR, mean);
    }
}
