/* As much of libcuda.so.1 as NvidiaDriver calls, in the host's memory and at once: NVIDIA's Python bindings run over it where there is no
 * GPU, so that the types of all arguments are checked for real. The only kernels are `next` (y[i] = x[i] + 1 for eight floats) and
 * `fails`. What is done is written to stderr. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef unsigned long long P;
typedef unsigned U;

#define SAY(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define CONTEXT ((void *)0x111)
#define CAPTURES ((void *)0x1003) /* the third stream */

typedef struct { int kind; P to, from; size_t n; } Work; /* 0 launch, 1 copy, 2 zeros */
typedef struct { int count; Work work[16]; } Graph;

static int capturing, streams;
static Graph captured;

static R init(U flags) { return flags; }
static R version(int *v) { *v = atoi(getenv("STUB_VERSION")); return 0; }
static R count(int *n) { *n = 1; return 0; }
static R device(int *d, int n) { *d = n; return 0; }
static R retain(void **c, int d) { *c = CONTEXT; return d; }
static R current(void *c) { return c == CONTEXT ? 0 : 201; }
static R settle(void) { return capturing ? 900 : 0; }
static R name(char *to, int n, int d) { strncpy(to, "NVIDIA Stub", n); return d; }
static R attribute(int *v, int kind, int d) { *v = kind == 75 ? 9 : kind == 76 ? 0 : kind == 16 ? 132 : -1; return d; }
static R stream(void **s, U flags) { *s = (void *)(0x1001L + streams++); SAY("stream flags %u", flags); return 0; }
static R synchronize(void *s) { return capturing && s == CAPTURES ? 900 : 0; }
static R follow(void *s, void *e, U flags) { SAY("stream %p waits for an event, flags %u", s, flags); return e ? 0 : 400; }
static R event(void **e, U flags) { *e = malloc(8); return flags; }
static R record(void *e, void *s) { SAY("event in stream %p", s); return e ? 0 : 400; }
static R query(void *e) { return e ? 600 : 400; }
static R reach(void *e) { return e ? 0 : 400; }
static R end_event(void *e) { free(e); SAY("event destroyed"); return 0; }
static R elapsed(float *ms, void *a, void *b) { *ms = 2.5f; return a && b ? 0 : 400; }
static R pinned(void **p, size_t n, U flags) { *p = malloc(n); return flags; }
static R allocate(P *p, size_t n) { if (n > 1u << 30) return 2; *p = (P)aligned_alloc(256, (n + 255) / 256 * 256); return 0; }
static R release(P p) { free((void *)p); return 0; }
static R upload(P to, const void *from, size_t n, void *s) { memcpy((void *)to, from, n); SAY("upload %zu in stream %p", n, s); return 0; }
static R download(void *to, P from, size_t n, void *s) { memcpy(to, (void *)from, n); return s ? 0 : 400; }

static void act(Work w) {
    float *y = (float *)w.to, *x = (float *)w.from;
    if (w.kind == 0) for (int i = 0; i < 8; i++) y[i] = x[i] + 1;
    if (w.kind == 1) memcpy(y, x, w.n);
    if (w.kind == 2) memset(y, 0, w.n);
}
static R push(void *s, Work w) {
    if (capturing && s == CAPTURES) captured.work[captured.count++] = w;
    else act(w);
    return 0;
}
static R copy(P to, P from, size_t n, void *s) { return push(s, (Work){1, to, from, n}); }
static R zeros(P to, unsigned char c, size_t n, void *s) { return c ? 1 : push(s, (Work){2, to, 0, n}); }
static R load(void **m, const void *image) { *m = strdup(image); SAY("image %s", (char *)image); return 0; }
static R function(void **f, void *m, const char *n) { *f = strdup(n); return m ? 0 : 400; }
static R launch(void *f, U a, U b, U c, U d, U e, U g, U shared, void *s, void **params, void **extra) {
    SAY("launch %s (%u, %u, %u) (%u, %u, %u) %u %s", (char *)f, a, b, c, d, e, g, shared, extra ? "extra" : "");
    if (!strcmp(f, "fails")) return 719;
    return push(s, (Work){0, *(P *)params[0], *(P *)params[1], 0});
}
static R begin(void *s, int mode) { SAY("capture in stream %p, mode %d", s, mode); capturing = 1; captured.count = 0; return 0; }
static R end(void *s, void **g) { Graph *x = malloc(sizeof captured); *x = captured; *g = x; capturing = 0; return s ? 0 : 400; }
static R instantiate(void **x, void *g, P flags) { *x = malloc(sizeof captured); memcpy(*x, g, sizeof captured); return (R)flags; }
static R end_graph(void *g) { free(g); SAY("graph destroyed"); return 0; }
static R replay(void *g, void *s) { Graph *x = g; for (int i = 0; i < x->count; i++) act(x->work[i]); return s ? 0 : 400; }
static R error_text(int e, const char **s) { *s = e == 719 ? "unspecified launch failure" : "?"; return 0; }
static R error_name(int e, const char **s) { *s = e == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "?"; return 0; }
static R pointer(void *to, int kind, P p) { *(int *)to = 0; return p && kind == 9 ? 0 : 1; }

static const struct { const char *name; void *f; } TABLE[] = {
    {"cuInit", init}, {"cuDriverGetVersion", version}, {"cuDeviceGetCount", count}, {"cuDeviceGet", device},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuCtxSetCurrent", current}, {"cuCtxSynchronize", settle}, {"cuDeviceGetName", name},
    {"cuDeviceGetAttribute", attribute}, {"cuStreamCreate", stream}, {"cuStreamSynchronize", synchronize},
    {"cuStreamWaitEvent", follow}, {"cuEventCreate", event}, {"cuEventRecord", record}, {"cuEventQuery", query},
    {"cuEventSynchronize", reach}, {"cuEventDestroy", end_event}, {"cuEventElapsedTime", elapsed}, {"cuMemHostAlloc", pinned},
    {"cuMemAlloc", allocate}, {"cuMemFree", release}, {"cuMemcpyHtoDAsync", upload}, {"cuMemcpyDtoHAsync", download},
    {"cuMemcpyDtoDAsync", copy}, {"cuMemsetD8Async", zeros}, {"cuModuleLoadData", load}, {"cuModuleGetFunction", function},
    {"cuLaunchKernel", launch}, {"cuStreamBeginCapture", begin}, {"cuStreamEndCapture", end},
    {"cuGraphInstantiate", instantiate}, {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphDestroy", end_graph},
    {"cuGraphExecDestroy", end_graph}, {"cuGraphLaunch", replay}, {"cuGetErrorString", error_text},
    {"cuGetErrorName", error_name}, {"cuPointerGetAttribute", pointer},
};

R cuGetProcAddress_v2(const char *symbol, void **f, int version, P flags, int *status) {
    (void)version, (void)flags;
    *f = strcmp(symbol, "cuGetProcAddress") ? NULL : (void *)cuGetProcAddress_v2;
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(TABLE[i].name, symbol)) *f = TABLE[i].f;
    if (status) *status = *f ? 0 : 1;
    return *f ? 0 : 500;
}
