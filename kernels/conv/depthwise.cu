// Depthwise convolution: y[b, p, q, c] = epilogue(sum over r, s of x[b, p * stride - padding + r * dilation,
// .., c] * w[r, s, c]).
//
// x is [B, H, W, C], w [R * S, C] with rows padded by zeros to whole chunks, y [B, P, Q, C]. A thread
// computes TILE_Q neighbouring pixels of one row, of one chunk of channels (16 bytes; one channel without
// WHOLE_CHUNKS); neighbouring threads take neighbouring chunks. It reads each column of its window once a tap
// row and adds it to every pixel that it touches; what pixels above and below share comes from L1. TILE_Q
// above 1 takes dilation 1.
//
// Each element of y costs R * S FMAs, one element written and stride^2 elements of x read: memory bounds it.
//
// Defines: STORAGE, ACTIVATION, FILTER_H, FILTER_W, STRIDE_W, TILE_Q, WHOLE_CHUNKS.
#include "common/divisor.cuh"
#include "common/epilogue.cuh"

struct Params {
    u32 threads;  // threads that have work
    u32 height, width, channels;
    u32 out_height, out_width;
    u32 tiles_q;   // tiles of a row of y
    u32 chunks;    // chunks (or channels) of a pixel
    u32 pitch;     // elements of a row of w
    i32 stride_h;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    Divisor by_chunks, by_tiles_q, by_out_height;
};

constexpr u32 COUNT = WHOLE_CHUNKS ? Lanes<storage_t>::count : 1;
constexpr int COLUMNS = (TILE_Q - 1) * STRIDE_W + FILTER_W;

__device__ inline void load(const storage_t* p, float (&x)[COUNT]) {
#if WHOLE_CHUNKS
    load_vector(p, x);
#else
    x[0] = to_f32(*p);
#endif
}

extern "C" __global__ void __launch_bounds__(128, 1)
    depthwise(const storage_t* __restrict__ x, const storage_t* __restrict__ w,
              const float* __restrict__ bias, const storage_t* __restrict__ residual,
              storage_t* __restrict__ y, const Params p) {
    const u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= p.threads) return;
    const u32 tile = thread / p.by_chunks, channel = (thread - tile * p.chunks) * COUNT;
    const u32 line = tile / p.by_tiles_q, first_q = (tile - line * p.tiles_q) * TILE_Q;
    const u32 image = line / p.by_out_height;
    const i32 first_h = i32(line - image * p.out_height) * p.stride_h - p.padding_h;
    const i32 first_w = i32(first_q) * STRIDE_W - p.padding_w;

    float sum[TILE_Q][COUNT] = {};
#pragma unroll
    for (int r = 0; r < FILTER_H; ++r) {
        const i32 h = first_h + r * p.dilation_h;
        if (u32(h) >= p.height) continue;
        const storage_t* row = x + (u64(image) * p.height + h) * p.width * p.channels + channel;
        float taps[FILTER_W][COUNT];
#pragma unroll
        for (int s = 0; s < FILTER_W; ++s) load(w + u64(r * FILTER_W + s) * p.pitch + channel, taps[s]);
#pragma unroll
        for (int i = 0; i < COLUMNS; ++i) {
            const i32 column = first_w + i * p.dilation_w;
            float v[COUNT] = {};
            if (u32(column) < p.width) load(row + u64(column) * p.channels, v);
#pragma unroll
            for (int j = 0; j < TILE_Q; ++j) {
                const int s = i - j * STRIDE_W;
                if (s < 0 || s >= FILTER_W) continue;
#pragma unroll
                for (u32 e = 0; e < COUNT; ++e) sum[j][e] = __fmaf_rn(v[e], taps[s][e], sum[j][e]);
            }
        }
    }
    const Epilogue<storage_t> epilogue{bias, residual, y};
#pragma unroll
    for (u32 j = 0; j < TILE_Q; ++j) {
        if (first_q + j >= p.out_width) break;
        const u64 at = (u64(line) * p.out_width + first_q + j) * p.channels + channel;
#if WHOLE_CHUNKS
        epilogue.store_chunk_of<ACTIVATION>(sum[j], at, channel);
#else
        epilogue.store<ACTIVATION>(sum[j][0], at, channel);
#endif
    }
}
