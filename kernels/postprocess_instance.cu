// Instance masks at the size of the photo, one bit a pixel: mask[slot] = (probability of object objects[slot]
// > 1/2).
//
// common/mask_sampler.cuh gives the probabilities; the masks equal those of src/image/instance.rs bit for
// bit. Block (band, slot) makes BAND rows of one mask (common/mask_band.cuh), strip by strip of TILE_W
// columns. A strip under which no logit is positive stays empty at the cost of one look at its logits, since
// a probability of at most 1/2 everywhere blends to at most 1/2. Reads the logits once (strips and bands
// overlap by a pixel or two, in L2): slots * h8 * w8 * sizeof(storage_t) bytes; writes slots * H * W / 8.
// About 10 FLOPs a pixel and 60 a stride-4 sample, of strips that are not empty.
//
// Defines: STORAGE. Dynamic shared memory: 16 bytes a stride-4 row, column and strip, probabilities, wide
// rows, a word a column.
#include "common/mask_band.cuh"
#include "common/mask_sampler.cuh"

struct Params {
    Sampler sampler;
    u32 objects;
    u32 mask_words;  // from one mask to the next
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    postprocess_instance(const storage_t* __restrict__ logits, const u32* __restrict__ objects,
                         u32* __restrict__ masks, Summary* __restrict__ summaries, u32* __restrict__ host,
                         const Params p) {
    // Taps of stride-4 rows and columns, what the strips draw on, probabilities, wide rows, words of the
    // band.
    extern __shared__ Blend stride4_rows[];
    __shared__ Taps row_table[BAND];
    __shared__ Summary summary;
    const u32 thread = threadIdx.x, lane = thread % WARP;
    const u32 object = objects[blockIdx.y];
    if (object >= p.objects) {  // an unused slot: a mask that nobody reads, of no pixel
        if (thread == 0) summaries[blockIdx.y * gridDim.x + blockIdx.x] = nothing();
        return;
    }
    const Direction& vertical = p.sampler.vertical;
    const Direction& horizontal = p.sampler.horizontal;
    const storage_t* mask = logits + u64(object) * vertical.logits * horizontal.logits;
    const i32 photo_width = horizontal.original;
    const i32 y0 = blockIdx.x * BAND, height = min(BAND, vertical.original - y0);
    const u32 words = (height * photo_width + 31) / 32;
    const i32 strips = (photo_width + TILE_W - 1) / TILE_W;
    Blend* stride4_columns = stride4_rows + p.sampler.wide_rows;
    Span* spans = reinterpret_cast<Span*>(stride4_columns + p.sampler.wide_columns);
    float* probability = reinterpret_cast<float*>(spans + strips);
    float* wide = probability + p.sampler.batch_rows * p.sampler.wide_columns;
    u32* bits = reinterpret_cast<u32*>(wide + p.sampler.wide_rows * TILE_W);

    for (u32 i = thread; i < words; i += THREADS) bits[i] = 0;
    const Span rows = span(y0, y0 + height, vertical);
    tabulate_rows(p.sampler, rows, stride4_rows);
    if (thread < height) row_table[thread] = row_taps(y0 + thread, vertical, rows.first);
    for (i32 i = thread; i < strips; i += THREADS) {
        spans[i] = span(i * TILE_W, min((i + 1) * TILE_W, photo_width), horizontal);
    }
    if (thread == 0) summary = nothing();
    __syncthreads();

    for (i32 strip = 0; strip < strips; ++strip) {
        const i32 x0 = strip * TILE_W, width = min(TILE_W, photo_width - x0);
        const Span columns = spans[strip];
        bool matters = false;
        for (i32 i = thread; i < rows.logit_count * columns.logit_count; i += THREADS) {
            const i32 row = rows.logit_first + i / columns.logit_count;
            const i32 column = columns.logit_first + i % columns.logit_count;
            // NaN is no reason to pass over it.
            if (!(to_f32(mask[row * horizontal.logits + column]) <= 0.0f)) matters = true;
        }
        if (!__syncthreads_or(matters)) continue;

        const i32 x = min(x0 + i32(thread % TILE_W), photo_width - 1);
        const Taps column = taps(x, horizontal, true);
        tabulate_columns(p.sampler, columns, stride4_columns);
        __syncthreads();
        prepare_tile(mask, p.sampler, rows, columns, column, stride4_rows, stride4_columns, probability,
                     wide);
        for (i32 row = thread / TILE_W; row < height; row += ROW_STEP) {
            const bool inside =
                thread % TILE_W < width && tile_value(row_table[row], wide + thread % TILE_W) > 0.5f;
            const u32 ballot = __ballot_sync(FULL_MASK, inside);
            if (lane != 0 || ballot == 0) continue;
            add_pixels(ballot, x0 + thread % TILE_W, row, y0, photo_width, bits, summary);
        }
    }
    __syncthreads();

    const u64 place = u64(blockIdx.y) * p.mask_words + u64(blockIdx.x) * photo_width;
    write_band(bits, words, thread, THREADS, masks + place, host ? host + place : nullptr, summary,
               summaries + blockIdx.y * gridDim.x + blockIdx.x);
}
