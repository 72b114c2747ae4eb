// Sigmoid focal loss with gamma 2 over logits [O, K, I], and its gradient (src/ops/focal_loss.rs). With p =
// sigmoid(x) and q = 1 - p, a logit of the labelled class adds alpha q^2 (-ln p), another (1 - alpha) p^2
// (-ln q), times the weight of its object and class.
//
// focal_loss: a thread adds up every (gridDim.x * THREADS)-th logit, a block its threads' sums; they go to
// parts[blockIdx.x], which sum_rows.cu adds up. focal_loss_grad: a thread a logit. Neighbouring threads take
// neighbouring logits, whichever axis they lie along.
//
// Logits are read (and their gradients written) once, labels K times from the caches: about 30 operations a
// logit.
// Defines: STORAGE (of logits and gradients).
#include "common/divisor.cuh"
#include "common/logistic.cuh"
#include "common/reduce.cuh"

#define THREADS 256

struct Params {
    u32 count;           // logits
    u32 inner, classes;  // I and K
    Divisor by_inner, by_classes;
    u32 weight_rows;     // object o has row o % weight_rows
    float alpha;
};

// Whether logit `i` is that of its label, and its weight; `weights` may be null.
struct Place {
    bool labelled;
    float weight;

    __device__ inline Place(u32 i, const i32* labels, const float* weights, const Params& p) {
        const u32 line = i / p.by_inner, object = line / p.by_classes;
        const u32 at = i - line * p.inner, own = line - object * p.classes;
        labelled = labels[object * p.inner + at] == i32(own);
        weight = weights ? weights[object % p.weight_rows * p.classes + own] : 1.0f;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
               const float* __restrict__ weights, float* __restrict__ parts, const Params p) {
    __shared__ float partial[WARP];
    float sum = 0.0f;
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < p.count; i += gridDim.x * THREADS) {
        const Place place(i, labels, weights, p);
        const Logistic x(to_f32(logits[i]));
        const float loss = place.labelled ? p.alpha * x.q * x.q * x.log_p
                                          : (1.0f - p.alpha) * x.p * x.p * x.log_q;
        sum += place.weight * loss;
    }
    sum = block_sum(sum, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    focal_loss_grad(const storage_t* __restrict__ logits, const i32* __restrict__ labels,
                    const float* __restrict__ weights, const float* __restrict__ seed,
                    storage_t* __restrict__ dx, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.count) return;
    const Place place(i, labels, weights, p);
    const Logistic x(to_f32(logits[i]));
    const float slope = place.labelled
                            ? -p.alpha * x.q * x.q * (2.0f * x.p * x.log_p + x.q)
                            : (1.0f - p.alpha) * x.p * x.p * (2.0f * x.q * x.log_q + x.p);
    dx[i] = from_f32<storage_t>(seed[0] * place.weight * slope);
}
