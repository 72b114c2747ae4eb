// The filters of a training step as its kernels read them, of many filters in a launch (common/items.cuh).
// With s[k] = gamma[k] / sqrt(variance[k] + eps), 1 without a norm:
//
//   straight[k, r, s, c] = filter[k, r, s, c] * s[k]
//   turned[c, R - 1 - r, S - 1 - s, k] = the same
//   bias[k] = beta[k] - mean[k] * s[k]
//
// A block takes TILE filters by TILE channels of one tap: it reads along channels by 16 bytes, and from
// shared memory writes `straight` along channels and `turned` along filters, by chunks of 8 elements:
// channels are multiples of 8, and filters are where `turned` is asked for. A number of the f32 master is
// read once and each copy is written once: 8 bytes a number of two copies in 16 bits. 1 FLOP of a norm.
//
// Defines: STORAGE (of the copies). Grid: the blocks of all filters. Block: THREADS threads.
#include "common/items.cuh"
#include "common/moments.cuh"

#define TILE 64
#define THREADS 256
#define CHUNK 8

// Operands that a filter lacks are null, and so are results that nobody asked for.
struct Filter {
    const float *filter, *gamma, *beta, *mean, *variance;
    storage_t *straight, *turned;
    float* bias;
    u32 filters, taps, channels;
    float eps;
    u32 channel_tiles, block;
};

struct PackParams {
    u32 items;
};

// Half of the lanes take the second half of what they move first: so no two of a warp ask one bank.
__device__ inline void store_four(float* to, bool second, const float (&x)[4]) {
    float *first = to + (second ? 2 : 0), *then = to + (second ? 0 : 2);
#pragma unroll
    for (int j = 0; j < 2; ++j) first[j] = second ? x[2 + j] : x[j];
#pragma unroll
    for (int j = 0; j < 2; ++j) then[j] = second ? x[j] : x[2 + j];
}
template <u32 STEP> __device__ inline void load_chunk_of(const float* from, bool second, float (&x)[CHUNK]) {
    const float *first = from + (second ? 4 : 0) * STEP, *then = from + (second ? 0 : 4) * STEP;
    float a[4], b[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = first[j * STEP];
#pragma unroll
    for (int j = 0; j < 4; ++j) b[j] = then[j * STEP];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        x[j] = second ? b[j] : a[j];
        x[4 + j] = second ? a[j] : b[j];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    pack_filters(const Filter* __restrict__ items, const PackParams p) {
    __shared__ float tile[TILE][TILE + 1];
    __shared__ float scales[TILE];
    const Filter f = item_of_block(items, p.items);
    const u32 at = blockIdx.x - f.block, line = at / f.channel_tiles, tap = line % f.taps;
    const u32 first_filter = line / f.taps * TILE, first_channel = (at - line * f.channel_tiles) * TILE;
    if (threadIdx.x < TILE) {
        const u32 k = first_filter + threadIdx.x;
        float scale = 1.0f;
        if (f.gamma && k < f.filters) {
            scale = f.gamma[k] * inverse_root(f.variance[k] + f.eps);
            if (tap == 0 && first_channel == 0) f.bias[k] = f.beta[k] - f.mean[k] * scale;
        }
        scales[threadIdx.x] = scale;
    }
    __syncthreads();
    {
        const u32 four = threadIdx.x % (TILE / 4) * 4, c = first_channel + four;
#pragma unroll
        for (u32 i = threadIdx.x / (TILE / 4); i < TILE; i += THREADS / (TILE / 4)) {
            const u32 k = first_filter + i;
            if (k >= f.filters || c >= f.channels) continue;
            float x[4];
            load_elements(f.filter + (u64(k) * f.taps + tap) * f.channels + c, x);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[j] *= scales[i];
            store_four(&tile[i][four], four >= TILE / 2, x);
        }
    }
    __syncthreads();
    const u32 chunk = threadIdx.x % (TILE / CHUNK) * CHUNK, first = threadIdx.x / (TILE / CHUNK);
    constexpr u32 lines = THREADS / (TILE / CHUNK);
    const bool second = chunk >= TILE / 2;
    float x[CHUNK];
    if (f.straight) {
#pragma unroll
        for (u32 i = first; i < TILE; i += lines) {
            const u32 k = first_filter + i, c = first_channel + chunk;
            if (k >= f.filters || c >= f.channels) continue;
            load_chunk_of<1>(&tile[i][chunk], second, x);
            store_elements(f.straight + (u64(k) * f.taps + tap) * f.channels + c, x);
        }
    }
    if (f.turned) {
#pragma unroll
        for (u32 i = first; i < TILE; i += lines) {
            const u32 c = first_channel + i, k = first_filter + chunk;
            if (c >= f.channels || k >= f.filters) continue;
            load_chunk_of<TILE + 1>(&tile[chunk][i], second, x);
            store_elements(f.turned + (u64(c) * f.taps + (f.taps - 1 - tap)) * f.filters + k, x);
        }
    }
}
