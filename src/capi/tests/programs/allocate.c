/* What is said to allocate nothing does not, in no thread of the process: this program's malloc counts. */
#include "common.h"

#include <errno.h>
#include <stdatomic.h>

static atomic_long calls;

/* The C library's own, by their other names. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) {
  atomic_fetch_add(&calls, 1);
  return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  atomic_fetch_add(&calls, 1);
  return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size) {
  atomic_fetch_add(&calls, 1);
  return __libc_realloc(memory, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
  atomic_fetch_add(&calls, 1);
  *memory = __libc_memalign(alignment, size);
  return *memory == NULL ? ENOMEM : 0;
}

void *aligned_alloc(size_t alignment, size_t size) {
  atomic_fetch_add(&calls, 1);
  return __libc_memalign(alignment, size);
}

/* A camera's frame and all that is read of it. */
static void use(const knet_session *session, knet_result *result, int submits) {
  static unsigned char mask[HEIGHT][WIDTH];
  knet_frame frame = make_frame();
  if (submits) {
    uint32_t done = 0;
    CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
    CHECK(knet_session_poll(session, &done) == KNET_OK && knet_session_wait(session) == KNET_OK);
  } else {
    CHECK(knet_segment(session, &frame, result) == KNET_OK);
  }
  const uint32_t count = info_of(result).objects;
  CHECK(count > 0);
  for (uint32_t i = 0; i < count; ++i) {
    knet_object object = {.struct_size = sizeof object};
    knet_polygons polygons = {.struct_size = sizeof polygons};
    const uint8_t *bits = NULL;
    size_t size = 0;
    CHECK(knet_result_get_object(result, i, &object) == KNET_OK);
    CHECK(knet_result_mask_bits(result, i, &bits, &size) == KNET_OK);
    CHECK(knet_result_mask_u8(result, i, 1, &mask[0][0], WIDTH) == KNET_OK);
    CHECK(knet_result_polygons(result, i, &polygons) == KNET_OK);
  }
  static uint16_t objects[HEIGHT][WIDTH];
  knet_maps maps = {.struct_size = sizeof maps, .none = 255};
  maps.objects = (knet_map){.pixels = objects, .element_bytes = 2};
  maps.classes = (knet_map){.pixels = mask, .element_bytes = 1};
  CHECK(knet_result_maps(result, &maps) == KNET_OK);
}

static void check(const knet_model *model, uint32_t on_caller) {
  knet_session_options options = session_options();
  options.on_caller = on_caller;
  options.threads = on_caller ? 1 : 2;
  knet_session *session = open_session_with(model, &options);
  knet_result *result = knet_result_new();
  for (int submits = 0; submits <= !on_caller; ++submits) {
    use(session, result, submits);
    const long before = atomic_load(&calls);
    for (int i = 0; i < 5; ++i) use(session, result, submits);
    const long made = atomic_load(&calls) - before;
    if (made != 0) fprintf(stderr, "%ld allocations (on_caller %u, submits %d)\n", made, on_caller, submits);
    CHECK(made == 0);
  }
  knet_result_free(result);
  knet_session_close(session);
}

int main(void) {
  make_pixels();
  void *volatile memory = malloc(1);
  free(memory);
  CHECK(atomic_load(&calls) > 0);
  knet_model *model = open_model("knet_s3_lite0_fpn");
  const long before = atomic_load(&calls);
  check(model, 0);
  CHECK(atomic_load(&calls) > before);
  check(model, 1);
  knet_model_close(model);
  puts("ok");
  return 0;
}
