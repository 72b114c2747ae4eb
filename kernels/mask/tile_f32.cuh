// A tile of a product over pixels in f32 FMA, y[n, c] = sum over p of w[p, n] x[p, c]: TILE rows n by TILE
// channels c, STEP pixels at a time, in THREADS threads of 4 x 4 results each.
//
// Rows of weights are written down columns: one float more than the tile spreads them over the banks.
#pragma once
#include "common/vector.cuh"

#define TILE 64
#define STEP 32
#define THREADS 256

typedef float Weights[STEP][TILE + 1];
typedef float Features[STEP][TILE];

// A thread's first row and channel in the tile.
__device__ inline u32 own_row() { return threadIdx.x / 16 * 4; }
__device__ inline u32 own_column() { return threadIdx.x % 16 * 4; }

// The features of the pixels from `pixel` on, up to `end`, from channel `channel` of `channels` on, where `x`
// points; zeros beyond.
template <typename T>
__device__ inline void load_features(Features& features, const T* x, u32 pixel, u32 end, u32 channel,
                                     u32 channels) {
#pragma unroll
    for (u32 i = threadIdx.x; i < TILE * STEP; i += THREADS) {
        const u32 at = i / TILE, c = i % TILE;
        const bool inside = channel + c < channels && pixel + at < end;
        features[at][c] = inside ? to_f32(x[u64(pixel + at) * channels + c]) : 0.0f;
    }
}

// `weights`: rows of a step, such as Weights or Features.
template <typename Rows>
__device__ inline void multiply_step(const Rows& weights, const Features& features, float (&sums)[4][4]) {
    const u32 row = own_row(), column = own_column();
#pragma unroll 8
    for (u32 at = 0; at < STEP; ++at) {
        float b[4];
        load_vector(&features[at][column], b);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float a = weights[at][row + i];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) sums[i][j] += a * b[j];
        }
    }
}

// To y [rows, channels], the tile being at row `first` and channel `channel`.
__device__ inline void store_tile(float* y, const float (&sums)[4][4], u32 first, u32 rows, u32 channel,
                                  u32 channels) {
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 n = first + own_row() + i, c = channel + own_column() + j;
            if (n < rows && c < channels) y[u64(n) * channels + c] = sums[i][j];
        }
    }
}
