/* What the programs share: checks, a made-up frame, handles that must open. */
#define _GNU_SOURCE
#include <knet.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                     \
  do {                                                                                       \
    if (!(condition)) {                                                                      \
      fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, knet_last_error()); \
      exit(1);                                                                               \
    }                                                                                        \
  } while (0)
#define REFUSED(call, status, words)                       \
  do {                                                     \
    CHECK((call) == (status));                             \
    CHECK(strstr(knet_last_error(), (words)) != NULL);     \
  } while (0)

enum { HEIGHT = 64, WIDTH = 96, STRIDE = 3 * WIDTH + 5 };
static unsigned char pixels[HEIGHT * STRIDE];

static inline void make_pixels(void) {
  for (int y = 0; y < HEIGHT; ++y)
    for (int x = 0; x < 3 * WIDTH; ++x) pixels[y * STRIDE + x] = (unsigned char)(x * 5 + y * 3 + x * y % 17);
}

static inline knet_frame make_frame(void) {
  knet_frame frame = {.struct_size = sizeof frame};
  frame.format = KNET_FORMAT_RGB8;
  frame.height = HEIGHT;
  frame.width = WIDTH;
  frame.planes[0].data = pixels;
  frame.planes[0].stride = STRIDE;
  frame.timestamp_ns = 1234567890123;
  return frame;
}

static inline knet_model *open_model_on(const char *name, const char *device) {
  knet_model_options options = {.struct_size = sizeof options};
  options.weights = "seeded:0";
  options.name = name;
  options.device = device;
  knet_model *model = NULL;
  CHECK(knet_model_open(&options, &model) == KNET_OK && model != NULL);
  return model;
}

static inline knet_model *open_model(const char *name) { return open_model_on(name, "cpu"); }

/* Options of a session of two threads that does not resize the frame. */
static inline knet_session_options session_options(void) {
  knet_session_options options = {.struct_size = sizeof options};
  options.threads = 2;
  options.short_side = HEIGHT;
  options.long_side = WIDTH;
  return options;
}

static inline knet_session *open_session_with(const knet_model *model, const knet_session_options *options) {
  knet_session *session = NULL;
  CHECK(knet_session_open(model, options, &session) == KNET_OK && session != NULL);
  return session;
}

static inline knet_session *open_session(const knet_model *model, uint32_t task) {
  knet_session_options options = session_options();
  options.task = task;
  return open_session_with(model, &options);
}

static inline knet_result_info info_of(const knet_result *result) {
  knet_result_info info = {.struct_size = sizeof info};
  CHECK(knet_result_get_info(result, &info) == KNET_OK);
  return info;
}

/* The object of each pixel of the made-up frame. */
static inline void objects_of(const knet_result *result, uint16_t *objects) {
  CHECK(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, objects, 2 * WIDTH) == KNET_OK);
}
