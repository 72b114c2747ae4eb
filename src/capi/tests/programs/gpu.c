/* Frames in the memory of a GPU, on a stream of the program's own. The driver is opened by hand, as no header of
   its is needed here; run on the stand-in (tools/with-ptxemu) or on a GPU. */
#include "common.h"

#include <dlfcn.h>

enum { PITCH = STRIDE, SIDE = 32, NOT_READY = 600 };
typedef unsigned long long address;

static int (*cuInit)(unsigned);
static int (*cuDevicePrimaryCtxRetain)(void **, int);
static int (*cuCtxCreate)(void **, unsigned, int);
static int (*cuCtxSetCurrent)(void *);
static int (*cuCtxSynchronize)(void);
static int (*cuStreamCreate)(void **, unsigned);
static int (*cuEventCreate)(void **, unsigned);
static int (*cuEventRecord)(void *, void *);
static int (*cuEventQuery)(void *);
static int (*cuEventSynchronize)(void *);
static int (*cuMemAlloc)(address *, size_t);
static int (*cuMemcpyHtoDAsync)(address, const void *, size_t, void *);
static int (*cuMemcpyDtoH)(void *, address, size_t);

static void open_driver(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(driver != NULL);
#define OPEN(name, symbol) CHECK((*(void **)&name = dlsym(driver, symbol)) != NULL)
  OPEN(cuInit, "cuInit");
  OPEN(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain");
  OPEN(cuCtxCreate, "cuCtxCreate_v2");
  OPEN(cuCtxSetCurrent, "cuCtxSetCurrent");
  OPEN(cuCtxSynchronize, "cuCtxSynchronize");
  OPEN(cuStreamCreate, "cuStreamCreate");
  OPEN(cuEventCreate, "cuEventCreate");
  OPEN(cuEventRecord, "cuEventRecord");
  OPEN(cuEventQuery, "cuEventQuery");
  OPEN(cuEventSynchronize, "cuEventSynchronize");
  OPEN(cuMemAlloc, "cuMemAlloc_v2");
  OPEN(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2");
  OPEN(cuMemcpyDtoH, "cuMemcpyDtoH_v2");
}

/* Whether what lies on the device are the instances of the host's result. */
static void check_instances(const knet_device_result *on_device, const knet_result *result) {
  static float scores[1000];
  static unsigned places[1000];
  static unsigned char mask[SIDE * SIDE / 8];
  CHECK(on_device->task == KNET_TASK_INSTANCE && on_device->height == SIDE && on_device->width == SIDE);
  CHECK(on_device->objects > 0 && on_device->objects <= 1000 && on_device->mask_bytes == sizeof mask);
  CHECK(on_device->map == 0 && on_device->areas == 0 && on_device->confidence == 0);
  CHECK(cuMemcpyDtoH(scores, on_device->scores, 4 * on_device->objects) == 0);
  CHECK(cuMemcpyDtoH(places, on_device->places, 4 * on_device->objects) == 0);
  const uint32_t count = info_of(result).objects;
  CHECK(count > 0 && count <= on_device->objects);
  for (uint32_t i = 0; i < count; ++i) {
    knet_object object = {.struct_size = sizeof object};
    CHECK(knet_result_get_object(result, i, &object) == KNET_OK && object.score == scores[i]);
    const uint8_t *bits = NULL;
    size_t size = 0;
    CHECK(knet_result_mask_bits(result, i, &bits, &size) == KNET_OK && size == sizeof mask);
    CHECK(cuMemcpyDtoH(mask, on_device->masks + places[i] * on_device->mask_bytes, sizeof mask) == 0);
    CHECK(memcmp(mask, bits, sizeof mask) == 0);
  }
}

int main(void) {
  make_pixels();
  open_driver();
  void *context = NULL, *upload = NULL, *stream = NULL, *uploaded = NULL, *done = NULL;
  CHECK(cuInit(0) == 0 && cuDevicePrimaryCtxRetain(&context, 0) == 0 && cuCtxSetCurrent(context) == 0);
  CHECK(cuStreamCreate(&upload, 1) == 0 && cuStreamCreate(&stream, 1) == 0);
  CHECK(cuEventCreate(&uploaded, 2) == 0 && cuEventCreate(&done, 2) == 0);

  knet_model *model = open_model_on("knet_s3_lite0_fpn", "cuda:0");
  knet_session_options options = {.struct_size = sizeof options};
  options.as_they_are = 1;
  options.threads = 2;
  knet_session *session = open_session_with(model, &options);
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  frame.height = frame.width = SIDE;
  CHECK(knet_segment(session, &frame, result) == KNET_OK);

  /* The same pixels at an odd address, on a stream that is not waited for but by an event. */
  address memory = 0;
  CHECK(cuMemAlloc(&memory, 1 + SIDE * PITCH) == 0);
  CHECK(cuMemcpyHtoDAsync(memory + 1, pixels, SIDE * PITCH, upload) == 0 && cuEventRecord(uploaded, upload) == 0);
  knet_frame there = frame;
  there.memory = KNET_MEMORY_CUDA;
  there.planes[0].data = (const void *)(uintptr_t)(memory + 1);
  there.timestamp_ns = 42;
  knet_cuda_work work = {.struct_size = sizeof work, .stream = stream, .wait_for = uploaded, .signal = done};
  knet_device_result on_device = {.struct_size = sizeof on_device};
  CHECK(knet_segment_on_device(session, &there, &work, &on_device) == KNET_OK && on_device.timestamp_ns == 42);
  const int state = cuEventQuery(done);
  CHECK(state == 0 || state == NOT_READY);
  CHECK(cuEventSynchronize(done) == 0);
  check_instances(&on_device, result);

  /* On the default stream, again into the same place; and between frames of the host. */
  const address before = on_device.masks;
  CHECK(knet_segment_on_device(session, &there, NULL, &on_device) == KNET_OK && cuCtxSynchronize() == 0);
  CHECK(on_device.masks == before);
  check_instances(&on_device, result);
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK && knet_session_wait(session) == KNET_OK);
  check_instances(&on_device, result);

  /* What the driver can tell. */
  void *other = NULL, *foreign = NULL;
  CHECK(cuCtxCreate(&other, 0, 0) == 0 && cuStreamCreate(&foreign, 1) == 0 && cuCtxSetCurrent(context) == 0);
  work.stream = foreign;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_USAGE, "another context");
  CHECK(on_device.masks == 0 && on_device.objects == 0);
  work.stream = stream;
  work.wait_for = (void *)0xdead0;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_USAGE, "event before the run");
  work.wait_for = NULL;
  work.signal = (void *)0xdead0;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_USAGE, "event after the run");
  work.signal = NULL;
  there.planes[0].stride = (size_t)1 << 40;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_USAGE, "behind");
  there.planes[0].stride = 3 * SIDE - 1;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_ARGUMENT, "rows have 96 bytes");
  there.planes[0].stride = PITCH;
  there.planes[0].data = pixels;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_USAGE, "is no memory of");
  REFUSED(knet_segment_on_device(session, &frame, &work, &on_device), KNET_ERROR_USAGE, "on the host");
  REFUSED(knet_segment(session, &there, result), KNET_ERROR_USAGE, "is no memory of");
  there.planes[0].data = (const void *)(uintptr_t)(memory + 1);

  /* Results on the host of a frame that is not, with and without waiting. */
  static uint16_t expected[SIDE * SIDE], found[SIDE * SIDE];
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  CHECK(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, expected, 2 * SIDE) == KNET_OK);
  knet_result *second = knet_result_new();
  CHECK(knet_segment(session, &there, second) == KNET_OK && info_of(second).timestamp_ns == 42);
  CHECK(knet_result_map(second, KNET_MAP_OBJECTS, 0, 2, found, 2 * SIDE) == KNET_OK);
  CHECK(memcmp(found, expected, sizeof found) == 0);
  CHECK(knet_session_submit(session, &there, second) == KNET_OK && knet_session_wait(session) == KNET_OK);
  CHECK(knet_result_map(second, KNET_MAP_OBJECTS, 0, 2, found, 2 * SIDE) == KNET_OK);
  CHECK(memcmp(found, expected, sizeof found) == 0);
  knet_result_free(second);
  on_device.struct_size = 4;
  REFUSED(knet_segment_on_device(session, &there, &work, &on_device), KNET_ERROR_ARGUMENT, "knet_device_result");
  on_device.struct_size = sizeof on_device;

  /* Closing waits for the work. */
  CHECK(knet_segment_on_device(session, &there, &work, &on_device) == KNET_OK);
  knet_session_close(session);
  knet_result_free(result);
  knet_model_close(model);
  puts("ok");
  return 0;
}
