// Binary cross-entropy and dice loss between the masks of matched objects and their targets, and their
// gradient (src/ops/mask_loss.rs). Logits [B, N, P], targets [B, G, P]; matched[b, n] is the slot of an
// object's target, negative if it has none: such an object costs nothing, and its gradient is 0.
//
// mask_loss_parts: a block takes `share` vectors of one object's pixels and leaves its four sums. mask_loss:
// one block, a thread an object, adds the parts in order, then the losses of all objects, in f64: they are
// few, and a dice loss near 0 cancels. mask_loss_grad: blocks as in mask_loss_parts, a thread a vector.
//
// Logits and targets of matched objects are read once, in chunks of 16 bytes where there are whole ones; the
// gradient of every object is written. About 30 operations a pixel.
//
// Grid of the first and the last: objects of all images, shares. Defines: STORAGE (of logits and gradients),
// TARGET, VECTOR.
#include "common/block_total.cuh"
#include "common/elements.cuh"
#include "common/logistic.cuh"
#include "common/reduce.cuh"

#define THREADS 256

typedef Storage<TARGET>::type target_t;

struct Params {
    u32 objects, slots;  // of an image
    u32 vectors;         // of an object's pixels
    u32 share;           // vectors of a block
    float eps;           // added to both sums of squares of the dice loss
};

struct alignas(16) Sums {
    float both, squares, target_squares, entropy;
};

// The operands of the block's object, at its first pixel; its vectors of this block.
struct Plane {
    const storage_t* logits;
    const target_t* target;
    u32 first, last;
    bool matched;

    __device__ inline Plane(const storage_t* all_logits, const target_t* targets, const i32* slots,
                            const Params& p) {
        const u32 object = blockIdx.x, pixels = p.vectors * VECTOR;
        const i32 slot = slots[object];
        matched = slot >= 0;
        logits = all_logits + u64(object) * pixels;
        target = targets + (u64(object / p.objects) * p.slots + (matched ? slot : 0)) * pixels;
        first = blockIdx.y * p.share;
        last = min(first + p.share, p.vectors);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    mask_loss_parts(const storage_t* __restrict__ logits, const target_t* __restrict__ targets,
                    const i32* __restrict__ matched, Sums* __restrict__ parts, const Params p) {
    __shared__ float partial[WARP];
    const Plane plane(logits, targets, matched, p);
    if (!plane.matched) return;
    Sums sums = {};
    for (u32 vector = plane.first + threadIdx.x; vector < plane.last; vector += THREADS) {
        float x[VECTOR], t[VECTOR];
        load_elements(plane.logits + u64(vector) * VECTOR, x);
        load_elements(plane.target + u64(vector) * VECTOR, t);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            const Logistic own(x[i]);
            sums.both += own.p * t[i];
            sums.squares += own.p * own.p;
            sums.target_squares += t[i] * t[i];
            // -t ln p - (1 - t) ln q, as ln p - ln q = x.
            sums.entropy += own.log_q - x[i] * t[i];
        }
    }
    sums.both = block_sum(sums.both, partial, threadIdx.x, THREADS / WARP);
    sums.squares = block_sum(sums.squares, partial, threadIdx.x, THREADS / WARP);
    sums.target_squares = block_sum(sums.target_squares, partial, threadIdx.x, THREADS / WARP);
    sums.entropy = block_sum(sums.entropy, partial, threadIdx.x, THREADS / WARP);
    if (threadIdx.x == 0) parts[u64(blockIdx.x) * gridDim.y + blockIdx.y] = sums;
}

struct TotalParams {
    u32 objects;  // of all images
    u32 parts;    // of an object
    float eps;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    mask_loss(const Sums* __restrict__ parts, const i32* __restrict__ matched, float* __restrict__ entropy,
              float* __restrict__ dice, float* __restrict__ sums, const TotalParams p) {
    double entropies = 0.0, dices = 0.0;
    for (u32 object = threadIdx.x; object < p.objects; object += THREADS) {
        double both = 0.0, squares = 0.0, target_squares = 0.0;
        if (matched[object] >= 0) {
            for (u32 i = 0; i < p.parts; ++i) {
                const Sums part = parts[u64(object) * p.parts + i];
                both += part.both;
                squares += part.squares;
                target_squares += part.target_squares;
                entropies += part.entropy;
            }
            dices += 1.0 - 2.0 * both / (squares + p.eps + target_squares + p.eps);
        }
        sums[3 * object] = float(both);
        sums[3 * object + 1] = float(squares);
        sums[3 * object + 2] = float(target_squares);
    }
    entropies = block_total<THREADS>(entropies);
    dices = block_total<THREADS>(dices);
    if (threadIdx.x > 0) return;
    entropy[0] = float(entropies);
    dice[0] = float(dices);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    mask_loss_grad(const storage_t* __restrict__ logits, const target_t* __restrict__ targets,
                   const i32* __restrict__ matched, const float* __restrict__ sums,
                   const float* __restrict__ entropy, const float* __restrict__ dice,
                   storage_t* __restrict__ dx, const Params p) {
    const Plane plane(logits, targets, matched, p);
    const float* const own = sums + 3 * blockIdx.x;
    const float both = own[0], total = own[1] + p.eps + own[2] + p.eps;
    const float of_entropy = entropy[0], of_target = -2.0f * dice[0] / total;
    const float of_square = 4.0f * dice[0] * both / (total * total);
    dx += u64(blockIdx.x) * p.vectors * VECTOR;
    for (u32 vector = plane.first + threadIdx.x; vector < plane.last; vector += THREADS) {
        float x[VECTOR] = {}, t[VECTOR];
        if (plane.matched) {
            load_elements(plane.logits + u64(vector) * VECTOR, x);
            load_elements(plane.target + u64(vector) * VECTOR, t);
#pragma unroll
            for (int i = 0; i < VECTOR; ++i) {
                const Logistic mine(x[i]);
                x[i] = of_entropy * (mine.p - t[i]) +
                       (of_target * t[i] + of_square * mine.p) * (mine.p * mine.q);
            }
        }
        store_elements(dx + u64(vector) * VECTOR, x);
    }
}
