// Which instances a photo has: scores of all (object, class) pairs, and the mask of each of the best.
//
//   instance_scores  scores[n, c] = sigmoid(class_logits[n, c]), times the quality of mask n if MASK_SCORE:
//                    the mean
//                    sigmoid of its positive logits. A block an object; -1 for pairs that do not count.
//   (top_k.cu ranks them)
//   instance_slots   instances of one object share a mask: slots[i] is its place among the distinct objects
//                    in order of first
//                    use, objects[slot] the object. One block.
//
// Bit for bit as src/image/instance.rs: the quality sums 16 lanes over runs of 4096 logits in f32, and those
// in f64 in order. Reads the class logits, and the mask logits if MASK_SCORE, once. instance_slots compares
// k^2 / 2 pairs of indices.
//
// Defines: STORAGE, MASK_SCORE. Dynamic shared memory: 2 floats a lane of a run; 1 word an instance.
#include "common/exact_sigmoid.cuh"
#include "common/storage.cuh"

#define THREADS 128
#define LANES 16
#define RUN 4096

struct ScoreParams {
    u32 classes;
    u32 proposals, things;  // only the first objects and classes count
    u32 pixels;             // of a mask
    u32 runs;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    instance_scores(const storage_t* __restrict__ mask_logits, const float* __restrict__ class_logits,
                    float* __restrict__ scores, const ScoreParams p) {
    extern __shared__ float lanes[];
    __shared__ float shared_quality;
    const u32 object = blockIdx.x, thread = threadIdx.x;
    if (MASK_SCORE) {
        const storage_t* mask = mask_logits + u64(object) * p.pixels;
        float* counts = lanes + p.runs * LANES;
        for (u32 task = thread; task < p.runs * LANES; task += THREADS) {
            const u32 start = task / LANES * RUN, end = min(start + RUN, p.pixels);
            float sum = 0.0f, count = 0.0f;
#pragma unroll 4
            for (u32 i = start + task % LANES; i < end; i += LANES) {
                const float x = to_f32(mask[i]);
                if (x > 0.0f) {
                    sum = __fadd_rn(sum, exact_sigmoid(x));
                    count += 1.0f;
                }
            }
            lanes[task] = sum;
            counts[task] = count;
        }
        __syncthreads();
        if (thread == 0) {
            double sum = 0.0, count = 0.0;
            for (u32 run = 0; run < p.runs; ++run) {
                double run_sum = 0.0;
                for (u32 lane = 0; lane < LANES; ++lane) {
                    run_sum = __dadd_rn(run_sum, double(lanes[run * LANES + lane]));
                    count = __dadd_rn(count, double(counts[run * LANES + lane]));
                }
                sum = __dadd_rn(sum, run_sum);
            }
            shared_quality = count > 0.0 ? __double2float_rn(__ddiv_rn(sum, count)) : 0.0f;
        }
        __syncthreads();
    }
    for (u32 c = thread; c < p.classes; c += THREADS) {
        const float value = exact_sigmoid(class_logits[u64(object) * p.classes + c]);
        float score = value >= 0.0f ? value : 0.0f;  // NaN is no score
        if (MASK_SCORE) score = __fmul_rn(score, shared_quality);
        scores[u64(object) * p.classes + c] = object < p.proposals && c < p.things ? score : -1.0f;
    }
}

struct SlotParams {
    u32 instances;
    u32 classes;
    float min_score;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    instance_slots(const float* __restrict__ scores, const i32* __restrict__ indices, u32* __restrict__ slots,
                   u32* __restrict__ objects, const SlotParams p) {
    // Position of the first instance of the same object; itself, if it is the first.
    extern __shared__ u32 first[];
    const u32 none = 0xffffffffu, thread = threadIdx.x;
    for (u32 i = thread; i < p.instances; i += THREADS) {
        const u32 object = u32(indices[i]) / p.classes;
        u32 j = 0;
        while (u32(indices[j]) / p.classes != object) ++j;
        // Scores fall, so what comes before an instance that counts counts too.
        first[i] = scores[i] >= 0.0f && scores[i] >= p.min_score ? j : none;
        objects[i] = none;
    }
    __syncthreads();
    for (u32 i = thread; i < p.instances; i += THREADS) {
        u32 slot = none;
        if (first[i] != none) {
            slot = 0;
            for (u32 j = 0; j < first[i]; ++j) slot += first[j] == j;
            if (first[i] == i) objects[slot] = u32(indices[i]) / p.classes;
        }
        slots[i] = slot;
    }
}
