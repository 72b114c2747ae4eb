// y[b, p, q, c] = mean of x[b, i, j, c] over the bin of rows floor(p H / P) <= i < ceil((p + 1) H / P) and
// columns floor(q W / Q) <= j < ceil((q + 1) W / Q): [B, H, W, C] to [B, P, Q, C].
//
// A block takes LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1) of one bin:
// thread (lane, row) adds the bin's pixels row, row + ROWS, .., counted along its rows; the ROWS sums, f32,
// are then added pairwise in shared memory, so that the order depends on nothing but the shape. Sums of RUN
// pixels are made first and added up after, which keeps a sum of n terms to the rounding of n / RUN.
// Reads every bin once: B H W C elements, and those that bins share again, through L2; 1 FLOP an element.
// blockIdx.x walks vectors and the bins of a row of bins, blockIdx.y rows of bins, blockIdx.z images.
//
// Defines: STORAGE, VECTOR. The block is LANES x ROWS threads.
#include "common/elements.cuh"

#define LANES 8
#define ROWS 32
#define RUN 32

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
    __shared__ float sums[VECTOR][ROWS][LANES];
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
        for (u32 from = row; from < pixels; from += ROWS * RUN) {
            const u32 to = min(pixels, from + ROWS * RUN);
            float sum[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] = 0.0f;
#pragma unroll 4
            for (u32 at = from; at < to; at += ROWS) {
                float value[VECTOR];
                load_elements(corner + (u64(i) * p.width + j) * pixel, value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sum[v] += value[v];
                i += down;
                j += across;
                if (j >= width) {
                    j -= width;
                    ++i;
                }
            }
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) total[v] += sum[v];
        }
    }
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] = total[v];
    for (u32 half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (row < half) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] += sums[v][row + half][lane];
        }
    }
    if (row == 0 && vector < p.vectors) {
        const u64 bin = (u64(blockIdx.z) * p.out_height + blockIdx.y) * p.out_width + column;
        float mean[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) mean[v] = sums[v][0][lane] / float(pixels);
        store_elements(y + bin * pixel + u64(vector) * VECTOR, mean);
    }
}
