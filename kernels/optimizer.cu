// What follows the gradients, element by element: sums over several runs, AdamW, moving averages; of many
// parameters in a launch (common/items.cuh). All f32.
//
// A result takes the place of the operand that it replaces: a thread reads its elements before it writes
// them, and nobody else reads them (so those pointers are not `__restrict__`). Rates, factors and whether a
// sum goes on are read from device memory: a graph that is launched again finds them changed. So are gates: a
// number that is NaN or infinite lets all values stay as they are.
//
// A block takes SHARE elements of one item, four neighbours a thread. Every byte moves once: 28 bytes an
// element of AdamW, 12 of the others, which is what they cost. One variant.
#include "common/items.cuh"

#define THREADS 256
#define SHARE 4096

__device__ inline bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }

// A value that replaces an old one, and what it comes of.
struct Pair {
    const float *old, *x;
    float* next;
    u32 count, block;
};

template <typename F> __device__ inline void replace(const Pair* __restrict__ items, u32 count, F next) {
    const Pair pair = item_of_block(items, count);
    for_elements<THREADS, SHARE>(pair, [&](auto width, u32 at) {
        constexpr int N = decltype(width)::value;
        float value[N], x[N];
        load_elements(pair.old + at, value);
        load_elements(pair.x + at, x);
#pragma unroll
        for (int i = 0; i < N; ++i) value[i] = next(value[i], x[i]);
        store_elements(pair.next + at, value);
    });
}

// sum' = sum + x, or x where a new sum begins: keep[0] is 0.
struct SumParams {
    u32 items;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    accumulate(const Pair* __restrict__ items, const float* __restrict__ keep, const float* __restrict__ gate,
               const SumParams p) {
    const bool goes_on = keep[0] != 0.0f, open = is_finite(gate[0]);
    replace(items, p.items, [&](float sum, float x) { return !open ? sum : goes_on ? sum + x : x; });
}

// average' = average + (factor * x - average) * rate[0].
struct AverageParams {
    u32 items;
    float factor;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    moving_average(const Pair* __restrict__ items, const float* __restrict__ rate,
                   const float* __restrict__ gate, const AverageParams p) {
    const float share = rate[0];
    const bool open = is_finite(gate[0]);
    replace(items, p.items, [&](float average, float x) {
        return open ? average + (p.factor * x - average) * share : average;
    });
}

// One update of AdamW (src/ops/adamw.rs): `rates` are keep, step and root. A block says in faults[blockIdx.x]
// whether one of its elements of the parameter is not finite: 1 or 0.
struct Parameter {
    const float *value, *gradient, *first, *second;
    float *next_value, *next_first, *next_second;
    u32 count, block;
};

struct AdamWParams {
    u32 items;
    float beta1, beta2, eps;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw(const Parameter* __restrict__ items, const float* __restrict__ scale,
          const float* __restrict__ rates, float* __restrict__ faults, const AdamWParams p) {
    const Parameter parameter = item_of_block(items, p.items);
    const float keep = rates[0], step = rates[1], root = rates[2], shrink = scale[0];
    const bool open = is_finite(shrink);
    bool finite = true;
    for_elements<THREADS, SHARE>(parameter, [&](auto width, u32 at) {
        constexpr int N = decltype(width)::value;
        float value[N], g[N], m[N], v[N];
        load_elements(parameter.value + at, value);
        load_elements(parameter.gradient + at, g);
        load_elements(parameter.first + at, m);
        load_elements(parameter.second + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (open) {
                g[i] *= shrink;
                m[i] += (g[i] - m[i]) * (1.0f - p.beta1);
                v[i] = v[i] * p.beta2 + (1.0f - p.beta2) * g[i] * g[i];
                value[i] = value[i] * keep - step * (m[i] / (sqrtf(v[i]) / root + p.eps));
            }
            finite &= is_finite(value[i]);
        }
        store_elements(parameter.next_value + at, value);
        store_elements(parameter.next_first + at, m);
        store_elements(parameter.next_second + at, v);
    });
    const bool fine = __syncthreads_and(finite);
    if (threadIdx.x == 0) faults[blockIdx.x] = fine ? 0.0f : 1.0f;
}

// fault[parameter]: whether one of its blocks found one. A block a parameter, of `blocks` in all.
struct FaultParams {
    u32 items, blocks;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_faults(const Parameter* __restrict__ items, const float* __restrict__ faults,
                 float* __restrict__ fault, const FaultParams p) {
    const u32 end = blockIdx.x + 1 < p.items ? items[blockIdx.x + 1].block : p.blocks;
    bool fine = true;
    for (u32 i = items[blockIdx.x].block + threadIdx.x; i < end; i += THREADS) fine &= faults[i] == 0.0f;
    fine = __syncthreads_and(fine);
    if (threadIdx.x == 0) fault[blockIdx.x] = fine ? 0.0f : 1.0f;
}
