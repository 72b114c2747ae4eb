// One head's channels of a window's tokens, as rows of floats in shared memory.
//
// Rows that each lane reads one of, 16 bytes at a time, are PITCH floats apart, an odd number of 16-byte
// chunks, so that the reads have no bank conflicts. Defines: STORAGE, BIAS (the bias's type), D (channels of
// a head), WINDOW, VECTOR (elements of a load: 1, or 16 bytes of them).
#pragma once
#include "attention/window.cuh"
#include "common/elements.cuh"

#define CHUNKS ((D + 3) / 4)
#define PADDED (4 * CHUNKS)
#define PITCH (4 * (CHUNKS | 1))
// Loads of a row; with single elements, its end is filled with zeros.
#define PIECES (VECTOR == 1 ? PADDED : D / VECTOR)

typedef Storage<BIAS>::type bias_t;

// Where channels of a head come from: `map`, at the head's first, has rows of `stride` elements; tokens of
// the padding have `padding`, or zeros without.
struct Source {
    const storage_t* map;
    u32 stride;
    const bias_t* padding;
};

// Fills `rows` rows at `to`, `pitch` floats apart, with the tokens from `first` on; zeros beyond the window.
// `threads` threads take part, this one as `thread`.
__device__ inline void gather(float* to, u32 pitch, u32 first, u32 rows, const Source& source,
                              const Place& place, const Params& p, u32 thread, u32 threads) {
    for (u32 i = thread; i < rows * PIECES; i += threads) {
        const u32 row = i / PIECES, column = i % PIECES * VECTOR, token = first + row;
        float x[VECTOR] = {};
        if (token < TOKENS && (VECTOR > 1 || column < D)) {
            const u32 pixel = place.pixel(token, p);
            if (pixel != PADDING) {
                load_elements(source.map + u64(pixel) * source.stride + column, x);
            } else if (source.padding != nullptr) {
                load_elements(source.padding + column, x);
            }
        }
        if constexpr (VECTOR == 1) {
            to[row * pitch + column] = x[0];
        } else {
            store_shared_floats(to + row * pitch + column, x);
        }
    }
}
