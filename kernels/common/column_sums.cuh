// Sums of vectors of VECTOR channels over pixels, in a block of LANES x ROWS threads: thread (lane, row) adds
// the pixels row, row + ROWS, .. of vector `lane`; the ROWS sums are then added pairwise in shared memory, so
// that the order depends on nothing but the number of pixels. Sums of RUN pixels are made first and added up
// after, which keeps a sum of n terms to the rounding of n / RUN.
#pragma once
#include "common/elements.cuh"

#define LANES 8
#define ROWS 32
#define RUN 32

typedef float ColumnSums[VECTOR][ROWS][LANES];

// This thread's share of N sums. `load(i, value)` gives what pixel i adds; it is asked for row, row + ROWS,
// .. below `pixels`.
template <int N, typename Load>
__device__ inline void add_values(u32 pixels, Load load, float (&total)[N]) {
    for (u32 from = threadIdx.y; from < pixels; from += ROWS * RUN) {
        const u32 to = min(pixels, from + ROWS * RUN);
        float sum[N];
#pragma unroll
        for (int v = 0; v < N; ++v) sum[v] = 0.0f;
#pragma unroll 4
        for (u32 i = from; i < to; i += ROWS) {
            float value[N];
            load(i, value);
#pragma unroll
            for (int v = 0; v < N; ++v) sum[v] += value[v];
        }
#pragma unroll
        for (int v = 0; v < N; ++v) total[v] += sum[v];
    }
}

// The same of the elements themselves: `next(i)` is where pixel i lies.
template <typename Next>
__device__ inline void add_pixels(u32 pixels, Next next, float (&total)[VECTOR]) {
    add_values(pixels, [&](u32 i, float(&value)[VECTOR]) { load_elements(next(i), value); }, total);
}

// Leaves the sums of all rows in row 0, for the threads of that row. All threads of the block take part.
__device__ inline void add_rows(ColumnSums& sums, const float (&total)[VECTOR]) {
    const u32 lane = threadIdx.x, row = threadIdx.y;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] = total[v];
    for (u32 half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (row < half) {
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sums[v][row][lane] += sums[v][row + half][lane];
        }
    }
}
