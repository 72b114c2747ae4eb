// group_norm.cu for any number of channels and groups: elements are loaded one by one.
//
// Two launches; blockIdx.y is the group, blockIdx.z the image, blockIdx.x a part of PART elements of the
// group, numbered over its pixels and, within a pixel, its channels. group_norm_any_moments writes the
// moments of each part (common/moments.cuh) to partial[image][group][part]; every block of
// group_norm_any_apply puts the parts of its group together and normalises its own. Bytes, FLOPs and order as
// there.
//
// Defines: STORAGE, ACTIVATION.
#include "common/activation.cuh"
#include "common/moments.cuh"

#define THREADS 256
#define PART 8192

struct Params {
    u32 elements;  // of a group
    u32 channels;
    u32 groups;
    u32 width;     // channels of a group
    u32 parts;
    float eps;
};

// Where element `i` of a group lies behind the group's first.
__device__ inline u64 place(u32 i, const Params& p) { return u64(i / p.width) * p.channels + i % p.width; }

// Offset of the block's group.
__device__ inline u64 group_start(const Params& p) {
    return u64(blockIdx.z) * (p.elements / p.width) * p.channels + blockIdx.y * p.width;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    group_norm_any_moments(const storage_t* __restrict__ x, Moments* __restrict__ partial, const Params p) {
    __shared__ float sums[WARP];
    const u32 thread = threadIdx.x;
    const storage_t* group = x + group_start(p);
    const u32 start = blockIdx.x * PART, end = min(start + PART, p.elements);
    const u32 begin = start + thread;
    const float origin = to_f32(group[0]);
    const float first = begin < end ? to_f32(group[place(begin, p)]) : origin;
    float sum = 0.0f, squares = 0.0f;
    for (u32 i = begin + THREADS; i < end; i += THREADS) {
        const float d = to_f32(group[place(i, p)]) - first;
        sum += d;
        squares += d * d;
    }
    const float count = begin < end ? float((end - begin + THREADS - 1) / THREADS) : 0.0f;
    const Moments own = moments_of(sum, squares, count, first - origin);
    const float mean =
        __fdividef(block_sum(count * own.mean, sums, thread, THREADS / WARP), float(end - start));
    const float d = own.mean - mean;
    const float m2 = block_sum(own.m2 + count * d * d, sums, thread, THREADS / WARP);
    if (thread == 0) {
        partial[(u64(blockIdx.z) * p.groups + blockIdx.y) * p.parts + blockIdx.x] = Moments{mean, m2};
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    group_norm_any_apply(const storage_t* __restrict__ x, const Moments* __restrict__ partial,
                         const float* __restrict__ gamma, const float* __restrict__ beta,
                         storage_t* __restrict__ y, const Params p) {
    __shared__ float sums[WARP];
    const u32 thread = threadIdx.x;
    const Moments* parts = partial + (u64(blockIdx.z) * p.groups + blockIdx.y) * p.parts;
    const float last = float(p.elements - (p.parts - 1) * PART);
    float weighted = 0.0f;
    for (u32 i = thread; i < p.parts; i += THREADS)
        weighted += (i + 1 < p.parts ? PART : last) * parts[i].mean;
    const float mean = __fdividef(block_sum(weighted, sums, thread, THREADS / WARP), float(p.elements));
    float spread = 0.0f;
    for (u32 i = thread; i < p.parts; i += THREADS) {
        const Moments part = parts[i];
        const float d = part.mean - mean;
        spread += part.m2 + (i + 1 < p.parts ? PART : last) * d * d;
    }
    spread = block_sum(spread, sums, thread, THREADS / WARP);
    const float inverse = inverse_root(__fdividef(spread, float(p.elements)) + p.eps);

    const u64 start = group_start(p);
    const float origin = to_f32(x[start]);
    const u32 end = min((blockIdx.x + 1) * PART, p.elements);
    for (u32 i = blockIdx.x * PART + thread; i < end; i += THREADS) {
        const u64 at = start + place(i, p);
        const u32 channel = blockIdx.y * p.width + i % p.width;
        const float normalised = (to_f32(x[at]) - origin - mean) * inverse;
        y[at] = from_f32<storage_t>(activate<ACTIVATION>(normalised * gamma[channel] + beta[channel]));
    }
}
