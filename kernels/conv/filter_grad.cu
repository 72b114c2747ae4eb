// Gradient of a convolution's filter on tensor cores, from 16-bit maps:
//
//   dw[k, (r, s, c)] = sum over output pixels p of dy[p, k] * x[p under tap (r, s), c]
//
// dy is [B, P, Q, K], x [B, H, W, C]; dw [K, R, S, C] is f32, and so are all sums. A product whose terms are
// pixels: both operands lie with their terms slow, as [pixel][filter] and [pixel][(tap, channel)], and are
// turned by `ldmatrix.trans`. x is seen through gather.cuh, never laid out; DEFORMED: through deformed.cuh,
// its taps moved by `offsets` [B, P, Q, R * S, 2], and a sample is rounded to 16 bits as in the forward pass.
// Where channels are whole chunks, where a tap of a step's pixels falls is found once for all of them, a step
// ahead of the copy. BLENDED: channels are a multiple of 64, and samples are made by tensor cores.
//
// A block computes 32 * BANDS filters by 128 columns with 2 x 4 warps over `split` pixels, 64 a stage. Pixels
// are shared among enough blocks to fill a device, by the shape alone; each writes its sums to dw [splits, K,
// R * S * C], added in order by sum_parts.cu.
//
// 2 B P Q K R S C FLOPs. A stage reads (32 * BANDS + 128) * 128 bytes for 64 * 32 * BANDS * 128 FMAs: 64 FMAs
// a byte (BANDS = 4), most of it from L2: dy is read once for every 128 columns, x once for every tap and
// tile of filters.
//
// Grid: splits, tiles of filters x tiles of columns. Block: 256 threads. Shared memory: STAGES * 128 * (32 *
// BANDS + 128) bytes; FIND_AHEAD: and 2 * 64 * 16 (BLENDED: 20) for every tap that 128 columns may be of.
// Defines: STORAGE, BANDS (2, 4), STAGES (2, 3), DY_WIDE (K a multiple of 8), X_WIDE (C a multiple of 8),
// DEFORMED; BLENDED.
#include "common/mma.cuh"
#include "conv/deformed.cuh"
#include "conv/gather.cuh"
#include "mask/tile.cuh"

#define THREADS 256
#define BM (32 * BANDS)
#define BN 128
#define DY_BYTES (BM * 128)
#define STAGE_BYTES (DY_BYTES + BN * 128)
#define FIND_AHEAD (DEFORMED && X_WIDE)

extern __shared__ __align__(128) unsigned char shared[];

#if FIND_AHEAD
constexpr u32 SAMPLE_BYTES = BLENDED ? Blend<storage_t>::BYTES : 16;

// Where the taps that a block has columns of fall, for the pixels of a step: [tap][pixel].
struct Samples {
    u32 first, count;  // taps

    __device__ inline Samples(const Params& p, u32 first_column) {
        first = first_column / p.by_group_channels;
        count = (min(first_column + BN, p.columns) - 1) / p.by_group_channels - first + 1;
    }

    __device__ inline u32 bytes() const { return count * SLAB * SAMPLE_BYTES; }

    // Blended, the shares of all come first.
    __device__ inline u32 words(u32 found) const { return found + count * SLAB * 16; }

    __device__ inline void find(const Params& p, const float* offsets, u32 to, u32 pixel, u32 end) const {
        for (u32 i = threadIdx.x; i < count * SLAB; i += THREADS) {
            const u32 tap = first + i / SLAB, r = tap / p.by_filter_w, at = pixel + i % SLAB;
            const bool any = at < end;
            const Sample sample = sample_of(p, offsets, any ? at : p.pixels, r, tap - r * p.filter_w,
                                            p.filter_h, p.filter_w);
#if BLENDED
            Blend<storage_t>::store(sample, to, words(to), i);
#else
            sample.store(to + i * 16);
#endif
        }
    }

    // Number of that of a column's tap for a pixel of the step.
    __device__ inline u32 number(const Params& p, const Column& column, u32 pixel) const {
        return (column.r * p.filter_w + column.s - first) * SLAB + pixel;
    }
};
#endif

#if BLENDED
// Blends the windows' part of a stage: a thread has one chunk of columns and every ROWS-th pixel, a warp the
// chunks of half the columns and four pixels of every other row, whose chunks lie in different banks.
struct WindowTile {
    static constexpr u32 ROWS = THREADS / (BN / 8);
    static_assert(ROWS % 8 == 0, "after eight rows the swizzle is the same");
    Samples samples;
    Blend<storage_t> blend;
    bool inside;
    u32 to, first_sample;

    __device__ inline WindowTile(const Params& p, const storage_t* x, const float*, u32 first_column)
        : samples(p, first_column), blend(p, x, 0) {
        const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        const u32 row = warp / 4 * 8 + lane % 4 * 2 + warp / 2 % 2, half = warp % 2;
        const u32 first = first_column + half * 64;
        const Column column(p, first);
        inside = first < p.columns;
        blend.advance(i32(column.channel + lane / 4 * 8));
        first_sample = samples.number(p, column, row);
        to = half * (SLAB * 128) + swizzled<8>(row, lane / 4);
    }

    // `found`: where the step's samples are; nothing is read for pixels beyond the last.
    __device__ inline void copy(const Params&, u32 stage, u32 found, u32, u32) const {
        if (inside) {
            // Registers of 64 sums have room for the pixels of one sample.
            constexpr u32 GROUP = BANDS == 4 ? 1 : 2;
            const u32 words = samples.words(found);
            blend.template chunks<SLAB / ROWS, ROWS, GROUP>(found, words, first_sample, stage + to);
        } else {
#pragma unroll
            for (u32 i = 0; i < SLAB / ROWS; ++i) store_shared_chunk(stage + to + i * ROWS * 128, Chunk{});
        }
    }
};
#else
// Copies the windows' part of a stage: a thread has one chunk of columns and every ROWS-th pixel.
struct WindowTile {
    static constexpr u32 ROWS = THREADS / (BN / 8);
    const storage_t* x;
    const float* offsets;
#if FIND_AHEAD
    Samples samples;
#endif
    u32 first, to;
#if X_WIDE
    Column column;
#endif

    __device__ inline WindowTile(const Params& p, const storage_t* x, const float* offsets, u32 first_column)
        : x(x), offsets(offsets),
#if FIND_AHEAD
          samples(p, first_column),
#endif
          first(first_column + threadIdx.x % (BN / 8) * 8)
#if X_WIDE
          , column(p, first)
#endif
    {
        const u32 chunk = threadIdx.x % (BN / 8);
        to = chunk / 8 * (SLAB * 128) + swizzled<8>(threadIdx.x / (BN / 8), chunk % 8);
    }

    // `found`: where the step's samples are, if they are found ahead.
    __device__ inline void copy(const Params& p, u32 stage, u32 found, u32 pixel, u32 end) const {
        // ROWS is a multiple of the eight rows after which the swizzle is the same.
#pragma unroll
        for (u32 i = 0; i < SLAB / ROWS; ++i) {
            const u32 row = threadIdx.x / (BN / 8) + i * ROWS;
#if FIND_AHEAD
            // Nothing is read for pixels beyond the last.
            const Sample sample =
                first < p.columns ? Sample::load(found + samples.number(p, column, row) * 16) : Sample{};
            store_shared_chunk(stage + to + i * ROWS * 128, sample.chunk(p, x, column.channel));
#else
            copy_chunk(p, stage + to + i * ROWS * 128, pixel + row, pixel + row < end);
#endif
        }
    }

#if !FIND_AHEAD
private:
    __device__ inline void copy_chunk(const Params& p, u32 to, u32 pixel, bool inside) const {
#if X_WIDE
        const i32 place = inside && first < p.columns ? column.place(p, pixel) : -1;
        copy_async<16>(to, x + max(place, 0), place >= 0);
#else
        Chunk chunk = {};
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            if (inside && first + j < p.columns)
                chunk.word[j / 2] |= u32(element(p, Column(p, first + j), pixel).bits) << (j % 2 * 16);
        }
        store_shared_chunk(to, chunk);
#endif
    }

    __device__ inline storage_t element(const Params& p, const Column& c, u32 pixel) const {
#if DEFORMED
        const Sample sample = sample_of(p, offsets, pixel, c.r, c.s, p.filter_h, p.filter_w);
        return from_f32<storage_t>(sample.element(p, x, c.channel));
#else
        const i32 place = c.place(p, pixel);
        return place < 0 ? storage_t{} : x[place];
#endif
    }
#endif
};
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    filter_grad(const storage_t* __restrict__ x, const storage_t* __restrict__ dy,
                const float* __restrict__ offsets, float* __restrict__ dw, const Params p) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp % 2, warp_n = warp / 2;
    const u32 filter = blockIdx.y % p.tiles * BM, first_column = blockIdx.y / p.tiles * BN;
    const u32 begin = blockIdx.x * p.split, end = min(begin + p.split, p.pixels);
    const u32 steps = (end - begin + SLAB - 1) / SLAB, base = shared_address(shared);
    const WindowTile windows(p, x, offsets, first_column);

#if FIND_AHEAD
    const auto found_at = [&](u32 step) {
        return base + STAGES * STAGE_BYTES + step % 2 * windows.samples.bytes();
    };
    const auto find = [&](u32 step) {
        if (step < steps) windows.samples.find(p, offsets, found_at(step), begin + step * SLAB, end);
    };
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) find(step);
    __syncthreads();
#else
    const auto found_at = [](u32) { return 0u; };
#endif
    const auto copy = [&](u32 step) {
        if (step < steps) {
            const u32 stage = base + step % STAGES * STAGE_BYTES, pixel = begin + step * SLAB;
            copy_tile<DY_WIDE, BM / SLAB, SLAB, THREADS>(stage, dy + u64(pixel) * p.filters + filter,
                                                         p.filters, end - pixel, p.filters - filter);
            windows.copy(p, stage + DY_BYTES, found_at(step), pixel, end);
        }
        commit_copies();
    };
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) copy(step);
#if FIND_AHEAD
    __syncthreads();
    find(STAGES - 1);
#endif

    float sums[BANDS][4][4] = {};
    // Filters of a warp: half a slab or a whole one; columns: half a slab.
    const u32 own = warp_m * 2 * BANDS;
    const u32 dy_at = own / 8 * (SLAB * 128) + swizzled<8>(lane / 16 * 8 + lane % 8, own % 8 + lane / 8 % 2);
    const u32 x_at =
        DY_BYTES + warp_n / 2 * (SLAB * 128) + swizzled<8>(lane % 16, warp_n % 2 * 4 + lane / 16);
    for (u32 step = 0; step < steps; ++step) {
        wait_copies<STAGES - 2>();
        // The stage is there for all warps, and all have done with the one that is filled next.
        __syncthreads();
        copy(step + STAGES - 1);
#if FIND_AHEAD
        // In the place of those that all have copied by before the barrier.
        find(step + STAGES);
#endif
        const u32 stage = base + step % STAGES * STAGE_BYTES;
#pragma unroll
        for (u32 k = 0; k < SLAB / 16; ++k) {
            u32 a[BANDS][4], b[2][4];
#pragma unroll
            for (u32 i = 0; i < BANDS; ++i)
                load_matrices_transposed(a[i], ((stage + dy_at) ^ (i * 32)) + k * 16 * 128);
#pragma unroll
            for (u32 j = 0; j < 2; ++j)
                load_matrices_transposed(b[j], ((stage + x_at) ^ (j * 32)) + k * 16 * 128);
#pragma unroll
            for (u32 i = 0; i < BANDS; ++i) {
#pragma unroll
                for (u32 j = 0; j < 2; ++j) {
                    Mma<storage_t>::multiply(sums[i][2 * j], a[i], b[j][0], b[j][1]);
                    Mma<storage_t>::multiply(sums[i][2 * j + 1], a[i], b[j][2], b[j][3]);
                }
            }
        }
    }

    dw += u64(blockIdx.x) * p.filters * p.columns;
#pragma unroll
    for (u32 i = 0; i < BANDS; ++i) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = filter + (warp_m * BANDS + i) * 16 + half * 8 + lane / 4;
            if (row >= p.filters) continue;
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                const u32 column = first_column + warp_n * 32 + j * 8 + lane % 4 * 2;
                float* to = dw + u64(row) * p.columns + column;
                const float left = sums[i][j][2 * half], right = sums[i][j][2 * half + 1];
#if X_WIDE
                if (column < p.columns) *reinterpret_cast<float2*>(to) = make_float2(left, right);
#else
                if (column < p.columns) to[0] = left;
                if (column + 1 < p.columns) to[1] = right;
#endif
            }
        }
    }
}
