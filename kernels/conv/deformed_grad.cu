// Gradients of a deformable convolution's map and offsets from those of its samples, grads [B, P, Q, R * S,
// C], rounded to what x is stored as: what a sample's gradient is to the four pixels that it blends
// (deformed.cuh), and to its place.
//
//   dx[b, h, w, c] = sum over the samples that blend the pixel of grad * share
//   doffsets[.., axis] = sum over channels of grad * (slope of the sample along the axis)
//
// Which samples blend a pixel is only known from the offsets: each pixel gets a list of them, whose length is
// counted first, and adds up theirs. Nothing but counts and places is taken by atomics. The order of a list
// is that of chance until it is sorted; sums are f32, in the order of the samples.
//
//   samples  doffsets, where samples lie, and of how many a pixel is the first, second, third, fourth
//   reserve  a thread a pixel: where its list lies, behind those of others that came before by chance
//   place    a thread a sample: puts it on the lists of its pixels
//   sort     SORTERS lanes for each of a pixel's four parts of its list: an entry goes where as many lie
//            before it as come before it
//   gather   LANES lanes a pixel, 16 bytes of its channels a lane and turn: dx. 16-bit types take tensor
//            cores, and a warp two pixels; a share is the sum of two numbers of that type, 16 bits of it and
//            more (those of f16 to 2^-25)
//
// `counts` [pixel][4] and `taken` begin as zeros (`clear`). Each gradient is read five times, once with the
// four pixels of x and four times through L2 by these pixels; 18 FLOPs a channel of a sample. Lists, places
// and what counts them take 80 bytes a sample and 144 a pixel.
//
// Defines: STORAGE (of x, dx and grads), VECTOR (16 bytes of x, or 1).
#include "common/async_copy.cuh"
#include "common/elements.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include "conv/deformed.cuh"

#define THREADS 256
#define LANES 16
#define SORTERS 2
// Entries that a list's places are a multiple of.
#define BLOCK 8
// Samples that a thread of `samples` finds, and those of its block.
#define OF_THREAD 2
#define SAMPLES (THREADS * OF_THREAD)

struct Params {
    u32 samples;     // B * P * Q * R * S, below 2^31 / C
    u32 map_pixels;  // B * H * W
    u32 height, width, channels;
    u32 out_height, out_width;
    u32 taps, filter_w;
    i32 stride_h, stride_w;
    i32 padding_h, padding_w;
    i32 dilation_h, dilation_w;
    Divisor by_taps, by_filter_w, by_out_height, by_out_width;
};

#define TENSOR (STORAGE != F32 && VECTOR > 1)

// A sample of a pixel's list, and the pixel's share in it. Lists begin at multiples of BLOCK, and what they
// lack of a whole block are entries without a share.
struct alignas(8) Entry {
    u32 first;  // its first element in grads
    u32 share;  // TENSOR: two numbers whose sum it is, the larger one lower; else a float

    Entry() = default;
    __device__ inline Entry(u32 first, float of) : first(first) {
#if TENSOR
        const float high = to_f32(from_f32<storage_t>(of));
        share = pack2(of, of - high, storage_t{});
#else
        share = __float_as_uint(of);
#endif
    }
};

// Along an axis, the pixel before a point and its distance, and which of it (bit 0) and the next pixel (bit
// 1) are on the map; neither if the point is a whole pixel or more outside, or nowhere. A pixel of share zero
// counts, as the sample has a slope towards it.
struct Along {
    i32 before;
    float part;
    u32 on_map;

    __device__ inline Along(i32 tap, float offset, u32 size)
        : before(i32(u32(tap) + u32(__float2int_rd(offset)))), part(offset - floorf(offset)), on_map(0) {
        const bool outside = !(part >= 0.0f) || before >= i32(size) || (before < 0 && part == 0.0f);
        if (outside) return;
        if (u32(before) < size) on_map |= 1;
        if (u32(before) + 1 < size) on_map |= 2;
    }
};

// Where a sample lies; its four pixels are numbered row by row.
struct alignas(16) Place {
    i32 first;          // of its pixels, over all images
    u32 on_map;         // a bit each; none beyond the last sample
    float down, right;  // the point's distances from the first

    __device__ static inline Place of(u32 sample, const float* offsets, const Params& p) {
        if (sample >= p.samples) return Place{};
        const u32 pixel = sample / p.by_taps, tap = sample - pixel * p.taps, r = tap / p.by_filter_w;
        const Corner corner(p, pixel);
        const float2 offset = reinterpret_cast<const float2*>(offsets)[sample];
        const Along row(corner.h + i32(r) * p.dilation_h, offset.x, p.height);
        const Along column(corner.w + i32(tap - r * p.filter_w) * p.dilation_w, offset.y, p.width);
        const u32 on_map = (row.on_map & 1 ? column.on_map : 0) | (row.on_map & 2 ? column.on_map << 2 : 0);
        if (!on_map) return Place{};
        const u32 line = corner.image * p.height + u32(row.before);
        return Place{i32(line * p.width + u32(column.before)), on_map, row.part, column.part};
    }

    __device__ inline float share(u32 i) const {
        return (i / 2 ? down : 1.0f - down) * (i % 2 ? right : 1.0f - right);
    }

    // Calls `body` with the pixels that have a share in the sample, which of them each is, and its share.
    template <typename F> __device__ inline void for_pixels(const Params& p, F body) const {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (on_map >> i & 1 && share(i) > 0.0f)
                body(u32(first) + i / 2 * p.width + i % 2, i, share(i));
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    clear(u32* __restrict__ counts, u32* __restrict__ taken, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i < p.map_pixels * 4) counts[i] = 0;
    if (i == 0) *taken = 0;
}

// Elements from the first pixel of a sample to that of number `i`.
__device__ inline u32 step_to(const Params& p, u32 i) { return (i / 2 * p.width + i % 2) * p.channels; }

#if TENSOR
// Adds the products of N times 32 channels: of two pairs of rows of left factors, and a column of the right
// one if there is `any` left of it. Terms may come in any order that is that of both factors: a lane has
// eight neighbouring channels of a row, which are those of two products.
template <int N, int offset>
__device__ inline void multiply_channels(const u64 (&rows)[4], u64 column, bool any, float (&sums)[2][4]) {
    Chunk a[4][2], b[2];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        a[j][0] = load_read_only<offset>(rows[j]);
        if (N > 1) a[j][1] = load_read_only<offset + 64>(rows[j]);
    }
    b[0] = load_read_only<offset>(column);
    if (!any) b[0] = Chunk{};
    if (N > 1) b[1] = load_read_only<offset + 64>(column);
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
            const Chunk &upper = a[2 * pair][i], &lower = a[2 * pair + 1][i];
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                const u32 left[4] = {upper.word[j], lower.word[j], upper.word[j + 1], lower.word[j + 1]};
                Mma<storage_t>::multiply(sums[pair], left, b[i].word[j], b[i].word[j + 1]);
            }
        }
    }
}

// Shared memory of the samples of a block: where they lie, then the first element of each of their pixels,
// which is the map's first one for pixels that are not on it.
#define SHARED_WORDS (SAMPLES * 8)

__device__ inline void share_place(const Place& place, u32 places, const Params& p) {
    Sample{0, place.on_map, place.down, place.right}.store(places);
    Chunk firsts;
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
        firsts.word[i] = place.on_map >> i & 1 ? u32(place.first) * p.channels + step_to(p, i) : 0;
    store_shared_chunk(places + SAMPLES * 16, firsts);
}

// The slopes of the warp's part of the block's samples, eight at a time, on tensor cores. Columns of the
// right factor are their gradients, rows of two left ones the sixteen pixels of four of them each; of the
// products, each gradient's with its own pixels is taken, of which every lane has one. Rows and columns that
// there are not are others, and their products are not taken.
__device__ inline void slopes(const storage_t* grads, const storage_t* x, float* doffsets, u32 first,
                              u32 places, const Params& p) {
    const u32 lane = threadIdx.x % WARP, row = lane / 4, own = lane % 4, corner = row % 4;
    const bool low = corner / 2, odd = corner % 2;
    // The slope towards the next row has the share among columns, and the other way round.
    const float sign_row = low ? 1.0f : -1.0f, sign_column = odd ? 1.0f : -1.0f;
    float right_times = odd ? sign_row : -sign_row, right_plus = odd ? 0.0f : sign_row;
    float down_times = low ? sign_column : -sign_column, down_plus = low ? 0.0f : sign_column;
    keep(right_times), keep(right_plus), keep(down_times), keep(down_plus);
    constexpr u32 OF_WARP = WARP * OF_THREAD;
    u32 sample = threadIdx.x / WARP * OF_WARP;
    u32 of_rows = places + (SAMPLES + sample + row / 4) * 16 + corner * 4;
    u32 of_lane = places + (sample + 2 * own + row / 4) * 16;
    keep(of_rows);
    keep(of_lane);
    const u64 map = global_address(x + own * 8), gradients = global_address(grads + own * 8);
    float* to = doffsets + u64(first + sample + 2 * own + row / 4) * 2 + corner;
    u32 of_column = first + sample + row, last = p.samples - 1;
    sample = first + sample + 2 * own + row / 4;
    keep(last);
#pragma unroll 1
    for (u32 eight = 0; eight < OF_WARP; eight += 8) {
        u64 rows[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            rows[i] = element_address(map, load_shared_word(of_rows + i * 32), storage_t{});
        u64 column =
            element_address(gradients, min(of_column, last) * p.channels, storage_t{});
        float sums[2][4] = {};
        u32 left = p.channels;
        const auto advance = [&](u32 channels) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) rows[i] += channels * 2;
            column += channels * 2;
            left -= channels;
        };
#pragma unroll 1
        while (left >= 128) {
            multiply_channels<2, 0>(rows, column, true, sums);
            multiply_channels<2, 128>(rows, column, true, sums);
            advance(128);
        }
#pragma unroll 1
        while (i32(left) > 0) {
            // Lanes that have no channels left read the first ones of these.
            const bool any = own * 8 < left;
            const u64 back = any ? 0 : own * 16;
            const u64 at[4] = {rows[0] - back, rows[1] - back, rows[2] - back, rows[3] - back};
            multiply_channels<1, 0>(at, column - back, any, sums);
            advance(32);
        }
        // Row r of the left factors' upper halves is of samples r / 4 and r / 4 + 4, of their lower halves of
        // the next but one; their columns are in the lanes of as many pairs.
        float of[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) of[i] = own / 2 ? sums[1][i] : sums[0][i];
        const float before = own % 2 ? of[2] : of[0], behind = own % 2 ? of[3] : of[1];
        const Sample at = Sample::load(of_lane);
        const float product = at.inside >> corner & 1 ? (row / 4 ? behind : before) : 0.0f;
        const float by_row = product * fmaf(at.right, right_times, right_plus);
        const float by_column = product * fmaf(at.down, down_times, down_plus);
        // Pixels of the first column add up one slope, those of the second the other.
        float slope = odd ? by_column : by_row;
        slope += __shfl_xor_sync(FULL_MASK, odd ? by_row : by_column, 4);
        slope += __shfl_xor_sync(FULL_MASK, slope, 8);
        if (!low && sample <= last) *to = slope;
        to += 16, sample += 8, of_column += 8, of_rows += 128, of_lane += 128;
    }
}
#else
#define SHARED_WORDS (SAMPLES * 4)

__device__ inline void share_place(const Place& place, u32 places, const Params& p) {
    const i32 offset = place.first * i32(p.channels);
    Sample{offset, place.on_map, place.down, place.right}.store(places);
}

__device__ inline void store_slopes(float* doffsets, u32 sample, const Params& p, float down, float right) {
    if (sample < p.samples) reinterpret_cast<float2*>(doffsets)[sample] = make_float2(down, right);
}

// The slopes of the block's samples, LANES lanes a sample.
__device__ inline void slopes(const storage_t* grads, const storage_t* x, float* doffsets, u32 first,
                              u32 places, const Params& p) {
    for (u32 own = threadIdx.x / LANES; own < SAMPLES; own += THREADS / LANES) {
        const Sample at = Sample::load(places + own * 16);
        const storage_t* grad = grads + (first + own) * p.channels;
        float products[4] = {};
        for (u32 c = threadIdx.x % LANES * VECTOR; at.inside && c < p.channels; c += LANES * VECTOR) {
            float by[VECTOR];
            load_elements(grad + c, by);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                if (!(at.inside >> i & 1)) continue;
                float value[VECTOR];
                load_elements(x + (i64(at.offset) + c) + step_to(p, i), value);
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) products[i] += by[v] * value[v];
            }
        }
        const float left = products[2] - products[0], right = products[3] - products[1];
        const float above = products[1] - products[0], below = products[3] - products[2];
        float by_row = left * (1.0f - at.right) + right * at.right;
        float by_column = above * (1.0f - at.down) + below * at.down;
#pragma unroll
        for (int distance = LANES / 2; distance > 0; distance /= 2) {
            by_row += __shfl_xor_sync(FULL_MASK, by_row, distance);
            by_column += __shfl_xor_sync(FULL_MASK, by_column, distance);
        }
        if (threadIdx.x % LANES == 0) store_slopes(doffsets, first + own, p, by_row, by_column);
    }
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    samples(const storage_t* __restrict__ grads, const storage_t* __restrict__ x,
            const float* __restrict__ offsets, u32* __restrict__ counts, Place* __restrict__ found,
            float* __restrict__ doffsets, const Params p) {
    __shared__ alignas(16) u32 shared[SHARED_WORDS];
    const u32 first = blockIdx.x * SAMPLES, places = shared_address(shared);
#pragma unroll 1
    for (u32 own = threadIdx.x; own < SAMPLES; own += THREADS) {
        const Place place = Place::of(first + own, offsets, p);
        place.for_pixels(p, [&](u32 pixel, u32 part, float) { atomicAdd(counts + pixel * 4 + part, 1u); });
        if (first + own < p.samples) found[first + own] = place;
        share_place(place, places + own * 16, p);
    }
    __syncthreads();
    slopes(grads, x, doffsets, first, places, p);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    reserve(const u32* __restrict__ counts, u32* __restrict__ taken, u32* __restrict__ ends, const Params p) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x, lane = threadIdx.x % WARP;
    const bool any = i < p.map_pixels;
    const Chunk parts = any ? load_chunk(counts + i * 4) : Chunk{};
    u32 count = 0;
    Chunk begins;
#pragma unroll
    for (u32 part = 0; part < 4; ++part) {
        begins.word[part] = count;
        count += parts.word[part];
    }
    count = (count + BLOCK - 1) / BLOCK * BLOCK;
    // Of this lane and those before it.
    u32 sum = count;
#pragma unroll
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        const u32 other = __shfl_up_sync(FULL_MASK, sum, distance);
        if (lane >= distance) sum += other;
    }
    u32 first = 0;
    if (lane == WARP - 1) first = atomicAdd(taken, sum);
    first = __shfl_sync(FULL_MASK, first, WARP - 1) + sum - count;
#pragma unroll
    for (u32 part = 0; part < 4; ++part) begins.word[part] += first;
    if (any) store_global_chunk(ends + i * 4, begins);
}

// Moves the end of each part of a pixel's list, which is empty at first, behind its last entry.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    place(const Place* __restrict__ found, u32* __restrict__ ends, Entry* __restrict__ entries,
          const Params p) {
    const u32 sample = blockIdx.x * THREADS + threadIdx.x;
    if (sample >= p.samples) return;
    const u32 first = sample * p.channels;
    found[sample].for_pixels(p, [&](u32 pixel, u32 part, float share) {
        entries[atomicAdd(ends + pixel * 4 + part, 1u)] = Entry(first, share);
    });
}

// A pixel's list, when all is placed.
struct List {
    u32 begin, end;

    __device__ inline List(const u32* counts, const u32* ends, u32 pixel)
        : begin(ends[pixel * 4] - counts[pixel * 4]), end(ends[pixel * 4 + 3]) {}
};

// Adds one where `left` is less than `right`.
__device__ inline void count_less(u32& count, u32 left, u32 right) {
    asm("{.reg .pred less;\n\tsetp.lt.u32 less, %1, %2;\n\t@less add.u32 %0, %0, 1;}"
        : "+r"(count)
        : "r"(left), "r"(right));
}

__device__ inline Entry load_entry(u64 address) {
    Entry entry;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(entry.first), "=r"(entry.share) : "l"(address));
    return entry;
}

// Sorts N of the lane's entries, every SORTERS-th from number `i` of the `count` from `from`.
template <u32 N> __device__ inline void sort_some(u64 from, Entry* sorted, u32 i, u32 count) {
    Entry own[N];
    u32 before[N] = {};
#pragma unroll
    for (u32 j = 0; j < N; ++j)
        own[j] = load_entry(element_address(from, min(i + j * SORTERS, count - 1), u64{}));
    u64 other = from;
    const u64 last = element_address(from, count, u64{});
#pragma unroll 4
    for (; other < last; other += sizeof(Entry)) {
        const u32 first = load_entry(other).first;
#pragma unroll
        for (u32 j = 0; j < N; ++j) count_less(before[j], first, own[j].first);
    }
#pragma unroll
    for (u32 j = 0; j < N; ++j)
        if (i + j * SORTERS < count) sorted[before[j]] = own[j];
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sort(const u32* __restrict__ counts, const u32* __restrict__ ends, const Entry* __restrict__ entries,
         Entry* __restrict__ sorted, const Params p) {
    const u32 part = blockIdx.x * (THREADS / SORTERS) + threadIdx.x / SORTERS, lane = threadIdx.x % SORTERS;
    if (part >= p.map_pixels * 4) return;
    const u32 count = counts[part], begin = ends[part] - count;
    // The lanes of a pixel fill its last block. The gradient that counts for nothing is one of its own; a
    // list that is empty has no block.
    const u32 end = ends[part | 3], fill = end + threadIdx.x % (4 * SORTERS);
    static_assert(4 * SORTERS >= BLOCK, "a lane for each place");
    if (end % BLOCK != 0 && fill < (end | (BLOCK - 1)) + 1) {
        Entry none;
        none.first = entries[end - 1].first;
        none.share = 0;
        sorted[fill] = none;
    }
    const u64 from = global_address(entries + begin);
    sorted += begin;
    if (count == 0) return;
    // Of nine taps, each pixel is the first of some nine samples.
    constexpr u32 MOST = 5, MORE = 2;
    sort_some<MOST>(from, sorted, lane, count);
#pragma unroll 1
    for (u32 i = MOST * SORTERS; i < count; i += MORE * SORTERS)
        sort_some<MORE>(from, sorted, i + lane, count);
}

#if TENSOR
// Adds up N times 64 channels of two pixels. A product's terms are the two channels of a word, of eight
// samples; rows of its left factor are words, as they lie in grads. Columns 0 and 1 of the right one are the
// higher parts of the samples' shares in either channel, columns 2 and 3 the lower ones, and the other four
// the same of the second pixel. What is not finite makes NaN of its channels in both pixels.
//
// With g = lane / 4 and t = lane % 4, a lane has chunk g of two neighbouring samples of a block. Its sums are
// those of the higher parts where t is even, and of the lower ones where it is odd; of the second pixel from
// 2 on.
template <u32 N> struct PixelSums {
    float sums[N][2][4] = {};

    // One or two BLOCKS of a list, of which the lane has two entries each from `list`. `grads`: the lane's
    // channels; `select`: puts half a share where its column has it, beside zeros.
    template <u32 BLOCKS> __device__ inline void add(u64 list, u64 grads, u32 select) {
        Chunk two[2], chunk[4][2];
        two[0] = load_read_only<0>(list);
        if (BLOCKS > 1) two[1] = load_read_only<BLOCK * sizeof(Entry)>(list);
#pragma unroll
        for (u32 i = 0; i < 2 * BLOCKS; ++i) {
            const u64 from = element_address(grads, two[i / 2].word[i % 2 * 2], storage_t{});
            chunk[i][0] = load_read_only<0>(from);
            if (N > 1) chunk[i][1] = load_read_only<128>(from);
        }
#pragma unroll
        for (u32 i = 0; i < BLOCKS; ++i) {
            const u32 b0 = __byte_perm(two[i].word[1], 0, select);
            const u32 b1 = __byte_perm(two[i].word[3], 0, select);
#pragma unroll
            for (u32 n = 0; n < N; ++n)
#pragma unroll
                for (u32 pair = 0; pair < 2; ++pair) {
                    const Chunk &first = chunk[2 * i][n], &second = chunk[2 * i + 1][n];
                    const u32 a[4] = {first.word[2 * pair], first.word[2 * pair + 1], second.word[2 * pair],
                                      second.word[2 * pair + 1]};
                    Mma<storage_t>::multiply(sums[n][pair], a, b0, b1);
                }
        }
    }

    // A lane stores the first or the last channels of its pixel, `dx`, which has `left` of them.
    __device__ inline void store(storage_t* dx, u32 left) const {
        const u32 lane = threadIdx.x % WARP, odd = lane % 2, at = odd * 64 + lane / 4 * 8;
        float x[8];
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            const float first = sums[0][i / 4][i % 4], last = sums[N - 1][i / 4][i % 4];
            x[i] = (odd ? last : first) + __shfl_xor_sync(FULL_MASK, odd ? first : last, 1);
        }
        if (odd < N && at < left) store_elements(dx + at, x);
    }
};

// The whole blocks of a pixel's list, by addresses.
struct Blocks {
    u64 begin, end;

    __device__ inline Blocks(const Entry* sorted, const u32* counts, const u32* ends, u32 pixel, u32 pixels)
        : begin(0), end(0) {
        if (pixel >= pixels) return;
        const List list(counts, ends, pixel);
        begin = global_address(sorted + list.begin);
        end = begin + (list.end - list.begin + BLOCK - 1) / BLOCK * (BLOCK * sizeof(Entry));
    }
};

// Adds up and stores N times 64 channels, of which there are `left`. `dx`: of the lane's pixel, which has
// `own_left`.
template <u32 N> __device__ inline void gather_some(const Blocks (&lists)[2], const storage_t* grads,
                                                    storage_t* dx, u32 left, u32 own_left) {
    const u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // Lanes that have no channels read the first.
    const u64 own = global_address(grads + (g * 8 < left ? g * 8 : 0));
    PixelSums<N> sums;
#pragma unroll
    for (u32 pixel = 0; pixel < 2; ++pixel) {
        const u32 column = g % 2 ? (g & 2 ? 0x3244 : 0x1044) : (g & 2 ? 0x4432 : 0x4410);
        u32 select = g / 4 == pixel ? column : 0x4444;
        keep(select);
        constexpr u32 BYTES = BLOCK * sizeof(Entry);
        u64 list = lists[pixel].begin + t * 16;
#pragma unroll 1
        for (; list + BYTES < lists[pixel].end; list += 2 * BYTES) sums.template add<2>(list, own, select);
        if (list < lists[pixel].end) sums.template add<1>(list, own, select);
    }
    sums.store(dx, own_left);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gather(const storage_t* __restrict__ grads, const u32* __restrict__ counts, const u32* __restrict__ ends,
           const Entry* __restrict__ sorted, storage_t* __restrict__ dx, const Params p) {
    const u32 pixel = (blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP) * 2;
    if (pixel >= p.map_pixels) return;
    const Blocks lists[2] = {Blocks(sorted, counts, ends, pixel, p.map_pixels),
                             Blocks(sorted, counts, ends, pixel + 1, p.map_pixels)};
    // A pixel beyond the last has no channels.
    const u32 own = pixel + threadIdx.x % 4 / 2;
    const bool missing = own >= p.map_pixels;
    dx += u64(own) * p.channels;
    u32 left = p.channels;
#pragma unroll 1
    for (; left >= 128; left -= 128, grads += 128, dx += 128)
        gather_some<2>(lists, grads, dx, left, missing ? 0 : left);
#pragma unroll 1
    for (; i32(left) > 0; left -= 64, grads += 64, dx += 64)
        gather_some<1>(lists, grads, dx, left, missing ? 0 : left);
}
#else
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gather(const storage_t* __restrict__ grads, const u32* __restrict__ counts, const u32* __restrict__ ends,
           const Entry* __restrict__ sorted, storage_t* __restrict__ dx, const Params p) {
    const u32 pixel = blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    if (pixel >= p.map_pixels) return;
    const List list(counts, ends, pixel);
    for (u32 c = threadIdx.x % LANES * VECTOR; c < p.channels; c += LANES * VECTOR) {
        const storage_t* own = grads + c;
        float sums[VECTOR] = {};
#pragma unroll 4
        for (u32 i = list.begin; i < list.end; ++i) {
            const Entry entry = sorted[i];
            float grad[VECTOR];
            load_elements(own + entry.first, grad);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sums[v] = fmaf(grad[v], __uint_as_float(entry.share), sums[v]);
        }
        store_elements(dx + u64(pixel) * p.channels + c, sums);
    }
}
#endif
