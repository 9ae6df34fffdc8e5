// A CUDA runtime for tests: it stands in the place of cudart and of what torch knows of GPUs, so that the host functions
// of csrc/cuda run, as nvcc compiled them, on CPU tensors that nothing reads. Launches are noted, not made.
//
// Declared by hand, with the layouts of cuda_runtime_api.h. What is hidden answers calls from this library only.
#define _GNU_SOURCE  // RTLD_DEFAULT
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define MOST_KERNELS 1024

typedef int cudaError_t;
typedef struct {
  unsigned x, y, z;
} dim3;
typedef struct {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  void* stream;
  void* attrs;
  unsigned numAttrs;
} cudaLaunchConfig_t;

enum { MULTIPROCESSORS = 16, SHARED = 81, SHARED_OF_A_BLOCK = 97, RESERVED = 111 };  // of cudaDeviceAttr
enum { SET_DYNAMIC_SHARED = 8, ERROR_INVALID_VALUE = 1 };

static struct {
  const void* function;
  const char* name;
  int allowed_shared;
} kernels[MOST_KERNELS];
static int num_kernels;

typedef struct {
  const char* name;
  unsigned grid[3], block[3];
  int64_t shared, allowed_shared;
  void* stream;
  int device;  // that was guarded
} Launch;

static Launch* launches;
static int count, room, quiet, fails;
static int device_of_tensors, current_device;
static int guards;  // that are alive
static void* streams[8];

int stub_count(void) { return count; }
int stub_guards(void) { return guards; }
int stub_current_device(void) { return current_device; }
int stub_num_kernels(void) { return num_kernels; }
const char* stub_kernel(int k) { return kernels[k].name; }
const Launch* stub_launch(int k) { return &launches[k]; }
void stub_clear(void) { count = 0; }
void stub_note_launches(int on) { quiet = !on; }
void stub_fail(int on) { fails = on; }
void stub_set_device_of_tensors(int device) { device_of_tensors = device; }
void stub_set_stream(int device, void* stream) { streams[device] = stream; }

static int kernel_of(const void* function) {
  for (int k = 0; k < num_kernels; ++k)
    if (kernels[k].function == function) return k;
  return -1;
}

// What nvcc's code calls when the library is loaded.
HIDDEN void** __cudaRegisterFatBinary(void* binary) { return (void**)&kernels; }
HIDDEN void __cudaRegisterFatBinaryEnd(void** handle) {}
HIDDEN void __cudaUnregisterFatBinary(void** handle) {}
HIDDEN void __cudaRegisterVar(void** handle, char* host, char* address, const char* name, int ext, size_t size,
                              int constant, int global) {}
HIDDEN void __cudaRegisterFunction(void** handle, const char* function, char* device_function, const char* name,
                                   int threads, void* tid, void* bid, void* block, void* grid, int* size) {
  if (num_kernels == MOST_KERNELS) abort();
  kernels[num_kernels].function = function;
  kernels[num_kernels].name = name;
  kernels[num_kernels++].allowed_shared = 48 * 1024;
}
HIDDEN cudaError_t __cudaGetKernel(void** kernel, const void* function) { abort(); }
HIDDEN cudaError_t __cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** args, size_t shared,
                                      void* stream) {
  abort();  // all launches go through launch.h
}
HIDDEN unsigned __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) { abort(); }

// The runtime.
HIDDEN const char* cudaGetErrorString(cudaError_t error) { return "an error of the stub runtime"; }
HIDDEN cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == MULTIPROCESSORS     ? 132
           : attribute == SHARED            ? 228 * 1024
           : attribute == SHARED_OF_A_BLOCK ? 227 * 1024
           : attribute == RESERVED          ? 1024
                                            : -1;
  return *value < 0 ? ERROR_INVALID_VALUE : 0;
}
HIDDEN cudaError_t cudaFuncSetAttribute(const void* function, int attribute, int value) {
  const int k = kernel_of(function);
  if (k < 0 || attribute != SET_DYNAMIC_SHARED) return ERROR_INVALID_VALUE;
  kernels[k].allowed_shared = value;
  return 0;
}
HIDDEN cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** args) {
  const int k = kernel_of(function);
  if (fails || k < 0 || (int64_t)config->dynamicSmemBytes > kernels[k].allowed_shared) return ERROR_INVALID_VALUE;
  if (quiet) return 0;
  if (count == room) launches = realloc(launches, (room = 2 * room + 64) * sizeof *launches);
  Launch* l = &launches[count++];
  l->name = kernels[k].name;
  l->grid[0] = config->gridDim.x, l->grid[1] = config->gridDim.y, l->grid[2] = config->gridDim.z;
  l->block[0] = config->blockDim.x, l->block[1] = config->blockDim.y, l->block[2] = config->blockDim.z;
  l->shared = (int64_t)config->dynamicSmemBytes;
  l->allowed_shared = kernels[k].allowed_shared;
  kernels[k].allowed_shared = 48 * 1024;  // each launch that needs more asks for it
  l->stream = config->stream;
  l->device = current_device;
  return 0;
}

// What torch knows of a GPU: its tensors lie there, on the device that the test says.
HIDDEN cudaError_t aoti_torch_get_device_type(void* tensor, int32_t* type) {
  *type = 1;  // CUDA
  return 0;
}
HIDDEN cudaError_t aoti_torch_get_device_index(void* tensor, int32_t* index) {
  *index = device_of_tensors;
  return 0;
}
// torch's own function allocates what the kernels would write, on the CPU.
HIDDEN cudaError_t aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                            int32_t device_type, int32_t device_index, void** made) {
  typedef cudaError_t Empty(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, void**);
  Empty* const empty = (Empty*)dlsym(RTLD_DEFAULT, "aoti_torch_empty_strided");
  return empty(dims, sizes, strides, dtype, 0, -1, made);
}
HIDDEN cudaError_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = streams[device];
  return 0;
}
typedef struct {
  int before;
} Guard;
HIDDEN cudaError_t aoti_torch_create_device_guard(int32_t device, Guard** guard) {
  *guard = malloc(sizeof **guard);
  (*guard)->before = current_device;
  current_device = device;
  ++guards;
  return 0;
}
HIDDEN cudaError_t aoti_torch_delete_device_guard(Guard* guard) {
  current_device = guard->before;
  --guards;
  free(guard);
  return 0;
}
