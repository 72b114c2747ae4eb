// Panoptic assignment: each pixel of the photo to the object with the largest score * mask probability, and
// the areas that decide the merge, equal to src/image/panoptic.rs.
//
//   panoptic_classify  one warp an object: score and class. A thing proposal takes its best thing class
//                      (equal: the first),
//                      the stuff object of a class only its own. Clears the areas.
//   panoptic_assign    ids[y, x] = arg max over n of scores[n] * mask[n, y, x] (equal: the lowest n; nothing
//                      above 0: 0);
//                      areas[0][n] = pixels that n wins, areas[1][n] = pixels where mask[n] >= 1/2
//
// A block of panoptic_assign keeps the best value and object of TILE_H x TILE_W pixels in registers and lets
// the objects contend one after the other (common/mask_sampler.cuh makes the probabilities). First every
// object's largest logit under the tile is found, a warp an object; an object that can neither reach 1/2 nor
// beat the tile's smallest best value, by margins that cover rounding, is passed over. Areas are integer
// sums, so their order does not matter. Reads the logits once, N * h8 * w8 * sizeof(storage_t) bytes (tiles
// overlap in L2); writes 2 bytes a pixel. About 15 FLOPs a pixel and 60 a stride-4 sample for each object
// that contends.
//
// Defines: STORAGE. Dynamic shared memory of panoptic_assign: 16 bytes a stride-4 row and column,
// probabilities, wide rows, then 4 words an object.
#include "common/mask_sampler.cuh"

#define TILE_H 16
#define TILE_ROWS (TILE_H / ROW_STEP)
#define PEEK 4

struct ClassParams {
    u32 objects, classes;
    u32 proposals, things;
};

extern "C" __global__ void panoptic_classify(const float* __restrict__ logits, float* __restrict__ scores,
                                             u32* __restrict__ labels, u32* __restrict__ areas,
                                             const ClassParams p) {
    const u32 object = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (object >= p.objects) return;
    const float* row = logits + u64(object) * p.classes;
    const bool thing = object < p.proposals;
    const u32 first = thing ? 0 : p.things + object - p.proposals;
    const u32 end = thing ? p.things : first + 1;
    float best = -1.0f;
    u32 label = 0xffffffffu;
    for (u32 c = first + lane; c < end; c += WARP) {
        const float value = exact_sigmoid(row[c]);
        const float score = value >= 0.0f ? value : 0.0f;  // NaN is no score
        if (score > best) {
            best = score;
            label = c;
        }
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(FULL_MASK, best, distance);
        const u32 other_label = __shfl_xor_sync(FULL_MASK, label, distance);
        if (other > best || (other == best && other_label < label)) {
            best = other;
            label = other_label;
        }
    }
    if (lane == 0) {
        // Without thing classes a proposal is nothing and wins no pixel.
        scores[object] = first == end ? 0.0f : best;
        labels[object] = first == end ? 0 : label;
        areas[object] = 0;
        areas[p.objects + object] = 0;
    }
}

// NaN may be any number.
__device__ inline float or_infinity(float x) { return x == x ? x : __int_as_float(0x7f800000); }

struct Params {
    Sampler sampler;
    u32 objects;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    panoptic_assign(const storage_t* __restrict__ logits, const float* __restrict__ scores,
                    u16* __restrict__ ids, u32* __restrict__ areas, const Params p) {
    extern __shared__ Blend stride4_rows[];
    __shared__ Taps row_table[TILE_H];
    __shared__ float floors[WARPS];
    Blend* stride4_columns = stride4_rows + p.sampler.wide_rows;
    float* probability = reinterpret_cast<float*>(stride4_columns + p.sampler.wide_columns);
    float* wide = probability + p.sampler.batch_rows * p.sampler.wide_columns;
    float* peaks = wide + p.sampler.wide_rows * TILE_W;
    float* all_scores = peaks + p.objects;
    u32* won = reinterpret_cast<u32*>(all_scores + p.objects);
    u32* own = won + p.objects;

    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const Direction& vertical = p.sampler.vertical;
    const Direction& horizontal = p.sampler.horizontal;
    const u64 mask_size = u64(vertical.logits) * horizontal.logits;
    const i32 x0 = blockIdx.x * TILE_W, y0 = blockIdx.y * TILE_H;
    const i32 width = min(TILE_W, horizontal.original - x0), height = min(TILE_H, vertical.original - y0);
    const Span rows = span(y0, y0 + height, vertical), columns = span(x0, x0 + width, horizontal);

    tabulate_rows(p.sampler, rows, stride4_rows);
    tabulate_columns(p.sampler, columns, stride4_columns);
    if (thread < height) row_table[thread] = row_taps(y0 + thread, vertical, rows.first);
    // Most tiles lie over at most PEEK * WARP logits, whose places are the same in every mask.
    const i32 logits_under = rows.logit_count * columns.logit_count;
    i32 place[PEEK];
#pragma unroll
    for (int k = 0; k < PEEK; ++k) {
        const i32 i = lane + k * WARP;
        place[k] =
            i < logits_under ? i / columns.logit_count * horizontal.logits + i % columns.logit_count : 0;
    }
    for (u32 object = warp; object < p.objects; object += WARPS) {
        const storage_t* window =
            logits + object * mask_size + u64(rows.logit_first) * horizontal.logits + columns.logit_first;
        float peak = -__int_as_float(0x7f800000);
#pragma unroll
        for (int k = 0; k < PEEK; ++k) peak = fmaxf(peak, or_infinity(to_f32(window[place[k]])));
        for (i32 i = lane + PEEK * WARP; i < logits_under; i += WARP) {
            const i32 at = i / columns.logit_count * horizontal.logits + i % columns.logit_count;
            peak = fmaxf(peak, or_infinity(to_f32(window[at])));
        }
        peak = warp_max(peak);
        if (lane == 0) {
            peaks[object] = exact_sigmoid(peak);
            all_scores[object] = scores[object];
            won[object] = 0;
            own[object] = 0;
        }
    }
    __syncthreads();

    const bool used = thread % TILE_W < width;
    const Taps column = taps(used ? x0 + i32(thread % TILE_W) : x0, horizontal, true);
    float best[TILE_ROWS];
    u32 id[TILE_ROWS];
#pragma unroll
    for (int k = 0; k < TILE_ROWS; ++k) {
        best[k] = 0.0f;
        id[k] = 0;
    }
    float floor = 0.0f;
    for (u32 object = 0; object < p.objects; ++object) {
        const float score = all_scores[object], peak = peaks[object];
        if (peak < 0.4999f && peak * score * 1.0001f < floor) continue;
        prepare_tile(logits + object * mask_size, p.sampler, rows, columns, column, stride4_rows,
                     stride4_columns, probability, wide);
        float lowest = __int_as_float(0x7f800000);
        u32 inside = 0;
#pragma unroll
        for (int k = 0; k < TILE_ROWS; ++k) {
            const i32 row = thread / TILE_W + k * ROW_STEP;
            if (row >= height) break;
            const float value = tile_value(row_table[row], wide + thread % TILE_W);
            inside += __popc(__ballot_sync(FULL_MASK, used && value >= 0.5f));
            const float contender = __fmul_rn(score, value);
            if (contender > best[k]) {
                best[k] = contender;
                id[k] = object;
            }
            if (used) lowest = fminf(lowest, best[k]);
        }
        if (lane == 0 && inside != 0) atomicAdd(&own[object], inside);
        lowest = -warp_max(-lowest);
        if (lane == 0) floors[warp] = lowest;
        __syncthreads();
        floor = floors[0];
#pragma unroll
        for (int w = 1; w < WARPS; ++w) floor = fminf(floor, floors[w]);
    }

#pragma unroll
    for (int k = 0; k < TILE_ROWS; ++k) {
        const i32 row = thread / TILE_W + k * ROW_STEP;
        if (row < height && used) {
            ids[u64(y0 + row) * horizontal.original + x0 + thread % TILE_W] = u16(id[k]);
            atomicAdd(&won[id[k]], 1u);
        }
    }
    __syncthreads();
    for (u32 object = thread; object < p.objects; object += THREADS) {
        if (won[object] != 0) atomicAdd(&areas[object], won[object]);
        if (own[object] != 0) atomicAdd(&areas[p.objects + object], own[object]);
    }
}
