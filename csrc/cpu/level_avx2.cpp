// The kernels of the level "avx2": compiled with -mavx2 -mfma, called only if the processor has both (dispatch.cpp).
#define MOP_LEVEL avx2
#include "level_kernels.inl"
