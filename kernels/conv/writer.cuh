// Writes a warp's tile of a convolution, [pixels, filters] in y, through the epilogue.
//
// On tensor cores a lane holds pairs of neighbours, which would be stored four bytes at a time. So the warp
// puts down its tile in shared memory, a band of 16 rows after the other, and takes it up again in chunks of
// 16 bytes of y. No barrier of the block is needed; the shared memory must be free when `write` begins.
//
// Defines: WHOLE_CHUNKS (the filters are a multiple of a chunk; else elements are stored one by one).
#pragma once
#include "common/async_copy.cuh"
#include "common/epilogue.cuh"
#include "common/warp_tile.cuh"

struct NoMoments {
    template <int N> __device__ inline void add(const float (&)[N]) {}
};

// A tile that is written and nothing else: the residual has its rows. tail.cuh has the other kind.
struct PlainTail {
    typedef NoMoments Lane;
    __device__ inline u32 row(u32 m) const { return m; }
    __device__ inline u32 residual_row(u32 m) const { return m; }
    template <u32 tile_rows, int chunk> __device__ inline void finish(const Lane&, u32, u32, u32, u32) const {
    }
};

template <typename Tile, typename T, int activation, typename Tail> struct Writer {
    Epilogue<T> epilogue;
    Tail tail;
    // The tile's place in y, and where y ends for it.
    u32 first_row, first_column, pixels, filters;

    // Words of a row of a band: eight more than the tile's, so that four rows of pairs fall into different
    // banks.
    static constexpr u32 PITCH = Tile::columns + 8;

    // `bands`: 16 * PITCH words of shared memory for each warp.
    __device__ inline void write(const Tile& tile, u8* bands, u32 lane) const {
        float* band = reinterpret_cast<float*>(bands) + threadIdx.x / 32 * 16 * PITCH;
        const u32 address = shared_address(band);
        const auto put = [&](float left, float right, u32 row, u32 column) {
            store_shared_pair(address + (row * PITCH + column) * 4, left, right);
        };
#if WHOLE_CHUNKS
        // A lane keeps its columns, and so its bias; the residual is on its way while the band is put down.
        constexpr u32 COUNT = Lanes<T>::count, PER_ROW = Tile::columns / COUNT, ROWS = 32 / PER_ROW;
        const u32 row = lane / PER_ROW, column = lane % PER_ROW * COUNT, n = first_column + column;
        float bias[COUNT] = {};
        if (n < filters) epilogue.load_bias(bias, n);
        typename Tail::Lane sums;
#pragma unroll
        for (int i = 0; i < Tile::rows / 16; ++i) {
            Chunk residual[16 / ROWS];
#pragma unroll
            for (u32 j = 0; j < 16 / ROWS; ++j) {
                const u32 m = first_row + i * 16 + j * ROWS + row;
                residual[j] = Chunk{};
                if (epilogue.residual && m < pixels && n < filters) 
                    residual[j] = load_chunk(epilogue.residual + u64(tail.residual_row(m)) * filters + n);
            }
            tile.for_pairs(i, lane, put);
            __syncwarp();
#pragma unroll
            for (u32 j = 0; j < 16 / ROWS; ++j) {
                const u32 m = first_row + i * 16 + j * ROWS + row;
                float x[COUNT];
                take(x, band + (j * ROWS + row) * PITCH + column, lane);
                if (m < pixels && n < filters) {
                    epilogue.template store_chunk_with<activation>(x, bias, residual[j],
                                                                   u64(tail.row(m)) * filters + n);
                    sums.add(x);
                }
            }
            __syncwarp();
        }
        tail.template finish<Tile::rows, COUNT>(sums, first_row, n, lane, PER_ROW);
#else
#pragma unroll
        for (int i = 0; i < Tile::rows / 16; ++i) {
            tile.for_pairs(i, lane, put);
            __syncwarp();
            for (u32 j = lane; j < 16 * Tile::columns; j += 32)
                element(band[j / Tile::columns * PITCH + j % Tile::columns], i * 16 + j / Tile::columns,
                        j % Tile::columns);
            __syncwarp();
        }
#endif
    }

    __device__ inline void element(float value, u32 row, u32 column) const {
        const u32 m = first_row + row, n = first_column + column;
        if (m < pixels && n < filters)
            epilogue.template store<activation>(value, u64(tail.row(m)) * filters + n, n,
                                                u64(tail.residual_row(m)) * filters + n);
    }

private:
    __device__ static inline void take(float (&x)[4], const float* from, u32) { load_vector(from, x); }

    // Every other group of four lanes takes its halves in the other order: no two of eight lanes meet in a
    // bank.
    __device__ static inline void take(float (&x)[8], const float* from, u32 lane) {
        const u32 swap = lane / 4 % 2 * 4;
        float first[4], second[4];
        load_vector(from + swap, first);
        load_vector(from + (4 - swap), second);
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            x[j] = swap ? second[j] : first[j];
            x[j + 4] = swap ? first[j] : second[j];
        }
    }
};

// f32 lanes hold what fills sectors of 32 bytes, and store it as it is.
template <int rows, int columns, int chunks, typename T, int activation, typename Tail>
struct Writer<WarpTileF32<rows, columns, chunks>, T, activation, Tail> {
    Epilogue<T> epilogue;
    Tail tail;
    u32 first_row, first_column, pixels, filters;

    __device__ inline void write(const WarpTileF32<rows, columns, chunks>& tile, u8*, u32 lane) const {
        tile.for_each(lane, [&](float value, u32 row, u32 column) {
            const u32 m = first_row + row, n = first_column + column;
            if (m < pixels && n < filters)
                epilogue.template store<activation>(value, u64(tail.row(m)) * filters + n, n,
                                                    u64(tail.residual_row(m)) * filters + n);
        });
    }
};

// A tile of tensor cores that is rounded and nothing else, of whole chunks of 16-bit T: rounded first, it
// takes half the way through shared memory. `bands`: as `Writer` takes, of which half are used.
template <typename Tile, typename T> struct RoundingWriter {
    T* y;
    u32 first_row, first_column, pixels, filters;

    // Words of a row of a band: four more than the tile's, so that eight rows fall into different banks.
    static constexpr u32 PITCH = Tile::columns / 2 + 4;

    __device__ inline void write(const Tile& tile, u8* bands, u32 lane) const {
        if (first_row + Tile::rows <= pixels && first_column + Tile::columns <= filters) {
            write<true>(tile, bands, lane);
        } else {
            write<false>(tile, bands, lane);
        }
    }

private:
    static constexpr u32 PER_ROW = Tile::columns / 8, ROWS = 32 / PER_ROW;

    // `all`: no element of the tile lies beyond y.
    template <bool all> __device__ inline void write(const Tile& tile, u8* bands, u32 lane) const {
        u32* band = reinterpret_cast<u32*>(bands) + threadIdx.x / 32 * 16 * PITCH;
        const u32 row = lane / PER_ROW, column = lane % PER_ROW * 8, n = first_column + column;
        const u32 from = shared_address(band + row * PITCH + column / 2);
        u32 m = first_row + row;
        u64 to = global_address(y + u64(m) * filters + n);
        const u64 step = u64(filters) * ROWS * sizeof(T);
#pragma unroll
        for (int i = 0; i < Tile::rows / 16; ++i) {
            tile.for_pairs(i, lane, [&](float left, float right, u32 row, u32 column) {
                band[row * PITCH + column / 2] = pack2(left, right, T{});
            });
            __syncwarp();
            const auto store = [&](Chunk chunk) {
                if (all || (m < pixels && n < filters))
                    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(chunk.word[0]),
                                 "r"(chunk.word[1]), "r"(chunk.word[2]), "r"(chunk.word[3])
                                 : "memory");
                m += ROWS, to += step;
            };
            constexpr int next = ROWS * PITCH * 4;
            store(load_shared_chunk<0>(from));
            if (ROWS < 16) store(load_shared_chunk<next>(from));
            if (ROWS < 8) {
                store(load_shared_chunk<2 * next>(from));
                store(load_shared_chunk<3 * next>(from));
            }
            static_assert(ROWS >= 4, "a band takes four turns at most");
            __syncwarp();
        }
    }
};
