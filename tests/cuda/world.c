// The state of a CUDA driver without a device, and how tests steer it.
//
// Device memory is memory of the host, filled with 0xCD when allocated and with 0xDD when freed, and kept for a while
// after that, so that what is written to it late is found. A stream is a thread with a queue. Copies and waits happen
// in those threads and nowhere else: an order that the caller forgot to ask for is not kept by chance.
#define _GNU_SOURCE
#include "world.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { TRACED = 1 << 16, NEW = 0xCD, FREED = 0xDD, QUARANTINE = 64 << 20 };

pthread_mutex_t world = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
struct device devices[DEVICES];
struct CUctx_st primary[DEVICES] = {{.device = 0}, {.device = 1}}, foreign = {.device = 0, .retained = 1};
long pageable_copies, freed_in_use, unknown_frees;

static struct object *live, *freed;  // `freed` holds memory only, newest first
static size_t quarantined;
static long touched;
static pid_t process;  // that has called cuInit; 0 if none has
static int lock = -1;    // on the library's own file, while the compute mode lets one process in
static long calls, fail_after = -1;
static CUresult failure, stuck;
static bool failure_stays;
static const char *trace[TRACED];
static long *childrens_calls;  // in memory that a forked child shares
static unsigned delay_us, randomness;

// Each thread has a stack of current contexts; one from before the last reset is empty.
static unsigned epoch = 1;
static _Thread_local struct CUctx_st *stack[STACK_DEPTH];
static _Thread_local int depth;
static _Thread_local unsigned stack_epoch;

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

struct CUctx_st **context_stack(int **top) {
    if (stack_epoch != epoch) {
        depth = 0;
        stack_epoch = epoch;
    }
    *top = &depth;
    return stack;
}

struct CUctx_st *current_context(void) {
    int *top;
    struct CUctx_st **contexts = context_stack(&top);
    return *top ? contexts[*top - 1] : NULL;
}

void initialise(void) {
    process = getpid();
}

// The environment says it, so that child processes are on the same machine.
int compute_mode(void) {
    const char *mode = getenv("STAND_IN_COMPUTE_MODE");
    return mode ? atoi(mode) : CU_COMPUTEMODE_DEFAULT;
}

// Whether no other process has the devices; from then on this one has them, to its end or the next reset.
bool has_it_alone(void) {
    Dl_info own;
    if (lock < 0 && dladdr(&world, &own)) lock = open(own.dli_fname, O_RDONLY | O_CLOEXEC);
    return lock >= 0 && !flock(lock, LOCK_EX | LOCK_NB);
}

struct entry enter(const char *function, bool needs_context) {
    // A forked child may have got the lock in any state, and CUDA does not work in it anyway.
    if (process && process != getpid()) {
        if (strcmp(function, "cuDriverGetVersion"))  // which a child may ask: it touches no device
            __atomic_add_fetch(childrens_calls, 1, __ATOMIC_SEQ_CST);
        return (struct entry){.refused = CUDA_ERROR_NOT_INITIALIZED};
    }
    pthread_mutex_lock(&world);
    trace[calls++ % TRACED] = function;
    struct entry entry = {0};
    struct CUctx_st *context = current_context();
    if (stuck)  // nothing is told apart any more
        entry.failure = stuck;
    else if (!process && strcmp(function, "cuInit") && strcmp(function, "cuDriverGetVersion"))
        entry.refused = CUDA_ERROR_NOT_INITIALIZED;
    else if (needs_context && !context)
        entry.refused = CUDA_ERROR_INVALID_CONTEXT;
    else if (needs_context && !context->retained)
        entry.refused = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (fail_after >= 0 && fail_after-- == 0) {
        entry.failure = failure;
        if (failure_stays) stuck = failure;
    }
    if (entry.refused) pthread_mutex_unlock(&world);
    return entry;
}

CUresult leave(CUresult result) {
    pthread_mutex_unlock(&world);
    return result;
}

struct object *add(enum kind kind, struct CUctx_st *context) {
    struct object *object = calloc(1, sizeof *object);
    object->kind = kind;
    object->context = context;
    object->next = live;
    live = object;
    return object;
}

struct object *find_handle(const void *handle, enum kind kind) {
    for (struct object *object = live; object; object = object->next) {
        const void *own = kind <= PINNED ? (const void *)object->bytes : (const void *)object;
        bool is_ours = (stuck || object->context == current_context()) && !object->going;
        if (object->kind == kind && own == handle && is_ours) return object;
    }
    return NULL;
}

struct object *find_bytes(uintptr_t address, size_t size, enum kind kind, bool *overlaps) {
    *overlaps = false;
    for (struct object *object = live; object; object = object->next) {
        if (object->kind > PINNED || object->going) continue;
        uintptr_t start = (uintptr_t)object->bytes, end = start + object->size;
        if (object->kind == kind && start <= address && address + size <= end) return object;
        if (address < end && start < address + size) *overlaps = true;
    }
    return NULL;
}

CUresult allocate(enum kind kind, size_t size, struct object **block) {
    struct CUctx_st *context = current_context();
    struct device *device = &devices[context->device];
    void *bytes;
    if (!size) return CUDA_ERROR_INVALID_VALUE;
    if (kind == MEMORY && (size > device->total || device->used > device->total - size)) return CUDA_ERROR_OUT_OF_MEMORY;
    if (posix_memalign(&bytes, DEVICE_ALIGNMENT, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(bytes, NEW, size);
    *block = add(kind, context);
    (*block)->bytes = bytes;
    (*block)->size = size;
    if (kind == MEMORY) device->used += size;
    return CUDA_SUCCESS;
}

static void unlink_from(struct object **list, struct object *object) {
    while (*list != object) list = &(*list)->next;
    *list = object->next;
}

// Let go of the oldest freed blocks until `room` bytes of them are left, and count those that were written to.
static void shrink_quarantine(size_t room) {
    while (freed && quarantined > room) {
        struct object **oldest = &freed;
        while ((*oldest)->next) oldest = &(*oldest)->next;
        struct object *block = *oldest;
        // All bytes are FREED if the first one is and each is what the next one is.
        if (block->bytes[0] != FREED || memcmp(block->bytes, block->bytes + 1, block->size - 1)) touched++;
        *oldest = NULL;
        quarantined -= block->size;
        free(block->bytes);
        free(block);
    }
}

// Free the object once nothing uses it any more. As of the real driver, the call for a stream returns at once, and the
// stream does what is left of its work (cuStreamDestroy in cuda.h); the others wait.
void destroy(struct object *object) {
    object->going = true;
    if (object->kind == STREAM) {
        pthread_cond_broadcast(&changed);
        return;
    }
    if (object->kind <= PINNED && object->pins && !stuck) freed_in_use++;  // of a lost device nobody can wait for work
    while (object->pins) pthread_cond_wait(&changed, &world);
    unlink_from(&live, object);
    if (object->kind > PINNED) {
        free(object);
        return;
    }
    if (object->kind == MEMORY) devices[object->context->device].used -= object->size;
    memset(object->bytes, FREED, object->size);
    quarantined += object->size;
    object->next = freed;
    freed = object;
    shrink_quarantine(QUARANTINE);
}

// Different each time, the same in each run: a linear congruential generator (Numerical Recipes).
static long next_delay_ns(void) {
    randomness = randomness * 1664525u + 1013904223u;
    return delay_us ? (long)((randomness >> 8) % delay_us) * 1000L : 0;
}

static void perform(const struct work *work, long delay_ns) {
    if (delay_ns) nanosleep(&(struct timespec){.tv_nsec = delay_ns}, NULL);
    if (work->kind == COPY) memcpy(work->to, work->from, work->size);
    if (work->kind == HOST_FUNCTION) work->function(work->argument);
}

static void *run_stream(void *argument) {
    struct object *stream = argument;
    pthread_mutex_lock(&world);
    for (;;) {
        while (!stream->first && !stream->going) pthread_cond_wait(&changed, &world);
        struct work *work = stream->first;
        if (!work) break;
        stream->busy = true;
        if (work->kind == WAIT)
            while (work->event->reached < work->record) pthread_cond_wait(&changed, &world);
        long delay_ns = next_delay_ns();
        pthread_mutex_unlock(&world);
        perform(work, delay_ns);
        pthread_mutex_lock(&world);
        if (work->kind == RECORD) {
            work->event->reached = work->record;
            work->event->reached_ms = now_ms();
        }
        if (work->event) work->event->pins--;
        for (int i = 0; i < 2; i++)
            if (work->pinned[i]) work->pinned[i]->pins--;
        stream->first = work->next;
        if (!stream->first) stream->last = NULL;
        stream->busy = false;
        free(work);
        pthread_cond_broadcast(&changed);
    }
    while (stream->pins) pthread_cond_wait(&changed, &world);
    unlink_from(&live, stream);
    free(stream);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&world);
    return NULL;
}

struct object *new_stream(void) {
    struct object *stream = add(STREAM, current_context());
    pthread_t thread;
    if (pthread_create(&thread, NULL, run_stream, stream) || pthread_detach(thread)) abort();
    return stream;
}

struct object *find_stream(CUstream handle) {
    struct CUctx_st *context = current_context();
    if ((uintptr_t)handle > (uintptr_t)CU_STREAM_PER_THREAD) return find_handle(handle, STREAM);
    if (!context->default_stream) context->default_stream = new_stream();
    return context->default_stream;
}

void enqueue(struct object *stream, struct work work) {
    struct work *own = malloc(sizeof *own);
    *own = work;
    own->next = NULL;
    if (work.event) work.event->pins++;
    for (int i = 0; i < 2; i++)
        if (work.pinned[i]) work.pinned[i]->pins++;
    *(stream->last ? &stream->last->next : &stream->first) = own;
    stream->last = own;
    pthread_cond_broadcast(&changed);
}

void drain(struct object *stream) {
    stream->pins++;
    while (stream->first || stream->busy) pthread_cond_wait(&changed, &world);
    stream->pins--;
    pthread_cond_broadcast(&changed);
}

// What follows is for tests.

void fake_fail(long after, CUresult code, int stays) {
    pthread_mutex_lock(&world);
    fail_after = after;
    failure = code;
    failure_stays = stays;
    pthread_mutex_unlock(&world);
}

void fake_stick(CUresult code) {
    pthread_mutex_lock(&world);
    stuck = code;
    pthread_mutex_unlock(&world);
}

void fake_delay(unsigned microseconds) {
    pthread_mutex_lock(&world);
    delay_us = microseconds;
    pthread_mutex_unlock(&world);
}

void fake_total(int device, size_t bytes) { devices[device].total = bytes; }
size_t fake_used(int device) { return devices[device].used; }
long fake_calls(void) { return calls; }
long fake_calls_of_forked_children(void) { return __atomic_load_n(childrens_calls, __ATOMIC_SEQ_CST); }
const char *fake_traced(long call) { return trace[call % TRACED]; }
long fake_pageable_copies(void) { return pageable_copies; }
long fake_freed_in_use(void) { return freed_in_use; }
long fake_unknown_frees(void) { return unknown_frees; }
CUcontext fake_foreign_context(void) { return &foreign; }

void fake_device(int device, const char *name, int major, int minor, int multiprocessors, int integrated) {
    struct device *one = &devices[device];
    strncpy(one->name, name, sizeof one->name - 1);
    one->major = major;
    one->minor = minor;
    one->multiprocessors = multiprocessors;
    one->integrated = integrated;
}

long fake_live(int kind) {
    pthread_mutex_lock(&world);
    long count = 0;
    if (kind == KINDS)
        for (int i = 0; i < DEVICES; i++) count += primary[i].retained;
    for (struct object *object = live; object; object = object->next)
        count += object->kind == (enum kind)kind && object != object->context->default_stream && !object->going;
    pthread_mutex_unlock(&world);
    return count;
}

long fake_touched(void) {
    pthread_mutex_lock(&world);
    shrink_quarantine(0);
    long found = touched;
    pthread_mutex_unlock(&world);
    return found;
}

__attribute__((constructor)) void fake_reset(void) {
    pthread_mutex_lock(&world);
    if (!childrens_calls)
        childrens_calls = mmap(NULL, sizeof *childrens_calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *childrens_calls = 0;
    // Streams first: their work uses the others.
    for (struct object *object = live; object; object = object->next)
        if (object->kind == STREAM) object->going = true;
    pthread_cond_broadcast(&changed);
    for (struct object *object = live; object;) {
        if (object->kind == STREAM) pthread_cond_wait(&changed, &world);
        object = object->kind == STREAM ? live : object->next;
    }
    while (live) destroy(live);
    shrink_quarantine(0);
    process = 0;
    if (lock >= 0) close(lock);
    lock = -1;
    calls = touched = pageable_copies = freed_in_use = unknown_frees = 0;
    fail_after = -1;
    failure = stuck = CUDA_SUCCESS;
    delay_us = randomness = 0;
    epoch++;
    foreign.default_stream = NULL;
    for (int i = 0; i < DEVICES; i++) {
        primary[i].retained = 0;
        primary[i].default_stream = NULL;
        devices[i] = (struct device){.name = "Stand-in", .major = 8, .minor = 7, .multiprocessors = 16};
        devices[i].total = (size_t)1 << 30;
    }
    pthread_mutex_unlock(&world);
}
