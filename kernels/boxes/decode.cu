// Boxes out of what a network says of anchors or of other boxes (src/ops/decode_boxes.rs), one thread a box:
//
//   decode_anchors  y[b, n] is anchor indices[b, n] of a level, moved by the anchor's deltas
//   decode_boxes    y[b, n K + k] is box n, moved by its deltas of class k times the standard deviations
//   scale_boxes     y[b, n] is box n divided, or multiplied, by how much the photo was enlarged
//
// Along an axis a box from `low` to `high` is moved by a shift and the logarithm of its growth:
//
//   centre = (low + high) / 2 + (high - low) * shift,   half = (high - low) * exp(growth) / 2
//
// and clipped to the image; NaN stays. Every operation rounds by itself, as on the CPU: what boxes overlap is
// decided of these very coordinates. 16 bytes of deltas or of boxes are read for 16 bytes of a box that are
// written, and some 30 FLOPs made of them.
//
// Defines: STORAGE (of the deltas).
#include "boxes/box.cuh"
#include "common/divisor.cuh"

struct Ends { float low, high; };

__device__ inline float clip(float at, float bound) {
    if (at < 0.0f) return 0.0f;
    return at > bound ? fmaxf(bound, 0.0f) : at;
}

__device__ inline Ends moved(float low, float high, float shift, float growth, float most, float bound) {
    growth = growth < -most ? -most : growth;
    growth = growth > most ? most : growth;
    const float side = __fsub_rn(high, low);
    const float centre = __fadd_rn(__fmul_rn(__fadd_rn(low, high), 0.5f), __fmul_rn(side, shift));
    const float half = __fmul_rn(__fmul_rn(side, expf(growth)), 0.5f);
    return Ends{clip(__fsub_rn(centre, half), bound), clip(__fadd_rn(centre, half), bound)};
}

// `most`: logarithm of the largest growth.
__device__ inline Box moved(const Box& from, const float (&by)[4], float most, const Photo& photo) {
    const Ends h = moved(from.left, from.right, by[0], by[2], most, photo.width);
    const Ends v = moved(from.top, from.bottom, by[1], by[3], most, photo.height);
    return Box{h.low, v.low, h.high, v.high};
}

struct AnchorParams {
    u32 boxes;         // of all images
    Divisor by_count;  // boxes of an image
    Divisor by_width;  // pixels of a row of the level
    u32 width;
    u32 anchors;  // of an image
    u32 stride;
    float half_sides[3][2];  // of the anchors of a pixel: half the width and half the height
    float most_growth;
};

extern "C" __global__ void decode_anchors(const storage_t* __restrict__ deltas,
                                          const i32* __restrict__ indices, const Photo* __restrict__ photos,
                                          Box* __restrict__ y, const AnchorParams p) {
    const u32 place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= p.boxes) return;
    const u32 image = place / p.by_count;
    // An index is one of an anchor: whoever made it took it from a list of as many.
    const u32 index = min(u32(max(indices[place], 0)), p.anchors - 1);
    const u32 pixel = index / 3, kind = index % 3;
    const u32 row = pixel / p.by_width;
    const float x = float((pixel - row * p.width) * p.stride), y_at = float(row * p.stride);
    // Parameters are indexed by constants alone: another index would copy them all to local memory.
    const float wide = kind == 0 ? p.half_sides[0][0] : kind == 1 ? p.half_sides[1][0] : p.half_sides[2][0];
    const float high = kind == 0 ? p.half_sides[0][1] : kind == 1 ? p.half_sides[1][1] : p.half_sides[2][1];
    const Box anchor = {__fsub_rn(x, wide), __fsub_rn(y_at, high), __fadd_rn(x, wide), __fadd_rn(y_at, high)};
    float by[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) by[i] = to_f32(deltas[4 * (u64(image) * p.anchors + index) + i]);
    y[place] = moved(anchor, by, p.most_growth, photos[image]);
}

struct MovedParams {
    u32 boxes;           // of all images and classes
    Divisor by_classes;  // boxes that one becomes
    Divisor by_count;    // boxes of an image, as they are given
    float stds[4];
    float most_growth;
};

extern "C" __global__ void decode_boxes(const Box* __restrict__ boxes, const storage_t* __restrict__ deltas,
                                        const Photo* __restrict__ photos, Box* __restrict__ y,
                                        const MovedParams p) {
    const u32 place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= p.boxes) return;
    const u32 row = place / p.by_classes;
    float by[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) by[i] = __fmul_rn(to_f32(deltas[4 * u64(place) + i]), p.stds[i]);
    y[place] = moved(boxes[row], by, p.most_growth, photos[row / p.by_count]);
}

struct ScaleParams {
    u32 boxes;         // of all images
    Divisor by_count;  // boxes of an image
    u32 to_photo;
};

extern "C" __global__ void scale_boxes(const Box* __restrict__ boxes, const Photo* __restrict__ photos,
                                       Box* __restrict__ y, const ScaleParams p) {
    const u32 place = blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= p.boxes) return;
    const Photo photo = photos[place / p.by_count];
    const auto scaled = [&](float at, float factor) {
        return p.to_photo ? __fdiv_rn(at, factor) : __fmul_rn(at, factor);
    };
    const Box from = boxes[place];
    y[place] = Box{scaled(from.left, photo.across), scaled(from.top, photo.down),
                   scaled(from.right, photo.across), scaled(from.bottom, photo.down)};
}
