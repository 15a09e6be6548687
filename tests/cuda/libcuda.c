// A CUDA driver without a device: the functions that the runtime calls, and those that unmodified cuda.bindings needs.
//
// Compiled against NVIDIA's cuda.h, which declares them all: a wrong signature does not compile. It is stricter than
// the real driver. Whatever the programming guide calls undefined is refused here: a handle of another context, memory
// that is not known, a copy over the end of a block.
#define _GNU_SOURCE
#include "world.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

// cuda.h gives most functions another name, with _v2; __func__ is that one too.
#define ENTER(needs_context)                                   \
    do {                                                       \
        struct entry entry_ = enter(__func__, needs_context);  \
        if (entry_.refused) return entry_.refused;             \
        if (entry_.failure) return leave(entry_.failure);      \
    } while (0)

// What makes something may write anything where it fails: nobody promises that it does not.
#define ENTER_TO_MAKE(result, needs_context)                                  \
    do {                                                       \
        struct entry entry_ = enter(__func__, needs_context);  \
        if (entry_.refused) return entry_.refused;             \
        if (!entry_.failure) break;                            \
        memset(result, 0xBA, sizeof *(result));                \
        return leave(entry_.failure);                          \
    } while (0)

// What gives something back reports the errors of earlier work ("may also return error codes from previous,
// asynchronous launches", cuda.h) and does its own: a failure that a test asks for comes after the deed.
#define ENTER_TO_FREE(failure)                                 \
    struct entry entry_ = enter(__func__, true);               \
    if (entry_.refused) return entry_.refused;                 \
    CUresult failure = entry_.failure

#define NEED(condition, code)                    \
    do {                                         \
        if (!(condition)) return leave(code);    \
    } while (0)

#define NEED_DEVICE(device) NEED((device) >= 0 && (device) < DEVICES, CUDA_ERROR_INVALID_DEVICE)

CUresult cuInit(unsigned int flags) {
    ENTER(false);
    NEED(flags == 0, CUDA_ERROR_INVALID_VALUE);
    initialise();
    return leave(CUDA_SUCCESS);
}

CUresult cuDriverGetVersion(int *version) {
    ENTER(false);
    *version = 12060;
    return leave(CUDA_SUCCESS);
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    static const struct {
        CUresult code;
        const char *name;
    } known[] = {
#define CODE(name) {name, #name}
        CODE(CUDA_SUCCESS), CODE(CUDA_ERROR_INVALID_VALUE), CODE(CUDA_ERROR_OUT_OF_MEMORY),
        CODE(CUDA_ERROR_NOT_INITIALIZED), CODE(CUDA_ERROR_NO_DEVICE), CODE(CUDA_ERROR_INVALID_DEVICE),
        CODE(CUDA_ERROR_INVALID_CONTEXT), CODE(CUDA_ERROR_INVALID_HANDLE), CODE(CUDA_ERROR_NOT_READY),
        CODE(CUDA_ERROR_ILLEGAL_ADDRESS), CODE(CUDA_ERROR_CONTEXT_IS_DESTROYED), CODE(CUDA_ERROR_LAUNCH_FAILED),
        CODE(CUDA_ERROR_DEVICE_UNAVAILABLE), CODE(CUDA_ERROR_UNKNOWN),
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == error) {
            *name = known[i].name;
            return CUDA_SUCCESS;
        }
    *name = NULL;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

CUresult cuDeviceGetCount(int *count) {
    ENTER(false);
    *count = DEVICES;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(false);
    NEED_DEVICE(ordinal);
    *device = ordinal;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(false);
    NEED_DEVICE(device);
    snprintf(name, (size_t)length, "%s", devices[device].name);
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    ENTER(false);
    NEED_DEVICE(device);
    memset(uuid->bytes, 7 + device, sizeof uuid->bytes);
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    ENTER(false);
    NEED_DEVICE(device);
    *bytes = devices[device].total;
    return leave(CUDA_SUCCESS);
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(false);
    NEED_DEVICE(device);
    const struct device *one = &devices[device];
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: *value = compute_mode(); break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = one->major; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = one->minor; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = one->multiprocessors; break;
        case CU_DEVICE_ATTRIBUTE_INTEGRATED: *value = one->integrated; break;
        default: return leave(CUDA_ERROR_INVALID_VALUE);
    }
    return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER_TO_MAKE(context, false);
    NEED_DEVICE(device);
    NEED(compute_mode() != CU_COMPUTEMODE_PROHIBITED, CUDA_ERROR_UNKNOWN);
    NEED(compute_mode() != CU_COMPUTEMODE_EXCLUSIVE_PROCESS || has_it_alone(), CUDA_ERROR_DEVICE_UNAVAILABLE);
    primary[device].retained++;
    *context = &primary[device];
    return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    struct entry entry = enter(__func__, false);
    if (entry.refused) return entry.refused;
    NEED_DEVICE(device);
    unknown_frees += !primary[device].retained;
    NEED(primary[device].retained, CUDA_ERROR_INVALID_CONTEXT);
    primary[device].retained--;
    return leave(entry.failure);
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    ENTER(false);
    *context = current_context();
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxGetDevice(CUdevice *device) {
    ENTER(true);
    *device = current_context()->device;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxSetCurrent(CUcontext context) {
    ENTER(false);
    int *depth;
    struct CUctx_st **stack = context_stack(&depth);
    NEED(!context || context->retained, CUDA_ERROR_CONTEXT_IS_DESTROYED);
    // The top of the stack is replaced; NULL takes it off (cuda.h).
    if (!*depth && context) *depth = 1;
    if (!context && *depth) --*depth;
    if (context) stack[*depth - 1] = context;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxPushCurrent(CUcontext context) {
    ENTER(false);
    int *depth;
    struct CUctx_st **stack = context_stack(&depth);
    NEED(context && context->retained && *depth < STACK_DEPTH, CUDA_ERROR_INVALID_CONTEXT);
    stack[(*depth)++] = context;
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    ENTER(true);
    int *depth;
    struct CUctx_st **stack = context_stack(&depth);
    *context = stack[--*depth];
    return leave(CUDA_SUCCESS);
}

CUresult cuMemGetInfo(size_t *free, size_t *total) {
    ENTER(true);
    const struct device *device = &devices[current_context()->device];
    *total = device->total;
    *free = device->total - device->used;
    return leave(CUDA_SUCCESS);
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t size) {
    ENTER_TO_MAKE(address, true);
    struct object *block;
    CUresult result = allocate(MEMORY, size, &block);
    if (!result) *address = (CUdeviceptr)block->bytes;
    return leave(result);
}

CUresult cuMemHostAlloc(void **address, size_t size, unsigned int flags) {
    (void)flags;
    ENTER_TO_MAKE(address, true);
    struct object *block;
    CUresult result = allocate(PINNED, size, &block);
    if (!result) *address = block->bytes;
    return leave(result);
}

CUresult cuMemFree(CUdeviceptr address) {
    ENTER_TO_FREE(failure);
    struct object *block = find_handle((void *)address, MEMORY);
    unknown_frees += !block;
    NEED(block, CUDA_ERROR_INVALID_VALUE);
    destroy(block);
    return leave(failure);
}

CUresult cuMemFreeHost(void *address) {
    ENTER_TO_FREE(failure);
    struct object *block = find_handle(address, PINNED);
    unknown_frees += !block;
    NEED(block, CUDA_ERROR_INVALID_VALUE);
    destroy(block);
    return leave(failure);
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
    ENTER(true);
    bool overlaps;
    struct object *block = find_bytes(address, 1, MEMORY, &overlaps);
    NEED(block && attribute == CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CUDA_ERROR_INVALID_VALUE);
    *(int *)value = block->context->device;
    return leave(CUDA_SUCCESS);
}

// Queue a copy. Each end is a block of its kind; the host's may be ordinary memory too, then the call waits.
static CUresult copy(uintptr_t to, enum kind to_kind, uintptr_t from, enum kind from_kind, size_t size, CUstream handle) {
    struct object *stream = find_stream(handle);
    bool overlaps_to, overlaps_from;
    struct object *to_block = find_bytes(to, size, to_kind, &overlaps_to);
    struct object *from_block = find_bytes(from, size, from_kind, &overlaps_from);
    NEED(stream, CUDA_ERROR_INVALID_HANDLE);
    NEED(to_block || (to_kind == PINNED && !overlaps_to), CUDA_ERROR_INVALID_VALUE);
    NEED(from_block || (from_kind == PINNED && !overlaps_from), CUDA_ERROR_INVALID_VALUE);
    struct CUctx_st *context = current_context();
    NEED(to_kind == PINNED || to_block->context == context, CUDA_ERROR_INVALID_CONTEXT);
    NEED(from_kind == PINNED || from_block->context == context, CUDA_ERROR_INVALID_CONTEXT);
    enqueue(stream, (struct work){.kind = COPY, .to = (void *)to, .from = (const void *)from, .size = size,
                                  .pinned = {to_block, from_block}});
    if (!to_block || !from_block) {
        pageable_copies++;
        drain(stream);
    }
    return leave(CUDA_SUCCESS);
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    ENTER(true);
    return copy(to, MEMORY, (uintptr_t)from, PINNED, size, stream);
}

CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER(true);
    return copy((uintptr_t)to, PINNED, from, MEMORY, size, stream);
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
    ENTER(true);
    return copy(to, MEMORY, from, MEMORY, size, stream);
}

CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument) {
    ENTER(true);
    struct object *stream = find_stream(handle);
    NEED(stream, CUDA_ERROR_INVALID_HANDLE);
    enqueue(stream, (struct work){.kind = HOST_FUNCTION, .function = function, .argument = argument});
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTER(true);
    struct object *stream = find_stream(handle);
    NEED(stream, CUDA_ERROR_INVALID_HANDLE);
    drain(stream);
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamQuery(CUstream handle) {
    ENTER(true);
    struct object *stream = find_stream(handle);
    NEED(stream, CUDA_ERROR_INVALID_HANDLE);
    return leave(stream->first ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS);
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned int flags) {
    (void)flags;
    ENTER(true);
    struct object *stream = find_stream(handle), *event = find_handle(event_handle, EVENT);
    NEED(stream && event, CUDA_ERROR_INVALID_HANDLE);
    enqueue(stream, (struct work){.kind = WAIT, .event = event, .record = event->recorded});
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamCreate(CUstream *handle, unsigned int flags) {
    ENTER_TO_MAKE(handle, true);
    NEED(!(flags & ~CU_STREAM_NON_BLOCKING), CUDA_ERROR_INVALID_VALUE);
    *handle = (CUstream)new_stream();
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamDestroy(CUstream handle) {
    ENTER_TO_FREE(failure);
    struct object *stream = find_handle(handle, STREAM);
    unknown_frees += !stream;
    NEED(stream, CUDA_ERROR_INVALID_HANDLE);
    destroy(stream);
    return leave(failure);
}

CUresult cuEventCreate(CUevent *handle, unsigned int flags) {
    ENTER_TO_MAKE(handle, true);
    struct object *event = add(EVENT, current_context());
    event->timed = !(flags & CU_EVENT_DISABLE_TIMING);
    *handle = (CUevent)event;
    return leave(CUDA_SUCCESS);
}

CUresult cuEventRecord(CUevent handle, CUstream stream_handle) {
    ENTER(true);
    struct object *stream = find_stream(stream_handle), *event = find_handle(handle, EVENT);
    NEED(stream && event, CUDA_ERROR_INVALID_HANDLE);
    enqueue(stream, (struct work){.kind = RECORD, .event = event, .record = ++event->recorded});
    return leave(CUDA_SUCCESS);
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTER(true);
    struct object *event = find_handle(handle, EVENT);
    NEED(event, CUDA_ERROR_INVALID_HANDLE);
    event->pins++;
    for (uint64_t record = event->recorded; event->reached < record;) pthread_cond_wait(&changed, &world);
    event->pins--;
    pthread_cond_broadcast(&changed);
    return leave(CUDA_SUCCESS);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start_handle, CUevent end_handle) {
    ENTER(true);
    struct object *start = find_handle(start_handle, EVENT), *end = find_handle(end_handle, EVENT);
    NEED(start && end && start->timed && end->timed, CUDA_ERROR_INVALID_HANDLE);
    NEED(start->recorded && end->recorded, CUDA_ERROR_INVALID_HANDLE);
    NEED(start->reached == start->recorded && end->reached == end->recorded, CUDA_ERROR_NOT_READY);
    *milliseconds = (float)(end->reached_ms - start->reached_ms);
    return leave(CUDA_SUCCESS);
}

#ifdef cuEventElapsedTime  // CUDA 12.8 and newer have a second version, and all have the first
static CUresult (*const newer_elapsed_time)(float *, CUevent, CUevent) = cuEventElapsedTime;
#undef cuEventElapsedTime
__attribute__((visibility("default"))) CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end);
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    return newer_elapsed_time(milliseconds, start, end);
}
#endif

CUresult cuEventDestroy(CUevent handle) {
    ENTER_TO_FREE(failure);
    struct object *event = find_handle(handle, EVENT);
    unknown_frees += !event;
    NEED(event, CUDA_ERROR_INVALID_HANDLE);
    destroy(event);
    return leave(failure);
}

// How cuda.bindings finds functions: by the plain name, for which the newest version is returned.
CUresult cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult *status) {
    (void)version, (void)flags;
    char newer[128];
    Dl_info self;
    dladdr((void *)initialise, &self);
    void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", name);
    *function = dlsym(library, newer);
    if (!*function) *function = dlsym(library, name);
    dlclose(library);
    if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
