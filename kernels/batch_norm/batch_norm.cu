// Batch norms over maps [pixels, C], with given statistics or the batch's own (Ioffe and Szegedy 2015), and
// their gradients. With inverse = 1 / sqrt(variance + eps) and xhat = (x - mean) * inverse:
//
//   moments    parts [part, C] of mean and spread over `part_pixels` pixels, relative to the channel's first
//              element (common/column_moments.cuh)
//   combine    the parts of a channel put together by a warp: its mean, also relative, and biased variance
//   normalise  y = xhat * gamma + beta
//   sums       parts [part, C] of the sums of dy * xhat (dgamma) and of dy (dbeta), which sum_parts.cu adds
//   dx         dx = gamma * inverse * dy, and TRAIN: less what goes through the statistics,
//              gamma * inverse * (dbeta + xhat * dgamma) / pixels
//
// Sums take LANES vectors of VECTOR channels (16 bytes where rows are whole chunks, else 1) and a part of the
// pixels a block; the others a vector of a pixel a thread. Memory bounds all of them: moments and sums read
// their maps once, normalise and dx again and write one.
//
// Defines: STORAGE, VECTOR; TRAIN (of dx).
#include "common/column_moments.cuh"
#include "common/divisor.cuh"

struct Params {
    u32 pixels;
    u32 vectors;  // of a pixel
    u32 parts, part_pixels;
    float eps;
    Divisor by_vectors;
};

extern "C" __global__ void __launch_bounds__(LANES* ROWS, 1)
    moments(const storage_t* __restrict__ x, Moments* __restrict__ parts, const Params p) {
    __shared__ ColumnMoments shared;
    const u32 lane = threadIdx.x, vector = blockIdx.x * LANES + lane, channel = vector * VECTOR;
    const u64 pixel = u64(p.vectors) * VECTOR;
    const u32 start = blockIdx.y * p.part_pixels, pixels = min(p.part_pixels, p.pixels - start);
    const bool active = vector < p.vectors;
    float origin[VECTOR] = {};
    if (active) load_elements(x + channel, origin);
    const storage_t* from = x + start * pixel + channel;
    column_moments(shared, pixels, [=](u32 i) { return from + i * pixel; }, active, origin);
    if (threadIdx.y > 0 || !active) return;
#pragma unroll
    for (int v = 0; v < VECTOR; ++v)
        parts[blockIdx.y * pixel + channel + v] = Moments{shared.mean[v][0][lane], shared.m2[v][0][lane]};
}

extern "C" __global__ void __launch_bounds__(256, 1)
    combine(const storage_t* __restrict__ x, const Moments* __restrict__ parts, float* __restrict__ relative,
            float* __restrict__ mean, float* __restrict__ variance, const Params p) {
    const u32 channels = p.vectors * VECTOR;
    const u32 channel = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (channel >= channels) return;
    const auto count_of = [&](u32 part) {
        return float(min(p.part_pixels, p.pixels - part * p.part_pixels));
    };
    float weighted = 0.0f;
    for (u32 i = lane; i < p.parts; i += WARP)
        weighted += count_of(i) * parts[u64(i) * channels + channel].mean;
    const float all = __fdividef(warp_sum(weighted), float(p.pixels));
    float spread = 0.0f;
    for (u32 i = lane; i < p.parts; i += WARP) {
        const Moments part = parts[u64(i) * channels + channel];
        const float d = part.mean - all;
        spread += part.m2 + count_of(i) * d * d;
    }
    spread = warp_sum(spread);
    if (lane > 0) return;
    relative[channel] = all;
    mean[channel] = to_f32(x[channel]) + all;
    variance[channel] = __fdividef(spread, float(p.pixels));
}

// `origin`: what means are relative to, of each channel; null: to zero.
extern "C" __global__ void __launch_bounds__(256, 1)
    normalise(const storage_t* __restrict__ x, const float* __restrict__ gamma,
              const float* __restrict__ beta, const float* __restrict__ mean,
              const float* __restrict__ variance, const storage_t* __restrict__ origin,
              storage_t* __restrict__ y, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, pixel = i / p.by_vectors;
    if (pixel >= p.pixels) return;
    const u32 channel = (i - pixel * p.vectors) * VECTOR;
    float value[VECTOR], from[VECTOR] = {}, g[VECTOR], b[VECTOR], m[VECTOR], s[VECTOR];
    load_elements(x + u64(i) * VECTOR, value);
    if (origin) load_elements(origin + channel, from);
    load_elements(gamma + channel, g);
    load_elements(beta + channel, b);
    load_elements(mean + channel, m);
    load_elements(variance + channel, s);
#pragma unroll
    for (int v = 0; v < VECTOR; ++v)
        value[v] = (value[v] - from[v] - m[v]) * (inverse_root(s[v] + p.eps) * g[v]) + b[v];
    store_elements(y + u64(i) * VECTOR, value);
}

extern "C" __global__ void __launch_bounds__(LANES* ROWS, 1)
    sums(const storage_t* __restrict__ x, const float* __restrict__ mean, const float* __restrict__ variance,
         const storage_t* __restrict__ dy, float* __restrict__ dgammas, float* __restrict__ dbetas,
         const Params p) {
    __shared__ ColumnSums shared;
    const u32 lane = threadIdx.x, row = threadIdx.y, vector = blockIdx.x * LANES + lane;
    const u32 channel = vector * VECTOR;
    const u64 pixel = u64(p.vectors) * VECTOR;
    const u32 start = blockIdx.y * p.part_pixels, pixels = min(p.part_pixels, p.pixels - start);
    const bool active = vector < p.vectors;
    float dgamma[VECTOR] = {}, dbeta[VECTOR] = {};
    if (active) {
        float m[VECTOR], s[VECTOR];
        load_elements(mean + channel, m);
        load_elements(variance + channel, s);
#pragma unroll 2
        for (u32 i = row; i < pixels; i += ROWS) {
            const u64 at = (start + i) * pixel + channel;
            float value[VECTOR], grad[VECTOR];
            load_elements(x + at, value);
            load_elements(dy + at, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                dgamma[v] += grad[v] * (value[v] - m[v]);
                dbeta[v] += grad[v];
            }
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) dgamma[v] *= inverse_root(s[v] + p.eps);
    }
    const u64 part = blockIdx.y * pixel + channel;
    const auto add = [&](const float (&own)[VECTOR], float* parts) {
        add_rows(shared, own);
        if (row > 0 || !active) return;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) parts[part + v] = shared[v][0][lane];
    };
    add(dgamma, dgammas);
    __syncthreads();
    add(dbeta, dbetas);
}

extern "C" __global__ void __launch_bounds__(256, 1)
    dx(const storage_t* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ mean,
       const float* __restrict__ variance, const storage_t* __restrict__ dy, const float* __restrict__ dgamma,
       const float* __restrict__ dbeta, storage_t* __restrict__ to, const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, pixel = i / p.by_vectors;
    if (pixel >= p.pixels) return;
    const u32 channel = (i - pixel * p.vectors) * VECTOR;
    float grad[VECTOR], g[VECTOR], s[VECTOR];
    load_elements(dy + u64(i) * VECTOR, grad);
    load_elements(gamma + channel, g);
    load_elements(variance + channel, s);
#if TRAIN
    float value[VECTOR], m[VECTOR], scale[VECTOR], shift[VECTOR];
    load_elements(x + u64(i) * VECTOR, value);
    load_elements(mean + channel, m);
    load_elements(dgamma + channel, scale);
    load_elements(dbeta + channel, shift);
    const float share = 1.0f / float(p.pixels);
#endif
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const float inverse = inverse_root(s[v] + p.eps);
#if TRAIN
        grad[v] -= (shift[v] + (value[v] - m[v]) * inverse * scale[v]) * share;
#endif
        grad[v] *= g[v] * inverse;
    }
    store_elements(to + u64(i) * VECTOR, grad);
}
