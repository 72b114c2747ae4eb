//! A stand-in `libcuda.so` over [`ptxemu`].
