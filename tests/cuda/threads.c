// Threads that use the driver without a device in every way at once; a thread sanitizer watches the driver.
#include <cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 6, ROUNDS = 40, SIZE = 512 };

void fake_delay(unsigned microseconds);
long fake_live(int kind);
long fake_freed_in_use(void);
long fake_unknown_frees(void);
long fake_touched(void);

#define MUST(call)                                                       \
    do {                                                                 \
        CUresult result_ = (call);                                       \
        if (result_) {                                                   \
            fprintf(stderr, "%s: %d\n", #call, (int)result_);            \
            exit(1);                                                     \
        }                                                                \
    } while (0)

static void add_one(void *bytes) {
    for (int i = 0; i < SIZE; i++) ((unsigned char *)bytes)[i]++;
}

// A pattern goes in on one stream, is changed there, goes across and comes out on another one.
static void *work(void *argument) {
    CUdevice device = (int)(size_t)argument % 2;
    CUcontext context;
    for (int round = 0; round < ROUNDS; round++) {
        CUdeviceptr first, second;
        CUstream streams[2];
        CUevent start, done;
        unsigned char *in, *out;
        float ms;
        MUST(cuDevicePrimaryCtxRetain(&context, device));
        MUST(cuCtxSetCurrent(context));
        MUST(cuMemAlloc(&first, SIZE));
        MUST(cuMemAlloc(&second, SIZE));
        MUST(cuMemHostAlloc((void **)&in, SIZE, 0));
        MUST(cuMemHostAlloc((void **)&out, SIZE, 0));
        MUST(cuStreamCreate(&streams[0], CU_STREAM_NON_BLOCKING));
        MUST(cuStreamCreate(&streams[1], CU_STREAM_NON_BLOCKING));
        MUST(cuEventCreate(&start, 0));
        MUST(cuEventCreate(&done, 0));
        memset(in, round, SIZE);
        MUST(cuEventRecord(start, streams[0]));
        MUST(cuMemcpyHtoDAsync(first, in, SIZE, streams[0]));
        MUST(cuLaunchHostFunc(streams[0], add_one, (void *)first));
        MUST(cuMemcpyDtoDAsync(second, first, SIZE, streams[0]));
        MUST(cuEventRecord(done, streams[0]));
        MUST(cuStreamWaitEvent(streams[1], done, 0));
        MUST(cuMemcpyDtoHAsync(out, second, SIZE, streams[1]));
        MUST(cuStreamSynchronize(streams[1]));
        MUST(cuEventElapsedTime(&ms, start, done));
        for (int i = 0; i < SIZE; i++)
            if (out[i] != round + 1) MUST(CUDA_ERROR_UNKNOWN);
        MUST(cuEventDestroy(start));
        MUST(cuEventDestroy(done));
        MUST(cuStreamDestroy(streams[0]));
        MUST(cuStreamDestroy(streams[1]));
        MUST(cuMemFree(first));
        MUST(cuMemFree(second));
        MUST(cuMemFreeHost(in));
        MUST(cuMemFreeHost(out));
        MUST(cuDevicePrimaryCtxRelease(device));
    }
    return NULL;
}

int main(void) {
    pthread_t threads[THREADS];
    MUST(cuInit(0));
    fake_delay(20);
    for (size_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    long left = fake_freed_in_use() + fake_unknown_frees() + fake_touched();
    for (int kind = 0; kind < 5; kind++) left += fake_live(kind);
    printf("%ld\n", left);
    return 0;
}
