// The norm of all gradients, and the factor that clips them to it (src/ops/gradient_norm.rs). A sum that goes
// from one launch to the next is three floats that add up to a double.
//
// sum_squares: parts[block] = sum of x^2 over SHARE elements of an operand (common/items.cuh), in f64:
// threads add every THREADS-th element, then pairwise. join_squares: one block adds all parts to the sum so
// far, in a fixed order.
//
// Reads every gradient once; 2 FLOPs an element.
// Defines: STORAGE (of all operands).
#include "common/block_total.cuh"
#include "common/items.cuh"

#define THREADS 256
#define SHARE 16384

struct Operand {
    const storage_t* x;
    u32 count, block;
};

struct SquareParams {
    u32 items;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    sum_squares(const Operand* __restrict__ items, double* __restrict__ parts, const SquareParams p) {
    const Operand operand = item_of_block(items, p.items);
    const u32 begin = (blockIdx.x - operand.block) * SHARE, end = min(begin + SHARE, operand.count);
    double sum = 0.0;
#pragma unroll 8
    for (u32 i = begin + threadIdx.x; i < end; i += THREADS) {
        const double value = to_f32(operand.x[i]);
        sum += value * value;
    }
    sum = block_total<THREADS>(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
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
// is 0; NaN if the sum of squares, or that of the losses, is not finite. One thread.
struct ClipParams {
    double clip_norm;
};

extern "C" __global__ void __launch_bounds__(1)
    clip_scale(const float* __restrict__ total, const float* __restrict__ count,
               const float* __restrict__ losses, float* __restrict__ scale, const ClipParams p) {
    const double squares = joined(total), mean = 1.0 / double(count[0]), norm = mean * sqrt(squares);
    const double clip = p.clip_norm > 0.0 ? fmin(p.clip_norm / (norm + 1e-6), 1.0) : 1.0;
    const bool finite = fabs(squares + joined(losses)) < __longlong_as_double(0x7ff0000000000000);
    scale[0] = finite ? float(clip * mean) : __int_as_float(0x7fffffff);
}
