// Non-maximum suppression (src/ops/non_max_suppression.rs), of all groups of all images at once and without
// a word to the host. Boxes suppress those of their own group alone, so the best of an image are the best of
// what is left of its groups:
//
//   rank      the candidates of a group that count, as keys in descending order of scores (of equals the
//             first), how many there are, and their largest coordinate. A block a group.
//   overlaps  a bit for each pair of ranked candidates of a group: whether the first would suppress the
//             second. Candidates by words of 64 bits; those on the diagonal and above it. A thread a word, a
//             block 64 of them.
//   sweep     takes candidates in order: one is taken unless a bit of one that was taken stands against it.
//             A warp a group, lane i holds the 64 bits against candidates 64 i .. 64 i + 63.
//   (top_k.cu merges the lists of an image's groups, where there are several)
//   gather    boxes, scores and classes of what is left, and how many. A thread a place.
//
// Boxes are moved by their group's number times (largest coordinate + 1) and intersected with the CPU's
// roundings, operation by operation: what is taken is the same. Of G groups of n candidates `overlaps` makes
// G n^2 / 2 divisions, and n^2 / 16 bytes a group, which `sweep` reads the rows of what is taken of. `sweep`
// decides 64 candidates at a time out of registers, then reads the rows of those taken all at once: what
// bounds it is n / 64 times the latency of memory, not n times.
//
// Grid: groups, images (rank, sweep); words, words, groups x images (overlaps). Block: SIZE / 2 threads
// (rank), 64 (overlaps), 32 (sweep). Shared memory: 8 SIZE bytes (rank). Defines: SIZE, a power of two from
// 64 to 2048, as many candidates as any group has.
#include "boxes/box.cuh"
#include "common/bitonic.cuh"
#include "common/divisor.cuh"

#define WORD 64

struct Group { u32 first, count; };

// Of a group of an image.
struct Ranked {
    u32 count;      // candidates that count
    float largest;  // coordinate of their boxes
};

struct Params {
    u32 boxes, candidates;  // of an image
    Divisor by_shared;      // candidates of a box
    u32 stride;             // from a candidate of a group to the next
    Divisor by_stride;
    u32 groups, room;  // room: of the candidates of a group
    u32 words;         // of a row of bits
    u32 most;          // taken of a group
    u32 listed;        // places of an image's list in the end
    u32 keep;
    float iou_threshold, score_threshold;
    u32 drop_empty;
};

// The room of this group's candidates, of those of all images.
__device__ inline u64 room_of(u32 image, u32 group, const Params& p) {
    return (u64(image) * p.groups + group) * p.room;
}

__device__ inline Box box_of(const Box* boxes, u32 image, u32 candidate, const Params& p) {
    return boxes[u64(image) * p.boxes + candidate / p.by_shared];
}

extern "C" __global__ void __launch_bounds__(SIZE / 2)
    rank(const Box* __restrict__ boxes, const float* __restrict__ scores, const i32* __restrict__ counts,
         const Group* __restrict__ groups, u64* __restrict__ sorted, Ranked* __restrict__ ranked,
         const Params p) {
    __shared__ u64 keys[SIZE];
    __shared__ float partial[WARP];
    const u32 thread = threadIdx.x, image = blockIdx.y;
    const Group group = groups[blockIdx.x];
    const u32 rows = counts ? u32(max(counts[image], 0)) : p.candidates;
    float largest = -__uint_as_float(0x7f800000u);
    u32 found = 0;
#pragma unroll
    for (u32 i = thread; i < SIZE; i += SIZE / 2) {
        u64 key = 0;
        if (i < group.count) {
            const u32 candidate = group.first + i * p.stride;
            const float score = scores[u64(image) * p.candidates + candidate];
            const Box box = box_of(boxes, image, candidate, p);
            const bool sides = !p.drop_empty || (__fsub_rn(box.right, box.left) > 0.0f &&
                                                 __fsub_rn(box.bottom, box.top) > 0.0f);
            if (score > p.score_threshold && sides && candidate / p.by_stride < rows) {
                key = key_of(order_of(score), candidate);
                largest = fmaxf(fmaxf(fmaxf(fmaxf(largest, box.left), box.top), box.right), box.bottom);
            }
        }
        keys[i] = key;
        found += __syncthreads_count(key != 0);
    }
    sort_descending<SIZE>(keys, thread);
    u64* to = sorted + room_of(image, blockIdx.x, p);
    for (u32 i = thread; i < found; i += SIZE / 2) to[i] = keys[i];
    largest = block_max(largest, partial, thread, SIZE / 2 / WARP);
    if (thread == 0) ranked[image * p.groups + blockIdx.x] = Ranked{found, largest};
}

__device__ inline float area(const Box& box) {
    return __fmul_rn(__fsub_rn(box.right, box.left), __fsub_rn(box.bottom, box.top));
}

// NaN of two boxes without area.
__device__ inline float iou(const Box& a, float area_a, const Box& b, float area_b) {
    const float width = fmaxf(__fsub_rn(fminf(a.right, b.right), fmaxf(a.left, b.left)), 0.0f);
    const float height = fmaxf(__fsub_rn(fminf(a.bottom, b.bottom), fmaxf(a.top, b.top)), 0.0f);
    const float both = __fmul_rn(width, height);
    return __fdiv_rn(both, __fsub_rn(__fadd_rn(area_a, area_b), both));
}

extern "C" __global__ void __launch_bounds__(WORD)
    overlaps(const Box* __restrict__ boxes, const u64* __restrict__ sorted,
             const Ranked* __restrict__ ranked, u64* __restrict__ bits, const Params p) {
    __shared__ Box others[WORD];
    __shared__ float areas[WORD];
    __shared__ float partial[WARP];
    const u32 thread = threadIdx.x, word = blockIdx.x, rows = blockIdx.y * WORD;
    const u32 image = blockIdx.z / p.groups, group = blockIdx.z - image * p.groups;
    const Ranked* of_image = ranked + image * p.groups;
    const u32 count = of_image[group].count, columns = word * WORD;
    if (columns < rows || columns >= count) return;
    float largest = -__uint_as_float(0x7f800000u);
    for (u32 i = thread; i < p.groups; i += WORD) largest = fmaxf(largest, of_image[i].largest);
    largest = block_max(largest, partial, thread, WORD / WARP);
    const float by = __fmul_rn(float(group), __fadd_rn(largest, 1.0f));
    const u64* keys = sorted + room_of(image, group, p);
    const auto moved = [&](u32 place) {
        const Box box = box_of(boxes, image, index_of(keys[place]), p);
        return Box{__fadd_rn(box.left, by), __fadd_rn(box.top, by), __fadd_rn(box.right, by),
                   __fadd_rn(box.bottom, by)};
    };
    const u32 own_column = columns + thread, row = rows + thread;
    if (own_column < count) {
        others[thread] = moved(own_column);
        areas[thread] = area(others[thread]);
    }
    __syncthreads();
    if (row >= count) return;
    const Box own = moved(row);
    const float own_area = area(own);
    const u32 width = min(count - columns, u32(WORD));
    u64 against = 0;
    // A candidate is held against those after it.
    for (u32 i = word == blockIdx.y ? thread + 1 : 0; i < width; ++i) {
        const bool much = iou(own, own_area, others[i], areas[i]) > p.iou_threshold;
        against |= u64(much) << i;
    }
    bits[(room_of(image, group, p) + row) * p.words + word] = against;
}

extern "C" __global__ void __launch_bounds__(WARP)
    sweep(const u64* __restrict__ sorted, const Ranked* __restrict__ ranked, const u64* __restrict__ bits,
          u64* __restrict__ list, const Params p) {
    const u32 lane = threadIdx.x, group = blockIdx.x, image = blockIdx.y;
    const u32 count = ranked[image * p.groups + group].count;
    const u64* keys = sorted + room_of(image, group, p);
    const u64* rows = bits + room_of(image, group, p) * p.words;
    u64* to = list + (u64(image) * p.groups + group) * p.most;
    u64 against = 0;
    u32 taken = 0;
    for (u32 word = 0; word * WORD < count && taken < p.most; ++word) {
        const u32 first = word * WORD, width = min(count - first, u32(WORD));
        // The bits of these candidates against each other: of two in every lane.
        const u64* own = rows + u64(first + lane) * p.words + word;
        const u64 low = lane < width ? own[0] : 0, high = lane + WARP < width ? own[WARP * p.words] : 0;
        u64 open = ~__shfl_sync(FULL_MASK, against, word) & ~0ull >> (WORD - width);
        u64 took = 0;
        for (u32 left = p.most - taken; open != 0 && left > 0; --left) {
            const u32 next = __ffsll(open) - 1;
            const u64 of_low = __shfl_sync(FULL_MASK, low, next % WARP);
            const u64 of_high = __shfl_sync(FULL_MASK, high, next % WARP);
            took |= 1ull << next;
            open &= ~(1ull << next | (next < WARP ? of_low : of_high));
        }
#pragma unroll
        for (u32 i = lane; i < WORD; i += WARP) {
            if (took >> i & 1) to[taken + __popcll(took & ((1ull << i) - 1))] = keys[first + i];
        }
        taken += __popcll(took);
        const bool after = lane > word && lane * WORD < count;
#pragma unroll 8
        for (u32 i = 0; i < WORD; ++i) {
            if (after && took >> i & 1) against |= rows[u64(first + i) * p.words + lane];
        }
    }
    for (u32 i = taken + lane; i < p.most; i += WARP) to[i] = 0;
}

// The group of a candidate: they go round by the stride, or follow each other.
__device__ inline u32 group_of(u32 candidate, const Group* groups, const Params& p) {
    if (p.stride > 1) return candidate - candidate / p.by_stride * p.stride;
    u32 group = 0;
    while (groups[group].first + groups[group].count <= candidate) ++group;
    return group;
}

extern "C" __global__ void gather(const Box* __restrict__ boxes, const float* __restrict__ scores,
                                  const Group* __restrict__ groups, const u64* __restrict__ list,
                                  Box* __restrict__ taken_boxes, float* __restrict__ taken_scores,
                                  i32* __restrict__ classes, i32* __restrict__ counts, const Params p) {
    const u32 place = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
    const auto key_at = [&](u32 at) { return at < p.listed ? list[u64(image) * p.listed + at] : 0; };
    const u64 key = key_at(place);
    if (key != 0 && key_at(place + 1) == 0) counts[image] = i32(place + 1);
    if (key == 0 && place == 0) counts[image] = 0;
    if (place >= p.keep) return;
    const u64 at = u64(image) * p.keep + place;
    const u32 candidate = index_of(key);
    taken_boxes[at] = key ? box_of(boxes, image, candidate, p) : Box{0.0f, 0.0f, 0.0f, 0.0f};
    taken_scores[at] = key ? scores[u64(image) * p.candidates + candidate] : 0.0f;
    classes[at] = key ? i32(group_of(candidate, groups, p)) : 0;
}
