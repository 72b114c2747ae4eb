// Mean and spread of columns over pixels, in the blocks of column_sums.cuh: a thread (lane, row) takes VECTOR
// channels of every ROWS-th pixel, relative to an origin that all pixels of a channel share (moments.cuh),
// and rows are put together pairwise, in an order that the number of pixels decides.
#pragma once
#include "common/column_sums.cuh"
#include "common/moments.cuh"

struct ColumnMoments {
    float mean[VECTOR][ROWS][LANES], m2[VECTOR][ROWS][LANES];
};

// Leaves the moments of `pixels` pixels in row 0, for all threads after the barrier that ends it. `next(i)`
// is where pixel i lies. All threads of the block take part; `active`: whether the thread's lane has
// channels.
template <typename Next>
__device__ inline void column_moments(ColumnMoments& shared, u32 pixels, Next next, bool active,
                                      const float (&origin)[VECTOR]) {
    const u32 lane = threadIdx.x, row = threadIdx.y;
    float first[VECTOR], sum[VECTOR] = {}, squares[VECTOR] = {};
    const bool any = active && row < pixels;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) first[v] = 0.0f;
    if (any) {
        load_elements(next(row), first);
#pragma unroll 4
        for (u32 i = row + ROWS; i < pixels; i += ROWS) {
            float value[VECTOR];
            load_elements(next(i), value);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const float d = value[v] - first[v];
                sum[v] += d;
                squares[v] += d * d;
            }
        }
    }
    // Pixels of row r: those of r, r + ROWS, .. below `pixels`.
    const auto count_of = [=](u32 r) { return r < pixels ? float((pixels - r + ROWS - 1) / ROWS) : 0.0f; };
    float count = count_of(row);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const Moments own = moments_of(sum[v], squares[v], any ? count : 0.0f, first[v] - origin[v]);
        shared.mean[v][row][lane] = own.mean;
        shared.m2[v][row][lane] = own.m2;
    }
    for (u32 half = ROWS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (row >= half) continue;
        // What row + half has gathered: the rows from it on, `half` apart twice over.
        float other = 0.0f;
        for (u32 r = row + half; r < ROWS; r += 2 * half) other += count_of(r);
        const float total = count + other;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const float d = shared.mean[v][row + half][lane] - shared.mean[v][row][lane];
            const float share = total > 0.0f ? __fdividef(other, total) : 0.0f;
            shared.mean[v][row][lane] += d * share;
            shared.m2[v][row][lane] += shared.m2[v][row + half][lane] + d * d * count * share;
        }
        count = total;
    }
    __syncthreads();
}
