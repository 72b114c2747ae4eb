// What follows the gradients, element by element: sums over several runs, AdamW, moving averages. All f32.
//
// A result takes the place of the operand that it replaces: a thread reads its elements before it writes
// them, and nobody else reads them (so those pointers are not `__restrict__`). Rates, factors and whether a
// sum goes on are read from device memory: a graph that is launched again finds them changed.
//
// One thread VECTOR elements at a time (4 where there are whole chunks, else 1). Every byte moves once: 28
// bytes an element of AdamW, 12 of the others, which is what they cost.
//
// Defines: VECTOR.
#include "common/elements.cuh"

#define THREADS 256

// sum' = sum + x, or x where a new sum begins: keep[0] is 0.
struct SumParams {
    u32 vectors;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    accumulate(const float* sum, const float* __restrict__ x, const float* __restrict__ keep, float* next,
               const SumParams p) {
    const u32 vector = blockIdx.x * THREADS + threadIdx.x;
    if (vector >= p.vectors) return;
    const bool goes_on = keep[0] != 0.0f;
    float old[VECTOR], value[VECTOR];
    load_elements(sum + u64(vector) * VECTOR, old);
    load_elements(x + u64(vector) * VECTOR, value);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) value[i] = goes_on ? old[i] + value[i] : value[i];
    store_elements(next + u64(vector) * VECTOR, value);
}

// average' = average + (factor * x - average) * rate[0].
struct AverageParams {
    u32 vectors;
    float factor;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    moving_average(const float* average, const float* __restrict__ x, const float* __restrict__ rate,
                   float* next, const AverageParams p) {
    const u32 vector = blockIdx.x * THREADS + threadIdx.x;
    if (vector >= p.vectors) return;
    float value[VECTOR], other[VECTOR];
    load_elements(average + u64(vector) * VECTOR, value);
    load_elements(x + u64(vector) * VECTOR, other);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) value[i] += (p.factor * other[i] - value[i]) * rate[0];
    store_elements(next + u64(vector) * VECTOR, value);
}

// One update of AdamW (src/ops/adamw.rs): `rates` are keep, step and root. A block takes `share` vectors, and
// says in fault[blockIdx.x] whether one of its parameters is not finite any more: 1 or 0.
struct AdamWParams {
    u32 vectors, share;
    float beta1, beta2, eps;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const float* parameter, const float* __restrict__ gradient, const float* first,
          const float* second, const float* __restrict__ scale, const float* __restrict__ rates,
          float* next_parameter, float* next_first, float* next_second, float* __restrict__ fault,
          const AdamWParams p) {
    const u32 end = min((blockIdx.x + 1) * p.share, p.vectors);
    const float keep = rates[0], step = rates[1], root = rates[2], shrink = scale[0];
    bool finite = true;
    for (u32 vector = blockIdx.x * p.share + threadIdx.x; vector < end; vector += THREADS) {
        const u64 at = u64(vector) * VECTOR;
        float value[VECTOR], g[VECTOR], m[VECTOR], v[VECTOR];
        load_elements(parameter + at, value);
        load_elements(gradient + at, g);
        load_elements(first + at, m);
        load_elements(second + at, v);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            g[i] *= shrink;
            m[i] += (g[i] - m[i]) * (1.0f - p.beta1);
            v[i] = v[i] * p.beta2 + (1.0f - p.beta2) * g[i] * g[i];
            value[i] = value[i] * keep - step * (m[i] / (sqrtf(v[i]) / root + p.eps));
            finite &= fabsf(value[i]) < __int_as_float(0x7f800000);
        }
        store_elements(next_parameter + at, value);
        store_elements(next_first + at, m);
        store_elements(next_second + at, v);
    }
    const bool fine = __syncthreads_and(finite);
    if (threadIdx.x == 0) fault[blockIdx.x] = fine ? 0.0f : 1.0f;
}

// The faults of all blocks as one, by one block.
struct FaultParams {
    u32 blocks;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_fault(const float* __restrict__ faults, float* __restrict__ fault, const FaultParams p) {
    bool fine = true;
    for (u32 i = threadIdx.x; i < p.blocks; i += THREADS) fine &= faults[i] == 0.0f;
    fine = __syncthreads_and(fine);
    if (threadIdx.x == 0) fault[0] = fine ? 0.0f : 1.0f;
}
