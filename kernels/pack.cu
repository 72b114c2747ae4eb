// A tensor's elements as a matrix [rows, pitch] in another order and type, as a kernel reads a filter:
// element (i, j) is element first + i * row_step + o * step[0] + m * step[1] + n * step[2] of x, where (o, m,
// n) are the digits of j, the last two below `middle` and `inner`; columns from `columns` on are zero.
//
// What src/cuda/pack.rs does once on the host for constants, for values that change from run to run, and with
// steps of either sign for turned and flipped filters. A block moves a tile of TILE x TILE elements through
// shared memory: it reads along whichever of rows and columns has neighbours in x, and writes along columns.
// Every element is read and written once; no FLOPs.
//
// Defines: SOURCE, TARGET (numbers of common/storage.cuh). Grid: tiles of columns, tiles of rows. Block: TILE
// x LINES threads.
#include "common/divisor.cuh"

#define TILE 32
#define LINES 8

typedef Storage<SOURCE>::type source_t;
typedef Storage<TARGET>::type target_t;

struct Params {
    u32 rows, columns;
    u32 pitch;  // elements of a row of y
    i32 first, row_step;
    i32 step[3];
    u32 middle, inner;
    Divisor by_middle, by_inner;
};

__device__ inline i32 place(const Params& p, u32 row, u32 column) {
    const u32 line = column / p.by_inner, o = line / p.by_middle;
    const u32 m = line - o * p.middle, n = column - line * p.inner;
    return p.first + i32(row) * p.row_step + i32(o) * p.step[0] + i32(m) * p.step[1] + i32(n) * p.step[2];
}

extern "C" __global__ void __launch_bounds__(TILE* LINES, 1)
    pack(const source_t* __restrict__ x, target_t* __restrict__ y, const Params p) {
    __shared__ float tile[TILE][TILE + 1];
    const u32 row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    const bool along_rows = p.row_step == 1 || p.row_step == -1;
#pragma unroll
    for (u32 line = threadIdx.y; line < TILE; line += LINES) {
        const u32 i = along_rows ? threadIdx.x : line, j = along_rows ? line : threadIdx.x;
        const bool inside = row + i < p.rows && column + j < p.columns;
        tile[i][j] = inside ? to_f32(x[place(p, row + i, column + j)]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (u32 line = threadIdx.y; line < TILE; line += LINES) {
        const u32 i = row + line, j = column + threadIdx.x;
        if (i < p.rows && j < p.pitch) y[u64(i) * p.pitch + j] = from_f32<target_t>(tile[line][threadIdx.x]);
    }
}
