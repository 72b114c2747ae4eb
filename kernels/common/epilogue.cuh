// The fused tail of a product: y[m, n] = activation(product[m, n] + bias[n] + residual[m, n]).
//
// `bias` is f32, `residual` has the shape and type of y; a null pointer means that there is none. Sums are
// f32, rounded once, when y is stored.
#pragma once
#include "common/activation.cuh"
#include "common/elements.cuh"

template <typename T> struct Epilogue {
    const float* bias;
    const T* residual;
    T* y;

    // One element, at `at` of y, of channel `n`; its residual lies at `from`.
    template <int activation> __device__ inline void store(float x, u64 at, u32 n, u64 from) const {
        if (bias) x += bias[n];
        if (residual) x += to_f32(residual[from]);
        y[at] = from_f32<T>(activate<activation>(x));
    }
    template <int activation> __device__ inline void store(float x, u64 at, u32 n) const {
        store<activation>(x, at, n, at);
    }

    // A chunk of neighbouring channels from `n`, a multiple of its length; rows of y are whole chunks.
    template <int activation>
    __device__ inline void store_chunk_of(float (&x)[Lanes<T>::count], u64 at, u32 n, u64 from) const {
        float b[Lanes<T>::count];
        load_bias(b, n);
        store_chunk_with<activation>(x, b, residual ? load_chunk(residual + from) : Chunk{}, at);
    }
    template <int activation>
    __device__ inline void store_chunk_of(float (&x)[Lanes<T>::count], u64 at, u32 n) const {
        store_chunk_of<activation>(x, at, n, at);
    }

    // The bias of that chunk, zero if there is none.
    __device__ inline void load_bias(float (&b)[Lanes<T>::count], u32 n) const {
#pragma unroll
        for (int i = 0; i < Lanes<T>::count; i += 4) {
            const Chunk chunk = bias ? load_chunk(bias + n + i) : Chunk{};
#pragma unroll
            for (int j = 0; j < 4; ++j) b[i + j] = __uint_as_float(chunk.word[j]);
        }
    }

    // The same with the bias and the residual's chunk (if there is a residual) loaded before.
    template <int activation> __device__ inline void store_chunk_with(float (&x)[Lanes<T>::count],
                                                                      const float (&b)[Lanes<T>::count],
                                                                      const Chunk& r, u64 at) const {
#pragma unroll
        for (int i = 0; i < Lanes<T>::count; ++i) x[i] += b[i];
        if (residual) {
            float other[Lanes<T>::count];
            unpack(r, other, T{});
#pragma unroll
            for (int i = 0; i < Lanes<T>::count; ++i) x[i] += other[i];
        }
#pragma unroll
        for (int i = 0; i < Lanes<T>::count; ++i) x[i] = activate<activation>(x[i]);
        store_global_chunk(y + at, pack(x, T{}));
    }
};
