// The level every x86-64 (SSE2) and every other processor runs.
#define MOP_LEVEL plain
#include "level_kernels.inl"
