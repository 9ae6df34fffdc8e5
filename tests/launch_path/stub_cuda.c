// A CUDA driver for tests, loaded as libcuda.so.1 on a machine without a GPU: it runs nothing and notes every launch.
//
// The sizes of a kernel's parameters are read from its binary, as the real driver does. Declared by hand, so that no
// CUDA toolkit is needed: the functions that Triton 3.6 to 3.9 call, with the layouts of cuda.h.
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef struct Context* CUcontext;
typedef struct Module* CUmodule;
typedef struct Function* CUfunction;
typedef void* CUstream;
typedef unsigned long long CUdeviceptr;

enum { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_NO_DEVICE = 100, CUDA_ERROR_NOT_FOUND = 500 };
enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MULTIPROCESSORS = 16, SHARED_OF_A_BLOCK = 97 };
enum { SHARED_OF_A_FUNCTION = 1, MAX_THREADS_OF_A_FUNCTION = 0, SET_SHARED_OF_A_FUNCTION = 8 };
enum { POINTER_OF_A_DEVICE = 3 };

typedef struct {
  unsigned gridDimX, gridDimY, gridDimZ, blockDimX, blockDimY, blockDimZ, sharedMemBytes;
  CUstream hStream;
  void* attrs;
  unsigned numAttrs;
} CUlaunchConfig;

#define DEVICES 2
#define MOST_PARAMETERS 256

struct Context {
  int device;
};
struct Module {
  void* image;
  int device;
};
struct Function {
  char name[256];
  int device, parameters, shared;
  unsigned short offsets[MOST_PARAMETERS], sizes[MOST_PARAMETERS];
};

// What stub.py reads; the parameters lie one after another at the offsets of the kernel's.
typedef struct {
  const char* name;
  unsigned grid[3], block[3], shared, allowed_shared;
  void* stream;
  int context_device, function_device, parameters;
  const unsigned short *offsets, *sizes;
  unsigned char bytes[4096];
} Launch;

static struct Context contexts[DEVICES] = {{0}, {1}};
static __thread struct Context* current;
static Launch* launches;
static int count, room, quiet;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int stub_count(void) { return count; }
const Launch* stub_launch(int k) { return &launches[k]; }
void stub_clear(void) { count = 0; }
void stub_note_launches(int on) { quiet = !on; }
void stub_set_device(int device) { current = &contexts[device]; }
int stub_device(void) { return current == NULL ? 0 : current->device; }

CUresult cuInit(unsigned flags) { return CUDA_ERROR_NO_DEVICE; }  // whoever asks finds no GPU
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = "an error of the stub driver";
  return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int* version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice device) {
  switch (attribute) {
    case CAPABILITY_MAJOR:
      *value = 9;
      break;
    case CAPABILITY_MINOR:
      *value = 0;
      break;
    case MULTIPROCESSORS:
      *value = 132;
      break;
    case SHARED_OF_A_BLOCK:
      *value = 232448;
      break;
    default:
      *value = 65536;
  }
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = &contexts[device];
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = current;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  current = context;
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) {
  *device = stub_device();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetLimit(size_t* value, int limit) {
  *value = 0;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetLimit(int limit, size_t value) { return CUDA_SUCCESS; }
CUresult cuStreamIsCapturing(CUstream stream, int* status) {
  *status = 0;
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction function, const CUlaunchConfig* config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}
CUresult cuPointerGetAttribute(void* value, int attribute, CUdeviceptr pointer) {
  if (attribute != POINTER_OF_A_DEVICE) return CUDA_ERROR_INVALID_VALUE;
  *(CUdeviceptr*)value = pointer;
  return CUDA_SUCCESS;
}

static size_t size_of_elf(const void* image) {
  const Elf64_Ehdr* header = image;
  return header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
}

CUresult cuModuleLoadData(CUmodule* module, const void* image) {
  if (memcmp(image, ELFMAG, SELFMAG) != 0) return CUDA_ERROR_INVALID_VALUE;
  *module = malloc(sizeof(struct Module));
  (*module)->image = malloc(size_of_elf(image));
  (*module)->device = stub_device();
  memcpy((*module)->image, image, size_of_elf(image));
  return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }  // its functions are still named by launches

// The section .nv.info.NAME is a list of attributes (format, kind, 16 bits of size or value). Kind 0x17 of format 4 is a
// parameter: 32 bits, its number, its offset, and 32 bits of which the upper 14 are its size.
static void read_parameters(struct Function* f, const unsigned char* at, const unsigned char* end) {
  while (at + 4 <= end) {
    const unsigned char format = at[0], kind = at[1];
    const unsigned short value = (unsigned short)(at[2] | at[3] << 8);
    at += 4;
    if (format != 4) continue;
    if (kind == 0x17) {
      unsigned short number, offset;
      uint32_t packed;
      memcpy(&number, at + 4, 2);
      memcpy(&offset, at + 6, 2);
      memcpy(&packed, at + 8, 4);
      if (number < MOST_PARAMETERS) {
        f->offsets[number] = offset;
        f->sizes[number] = (unsigned short)(packed >> 18);
        if (number >= f->parameters) f->parameters = number + 1;
      }
    }
    at += value;
  }
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  const unsigned char* image = module->image;
  const Elf64_Ehdr* header = module->image;
  const Elf64_Shdr* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* names = (const char*)image + sections[header->e_shstrndx].sh_offset;
  char wanted[300];
  snprintf(wanted, sizeof wanted, ".nv.info.%s", name);
  for (int k = 0; k < header->e_shnum; ++k) {
    if (strcmp(names + sections[k].sh_name, wanted) != 0) continue;
    struct Function* f = calloc(1, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    f->device = module->device;
    f->shared = 48 * 1024;
    read_parameters(f, image + sections[k].sh_offset, image + sections[k].sh_offset + sections[k].sh_size);
    *function = f;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_NOT_FOUND;
}
CUresult cuFuncGetAttribute(int* value, int attribute, CUfunction function) {
  *value = attribute == MAX_THREADS_OF_A_FUNCTION ? 1024 : 0;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value) {
  if (attribute == SET_SHARED_OF_A_FUNCTION) function->shared = value;
  return CUDA_SUCCESS;
}
CUresult cuFuncSetCacheConfig(CUfunction function, int config) { return CUDA_SUCCESS; }

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
  if (quiet) return CUDA_SUCCESS;
  pthread_mutex_lock(&lock);
  if (count == room) launches = realloc(launches, (room = 2 * room + 64) * sizeof *launches);
  Launch* l = &launches[count++];
  memset(l, 0, sizeof *l);
  l->name = function->name;
  l->grid[0] = config->gridDimX, l->grid[1] = config->gridDimY, l->grid[2] = config->gridDimZ;
  l->block[0] = config->blockDimX, l->block[1] = config->blockDimY, l->block[2] = config->blockDimZ;
  l->shared = config->sharedMemBytes;
  l->allowed_shared = function->shared;
  l->stream = config->hStream;
  l->context_device = stub_device();
  l->function_device = function->device;
  l->parameters = function->parameters;
  l->offsets = function->offsets, l->sizes = function->sizes;
  for (int k = 0; k < function->parameters; ++k)
    memcpy(l->bytes + function->offsets[k], parameters[k], function->sizes[k]);
  pthread_mutex_unlock(&lock);
  return CUDA_SUCCESS;
}
