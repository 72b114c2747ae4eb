// Pointwise functions by number: the order of `Activation` in src/cuda/ops/activation.rs.
#pragma once

#define ACTIVATION_NONE 0
#define ACTIVATION_RELU 1
#define ACTIVATION_RELU6 2
#define ACTIVATION_SIGMOID 3

// Comparisons are written so that NaN stays NaN, as in PyTorch.
template <int activation> __device__ inline float activate(float x) {
    if (activation == ACTIVATION_RELU) return x < 0.0f ? 0.0f : x;
    if (activation == ACTIVATION_RELU6) return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x;
    if (activation == ACTIVATION_SIGMOID) return __fdividef(1.0f, 1.0f + __expf(-x));
    return x;
}
