// Softmax cross-entropy over logits [O, K, I] along K, and its gradient (src/ops/cross_entropy_loss.rs): a
// position (o, i) adds ln(sum of exp(x)) - x[label]; one whose label is no class is ignored.
//
// A lane a position, neighbouring lanes on neighbouring positions, so that logits of maps are read in whole
// lines; the SLICES warps of a block share the classes of its 32 positions. Each keeps a running maximum and
// the sum of exp(x - maximum), rescaled when the maximum grows (Milakov and Gimelshein 2018); they meet in
// shared memory. The loss reads logits once: blocks go from 32 positions to the next, and leave their sums in
// parts[blockIdx.x], which sum_rows.cu adds up. The gradient reads them twice, the second time from the
// caches. About 10 operations a logit.
//
// Block: 32 x SLICES threads. Defines: STORAGE (of logits and gradients).
#include "common/divisor.cuh"
#include "common/reduce.cuh"

#define SLICES 8

struct Params {
    u32 positions;
    u32 inner, classes;  // I and K
    Divisor by_inner;
};

// A sum of exponentials: sum * exp(max).
struct Total {
    float max, sum;
};

// A position's logits.
struct Position {
    u64 start;  // of class 0
    u32 inner, classes, label;
    bool counts;

    __device__ inline Position(u32 at, const i32* labels, const Params& p) {
        const u32 row = at / p.by_inner;
        start = u64(row) * p.classes * p.inner + (at - row * p.inner);
        inner = p.inner, classes = p.classes;
        label = at < p.positions ? u32(labels[at]) : classes;
        counts = label < classes;
    }

    __device__ inline u64 of(u32 own) const { return start + u64(own) * inner; }

    // The sum over all classes, in every thread of the block: all take part.
    __device__ inline Total total(const storage_t* x) const {
        // Apart, so that the lanes of a warp meet every bank once.
        __shared__ float max_of[SLICES][WARP], sum_of[SLICES][WARP];
        // Below every logit but minus infinity, which adds nothing.
        Total own = {-3.4028235e38f, 0.0f};
#pragma unroll 4
        for (u32 c = threadIdx.y; counts && c < classes; c += SLICES) {
            const float above = to_f32(x[of(c)]) - own.max, weight = __expf(-fabsf(above));
            own.sum = above > 0.0f ? own.sum * weight + 1.0f : own.sum + weight;
            own.max = above > 0.0f ? to_f32(x[of(c)]) : own.max;
        }
        __syncthreads();
        max_of[threadIdx.y][threadIdx.x] = own.max;
        sum_of[threadIdx.y][threadIdx.x] = own.sum;
        __syncthreads();
        Total all = {max_of[0][threadIdx.x], 0.0f};
#pragma unroll
        for (u32 slice = 1; slice < SLICES; ++slice) all.max = fmaxf(all.max, max_of[slice][threadIdx.x]);
#pragma unroll
        for (u32 slice = 0; slice < SLICES; ++slice)
            all.sum += sum_of[slice][threadIdx.x] * __expf(max_of[slice][threadIdx.x] - all.max);
        return all;
    }
};

extern "C" __global__ void __launch_bounds__(WARP* SLICES)
    cross_entropy_loss(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
                       float* __restrict__ parts, const Params p) {
    float sum = 0.0f;
    for (u32 first = blockIdx.x * WARP; first < p.positions; first += gridDim.x * WARP) {
        const Position position(first + threadIdx.x, labels, p);
        const Total total = position.total(logits);
        if (threadIdx.y == 0 && position.counts)
            sum += total.max - to_f32(logits[position.of(position.label)]) + logf(total.sum);
    }
    if (threadIdx.y > 0) return;
    sum = warp_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(WARP* SLICES)
    cross_entropy_loss_grad(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
                            const float* __restrict__ seed, storage_t* __restrict__ dx, const Params p) {
    const u32 at = blockIdx.x * WARP + threadIdx.x;
    const Position position(at, labels, p);
    const Total total = position.total(logits);
    if (at >= p.positions) return;
    const float factor = seed[0], scale = position.counts ? factor / total.sum : 0.0f;
#pragma unroll 4
    for (u32 c = threadIdx.y; c < p.classes; c += SLICES) {
        const float x = position.counts ? scale * __expf(to_f32(logits[position.of(c)]) - total.max) : 0.0f;
        dx[position.of(c)] = from_f32<storage_t>(c == position.label ? x - factor : x);
    }
}
