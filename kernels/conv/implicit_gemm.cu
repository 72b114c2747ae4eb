// Convolution as a matrix product that is never laid out (implicit GEMM, fprop):
//
//   y[m, n] = epilogue(sum over k of a[m, k] * w[n, k]),
//   m = output pixel, n = filter, k = (tap row, tap column, channel)
//
// x is [B, H, W, C], w [K, R * S * C] with rows padded by zeros to whole chunks of 16 bytes, y [B, P, Q, K];
// a is x seen through window.cuh. One block computes a tile of TILE_M pixels by TILE_N filters; blocks that
// share pixels are neighbours, so that x is read from L2 but once. Its warps, WARPS_M by WARPS_N of them,
// share the tile evenly.
//
// Along k the block takes CHUNKS * 16 bytes of both operands a step, STAGES - 1 steps ahead, by 16-byte
// asynchronous copies into swizzled shared memory; halo, ragged ends and the padding of the tile are
// zero-size copies. MATH says how warps multiply (FMA: f32; TENSOR: 16-bit types on tensor cores; TF32X3: f32
// on tensor cores); sums are f32.
//
// ADDRESSING says how x is read:
//   POINTWISE  1 x 1, stride 1, no padding: x is the matrix. Chunks, so channels must be whole chunks.
//   TAPS       any geometry, channels a multiple of a chunk; SHALLOW: channels may be fewer than a step
//              takes.
//   ELEMENTS   any geometry, any channels, element by element through registers (the stem's three channels).
//   DEFORMED   deformable convolution: taps lie where `offsets` [B, P, Q, R * S, 2] move them, between four
//              pixels (deformed.cuh). A step's pixels are blended in registers and stored where the others
//              are copied to. Chunks; SHALLOW: a step may be of several taps.
//   DEFORMED_ELEMENTS  the same for any channels, element by element.
// RESULT: element type of y and the residual, where it is not x's.
// WHOLE_CHUNKS: K is a multiple of a chunk, and y is written in chunks, staged by each warp in shared memory.
// UPSAMPLED, SCATTERED, MOMENTS: see tail.cuh.
// SPLIT: block z takes `slice` steps of k and writes its sums as they are, f32, to y[z]; split_k.cu adds
// them.
//
// A step reads (TILE_M + TILE_N) * CHUNKS * 16 bytes and does TILE_M * TILE_N * CHUNKS * (8 or 4) FMAs: 64
// FMAs a byte for f16 with 128 x 128, 43 with 128 x 64, 32 with 64 x 64. DEFORMED reads the pixels' part four
// times, most of it from L1, as neighbouring taps share pixels, and does 4 FMAs and some ten instructions
// more for each of its elements, once for every tile of filters; BLENDED an eighth of a product of tensor
// cores and some six instructions for each eight elements.
//
// Defines: STORAGE, MATH, ACTIVATION, TILE_M, TILE_N, WARPS_M, WARPS_N, CHUNKS, STAGES, BLOCKS (of a
// multiprocessor, that registers must leave room for), ADDRESSING, SHALLOW, FILTER_H, FILTER_W, WHOLE_CHUNKS,
// UPSAMPLED, MOMENTS, SPLIT; SCATTERED where it is so; RESULT where it differs from STORAGE; ROUNDED where
// products of 16-bit types, of one term at least, are rounded to them and nothing else.
#include "common/async_copy.cuh"
#include "common/epilogue.cuh"
#include "common/warp_tile.cuh"
#include "conv/deformed.cuh"
#include "conv/tail.cuh"
#include "conv/window.cuh"
#include "conv/writer.cuh"

#define POINTWISE 0
#define TAPS 1
#define ELEMENTS 2
#define DEFORMED 3
#define DEFORMED_ELEMENTS 4
#define IS_DEFORMED (ADDRESSING == DEFORMED || ADDRESSING == DEFORMED_ELEMENTS)
// Tensor cores blend where a step's chunks are the eight of a tap that they take at once.
#define BLENDED (ADDRESSING == DEFORMED && !SHALLOW && CHUNKS == 8 && STORAGE != F32)

constexpr u32 WARPS = WARPS_M * WARPS_N;
constexpr u32 THREADS = WARPS * 32;
constexpr u32 LANES = Lanes<storage_t>::count;
constexpr u32 STEP = CHUNKS * LANES;
constexpr u32 A_BYTES = TILE_M * CHUNKS * 16;
constexpr u32 STAGE_BYTES = A_BYTES + TILE_N * CHUNKS * 16;

#define FMA 0
#define TENSOR 1
#define TF32X3 2

#if MATH == FMA
typedef WarpTileF32<TILE_M / WARPS_M / 4, TILE_N / WARPS_N / 8, CHUNKS> Tile;
#elif MATH == TF32X3
typedef WarpTileTf32x3<TILE_M / WARPS_M / 16, TILE_N / WARPS_N / 16, CHUNKS> Tile;
#else
typedef WarpTile<storage_t, TILE_M / WARPS_M / 16, TILE_N / WARPS_N / 16, CHUNKS> Tile;
#endif

#ifdef RESULT
typedef Storage<RESULT>::type result_t;
#else
typedef storage_t result_t;
#endif
#if SPLIT
typedef float out_t;
#else
typedef result_t out_t;
#endif

extern __shared__ __align__(128) u8 shared[];

// Copies the filters' part of a step: a thread has one chunk of k and every ROWS-th filter.
struct FilterTile {
    static constexpr u32 ROWS = THREADS / CHUNKS, ROW_BYTES = ROWS * CHUNKS * 16;
    const storage_t* source;
    u32 k, row, filters_left;

    __device__ inline FilterTile(const Params& p, const storage_t* w, u32 first_filter, u32 first_k) {
        row = threadIdx.x / CHUNKS;
        k = first_k + threadIdx.x % CHUNKS * LANES;
        source = w + u64(first_filter + row) * p.pitch + k;
        filters_left = p.filters - first_filter;
    }

    __device__ inline void copy(const Params& p, u32 stage) {
        static_assert(TILE_N % ROWS == 0 && ROWS % 8 == 0, "every thread copies as much");
        const bool inside = k < p.pitch;
#pragma unroll
        for (u32 i = 0; i < TILE_N / ROWS; ++i) {
            // ROWS is a multiple of the eight rows after which the swizzle is the same.
            const u32 to = stage + A_BYTES + swizzled<CHUNKS>(row, threadIdx.x % CHUNKS) + i * ROW_BYTES;
            copy_async<16>(to, source + u64(i * ROWS) * p.pitch, inside && row + i * ROWS < filters_left);
        }
        k += STEP;
        source += STEP;
    }
};

#if ADDRESSING == POINTWISE || ADDRESSING == TAPS
// Copies the pixels' part of a step: a thread has one chunk of k and every ROWS-th pixel.
struct PixelTile {
    static constexpr u32 ROWS = THREADS / CHUNKS, ROW_BYTES = ROWS * CHUNKS * 16;
    static constexpr u32 COUNT = TILE_M / ROWS;
    static_assert(TILE_M % ROWS == 0 && ROWS % 8 == 0, "every thread copies as much");
    const storage_t* x;
    Window windows[COUNT];
    Position at;

    __device__ inline PixelTile(const Params& p, const storage_t* x, u32 first_pixel, u32 first_k)
        : x(x), at(p, first_k + threadIdx.x % CHUNKS * LANES) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 pixel = first_pixel + threadIdx.x / CHUNKS + i * ROWS;
            windows[i] =
                ADDRESSING == TAPS ? window_of(p, pixel) : Window{i32(pixel * p.channels), pixel < p.pixels};
        }
    }

    __device__ inline void copy(const Params& p, u32 stage) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 first = swizzled<CHUNKS>(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
            const u32 to = stage + first + i * ROW_BYTES;
            const bool take =
                ADDRESSING == TAPS ? at.inside(p, windows[i]) : windows[i].inside && at.k < p.depth;
            copy_async<16>(to, x + i64(windows[i].offset + at.offset), take);
        }
        if (ADDRESSING == TAPS) {
            at.advance<!SHALLOW>(p, STEP);
        } else {
            at.k += STEP;
            at.offset += STEP;
        }
    }
};
#elif BLENDED
// Blends the pixels' part of a step on tensor cores: a thread has one chunk of k and every ROWS-th pixel, and
// a warp four pixels of every other row, whose chunks lie in different banks. Where taps fall is in shared
// memory, `[tap][pixel]`.
struct PixelTile {
    static constexpr u32 ROWS = THREADS / CHUNKS;
    static constexpr u32 COUNT = TILE_M / ROWS;
    static constexpr u32 TAPS_OF_ALL = FILTER_H * FILTER_W * TILE_M;
    static_assert(TILE_M % ROWS == 0 && ROWS % 8 == 0, "every thread blends as much");
    Blend<storage_t> blend;
    u32 samples, at, row, to, channel;

    // Fills `samples`; a barrier must follow.
    __device__ inline PixelTile(const Params& p, const storage_t* x, const float* offsets, u32 samples,
                                u32 first_pixel, u32 first_k)
        : blend(p, x, 0), samples(samples) {
        const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const u32 tap = first_k / p.by_channels;
        channel = first_k - tap * p.channels;
        row = warp / 2 * 8 + lane % 4 * 2 + warp % 2;
        at = tap * TILE_M + row;
        to = swizzled<CHUNKS>(row, lane / 4);
        blend.advance(i32(channel + lane / 4 * LANES));
        for (u32 i = threadIdx.x; i < TAPS_OF_ALL; i += THREADS) {
            const u32 tap = i / TILE_M;
            const Sample sample = sample_of(p, offsets, first_pixel + i % TILE_M, tap / FILTER_W,
                                            tap % FILTER_W, FILTER_H, FILTER_W);
            Blend<storage_t>::store(sample, samples, samples + TAPS_OF_ALL * 16, i);
        }
    }

    __device__ inline void copy(const Params& p, u32 stage) {
        // ROWS is a multiple of the eight rows after which the swizzle is the same.
        // Registers of three blocks have room for two, those of five for one.
        constexpr u32 GROUP = COUNT % 4 != 0 || BLOCKS > 4 ? 1 : BLOCKS > 2 ? 2 : 4;
        blend.template chunks<COUNT, ROWS, GROUP>(samples, samples + TAPS_OF_ALL * 16, at, stage + to);
        blend.advance(STEP);
        move_channel<true>(p, channel, STEP, [&] {
            at += TILE_M;
            blend.advance(-i32(p.channels));
        });
    }
};
#elif IS_DEFORMED
// Blends the pixels' part of a step: a thread has one chunk of k and every ROWS-th pixel. Where taps fall is
// in shared memory, `[tap][pixel]`.
struct PixelTile {
    static constexpr u32 ROWS = THREADS / CHUNKS;
    static constexpr u32 COUNT = TILE_M / ROWS;
    static constexpr u32 TAPS_OF_ALL = FILTER_H * FILTER_W * TILE_M;
    static_assert(TILE_M % ROWS == 0, "every thread blends as much");
    const storage_t* x;
    u32 samples;
    u32 k, tap, channel;

    // Fills `samples`; a barrier must follow.
    __device__ inline PixelTile(const Params& p, const storage_t* x, const float* offsets, u32 samples,
                                u32 first_pixel, u32 first_k)
        : x(x), samples(samples), k(first_k + threadIdx.x % CHUNKS * LANES) {
        tap = k / p.by_channels;
        channel = k - tap * p.channels;
        for (u32 i = threadIdx.x; i < TAPS_OF_ALL; i += THREADS)
            sample_of(p, offsets, first_pixel + i % TILE_M, i / TILE_M / FILTER_W, i / TILE_M % FILTER_W,
                      FILTER_H, FILTER_W)
                .store(samples + i * 16);
    }

    __device__ inline void copy(const Params& p, u32 stage) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 row = threadIdx.x / CHUNKS + i * ROWS;
            store_shared_chunk(stage + swizzled<CHUNKS>(row, threadIdx.x % CHUNKS), chunk_of(p, row));
        }
        k += STEP;
        move_channel<ADDRESSING == DEFORMED && !SHALLOW>(p, channel, STEP, [&] { tap += 1; });
    }

private:
    __device__ inline Chunk chunk_of(const Params& p, u32 row) const {
#if ADDRESSING == DEFORMED
        return k < p.depth ? Sample::load(samples + (tap * TILE_M + row) * 16).chunk(p, x, channel) : Chunk{};
#else
        float sum[LANES] = {};
        u32 t = tap, c = channel;
#pragma unroll 1
        for (u32 e = 0; e < LANES; ++e) {
            const float at = k + e < p.depth
                ? Sample::load(samples + (t * TILE_M + row) * 16).element(p, x, c) : 0.0f;
            // An index that is known keeps the sums in registers.
#pragma unroll
            for (u32 i = 0; i < LANES; ++i) sum[i] = i == e ? at : sum[i];
            if (++c == p.channels) {
                c = 0;
                t += 1;
            }
        }
        return pack(sum, storage_t{});
#endif
    }
};
#else
// Moves the pixels' part of a step through registers: a thread has one k and every ROWS-th pixel. Windows are
// in shared memory, where all lanes read the same one at once.
struct PixelTile {
    static constexpr u32 ROWS = THREADS / STEP;
    static constexpr u32 COUNT = TILE_M / ROWS;
    static_assert(THREADS % STEP == 0 && TILE_M % ROWS == 0, "every thread moves as much");
    const storage_t* x;
    const Window* windows;
    Position at;
    storage_t held[COUNT];

    // Fills `windows`; a barrier must follow.
    __device__ inline PixelTile(const Params& p, const storage_t* x, Window* windows, u32 first_pixel,
                                u32 first_k)
        : x(x), windows(windows), at(p, first_k + threadIdx.x % STEP) {
        for (u32 i = threadIdx.x; i < TILE_M; i += THREADS) windows[i] = window_of(p, first_pixel + i);
    }

    __device__ inline void fetch(const Params& p) {
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const Window window = windows[threadIdx.x / STEP + i * ROWS];
            held[i] = storage_t{};
            if (at.inside(p, window)) held[i] = x[i64(window.offset + at.offset)];
        }
        at.advance<false>(p, STEP);
    }

    __device__ inline void put(u8* stage) const {
        const u32 k = threadIdx.x % STEP;
#pragma unroll
        for (u32 i = 0; i < COUNT; ++i) {
            const u32 to = swizzled<CHUNKS>(threadIdx.x / STEP + i * ROWS, k / LANES);
            reinterpret_cast<storage_t*>(stage + to)[k % LANES] = held[i];
        }
    }
};
#endif

// Whether the first step sets the sums that others add to.
#define FIRST_SETS (ROUNDED && ADDRESSING != ELEMENTS)

#if FIRST_SETS
__device__ inline void multiply_first(Tile& tile, u32 stage, u32 warp, u32 lane) {
    tile.template multiply<true>(stage, warp / WARPS_N * Tile::rows, stage + A_BYTES,
                                 warp % WARPS_N * Tile::columns, lane);
}
#endif

__device__ inline void multiply(Tile& tile, u32 stage, u32 warp, u32 lane) {
    tile.multiply(stage, warp / WARPS_N * Tile::rows, stage + A_BYTES, warp % WARPS_N * Tile::columns, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    implicit_gemm(const storage_t* __restrict__ x, const storage_t* __restrict__ w,
                  const float* __restrict__ bias, const result_t* __restrict__ residual,
                  out_t* __restrict__ y, Moments* __restrict__ moments,
#if IS_DEFORMED
                  const float* __restrict__ offsets,
#endif
#if SCATTERED
                  const Scatter scatter,
#endif
                  const Params p) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 tile_m = blockIdx.x / p.by_tiles_n;
    const u32 first_pixel = tile_m * TILE_M, first_filter = (blockIdx.x - tile_m * p.tiles_n) * TILE_N;
    const u32 all_steps = (p.depth + STEP - 1) / STEP;
    const u32 first_step = SPLIT ? blockIdx.z * p.slice : 0;
    const u32 steps = SPLIT ? min(all_steps - first_step, p.slice) : all_steps;
    const u32 stages = shared_address(shared);

    Tile tile;
#if !FIRST_SETS
    tile.clear();
#endif
    FilterTile filter_tile(p, w, first_filter, first_step * STEP);
#if ADDRESSING == ELEMENTS
    PixelTile pixel_tile(p, x, reinterpret_cast<Window*>(shared + 2 * STAGE_BYTES), first_pixel,
                         first_step * STEP);
    __syncthreads();
    pixel_tile.fetch(p);
    pixel_tile.put(shared);
    filter_tile.copy(p, stages);
    commit_copies();
    for (u32 step = 0; step < steps; ++step) {
        const u32 now = step % 2 * STAGE_BYTES, next = STAGE_BYTES - now;
        wait_copies<0>();
        __syncthreads();
        if (step + 1 < steps) {
            filter_tile.copy(p, stages + next);
            pixel_tile.fetch(p);
        }
        commit_copies();
        multiply(tile, stages + now, warp, lane);
        if (step + 1 < steps) pixel_tile.put(shared + next);
    }
#else
#if IS_DEFORMED
    PixelTile pixel_tile(p, x, offsets, stages + STAGES * STAGE_BYTES, first_pixel, first_step * STEP);
    __syncthreads();
#else
    PixelTile pixel_tile(p, x, first_pixel, first_step * STEP);
#endif
    u32 filling = 0, draining = 0;
    const auto fill = [&](bool more) {
        if (more) {
            pixel_tile.copy(p, stages + filling);
            filter_tile.copy(p, stages + filling);
        }
        // An empty group too: the count of groups then tells which stage has come.
        commit_copies();
        filling = filling == (STAGES - 1) * STAGE_BYTES ? 0 : filling + STAGE_BYTES;
    };
    for (u32 step = 0; step < STAGES - 1; ++step) fill(step < steps);
    const auto next_stage = [&](u32 step) {
        wait_copies<STAGES - 2>();
        // The stage to multiply is there for all warps, and all warps have done with the stage to fill.
        __syncthreads();
        fill(step + STAGES - 1 < steps);
        const u32 stage = stages + draining;
        draining = draining == (STAGES - 1) * STAGE_BYTES ? 0 : draining + STAGE_BYTES;
        return stage;
    };
#if FIRST_SETS
    // There are few steps, and clearing sums would take as long as half of one.
    multiply_first(tile, next_stage(0), warp, lane);
    for (u32 step = 1; step < steps; ++step) multiply(tile, next_stage(step), warp, lane);
#else
    for (u32 step = 0; step < steps; ++step) multiply(tile, next_stage(step), warp, lane);
#endif
#endif
    wait_copies<0>();
    __syncthreads();

    const u32 row = first_pixel + warp / WARPS_N * Tile::rows,
              column = first_filter + warp % WARPS_N * Tile::columns;
#if SPLIT
    const Epilogue<float> epilogue{nullptr, nullptr, y + u64(blockIdx.z) * p.pixels * p.filters};
    Writer<Tile, float, ACTIVATION_NONE, PlainTail>{epilogue, PlainTail{}, row, column, p.pixels, p.filters}
        .write(tile, shared, lane);
#elif ROUNDED
    RoundingWriter<Tile, result_t>{y, row, column, p.pixels, p.filters}.write(tile, shared, lane);
#else
    const Epilogue<result_t> epilogue{bias, residual, y};
#if SCATTERED
    const FusedTail tail{p, moments, scatter};
#else
    const FusedTail tail{p, moments};
#endif
    Writer<Tile, result_t, ACTIVATION, FusedTail>{epilogue, tail, row, column, p.pixels, p.filters}
        .write(tile, shared, lane);
#endif
}
