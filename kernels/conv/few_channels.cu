// Convolution of a map of few channels (the stem: three), 16-bit, on tensor cores, straight from a patch of
// the map:
//
//   y[b, p, q, k] = epilogue(sum over r, s, c of x[b, p * stride - padding + r, .., c] * w[k, r, s, c])
//
// Under one row of taps, what a pixel needs is one run of S * C neighbouring elements, and the next pixel's
// run begins STRIDE_W * C elements later. With that number even, both elements of a register of an `mma`
// fragment are one aligned word of the map as it is: no im2col, each element of the map is loaded once a
// block and read from shared memory in place. Lane (g, t) reads word g * STRIDE_W * C / 2 + t, eight lanes
// apart at most 32 words: free of bank conflicts.
//
// x is [B, H, W, C], w [K, R, S * C] with the runs padded by zeros to blocks of 8, y [B, P, Q, K]. A block
// computes TILE_P rows of TILE_Q = 32 pixels by TILE_N filters, a warp one row of it. A k of 16 is two blocks
// of runs, which may be of different tap rows; a last odd one is paired with zeros. The patch holds zeros
// outside the map. Filters lie in shared memory with an odd number of chunks a row, so that `ldmatrix` meets
// no bank twice.
//
// For the stem (7 x 7, stride 2, three channels, 64 filters) a block does 11 steps of 16 where 147 terms need
// 9.2. It reads the map and writes the result once: 392 FMAs a byte of the map and 73 a byte of the result.
// Memory bounds it.
//
// Defines: STORAGE (F16, BF16), ACTIVATION, CHANNELS, FILTER_H, FILTER_W, STRIDE_H, STRIDE_W, TILE_N,
// WHOLE_CHUNKS.
#include "common/async_copy.cuh"
#include "common/divisor.cuh"
#include "conv/writer.cuh"

struct Params {
    u32 height, width;
    u32 out_height, out_width;
    u32 filters;
    i32 padding_h, padding_w;
    u32 tiles_p, tiles_q;
    Divisor by_tiles_p, by_tiles_q;
};

constexpr u32 TILE_P = 8, TILE_Q = 32, THREADS = TILE_P * 32;
constexpr u32 RUN = FILTER_W * CHANNELS;
constexpr u32 ROW_BLOCKS = (RUN + 7) / 8;           // of 8 terms, of a row of taps
constexpr u32 BLOCKS = FILTER_H * ROW_BLOCKS;       // of a filter
constexpr u32 STEPS = (BLOCKS + 1) / 2;
constexpr u32 NEXT_PIXEL = STRIDE_W * CHANNELS;     // elements
constexpr u32 PATCH_H = (TILE_P - 1) * STRIDE_H + FILTER_H;
constexpr u32 PATCH_W =
    (TILE_Q - 1) * NEXT_PIXEL + ROW_BLOCKS * 8; // elements, the last pixel's padded run included
constexpr u32 PATCH_BYTES = (PATCH_H * PATCH_W * 2 + 15) / 16 * 16;
constexpr u32 FILTER_CHUNKS = 2 * STEPS + 1;        // of a row in shared memory: odd
static_assert(NEXT_PIXEL % 2 == 0, "a pixel's run begins at a word");

typedef WarpTile<storage_t, 2, TILE_N / 16, 8> Tile;

extern __shared__ __align__(128) u8 shared[];

// Filters from `first_filter` as far as there are any, zeros beyond, in the block that pads the last step and
// in the chunk that makes rows odd: gapless, so that a copy's lanes meet no bank twice.
__device__ inline void copy_filters(const storage_t* w, u32 first_filter, u32 filters, u32 to) {
    for (u32 i = threadIdx.x; i < TILE_N * FILTER_CHUNKS; i += THREADS) {
        const u32 row = i / FILTER_CHUNKS, block = i % FILTER_CHUNKS, n = first_filter + row;
        copy_async<16>(to + i * 16, w + (u64(n) * BLOCKS + block) * 8, block < BLOCKS && n < filters);
    }
    commit_copies();
}

// The map from element `first_w` of row `first_h` of an image, zeros outside.
__device__ inline void load_patch(const Params& p, const storage_t* image, i32 first_h, i32 first_w,
                                  storage_t* patch) {
    // A warp takes every TILE_P-th row, a lane every 32nd element of it: no division, and all loads in flight
    // together.
    constexpr u32 ROWS = (PATCH_H + TILE_P - 1) / TILE_P, COLUMNS = (PATCH_W + 31) / 32;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row_length = p.width * CHANNELS;
    storage_t held[ROWS][COLUMNS];
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
        const u32 row = warp + i * TILE_P, h = u32(first_h + i32(row)), w = u32(first_w + i32(lane));
        const bool inside = row < PATCH_H && h < p.height;
        const storage_t* from = image + i64(i32(h)) * row_length + i32(w);
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j) {
            held[i][j] = storage_t{};
            if (inside && w + j * 32 < row_length) held[i][j] = from[j * 32];
        }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
        const u32 row = warp + i * TILE_P;
        if (row >= PATCH_H) break;
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j) {
            if (lane + j * 32 < PATCH_W) patch[row * PATCH_W + lane + j * 32] = held[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    few_channels(const storage_t* __restrict__ x, const storage_t* __restrict__ w,
                 const float* __restrict__ bias, const storage_t* __restrict__ residual,
                 storage_t* __restrict__ y, const Params p) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 line = blockIdx.x / p.by_tiles_q, image = line / p.by_tiles_p;
    const u32 first_q = (blockIdx.x - line * p.tiles_q) * TILE_Q,
              first_p = (line - image * p.tiles_p) * TILE_P;
    const u32 first_filter = blockIdx.y * TILE_N;

    storage_t* patch = reinterpret_cast<storage_t*>(shared);
    const u32 filter_tile = shared_address(shared) + PATCH_BYTES;
    copy_filters(w, first_filter, p.filters, filter_tile);
    load_patch(p, x + u64(image) * p.height * p.width * CHANNELS, i32(first_p * STRIDE_H) - p.padding_h,
               (i32(first_q * STRIDE_W) - p.padding_w) * CHANNELS, patch);
    wait_copies<0>();
    __syncthreads();

    Tile tile;
    tile.clear();
    const u32* words =
        reinterpret_cast<const u32*>(patch + warp * STRIDE_H * PATCH_W + lane / 4 * NEXT_PIXEL) + lane % 4;
    const u32 filter_row = filter_tile + (lane / 16 * 8 + lane % 8) * FILTER_CHUNKS * 16 + lane / 8 % 2 * 16;
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        // Where the two blocks of terms lie in the patch; the zeros that pad the last step are multiplied
        // with anything finite.
        const u32 first = 2 * step, second = 2 * step + 1 < BLOCKS ? first + 1 : first;
        const u32 left = first / ROW_BLOCKS * PATCH_W + first % ROW_BLOCKS * 8;
        const u32 right = second / ROW_BLOCKS * PATCH_W + second % ROW_BLOCKS * 8;
        u32 b[TILE_N / 16][4];
#pragma unroll
        for (u32 j = 0; j < TILE_N / 16; ++j)
            load_matrices(b[j], filter_row + j * 256 * FILTER_CHUNKS + step * 32);
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            const u32 upper = i * 16 * NEXT_PIXEL, lower = upper + 8 * NEXT_PIXEL;
            const u32 a[4] = {words[(upper + left) / 2], words[(lower + left) / 2],
                              words[(upper + right) / 2], words[(lower + right) / 2]};
#pragma unroll
            for (u32 j = 0; j < TILE_N / 16; ++j) {
                Mma<storage_t>::multiply(tile.d[i][2 * j], a, b[j][0], b[j][1]);
                Mma<storage_t>::multiply(tile.d[i][2 * j + 1], a, b[j][2], b[j][3]);
            }
        }
    }
    __syncthreads();

    // Rows of the tile are pixels of one row of y, which ends where `pixels` says.
    const u32 row = image * p.out_height + first_p + warp;
    const u32 end = first_p + warp < p.out_height ? (row + 1) * p.out_width : 0;
    const Epilogue<storage_t> epilogue{bias, residual, y};
    Writer<Tile, storage_t, ACTIVATION, PlainTail>{epilogue,     PlainTail{}, row * p.out_width + first_q,
                                                   first_filter, end,         p.filters}
        .write(tile, shared, lane);
}
