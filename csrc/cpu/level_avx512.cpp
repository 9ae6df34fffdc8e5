// The kernels of the level "avx512": called only if the processor has AVX-512 and gains by it (dispatch.cpp).
#define MOP_LEVEL avx512
#include "level_kernels.inl"
