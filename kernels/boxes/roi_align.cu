// What lies in boxes, as maps of `size` x `size` bins [boxes, size, size, C]: the mean of bilinear samples
// within each bin, of the level of a pyramid that suits the box (src/ops/roi_align.rs).
//
// One thread VECTOR channels (16 bytes where rows are whole chunks, else 1) of a bin of a box: neighbours
// read neighbouring channels of the same pixels. A bin has as many samples along an axis as it has pixels,
// rounded up, so that work follows the box and not the level: 8 FLOPs a sample and channel. Its samples, and
// those of its neighbours, share most of their pixels, in L1; device memory sees the part of the levels under
// boxes once, and the result.
//
// Where samples fall rounds as on the CPU, operation by operation, as it decides which pixels they take. Each
// thread finds it for itself: some 60 instructions for a box and 20 for each sample.
//
// Grid: boxes, (bins vectors) / 256. Defines: STORAGE, RESULT (of y: pooled rows are f32), VECTOR.
#include "boxes/box.cuh"
#include "common/divisor.cuh"
#include "common/elements.cuh"

#define LEVELS 4

typedef Storage<RESULT>::type result_t;

struct Level {
    u32 height, width;
    float scale;  // pixels of the level for one of the image
    float from;   // see `level_of`
};

struct Params {
    Level level[LEVELS];
    u32 levels;
    u32 size, vectors;  // bins along a side, and vectors of a pixel
    Divisor by_size, by_vectors;
    Divisor by_count;  // boxes of an image
    float finest;
};

struct Map {
    const storage_t* pixels;
    u32 height, width;
    float scale;
};

// The level of a box: the last whose `from` its side reaches, in units of the finest; the first, if it is no
// number.
__device__ inline Map level_of(const Box& box, const storage_t* const (&maps)[LEVELS], const Params& p) {
    const float area = __fmul_rn(__fsub_rn(box.right, box.left), __fsub_rn(box.bottom, box.top));
    const float side = __fadd_rn(__fdiv_rn(__fsqrt_rn(area), p.finest), 1e-6f);
    Map map = {maps[0], p.level[0].height, p.level[0].width, p.level[0].scale};
#pragma unroll
    for (u32 i = 1; i < LEVELS; ++i) {
        const Level& level = p.level[i];
        if (i < p.levels && side >= level.from) map = Map{maps[i], level.height, level.width, level.scale};
    }
    return map;
}

// The samples of a box along one axis: `count` in each bin.
struct Samples {
    float start, bin;
    u32 count;

    __device__ inline Samples(float low, float high, float scale, u32 size) {
        const float most_pixels = 1e6f;
        start = __fsub_rn(__fmul_rn(low, scale), 0.5f);
        const float extent = __fsub_rn(__fsub_rn(__fmul_rn(high, scale), 0.5f), start);
        bin = __fdiv_rn(extent, float(size));
        const bool sound = fabsf(start) < most_pixels && extent < most_pixels;
        count = sound ? u32(fmaxf(ceilf(bin), 0.0f)) : 0;
    }
};

// Two pixels along an axis and their shares in a sample.
struct Taps {
    u32 low, high;
    float of_low, of_high;
    bool inside;
};

__device__ inline Taps taps(const Samples& samples, u32 bin, u32 index, u32 pixels) {
    const float within =
        __fdiv_rn(__fmul_rn(__fadd_rn(float(index), 0.5f), samples.bin), float(samples.count));
    const float start = __fadd_rn(samples.start, __fmul_rn(float(bin), samples.bin));
    const float found = __fadd_rn(start, within), at = fmaxf(found, 0.0f);
    const bool inside = pixels > 0 && found >= -1.0f && found <= float(pixels);
    const u32 low = u32(at), last = pixels - 1;
    if (low >= last) return Taps{last, last, 1.0f, 0.0f, inside};
    const float share = __fsub_rn(at, float(low));
    return Taps{low, low + 1, __fsub_rn(1.0f, share), share, inside};
}

extern "C" __global__ void roi_align(const storage_t* __restrict__ map0, const storage_t* __restrict__ map1,
                                     const storage_t* __restrict__ map2, const storage_t* __restrict__ map3,
                                     const Box* __restrict__ boxes, result_t* __restrict__ y,
                                     const Params p) {
    const u32 row = blockIdx.x, at = blockIdx.y * blockDim.x + threadIdx.x;
    const u32 bin = at / p.by_vectors, vector = at - bin * p.vectors, bins = p.size * p.size;
    if (bin >= bins) return;
    const storage_t* const maps[LEVELS] = {map0, map1, map2, map3};
    const Box box = boxes[row];
    const Map map = level_of(box, maps, p);
    const Samples down(box.top, box.bottom, map.scale, p.size);
    const Samples across(box.left, box.right, map.scale, p.size);
    const u32 bin_row = bin / p.by_size, bin_column = bin - bin_row * p.size;
    const u32 channels = p.vectors * VECTOR;
    // Offsets within an image have 31 bits.
    const storage_t* image =
        map.pixels + u64(row / p.by_count) * map.height * map.width * channels + vector * VECTOR;
    float total[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) total[i] = 0.0f;
    for (u32 r = 0; r < down.count; ++r) {
        const Taps v = taps(down, bin_row, r, map.height);
        if (!v.inside) continue;
        const storage_t* upper = image + v.low * map.width * channels;
        const storage_t* lower = image + v.high * map.width * channels;
        for (u32 c = 0; c < across.count; ++c) {
            const Taps h = taps(across, bin_column, c, map.width);
            if (!h.inside) continue;
            const auto add = [&](const storage_t* line, u32 column, float share) {
                float value[VECTOR];
                load_elements(line + column * channels, value);
#pragma unroll
                for (int i = 0; i < VECTOR; ++i) total[i] += share * value[i];
            };
            add(upper, h.low, v.of_low * h.of_low);
            add(upper, h.high, v.of_low * h.of_high);
            add(lower, h.low, v.of_high * h.of_low);
            add(lower, h.high, v.of_high * h.of_high);
        }
    }
    // A bin without samples is zero.
    const float count = fmaxf(float(down.count) * float(across.count), 1.0f);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) total[i] /= count;
    store_elements(y + (u64(row) * bins + bin) * channels + vector * VECTOR, total);
}
