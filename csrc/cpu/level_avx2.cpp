// Compiled with -mavx2 -mfma, and called only where the processor has both (dispatch.cpp).
#define MOP_LEVEL avx2
#include "level_kernels.inl"
