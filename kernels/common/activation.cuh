// Pointwise functions by number: the order of `Activation` in src/cuda/ops/activation.rs.
#pragma once

#define ACTIVATION_NONE 0
#define ACTIVATION_RELU 1
#define ACTIVATION_RELU6 2
#define ACTIVATION_SIGMOID 3
#define ACTIVATION_GELU 4

// The larger and the smaller of two; NaN if one is, as in PyTorch, in one instruction.
__device__ inline float maximum(float a, float b) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}
__device__ inline float minimum(float a, float b) {
    float y;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

template <int activation> __device__ inline float activate(float x) {
    if (activation == ACTIVATION_RELU) return maximum(x, 0.0f);
    if (activation == ACTIVATION_RELU6) return minimum(maximum(x, 0.0f), 6.0f);
    if (activation == ACTIVATION_SIGMOID) return __fdividef(1.0f, 1.0f + __expf(-x));
    if (activation == ACTIVATION_GELU) return 0.5f * x * (1.0f + erff(0.70710678f * x));
    return x;
}

// The derivative, from what it is told from: the result, or the operand of GELU. At corners it is 0.
template <int activation> __device__ inline float derivative(float read) {
    if (activation == ACTIVATION_RELU) return read > 0.0f ? 1.0f : 0.0f;
    if (activation == ACTIVATION_RELU6) return read > 0.0f && read < 6.0f ? 1.0f : 0.0f;
    if (activation == ACTIVATION_SIGMOID) return read * (1.0f - read);
    if (activation == ACTIVATION_GELU) {
        const float below = 0.5f * (1.0f + erff(0.70710678f * read));
        return below + read * 0.39894228f * __expf(-0.5f * read * read);
    }
    return 1.0f;
}
