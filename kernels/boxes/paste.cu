// Masks of boxes at the size of the photo, one bit a pixel: what a two-stage detector says of the cells of
// each box, pasted at the box's place (src/image/instance/paste.rs).
//
// A pixel's centre is sought in the mask that the box stretches, bilinearly between its cells (zero
// outside of it), and the pixel belongs to the mask from 0.5 on. Every operation rounds by itself, as on
// the CPU, so that the masks are the same bit for bit. Only pixels up to one beyond the box are looked at.
//
// Block (band, place) makes BAND rows of one mask (common/mask_band.cuh). The cells are blended to each of
// these rows in shared memory; then a warp takes 32 columns, finds once where they lie among the cells,
// and goes down the rows with 3 FLOPs a pixel. What lies beyond the box costs the zeros that are written.
// Reads the cells once a band of the box (from L2); writes places * H * W / 8 bytes. Block (0, place) also
// writes what else is known of the detection; the first of the places that do not count ends them.
//
// Grid: bands, places. Defines: STORAGE (of the probabilities). Dynamic shared memory: BAND rows of a
// float a cell and 3, a word a column.
#include "boxes/box.cuh"
#include "common/mask_band.cuh"
#include "common/reduce.cuh"

#define THREADS 256

struct PasteParams {
    u32 classes;
    u32 cells_down, cells_across;
    u32 photo_height, photo_width;
    u32 mask_words;  // from one mask to the next
    float enlarged_down, enlarged_across;
    float min_score;
};

// The pixels and positions of one axis of a box.
struct Axis {
    float low, extent;
    u32 cells;
    u32 from, to;
};

__device__ inline Axis axis(float low, float high, float enlarged, u32 cells, u32 pixels) {
    // To the network's input and back, as upstream.
    low = __fdiv_rn(__fmul_rn(low, enlarged), enlarged);
    high = __fdiv_rn(__fmul_rn(high, enlarged), enlarged);
    // NaN and what is out of range stay within the photo.
    const auto within = [&](float at) { return u32(fminf(fmaxf(at, 0.0f), float(pixels))); };
    const u32 from = within(__fsub_rn(floorf(low), 1.0f));
    return Axis{low, __fsub_rn(high, low), cells, from, max(within(__fadd_rn(ceilf(high), 1.0f)), from)};
}

// The cells around a position: the first, counted from the one before the mask, and the share of the one
// after it. One beyond the mask's end for positions far away.
struct Tap {
    u32 first;
    float share;
};

__device__ inline Tap tap(const Axis& axis, u32 pixel) {
    const float centre = __fadd_rn(float(pixel), 0.5f);
    const float unit = __fsub_rn(__fmul_rn(__fdiv_rn(__fsub_rn(centre, axis.low), axis.extent), 2.0f), 1.0f);
    const float sound = fabsf(unit) == __uint_as_float(0x7f800000u) ? 0.0f : unit;
    const float at = __fsub_rn(__fmul_rn(__fadd_rn(sound, 1.0f), 0.5f * float(axis.cells)), 0.5f);
    const float first = floorf(at);
    if (first >= -1.0f && first < float(axis.cells)) return Tap{u32(first + 1.0f), __fsub_rn(at, first)};
    return Tap{axis.cells + 1, 0.0f};
}

__device__ inline float blend(const Tap& tap, float low, float high) {
    return __fadd_rn(__fmul_rn(low, __fsub_rn(1.0f, tap.share)), __fmul_rn(high, tap.share));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    paste(const Box* __restrict__ boxes, const float* __restrict__ scores, const i32* __restrict__ labels,
          const i32* __restrict__ count, const storage_t* __restrict__ probabilities, u32* __restrict__ masks,
          Summary* __restrict__ summaries, float* __restrict__ found_scores, i32* __restrict__ pairs,
          u32* __restrict__ places, Box* __restrict__ found_boxes, u32* __restrict__ host,
          const PasteParams p) {
    extern __shared__ float rows[];  // a zero before the cells of a row and two after; then words of the band
    __shared__ Tap lines[BAND];
    __shared__ Summary summary;
    const u32 thread = threadIdx.x, band = blockIdx.x, place = blockIdx.y;
    const Box box = boxes[place];
    const float score = scores[place];
    // Scores fall, so what comes before a detection that counts counts too.
    const bool counts = i32(place) < *count && score >= p.min_score;
    if (band == 0 && thread == 0) {
        found_scores[place] = score;
        pairs[place] = i32(place * p.classes) + max(labels[place], 0);
        places[place] = counts ? place : 0xffffffffu;
        found_boxes[place] = box;
    }
    Summary* to = summaries + place * gridDim.x + band;
    if (!counts) {  // a mask that nobody reads, of no pixel
        if (thread == 0) *to = nothing();
        return;
    }
    const u32 top = band * BAND, height = min(u32(BAND), p.photo_height - top), width = p.photo_width;
    const Axis down = axis(box.top, box.bottom, p.enlarged_down, p.cells_down, p.photo_height);
    const Axis across = axis(box.left, box.right, p.enlarged_across, p.cells_across, width);
    // Rows of the band that the box may reach.
    const auto within = [&](u32 row) { return min(max(row, top), top + height) - top; };
    const u32 from = within(down.from), end = within(down.to);
    const u32 line = across.cells + 3, words = (height * width + 31) / 32;
    u32* bits = reinterpret_cast<u32*>(rows + BAND * line);
    for (u32 i = thread; i < words; i += THREADS) bits[i] = 0;
    if (thread < height) lines[thread] = tap(down, top + thread);
    if (thread == 0) summary = nothing();
    __syncthreads();

    const storage_t* cells = probabilities + u64(place) * down.cells * across.cells;
    for (u32 i = thread; from * line + i < end * line; i += THREADS) {
        const u32 row = from + i / line, column = i % line - 1;
        // Places before the first wrap around.
        const auto cell = [&](u32 index) {
            const bool inside = index - 1 < down.cells && column < across.cells;
            return inside ? to_f32(cells[(index - 1) * across.cells + column]) : 0.0f;
        };
        const Tap between = lines[row];
        rows[row * line + column + 1] = blend(between, cell(between.first), cell(between.first + 1));
    }
    __syncthreads();

    for (u32 strip = across.from + thread / WARP * WARP; strip < across.to; strip += THREADS) {
        const u32 x = strip + thread % WARP;
        const Tap between = tap(across, x);
        for (u32 row = from; row < end; ++row) {
            const float* low = rows + row * line + between.first;
            const bool inside = x < across.to && blend(between, low[0], low[1]) >= 0.5f;
            const u32 ballot = __ballot_sync(FULL_MASK, inside);
            if (thread % WARP == 0 && ballot != 0) add_pixels(ballot, strip, row, top, width, bits, summary);
        }
    }
    __syncthreads();
    const u64 at = u64(place) * p.mask_words + u64(band) * width;
    write_band(bits, words, thread, THREADS, masks + at, host ? host + at : nullptr, summary, to);
}
