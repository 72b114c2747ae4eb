// From an 8-bit image to the network input in one launch: bilinear resize, normalisation, padding, NHWC in
// storage type. Bit for bit what src/image/resize.rs and src/image/preprocess.rs do on the CPU (cv2.resize
// INTER_LINEAR in fixed point, mmcv imnormalize).
//
//   position = f32((d + 1/2) * (1 / (out / in)) - 1/2)   in f64
//   low      = floor(position), fraction = position - low
//   weights  = round(2048 * (1 - fraction)), round(2048 * fraction)
//   columns: off the ends the border pixel alone
//   r_i      = a_i * wx0 + b_i * wx1                                   rows: both weights on the border row
//   v        = (((r_0 >> 4) * wy0 >> 16) + ((r_1 >> 4) * wy1 >> 16) + 2) >> 2
//   y        = f32(f64(f32(v - mean)) * (1 / std))
//
// The identity and the exact halving, which the CPU handles apart, come out of these formulas as they are.
// NV12 (a plane of Y, a plane of interleaved U and V at half size) and I420 (a plane of Y, below it U and V
// side by side) are converted pixel by pixel, before the resize, in OpenCV's fixed point with 20 fractional
// bits. A block of 256 threads makes TILE_H x TILE_W output pixels. It first tabulates what is worth it in
// shared memory: the taps of its rows and columns (the only f64 arithmetic besides the table) and the 3 x 256
// values of y. Then thread (x, y) makes pixels of one column. Results meet in shared memory and leave in
// 16-byte chunks where rows are whole chunks. Reads the source once from device memory (neighbouring taps hit
// L1): height * pitch bytes; writes padded_h * padded_w * 3 * sizeof(storage_t) bytes.
//
// Defines: STORAGE, FORMAT.
#include "common/elements.cuh"

#define RGB8 0
#define BGR8 1
#define NV12 2
#define I420 3
#define RGBA8 4
#define BGRA8 5
#define GRAY8 6
#define SUBSAMPLED (FORMAT == NV12 || FORMAT == I420)

#define THREADS 256
#define TILE_W 64
#define TILE_H 16
#define ROW_STEP (THREADS / TILE_W)

struct Params {
    double scale[3];       // 1 / std
    double row_step;       // 1 / (resized / source)
    double column_step;
    float mean[3];
    i32 source_h, source_w;
    i32 pitch;             // bytes from row to row, of both planes
    i32 resized_h, resized_w;
    i32 padded_h, padded_w;
    i32 luma, u_blue, u_green, v_green, v_red;  // of NV12 and I420, times 2^20
    i32 chunks;            // rows of the result are whole chunks
};

struct alignas(16) Tap {
    i32 low, high;
    i32 low_weight, high_weight;
};

__device__ inline i32 fixed(float weight) { return __float2int_rn(__fmul_rn(weight, 2048.0f)); }

__device__ inline Tap tap(i32 d, double step, i32 size, bool snap) {
    const double centre = __dadd_rn(double(d), 0.5);
    const float position = __double2float_rn(__dadd_rn(__dmul_rn(centre, step), -0.5));
    const float floor = floorf(position);
    const i32 last = size - 1;
    i32 low = i32(floor);
    float fraction = __fsub_rn(position, floor);
    if (snap && low < 0) {
        low = 0;
        fraction = 0.0f;
    }
    if (snap && low >= last) {
        low = last;
        fraction = 0.0f;
    }
    return Tap{min(max(low, 0), last), min(max(low + 1, 0), last), fixed(__fsub_rn(1.0f, fraction)),
               fixed(fraction)};
}

// Red, green, blue of pixel `column` of a row that starts at `first` (and at `second`, of its chroma).
__device__ inline void fetch(const u8* __restrict__ first, const u8* __restrict__ second, i32 column,
                             const Params& p, i32 (&rgb)[3]) {
    if (SUBSAMPLED) {
        const i32 luma = max(i32(first[column]) - 16, 0) * p.luma + (1 << 19);
        const u8* chroma = second + (FORMAT == NV12 ? column & ~1 : column >> 1);
        const i32 u = i32(chroma[0]) - 128, v = i32(chroma[FORMAT == NV12 ? 1 : p.source_w >> 1]) - 128;
        rgb[0] = min(max((luma + p.v_red * v) >> 20, 0), 255);
        rgb[1] = min(max((luma + p.v_green * v + p.u_green * u) >> 20, 0), 255);
        rgb[2] = min(max((luma + p.u_blue * u) >> 20, 0), 255);
    } else {
        constexpr i32 bytes = FORMAT == GRAY8 ? 1 : FORMAT == RGBA8 || FORMAT == BGRA8 ? 4 : 3;
        constexpr bool swapped = FORMAT == BGR8 || FORMAT == BGRA8;
#pragma unroll
        for (int c = 0; c < 3; ++c)
            rgb[c] = first[column * bytes + (FORMAT == GRAY8 ? 0 : swapped ? 2 - c : c)];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    preprocess(const u8* __restrict__ first, const u8* __restrict__ second, storage_t* __restrict__ y,
               const Params p) {
    __shared__ Tap columns[TILE_W];
    __shared__ Tap rows[TILE_H];
    __shared__ storage_t table[3][256];
    __shared__ Chunk tile[TILE_H][TILE_W * 3 * sizeof(storage_t) / sizeof(Chunk)];
    const i32 thread = threadIdx.x;
    const i32 x0 = blockIdx.x * TILE_W, y0 = blockIdx.y * TILE_H;
    if (thread < TILE_W) columns[thread] = tap(x0 + thread, p.column_step, p.source_w, true);
    if (thread < TILE_H) rows[thread] = tap(y0 + thread, p.row_step, p.source_h, false);
#pragma unroll
    for (int c = 0; c < 3; ++c) {
        const float centred = __fsub_rn(float(thread), p.mean[c]);
        table[c][thread] = from_f32<storage_t>(__double2float_rn(__dmul_rn(double(centred), p.scale[c])));
    }
    __syncthreads();

    const i32 column = thread % TILE_W;
    const Tap h = columns[column];
    for (i32 row = thread / TILE_W; row < TILE_H; row += ROW_STEP) {
        storage_t* out = reinterpret_cast<storage_t*>(tile[row]) + column * 3;
        if (y0 + row >= p.resized_h || x0 + column >= p.resized_w) {
#pragma unroll
            for (int c = 0; c < 3; ++c) out[c] = from_f32<storage_t>(0.0f);
            continue;
        }
        const Tap v = rows[row];
        i32 pixel[4][3];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const i32 source_row = i == 0 ? v.low : v.high;
            const u8* luma = first + u64(source_row) * p.pitch;
            const u8* chroma = SUBSAMPLED ? second + u64(source_row / 2) * p.pitch : nullptr;
            fetch(luma, chroma, h.low, p, pixel[2 * i]);
            fetch(luma, chroma, h.high, p, pixel[2 * i + 1]);
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            const i32 upper = pixel[0][c] * h.low_weight + pixel[1][c] * h.high_weight;
            const i32 lower = pixel[2][c] * h.low_weight + pixel[3][c] * h.high_weight;
            const i32 sum = (((upper >> 4) * v.low_weight) >> 16) + (((lower >> 4) * v.high_weight) >> 16);
            // As the CPU keeps eight bits.
            out[c] = table[c][u8((sum + 2) >> 2)];
        }
    }
    __syncthreads();

    const i32 height = min(TILE_H, p.padded_h - y0), width = min(TILE_W, p.padded_w - x0);
    if (p.chunks) {
        constexpr i32 lanes = Lanes<storage_t>::count;
        const i32 chunks = width * 3 / lanes;
        for (i32 i = thread; i < height * chunks; i += THREADS) {
            const i32 row = i / chunks, chunk = i % chunks;
            storage_t* out = y + (u64(y0 + row) * p.padded_w + x0) * 3 + chunk * lanes;
            store_global_chunk(out, tile[row][chunk]);
        }
    } else {
        const i32 elements = width * 3;
        for (i32 i = thread; i < height * elements; i += THREADS) {
            const i32 row = i / elements, element = i % elements;
            const storage_t* from = reinterpret_cast<const storage_t*>(tile[row]);
            y[(u64(y0 + row) * p.padded_w + x0) * 3 + element] = from[element];
        }
    }
}
