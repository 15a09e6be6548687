// What stands behind the driver without a device: its memory, streams and failures. See world.c.
#pragma once

#define __CUDA_API_PUSH_VISIBILITY_DEFAULT 1  // of all that cuda.h declares; the rest is hidden

#include <cuda.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DEVICES = 2, STACK_DEPTH = 8, DEVICE_ALIGNMENT = 512 };

enum kind { MEMORY, PINNED, STREAM, EVENT, KINDS };

// A context. Every device has its primary one; device 0 has another one too, as an older library would make it.
struct CUctx_st {
    int device;
    int retained;
    struct object *default_stream;
};

// One allocation, stream or event. Its handle is its own address, or that of its bytes.
struct object {
    enum kind kind;
    struct CUctx_st *context;
    int pins;    // calls and queued work that use it now; it is not freed before they end
    bool going;  // being freed: nobody finds it any more
    struct object *next;
    // MEMORY and PINNED
    unsigned char *bytes;
    size_t size;
    // STREAM
    struct work *first, *last;
    bool busy;
    // EVENT: the number of the last record, and of the last one that its stream has come to
    bool timed;
    uint64_t recorded, reached;
    double reached_ms;
};

// One piece of work of a stream: a copy, a function of the host, an event to record or to wait for.
struct work {
    enum { COPY, HOST_FUNCTION, RECORD, WAIT } kind;
    void *to;
    const void *from;
    size_t size;
    CUhostFn function;
    void *argument;
    struct object *event;
    uint64_t record;
    struct object *pinned[2];  // blocks that the work uses
    struct work *next;
};

struct device {
    char name[64];
    int major, minor, multiprocessors, integrated;
    size_t total, used;
};

// How a call begins: it is refused for what its caller did wrong, or it fails because a test wants it to.
struct entry {
    CUresult refused, failure;
};

extern pthread_mutex_t world;     // guards everything here
extern pthread_cond_t changed;    // broadcast whenever anything here changes
extern struct device devices[DEVICES];
extern struct CUctx_st primary[DEVICES], foreign;
extern long pageable_copies, freed_in_use, unknown_frees;

// Begin the call of a function; the world is locked afterwards if and only if nothing is refused.
struct entry enter(const char *function, bool needs_context);
CUresult leave(CUresult result);
void initialise(void);
int compute_mode(void);
bool has_it_alone(void);

struct CUctx_st **context_stack(int **depth);
struct CUctx_st *current_context(void);

// All of these are called with the world locked.
struct object *add(enum kind kind, struct CUctx_st *context);
struct object *new_stream(void);
struct object *find_handle(const void *handle, enum kind kind);  // of the current context, else NULL
struct object *find_bytes(uintptr_t address, size_t size, enum kind kind, bool *overlaps);
struct object *find_stream(CUstream handle);  // the default stream for 0, 1 and 2
CUresult allocate(enum kind kind, size_t size, struct object **block);
void destroy(struct object *object);
void enqueue(struct object *stream, struct work work);
void drain(struct object *stream);

// For tests.
#pragma GCC visibility push(default)
void fake_fail(long after, CUresult code, int stays);  // the call after so many others fails, or all from it on
void fake_stick(CUresult code);                        // every call fails from now on; CUDA_SUCCESS ends that
void fake_delay(unsigned microseconds);                // each piece of work waits up to so long before it begins
void fake_total(int device, size_t bytes);
void fake_device(int device, const char *name, int major, int minor, int multiprocessors, int integrated);
size_t fake_used(int device);
long fake_live(int kind);  // objects of a kind; for KINDS, how often primary contexts are retained
long fake_calls(void);
long fake_calls_of_forked_children(void);  // of the process that has called cuInit; none is in order
const char *fake_traced(long call);
long fake_pageable_copies(void);
long fake_freed_in_use(void);  // blocks that were freed while work that uses them was queued
long fake_unknown_frees(void); // calls that would free what is not there
long fake_touched(void);       // blocks that were written to after they were freed
CUcontext fake_foreign_context(void);
void fake_reset(void);  // forget everything; nobody may be using the driver
#pragma GCC visibility pop
