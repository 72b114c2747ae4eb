// The norm of all gradients, and the factor that clips them to it (src/ops/gradient_norm.rs). A sum that goes
// from one launch to the next is three floats that add up to a double.
//
// sum_squares: parts[operand, block] = sum of x^2 over `share` elements of an operand, in f64: threads add
// every THREADS-th element, then pairwise. A block beyond its operand's end writes 0. join_squares: one block
// adds all parts to the sum so far, in a fixed order.
//
// Reads every gradient once; 2 FLOPs an element. Grid of sum_squares: shares of the largest operand,
// operands.
// Defines: STORAGE (of all operands).
#include "common/block_total.cuh"

#define THREADS 256
#define MOST 16

struct SquareParams {
    u32 count[MOST];  // elements of each operand
    u32 share;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    sum_squares(const storage_t* __restrict__ x0, const storage_t* __restrict__ x1,
                const storage_t* __restrict__ x2, const storage_t* __restrict__ x3,
                const storage_t* __restrict__ x4, const storage_t* __restrict__ x5,
                const storage_t* __restrict__ x6, const storage_t* __restrict__ x7,
                const storage_t* __restrict__ x8, const storage_t* __restrict__ x9,
                const storage_t* __restrict__ x10, const storage_t* __restrict__ x11,
                const storage_t* __restrict__ x12, const storage_t* __restrict__ x13,
                const storage_t* __restrict__ x14, const storage_t* __restrict__ x15,
                double* __restrict__ parts, const SquareParams p) {
    const storage_t* x = x0;
    u32 count = p.count[0];
    // Parameters are indexed by constants alone: an index known at run time would copy them all to local
    // memory.
#define OPERAND(i) \
    case i: x = x##i, count = p.count[i]; break;
    switch (blockIdx.y) {
        OPERAND(1)
        OPERAND(2)
        OPERAND(3)
        OPERAND(4)
        OPERAND(5)
        OPERAND(6)
        OPERAND(7)
        OPERAND(8)
        OPERAND(9)
        OPERAND(10)
        OPERAND(11)
        OPERAND(12)
        OPERAND(13)
        OPERAND(14)
        OPERAND(15)
    }
    const u32 end = min((blockIdx.x + 1) * p.share, count);
    double sum = 0.0;
#pragma unroll 8
    for (u32 i = blockIdx.x * p.share + threadIdx.x; i < end; i += THREADS) {
        const double value = to_f32(x[i]);
        sum += value * value;
    }
    sum = block_total<THREADS>(sum);
    if (threadIdx.x == 0) parts[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

struct JoinParams {
    u32 parts;
};

__device__ inline double joined(const float* parts) {
    return double(parts[0]) + double(parts[1]) + double(parts[2]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    join_squares(const float* __restrict__ total, const double* __restrict__ parts, float* __restrict__ y,
                 const JoinParams p) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < p.parts; i += THREADS) sum += parts[i];
    sum = block_total<THREADS>(sum);
    if (threadIdx.x > 0) return;
    sum += joined(total);
    const float high = float(sum), middle = float(sum - high);
    y[0] = high;
    y[1] = middle;
    y[2] = float(sum - high - middle);
}

// scale = min(1, clip_norm / (norm + 1e-6)) / count with norm = sqrt(total) / count; no clipping if clip_norm
// is 0. One thread.
struct ClipParams {
    double clip_norm;
};

extern "C" __global__ void __launch_bounds__(1)
    clip_scale(const float* __restrict__ total, const float* __restrict__ count, float* __restrict__ scale,
               const ClipParams p) {
    const double mean = 1.0 / double(count[0]), norm = mean * sqrt(joined(total));
    const double clip = p.clip_norm / (norm + 1e-6);
    // As `f64::min`: a norm that is not a number clips nothing, and spoils the sum that it came of.
    scale[0] = float(p.clip_norm > 0.0 ? fmin(clip, 1.0) * mean : mean);
}
