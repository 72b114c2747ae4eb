// Sigmoid focal loss with gamma 2 over logits [O, K, I], and its gradient (src/ops/focal_loss.rs). With z =
// x, or -x of the labelled class, p = sigmoid(z) and q = 1 - p, a logit adds a p^2 (-ln q), where a is 1 -
// alpha, or alpha of the labelled class, times the weight of its object and class. The slope along z is a p^2
// (2 q (-ln q) + p).
//
// A thread takes strips: VECTOR neighbours along I of `each` classes, which have the same labels.
// Neighbouring threads take neighbours along I, and so read whole lines of either type. focal_loss: a thread
// adds up every (gridDim.x * THREADS)-th strip, a block its threads' sums; they go to parts[blockIdx.x],
// which sum_rows.cu adds up. focal_loss_grad: a thread a strip.
//
// Logits are read (and their gradients written) once, labels once every `each` classes: about 35 instructions
// a logit.
// Defines: STORAGE (of logits and gradients), VECTOR (4, or 1).
#include "common/divisor.cuh"
#include "common/half_chunk.cuh"
#include "common/logistic.cuh"
#include "common/reduce.cuh"

#define THREADS 256

struct Params {
    u32 strips;
    u32 inner, classes;  // vectors along I, and K
    u32 groups, each;    // of classes, and classes of a group
    u32 weight_rows;     // object o has row o % weight_rows
    Divisor by_inner, by_groups;
    float alpha;
};

// A vector of logits, each turned so that its class is not the label's, and the factors of what they add.
struct Turned {
    float z[VECTOR], factor[VECTOR];
};

// Calls `body` with the vectors of strip `i` and where they lie; `weights` may be null. What a logit adds has
// the factor `of_label` if its class is the label's, else `of_other`, times the weight.
template <typename F>
__device__ inline void for_vectors(u32 i, const storage_t* logits, const i32* labels, const float* weights,
                                   float of_label, float of_other, const Params& p, F body) {
    const u32 line = i / p.by_inner, object = line / p.by_groups, place = i - line * p.inner;
    const u32 first = (line - object * p.groups) * p.each, end = min(first + p.each, p.classes);
    // Whole numbers, which pass through registers of floats as they are.
    float label[VECTOR];
    load_elements(reinterpret_cast<const float*>(labels) + u64(object * p.inner + place) * VECTOR, label);
    u64 at = u64((object * p.classes + first) * p.inner + place) * VECTOR;
    if (weights) weights += object % p.weight_rows * p.classes;
#pragma unroll 4
    for (u32 own = first; own < end; ++own, at += p.inner * VECTOR) {
        const float weight = weights ? weights[own] : 1.0f;
        Turned turned;
        load_elements(logits + at, turned.z);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const bool same = __float_as_uint(label[v]) == own;
            turned.z[v] = same ? -turned.z[v] : turned.z[v];
            turned.factor[v] = weight * (same ? of_label : of_other);
        }
        body(at, turned);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
               const float* __restrict__ weights, float* __restrict__ parts, const Params p) {
    __shared__ float partial[WARP];
    float sum = 0.0f;
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < p.strips; i += gridDim.x * THREADS) {
        const auto add = [&](u64, const Turned& of) {
            float own = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) {
                const Logistic x(of.z[v]);
                own += of.factor[v] * (x.p * x.p) * x.log_q;
            }
            sum += own;
        };
        for_vectors(i, logits, labels, weights, p.alpha, 1.0f - p.alpha, p, add);
    }
    sum = block_sum(sum, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss_grad(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
                    const float* __restrict__ weights, const float* __restrict__ seed,
                    storage_t* __restrict__ dx, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.strips) return;
    const auto store = [&](u64 at, const Turned& of) {
        float slope[VECTOR];
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const Logistic x(of.z[v]);
            slope[v] = of.factor[v] * (x.p * x.p) * (2.0f * x.q * x.log_q + x.p);
        }
        store_elements(dx + at, slope);
    };
    // z falls where the labelled class's logit rises.
    for_vectors(i, logits, labels, weights, -seed[0] * p.alpha, seed[0] * (1.0f - p.alpha), p, store);
}
