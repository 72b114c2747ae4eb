// Costs of pairing objects with annotated ones (src/ops/matching_cost.rs): the end of the masks' costs, and
// those of classes. One thread a pair: some ten thousand numbers.
#include "common/logistic.cuh"

// cost[b, n, g] = -agreement (p.t + (1 - p).(1 - t)) - dice 2 p.t / (p.p + eps + t.t + eps) from the sums
// that mask/cost.cu and mask/cost_f32.cu make: p.t of all pairs, then of each object and of each slot its sum
// and its sum of squares.
struct MaskParams {
    u32 pairs, of_image;     // of all images, and of one
    u32 objects, slots;      // of an image
    u32 all_objects;         // of all images
    float pixels;            // of an image
    float agreement, dice;   // weights; that of the agreement over the pixels
    float eps;
};

extern "C" __global__ void mask_cost_of_sums(const float* __restrict__ sums, float* __restrict__ cost,
                                             const MaskParams p) {
    const u32 pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= p.pairs) return;
    const u32 object = pair / p.slots, slot = pair / p.of_image * p.slots + pair % p.slots;
    const float* const of_object = sums + p.pairs + 2 * object;
    const float* const of_slot = sums + p.pairs + 2 * (p.all_objects + slot);
    const float both = sums[pair], neither = p.pixels - of_object[0] - of_slot[0] + both;
    const float dice = 2.0f * both / (of_object[1] + p.eps + of_slot[1] + p.eps);
    cost[pair] = -p.agreement * (both + neither) - p.dice * dice;
}

// The focal cost of the class of slot g at object n of the first `objects` rows; 0 if the label is no class.
struct ClassParams {
    u32 pairs, of_image;      // of all images, and of one
    u32 rows, classes;        // of an image's logits
    u32 slots;                // of an image
    float weight;
};

// -ln(p + 1e-12), which is -ln p where 1e-12 is too little to count.
__device__ inline float bounded_log(float p, float log_p) { return p > 0.5f ? log_p : -logf(p + 1e-12f); }

extern "C" __global__ void class_cost(const float* __restrict__ logits, const i32* __restrict__ labels,
                                      float* __restrict__ cost, const ClassParams p) {
    const u32 pair = blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= p.pairs) return;
    const u32 image = pair / p.of_image, object = pair % p.of_image / p.slots, slot = pair % p.slots;
    const u32 label = u32(labels[image * p.slots + slot]);
    float result = 0.0f;
    if (label < p.classes) {
        const Logistic x(logits[u64(image * p.rows + object) * p.classes + label]);
        const float positive = 0.25f * x.q * x.q * bounded_log(x.p, x.log_p);
        result = positive - 0.75f * x.p * x.p * bounded_log(x.q, x.log_q);
    }
    cost[pair] = p.weight * result;
}
