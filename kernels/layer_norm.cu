// y[r, c] = activation((x[r, c] - mean_r) / sqrt(variance_r + eps) * gamma[c] + beta[c]) over rows of C
// channels.
//
// One warp a row. HELD > 0: the row is read once and kept in registers, HELD pieces a lane, piece i of lane l
// at (32 i + l) * PIECE; a piece is PIECE neighbouring channels, 16 bytes where rows are whole chunks, else
// 1. HELD = 0 serves rows of any length, read three times (from the caches but for the first). Mean first,
// then sums over the deviations from it (rows/standardise.cuh): no cancellation however far the mean lies
// from 0.
//
// Bytes: x and y once, gamma and beta from L2. About 8 operations an element. gamma and beta are f32.
// Defines: STORAGE, ACTIVATION, PIECE (1 or 16 / sizeof(storage_t)), HELD, WARPS (rows a block).
#include "common/activation.cuh"
#include "common/elements.cuh"
#include "rows/standardise.cuh"

struct Params {
    u32 rows, channels;
    float eps;
};

__device__ inline void scale_and_shift(float (&x)[PIECE], const float* gamma, const float* beta) {
    float scale[PIECE], shift[PIECE];
    load_elements(gamma, scale);
    load_elements(beta, shift);
#pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = activate<ACTIVATION>(x[i] * scale[i] + shift[i]);
}

extern "C" __global__ void __launch_bounds__(WARPS* WARP, 1)
    layer_norm(const storage_t* __restrict__ x, const float* __restrict__ gamma,
               const float* __restrict__ beta, storage_t* __restrict__ y, const Params p) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= p.rows) return;
    x += u64(row) * p.channels;
    y += u64(row) * p.channels;
#if HELD > 0
    float held[HELD][PIECE] = {};
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) {
        const u32 c = (i * WARP + lane) * PIECE;
        if (c < p.channels) load_elements(x + c, held[i]);
    }
    standardise(held, p.channels, p.eps);
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) {
        const u32 c = (i * WARP + lane) * PIECE;
        if (c < p.channels) {
            scale_and_shift(held[i], gamma + c, beta + c);
            store_elements(y + c, held[i]);
        }
    }
#else
    const float count = float(p.channels);
    float sum = 0.0f, deviations = 0.0f, squares = 0.0f;
    float piece[PIECE];
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_elements(x + c, piece);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) sum += piece[i];
    }
    const float mean = warp_sum(sum) / count;
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_elements(x + c, piece);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) {
            deviations += piece[i] - mean;
            squares += (piece[i] - mean) * (piece[i] - mean);
        }
    }
    const Standard standard(mean, warp_sum(deviations), warp_sum(squares), count, p.eps);
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_elements(x + c, piece);
#pragma unroll
        for (int i = 0; i < PIECE; ++i) piece[i] = standard.of(piece[i]);
        scale_and_shift(piece, gamma + c, beta + c);
        store_elements(y + c, piece);
    }
#endif
}
