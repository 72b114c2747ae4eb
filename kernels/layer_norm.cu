// y[r, c] = activation((x[r, c] - mean_r) / sqrt(variance_r + eps) * gamma[c] + beta[c]) over rows of C channels.
//
// One warp a row. HELD > 0: the row is read once and kept in registers, HELD pieces a lane, piece i of lane l at
// (32 i + l) * PIECE; a piece is PIECE neighbouring channels, 16 bytes where rows are whole chunks, else 1. HELD = 0 serves
// rows of any length, read three times (from the caches but for the first). Mean first, then the squares of the deviations:
// no cancellation however far the mean lies from 0.
//
// Bytes: x and y once, gamma and beta from L2. About 8 operations an element. gamma and beta are f32.
// Defines: STORAGE, ACTIVATION, PIECE (1 or 16 / sizeof(storage_t)), HELD, WARPS (rows a block).
#include "common/activation.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

struct Params {
    u32 rows, channels;
    float eps;
};

__device__ inline void load_piece(const storage_t* p, float (&x)[PIECE]) {
#if PIECE == 1
    x[0] = to_f32(*p);
#else
    load_vector(p, x);
#endif
}

__device__ inline void store_piece(storage_t* p, const float (&x)[PIECE]) {
#if PIECE == 1
    *p = from_f32<storage_t>(x[0]);
#else
    store_vector(p, x);
#endif
}

__device__ inline float sum_of(const float (&x)[PIECE]) {
    float sum = x[0];
#pragma unroll
    for (int i = 1; i < PIECE; ++i) sum += x[i];
    return sum;
}

__device__ inline float squares_of(const float (&x)[PIECE], float mean) {
    float sum = (x[0] - mean) * (x[0] - mean);
#pragma unroll
    for (int i = 1; i < PIECE; ++i) sum += (x[i] - mean) * (x[i] - mean);
    return sum;
}

__device__ inline void normalise(float (&x)[PIECE], float mean, float scale, const float* gamma, const float* beta) {
#pragma unroll
    for (int i = 0; i < PIECE; ++i) x[i] = activate<ACTIVATION>((x[i] - mean) * scale * gamma[i] + beta[i]);
}

extern "C" __global__ void __launch_bounds__(WARPS * WARP)
    layer_norm(const storage_t* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
               storage_t* __restrict__ y, const Params p) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= p.rows) return;
    x += u64(row) * p.channels;
    y += u64(row) * p.channels;
    const float count = float(p.channels);
#if HELD > 0
    float held[HELD][PIECE];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) {
        const u32 c = (i * WARP + lane) * PIECE;
        if (c < p.channels) {
            load_piece(x + c, held[i]);
            sum += sum_of(held[i]);
        }
    }
    const float mean = warp_sum(sum) / count;
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) {
        if ((i * WARP + lane) * PIECE < p.channels) squares += squares_of(held[i], mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / count + p.eps);
#pragma unroll
    for (u32 i = 0; i < HELD; ++i) {
        const u32 c = (i * WARP + lane) * PIECE;
        if (c < p.channels) {
            normalise(held[i], mean, scale, gamma + c, beta + c);
            store_piece(y + c, held[i]);
        }
    }
#else
    float sum = 0.0f, squares = 0.0f;
    float piece[PIECE];
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_piece(x + c, piece);
        sum += sum_of(piece);
    }
    const float mean = warp_sum(sum) / count;
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_piece(x + c, piece);
        squares += squares_of(piece, mean);
    }
    const float scale = 1.0f / sqrtf(warp_sum(squares) / count + p.eps);
    for (u32 c = lane * PIECE; c < p.channels; c += WARP * PIECE) {
        load_piece(x + c, piece);
        normalise(piece, mean, scale, gamma + c, beta + c);
        store_piece(y + c, piece);
    }
#endif
}
