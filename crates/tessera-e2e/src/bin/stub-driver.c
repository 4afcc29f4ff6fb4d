// A driver whose calls return at once, to measure what stands in front of it.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int

static uint64_t next = 0x700000000000;

API cuInit(unsigned flags) { return 0; }
API cuDeviceGetCount(int *count) { *count = 1; return 0; }
API cuDeviceGetUuid(unsigned char *uuid, int device) { memset(uuid, 0x11, 16); return 0; }
API cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, 0x11, 16); return 0; }
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
API cuDevicePrimaryCtxRetain(uint64_t *context, int device) { *context = 0x1000; return 0; }
API cuCtxSetCurrent(uint64_t context) { return 0; }
API cuCtxGetCurrent(uint64_t *context) { *context = 0x1000; return 0; }
API cuCtxGetDevice(int *device) { *device = 0; return 0; }
API cuMemGetInfo_v2(size_t *free, size_t *total) { *free = *total = (size_t)16 << 30; return 0; }
API cuMemAlloc_v2(uint64_t *out, size_t size) { *out = next; next += 1 << 21; return 0; }
API cuMemFree_v2(uint64_t pointer) { return 0; }
API cuGraphLaunch(uint64_t graph, uint64_t stream) { return 0; }
API cuLaunchKernel(uint64_t function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, uint64_t stream, void **parameters, void **extra) { return 0; }
API cuStreamCreate(uint64_t *stream, unsigned flags) { *stream = 0x2000; return 0; }
API cuMemHostRegister_v2(uint64_t host, size_t size, unsigned flags) { return 0; }
API cuMemHostGetDevicePointer_v2(uint64_t *device, uint64_t host, unsigned flags) { *device = host; return 0; }
API cuStreamWriteValue64_v2(uint64_t stream, uint64_t address, uint64_t value, unsigned flags) {
    *(volatile uint64_t *)address = value;
    return 0;
}
API cuEventCreate(uint64_t *event, unsigned flags) { *event = 0x3000; return 0; }
API cuEventDestroy_v2(uint64_t event) { return 0; }
API cuEventRecord(uint64_t event, uint64_t stream) { return 0; }
API cuEventQuery(uint64_t event) { return 0; }
API cuEventElapsedTime(float *ms, uint64_t start, uint64_t end) { *ms = 0.010f; return 0; }
