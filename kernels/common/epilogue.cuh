// The fused tail of a product: y[m, n] = activation(product[m, n] + bias[n] + residual[m, n]).
//
// `bias` is f32, `residual` has the shape and type of y; a null pointer means that there is none. Sums are f32, rounded
// once, when y is stored.
#pragma once
#include "common/activation.cuh"
#include "common/vector.cuh"

template <typename T> struct Epilogue {
    const float* bias;
    const T* residual;
    T* y;

    // One element, at `at` of y, of channel `n`.
    template <int activation> __device__ inline void store(float x, u64 at, u32 n) const {
        if (bias) x += bias[n];
        if (residual) x += to_f32(residual[at]);
        y[at] = from_f32<T>(activate<activation>(x));
    }

    // A chunk of neighbouring channels from `n`, a multiple of its length; rows of y are whole chunks.
    template <int activation> __device__ inline void store_chunk_of(float (&x)[Lanes<T>::count], u64 at, u32 n) const {
        constexpr int count = Lanes<T>::count;
        if (residual) {
            float r[count];
            load_vector(residual + at, r);
            add_bias(x, n);
#pragma unroll
            for (int i = 0; i < count; ++i) x[i] += r[i];
        } else {
            add_bias(x, n);
        }
#pragma unroll
        for (int i = 0; i < count; ++i) x[i] = activate<activation>(x[i]);
        store_vector(y + at, x);
    }

    __device__ inline void add_bias(float (&x)[Lanes<T>::count], u32 n) const {
        if (!bias) return;
#pragma unroll
        for (int i = 0; i < Lanes<T>::count; i += 4) {
            float b[4];
            load_vector(bias + n + i, b);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[i + j] += b[j];
        }
    }
};
