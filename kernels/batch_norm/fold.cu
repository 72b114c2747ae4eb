// A frozen batch norm folded into the filter before it, and the gradient of that. With
// s[k] = gamma[k] / sqrt(variance[k] + eps):
//
//   fold       y[k, i] = filter[k, i] * s[k],  bias[k] = beta[k] - mean[k] * s[k]
//   fold_grad  dfilter[k, i] = dy[k, i] * s[k],  dbeta[k] = dbias[k],
//              dgamma[k] = (sum over i of dy[k, i] * filter[k, i] - dbias[k] * mean[k])
//                          / sqrt(variance[k] + eps)
//
// A block takes a filter: its threads the terms i in turn, whose sums meet in the order of
// common/reduce.cuh. Every element is read once and written once; 1 FLOP an element, 3 of the gradient.
//
// Defines: STORAGE (of filters and their gradients). Grid: filters. Block: 256 threads.
#include "common/moments.cuh"

#define THREADS 256

struct Params {
    u32 terms;  // of a filter
    float eps;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fold(const storage_t* __restrict__ filter, const float* __restrict__ gamma,
         const float* __restrict__ beta, const float* __restrict__ mean, const float* __restrict__ variance,
         storage_t* __restrict__ y, float* __restrict__ bias, const Params p) {
    const u32 k = blockIdx.x;
    const float scale = gamma[k] * inverse_root(variance[k] + p.eps);
    const u64 first = u64(k) * p.terms;
    for (u32 i = threadIdx.x; i < p.terms; i += THREADS)
        y[first + i] = from_f32<storage_t>(to_f32(filter[first + i]) * scale);
    if (threadIdx.x == 0) bias[k] = beta[k] - mean[k] * scale;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    fold_grad(const storage_t* __restrict__ filter, const float* __restrict__ gamma,
              const float* __restrict__ mean, const float* __restrict__ variance,
              const storage_t* __restrict__ dy, const float* __restrict__ dbias,
              storage_t* __restrict__ dfilter, float* __restrict__ dgamma, float* __restrict__ dbeta,
              const Params p) {
    __shared__ float partial[WARP];
    const u32 k = blockIdx.x;
    const float inverse = inverse_root(variance[k] + p.eps), scale = gamma[k] * inverse;
    const u64 first = u64(k) * p.terms;
    float dot = 0.0f;
    for (u32 i = threadIdx.x; i < p.terms; i += THREADS) {
        const float grad = to_f32(dy[first + i]);
        dot += grad * to_f32(filter[first + i]);
        dfilter[first + i] = from_f32<storage_t>(grad * scale);
    }
    dot = block_sum(dot, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) {
        dgamma[k] = (dot - dbias[k] * mean[k]) * inverse;
        dbeta[k] = dbias[k];
    }
}
