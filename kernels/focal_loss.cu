// Sigmoid focal loss with gamma 2 over logits [O, K, I], and its gradient (src/ops/focal_loss.rs). With z =
// x, or -x of the labelled class, p = sigmoid(z) and q = 1 - p, a logit adds a p^2 (-ln q), where a is 1 -
// alpha, or alpha of the labelled class, times the weight of its object and class. The slope along z is a
// p^2 (2 q (-ln q) + p).
//
// focal_loss: a thread adds up every (gridDim.x * THREADS)-th vector of logits that are neighbours along I, a
// block its threads' sums; they go to parts[blockIdx.x], which sum_rows.cu adds up. focal_loss_grad: a thread
// a vector. Neighbouring threads take neighbouring vectors, whichever axis they lie along.
//
// Logits are read (and their gradients written) once, labels K times from the caches: about 30 instructions
// a logit.
// Defines: STORAGE (of logits and gradients), VECTOR (16 bytes of logits, or 1).
#include "common/divisor.cuh"
#include "common/elements.cuh"
#include "common/logistic.cuh"
#include "common/reduce.cuh"

#define THREADS 256

struct Params {
    u32 vectors;         // of logits
    u32 inner, classes;  // vectors along I, and K
    Divisor by_inner, by_classes;
    u32 weight_rows;     // object o has row o % weight_rows
    float alpha;
};

// A vector of logits, each turned so that its class is not the label's.
struct Turned {
    float z[VECTOR];
    // Weight of each in the sum.
    float weight[VECTOR];
    // Which of them were the label's, a bit each.
    u32 labelled;

    // `weights` may be null.
    __device__ inline Turned(u32 i, const storage_t* logits, const i32* labels, const float* weights,
                             const Params& p)
        : labelled(0) {
        const u32 line = i / p.by_inner, object = line / p.by_classes;
        const u32 at = i - line * p.inner, own = line - object * p.classes;
        const float common = weights ? weights[object % p.weight_rows * p.classes + own] : 1.0f;
        const float of_label = p.alpha * common, of_other = (1.0f - p.alpha) * common;
        float label[VECTOR];
        load_elements(reinterpret_cast<const float*>(labels) + u64(object * p.inner + at) * VECTOR, label);
        load_elements(logits + u64(i) * VECTOR, z);
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const bool same = __float_as_uint(label[v]) == own;
            labelled |= u32(same) << v;
            z[v] = same ? -z[v] : z[v];
            weight[v] = same ? of_label : of_other;
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
               const float* __restrict__ weights, float* __restrict__ parts, const Params p) {
    __shared__ float partial[WARP];
    float sum = 0.0f;
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < p.vectors; i += gridDim.x * THREADS) {
        const Turned own(i, logits, labels, weights, p);
        float of_vector = 0.0f;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) {
            const Logistic x(own.z[v]);
            of_vector += own.weight[v] * (x.p * x.p) * x.log_q;
        }
        sum += of_vector;
    }
    sum = block_sum(sum, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss_grad(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
                    const float* __restrict__ weights, const float* __restrict__ seed,
                    storage_t* __restrict__ dx, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.vectors) return;
    const Turned own(i, logits, labels, weights, p);
    const float upstream = seed[0];
    float slope[VECTOR];
#pragma unroll
    for (int v = 0; v < VECTOR; ++v) {
        const Logistic x(own.z[v]);
        const float along_z = upstream * own.weight[v] * (x.p * x.p) * (2.0f * x.q * x.log_q + x.p);
        slope[v] = own.labelled >> v & 1 ? -along_z : along_z;
    }
    store_elements(dx + u64(i) * VECTOR, slope);
}
