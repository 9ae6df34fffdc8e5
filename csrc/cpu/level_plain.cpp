// The kernels of the level "plain", for every x86-64 (SSE2) and every other processor.
#define MOP_LEVEL plain
#include "level_kernels.inl"
