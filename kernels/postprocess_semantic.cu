// Semantic maps: each pixel of the photo to the class of its largest logit, equal to src/image/semantic.rs.
//
//   map[y, x] = arg max over n of logit[n, y, x]    (equal: the lowest n; NaN is never larger; none: 0)
//   confidence[y, x] = 1 / sum over n of exp(logit[n, y, x] - largest), if it is asked for
//
// where logit[n] are the class logits [h, w] resized to the network's input and from there to the photo, both
// bilinear with align_corners=False. As in src/image/semantic.rs the columns of a row of logits are brought
// to the photo's first, and each resize is its own two-tap step without a contracted multiply-add.
//
// A thread has one pixel; neighbours share their 16 logits of a class in the first-level cache, and no float
// map of the photo's size exists. Reads the logits once from memory, N * h * w * sizeof(storage_t) bytes
// (tiles overlap in L2), writes 2 bytes a pixel, 6 with confidences. 45 FLOPs a pixel and class, 20 more with
// them.
//
// Defines: STORAGE.
#include "common/blend.cuh"
#include "common/exact_sigmoid.cuh"

#define TILE_W 32
#define TILE_H 8

// One direction of the chain of sizes. Scales are input / output of a step, rounded to f32.
struct Axis {
    i32 logits, padded, resized, original;
    float pad_scale, photo_scale;
};

struct Params {
    Axis vertical, horizontal;
    u32 classes;
};

// The four taps of an output row or column among those of the logits, ascending.
struct Chain {
    Blend low, high;
    float low_weight, high_weight;
};

__device__ inline Chain chain(i32 at, const Axis& axis) {
    const Blend outer = blend(at, axis.resized, axis.original, axis.photo_scale);
    return Chain{blend(outer.low, axis.logits, axis.padded, axis.pad_scale),
                 blend(outer.high, axis.logits, axis.padded, axis.pad_scale), outer.low_weight,
                 outer.high_weight};
}

// A row of logits at one column of the photo.
__device__ inline float at_column(const storage_t* row, const Chain& c) {
    const float low =
        mix(c.low.low_weight, to_f32(row[c.low.low]), c.low.high_weight, to_f32(row[c.low.high]));
    const float high =
        mix(c.high.low_weight, to_f32(row[c.high.low]), c.high.high_weight, to_f32(row[c.high.high]));
    return mix(c.low_weight, low, c.high_weight, high);
}

// The pixel of a thread; `confidence` is written if WITH_CONFIDENCE says so.
template <bool WITH_CONFIDENCE>
__device__ inline void assign(const storage_t* __restrict__ logits, u16* __restrict__ map,
                              float* __restrict__ confidence, const Params& p) {
    const i32 x = blockIdx.x * TILE_W + threadIdx.x % TILE_W, y = blockIdx.y * TILE_H + threadIdx.x / TILE_W;
    if (x >= p.horizontal.original || y >= p.vertical.original) return;
    const Chain row = chain(y, p.vertical), column = chain(x, p.horizontal);
    const u32 width = p.horizontal.logits;
    const u64 plane = u64(p.vertical.logits) * width;
    float best = -__int_as_float(0x7f800000);
    float sum = 0.0f;
    u32 label = 0;
    for (u32 n = 0; n < p.classes; ++n, logits += plane) {
        const float low = mix(row.low.low_weight, at_column(logits + u64(row.low.low) * width, column),
                              row.low.high_weight, at_column(logits + u64(row.low.high) * width, column));
        const float high = mix(row.high.low_weight, at_column(logits + u64(row.high.low) * width, column),
                               row.high.high_weight, at_column(logits + u64(row.high.high) * width, column));
        const float v = mix(row.low_weight, low, row.high_weight, high);
        const bool wins = v > best;
        if constexpr (WITH_CONFIDENCE) {
            const float exponential = exact_exp(wins ? __fsub_rn(best, v) : __fsub_rn(v, best));
            sum = wins ? __fadd_rn(__fmul_rn(sum, exponential), 1.0f) : __fadd_rn(sum, exponential);
        }
        best = wins ? v : best;
        label = wins ? n : label;
    }
    const u64 pixel = u64(y) * p.horizontal.original + x;
    map[pixel] = label;
    if constexpr (WITH_CONFIDENCE) confidence[pixel] = __fdiv_rn(1.0f, sum);
}

extern "C" __global__ void __launch_bounds__(TILE_W* TILE_H)
    semantic_assign(const storage_t* __restrict__ logits, u16* __restrict__ map, const Params p) {
    assign<false>(logits, map, nullptr, p);
}

extern "C" __global__ void __launch_bounds__(TILE_W* TILE_H)
    semantic_assign_confident(const storage_t* __restrict__ logits, u16* __restrict__ map,
                              float* __restrict__ confidence, const Params p) {
    assign<true>(logits, map, confidence, p);
}
