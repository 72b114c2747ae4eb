/* Every function of knet.h and every error that a program can cause, on seeded weights and a made-up frame. */
#include "common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static void versions(void) {
  CHECK(knet_abi_version() == KNET_ABI_VERSION);
  CHECK(strlen(knet_version()) >= 5);
  CHECK(knet_last_error() != NULL && *knet_last_error() == 0);
}

static void nothing_is_closed(void) {
  knet_model_close(NULL);
  knet_session_close(NULL);
  knet_result_free(NULL);
  CHECK(knet_model_task(NULL) == 0 && knet_model_class_count(NULL) == 0);
  CHECK(*knet_model_device(NULL) == 0 && knet_model_device_note(NULL) == NULL);
}

static void models_that_cannot_be(void) {
  knet_model_options options = {.struct_size = sizeof options};
  knet_model *model = (knet_model *)&options;
  REFUSED(knet_model_open(NULL, &model), KNET_ERROR_ARGUMENT, "knet_model_options is NULL");
  CHECK(model == NULL);
  REFUSED(knet_model_open(&options, NULL), KNET_ERROR_ARGUMENT, "model is NULL");
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_ARGUMENT, "either weights or weights_data");
  options.weights = "no/such.safetensors";
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_IO, "no/such.safetensors");
  options.weights = "seeded:0";
  options.name = "knet_s3_r9000";
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_USAGE, "knet_s3_r9000");
  options.name = "knet_s3_lite0_fpn";
  options.device = "tpu";
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_USAGE, "`tpu` is no device");
  options.device = "cpu";
  options.precision = 77;
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_ARGUMENT, "precision is 77");
  options.precision = KNET_PRECISION_DEFAULT;
  options.name = "\xff";
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_ARGUMENT, "name is not UTF-8");
  options.name = NULL;
  options.weights = NULL;
  options.weights_data = "not a checkpoint";
  options.weights_size = 16;
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_CHECKPOINT, "the weights in memory");
  options.struct_size = 8;
  REFUSED(knet_model_open(&options, &model), KNET_ERROR_ARGUMENT, "struct_size is 8");
  CHECK(model == NULL);
}

static void what_a_model_says(const knet_model *model) {
  CHECK(knet_model_task(model) == KNET_TASK_INSTANCE);
  CHECK(*knet_model_device(model) != 0 && knet_model_device_note(model) == NULL);
  CHECK(knet_model_class_count(model) == 80);
  knet_class class = {.struct_size = sizeof class};
  CHECK(knet_model_class(model, 79, &class) == KNET_OK);
  CHECK(strcmp(class.name, "toothbrush") == 0 && class.id == 90 && class.is_thing == 1 && class.colour[3] == 255);
  REFUSED(knet_model_class(model, 80, &class), KNET_ERROR_USAGE, "the model has 80 classes");
  REFUSED(knet_model_class(NULL, 0, &class), KNET_ERROR_ARGUMENT, "model is NULL");
  REFUSED(knet_model_class(model, 0, NULL), KNET_ERROR_ARGUMENT, "knet_class is NULL");
}

static void sessions_that_cannot_be(const knet_model *model) {
  knet_session_options options = {.struct_size = sizeof options};
  knet_session *session = NULL;
  REFUSED(knet_session_open(NULL, NULL, &session), KNET_ERROR_ARGUMENT, "model is NULL");
  REFUSED(knet_session_open(model, NULL, NULL), KNET_ERROR_ARGUMENT, "session is NULL");
  options.task = 9;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_ARGUMENT, "task is 9");
  options.task = KNET_TASK_PANOPTIC;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_USAGE, "panoptic");
  options.task = 0;
  options.min_score = 1.5f;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_ARGUMENT, "min_score is 1.5");
  options.min_score = 0;
  options.as_they_are = 1;
  options.short_side = 9;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_ARGUMENT, "as_they_are is set");
  options.short_side = 0;
  options.masks = 2;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_ARGUMENT, "masks is 2");
  options.masks = KNET_MASKS_OF_NETWORK;
  options.cpu_count = 1;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_ARGUMENT, "cpus is NULL, and cpu_count 1");
  const uint32_t none[1] = {1000};
  options.cpus = none;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_USAGE, "cannot run on the CPUs [1000]");
  options.on_caller = 1;
  REFUSED(knet_session_open(model, &options, &session), KNET_ERROR_USAGE, "neither threads nor CPUs of its own");
  CHECK(session == NULL);
}

static void frames_that_cannot_be(knet_session *session, knet_result *result) {
  knet_frame frame = make_frame();
  REFUSED(knet_segment(NULL, &frame, result), KNET_ERROR_ARGUMENT, "session is NULL");
  REFUSED(knet_segment(session, NULL, result), KNET_ERROR_ARGUMENT, "knet_frame is NULL");
  REFUSED(knet_segment(session, &frame, NULL), KNET_ERROR_ARGUMENT, "result is NULL");
  frame.format = 99;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "format is 99");
  frame.format = KNET_FORMAT_NV12;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "planes[1].data (chroma) is NULL");
  frame = make_frame();
  frame.planes[0].stride = 3 * WIDTH - 1;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "rows have 288 bytes");
  frame.planes[0].stride = SIZE_MAX / 2;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "stride");
  frame = make_frame();
  frame.height = 0;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_USAGE, "no pixels");
  frame = make_frame();
  frame.memory = 7;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "memory is 7");
  frame.memory = KNET_MEMORY_CUDA;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_USAGE, "in the memory of a GPU");
  knet_device_result on_device = {.struct_size = sizeof on_device};
  REFUSED(knet_segment_on_device(NULL, &frame, NULL, &on_device), KNET_ERROR_ARGUMENT, "session is NULL");
  REFUSED(knet_segment_on_device(session, NULL, NULL, &on_device), KNET_ERROR_ARGUMENT, "knet_frame is NULL");
  REFUSED(knet_segment_on_device(session, &frame, NULL, NULL), KNET_ERROR_ARGUMENT, "knet_device_result is NULL");
  knet_status status = knet_segment_on_device(session, &frame, NULL, &on_device);
  CHECK(status == KNET_ERROR_USAGE || status == KNET_ERROR_NO_DEVICE);
  REFUSED(knet_session_warm_up(NULL, 1, 1), KNET_ERROR_ARGUMENT, "session is NULL");
}

static unsigned char filled[HEIGHT][WIDTH + 1];

/* The pixels within the polygons of an instance, by the even-odd rule: a side flips all to the right of it. */
static void fill(const knet_result *result, uint32_t index, unsigned char into[HEIGHT][WIDTH + 1]) {
  knet_polygons found = {.struct_size = sizeof found};
  CHECK(knet_result_polygons(result, index, &found) == KNET_OK);
  size_t points = 0;
  for (uint32_t r = 0; r < found.ring_count; ++r) {
    const knet_ring ring = found.rings[r];
    CHECK(ring.first == points && ring.count >= 4 && ring.outer < found.ring_count);
    CHECK(found.rings[ring.outer].outer == ring.outer);
    points += ring.count;
    for (uint32_t i = 0; i < ring.count; ++i) {
      const knet_point a = found.points[ring.first + i], b = found.points[ring.first + (i + 1) % ring.count];
      CHECK((a.x == b.x) != (a.y == b.y));
      const uint32_t from = a.y < b.y ? a.y : b.y, to = a.y < b.y ? b.y : a.y;
      if (a.x == b.x)
        for (uint32_t y = from; y < to; ++y) into[y][a.x] ^= 1;
    }
  }
  CHECK(points == found.point_count);
  for (int y = 0; y < HEIGHT; ++y)
    for (int x = 1; x <= WIDTH; ++x) into[y][x] ^= into[y][x - 1];
}

/* Both maps at once are the two that were asked for one by one (999: no class), in elements of any size. */
static void both_maps(const knet_result *result, uint16_t owner[HEIGHT][WIDTH], uint32_t classes[HEIGHT][WIDTH]) {
  static unsigned char objects[HEIGHT][WIDTH + 3];
  static uint16_t labels[HEIGHT][WIDTH + 1];
  static uint32_t wide[HEIGHT][WIDTH];
  memset(objects, 7, sizeof objects);
  memset(labels, 7, sizeof labels);
  knet_maps maps = {.struct_size = sizeof maps, .none = 999};
  maps.objects = (knet_map){.pixels = objects, .stride = sizeof objects[0], .element_bytes = 1};
  maps.classes = (knet_map){.pixels = labels, .stride = sizeof labels[0], .element_bytes = 2};
  CHECK(knet_result_maps(result, &maps) == KNET_OK);
  maps.objects = (knet_map){.pixels = wide, .element_bytes = 4};
  CHECK(knet_result_maps(result, &maps) == KNET_OK);
  for (int y = 0; y < HEIGHT; ++y) {
    for (int x = 0; x < WIDTH; ++x)
      CHECK(objects[y][x] == owner[y][x] && wide[y][x] == owner[y][x] && labels[y][x] == classes[y][x]);
    CHECK(objects[y][WIDTH] == 7 && objects[y][WIDTH + 2] == 7 && labels[y][WIDTH] == 0x0707);
  }
  REFUSED(knet_result_maps(NULL, &maps), KNET_ERROR_ARGUMENT, "result is NULL");
  REFUSED(knet_result_maps(result, NULL), KNET_ERROR_ARGUMENT, "knet_maps is NULL");
  maps.classes.element_bytes = 1;
  memset(wide, 7, sizeof wide);
  REFUSED(knet_result_maps(result, &maps), KNET_ERROR_ARGUMENT, "knet_maps.classes.element_bytes is 1: elements end at 255");
  CHECK(wide[0][0] == 0x07070707);
  maps.classes.element_bytes = 3;
  REFUSED(knet_result_maps(result, &maps), KNET_ERROR_ARGUMENT, "knet_maps.classes.element_bytes is 3");
  maps.classes.element_bytes = 2;
  maps.objects.stride = 4 * WIDTH - 4;
  REFUSED(knet_result_maps(result, &maps), KNET_ERROR_ARGUMENT, "knet_maps.objects.stride is 380: rows have 384 bytes");
  maps.objects.pixels = NULL;
  REFUSED(knet_result_maps(result, &maps), KNET_ERROR_ARGUMENT, "knet_maps.objects.pixels is NULL");
}

static void instances(const knet_model *model) {
  knet_session *session = open_session(model, 0);
  knet_result *result = knet_result_new();
  knet_object object = {.struct_size = sizeof object};
  const uint8_t *bits = NULL;
  size_t size = 0;
  CHECK(info_of(result).objects == 0 && info_of(result).height == 0);
  REFUSED(knet_result_get_object(result, 0, &object), KNET_ERROR_STATE, "object 0: the result has 0");
  frames_that_cannot_be(session, result);

  CHECK(knet_session_warm_up(session, HEIGHT, WIDTH) == KNET_OK);
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  knet_result_info info = info_of(result);
  CHECK(info.task == KNET_TASK_INSTANCE && info.height == HEIGHT && info.width == WIDTH);
  CHECK(info.objects > 0 && info.timestamp_ns == 1234567890123);

  static unsigned char mask[HEIGHT][WIDTH + 3];
  static uint16_t owner[HEIGHT][WIDTH], expected[HEIGHT][WIDTH];
  char runs[4096];
  float last = 1;
  for (uint32_t i = info.objects; i-- > 0;) {
    CHECK(knet_result_get_object(result, i, &object) == KNET_OK);
    CHECK(object.label < 80 && object.score >= 0 && object.score <= 1 && object.is_thing == 1);
    CHECK(knet_result_mask_bits(result, i, &bits, &size) == KNET_OK && size == HEIGHT * WIDTH / 8);
    memset(mask, 7, sizeof mask);
    CHECK(knet_result_mask_u8(result, i, 255, &mask[0][0], sizeof mask[0]) == KNET_OK);
    uint64_t area = 0;
    for (int y = 0; y < HEIGHT; ++y) {
      for (int x = 0; x < WIDTH; ++x) {
        int at = y * WIDTH + x, set = bits[at / 8] >> (7 - at % 8) & 1;
        int in_box = x >= (int)object.x && x < (int)(object.x + object.width) && y >= (int)object.y &&
                     y < (int)(object.y + object.height);
        CHECK(mask[y][x] == (set ? 255 : 0) && (!set || in_box));
        area += set;
        if (set) expected[y][x] = (uint16_t)(i + 1);
      }
      CHECK(mask[y][WIDTH] == 7 && mask[y][WIDTH + 2] == 7);
    }
    CHECK(area == object.area);
    memset(filled, 0, sizeof filled);
    fill(result, i, filled);
    for (int y = 0; y < HEIGHT; ++y)
      for (int x = 0; x < WIDTH; ++x) CHECK((mask[y][x] == 255) == (filled[y][x] != 0));
    CHECK(knet_result_mask_rle(result, i, NULL, 0, &size) == KNET_OK && size <= sizeof runs);
    memset(runs, 'x', sizeof runs);
    CHECK(knet_result_mask_rle(result, i, runs, size - 1, &size) == KNET_OK && runs[0] == 'x');
    CHECK(knet_result_mask_rle(result, i, runs, sizeof runs, &size) == KNET_OK && strlen(runs) + 1 == size);
    if (i + 1 < info.objects) CHECK(object.score >= last);
    last = object.score;
  }
  CHECK(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, owner, sizeof owner[0]) == KNET_OK);
  CHECK(memcmp(owner, expected, sizeof owner) == 0);
  static uint32_t classes[HEIGHT][WIDTH];
  CHECK(knet_result_map(result, KNET_MAP_CLASSES, 999, 4, classes, sizeof classes[0]) == KNET_OK);
  for (int y = 0; y < HEIGHT; ++y) {
    for (int x = 0; x < WIDTH; ++x) {
      if (owner[y][x] == 0) {
        CHECK(classes[y][x] == 999);
      } else {
        CHECK(knet_result_get_object(result, owner[y][x] - 1u, &object) == KNET_OK && classes[y][x] == object.label);
      }
    }
  }

  both_maps(result, owner, classes);
  REFUSED(knet_result_map(result, 3, 0, 2, owner, sizeof owner[0]), KNET_ERROR_ARGUMENT, "map is 3");
  REFUSED(knet_result_map(result, KNET_MAP_OBJECTS, 0, 3, owner, sizeof owner[0]), KNET_ERROR_ARGUMENT, "1, 2 or 4");
  REFUSED(knet_result_map(result, KNET_MAP_CLASSES, 256, 1, owner, sizeof owner[0]), KNET_ERROR_ARGUMENT, "up to 256");
  REFUSED(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, owner, 3), KNET_ERROR_ARGUMENT, "rows have 192 bytes");
  static uint16_t rows[HEIGHT][WIDTH];
  CHECK(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, rows, 0) == KNET_OK && memcmp(rows, owner, sizeof rows) == 0);
  REFUSED(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, owner, 193), KNET_ERROR_ARGUMENT, "multiples of 2");
  REFUSED(knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, NULL, 192), KNET_ERROR_ARGUMENT, "pixels is NULL");
  REFUSED(knet_result_mask_bits(result, info.objects, &bits, &size), KNET_ERROR_STATE, "the result has");
  REFUSED(knet_result_mask_bits(result, 0, NULL, &size), KNET_ERROR_ARGUMENT, "bits is NULL");
  REFUSED(knet_result_mask_u8(result, 0, 1, NULL, WIDTH), KNET_ERROR_ARGUMENT, "pixels is NULL");
  REFUSED(knet_result_mask_rle(result, 0, NULL, 9999, &size), KNET_ERROR_ARGUMENT, "text is NULL");
  REFUSED(knet_result_mask_rle(result, 0, runs, sizeof runs, NULL), KNET_ERROR_ARGUMENT, "needed is NULL");
  REFUSED(knet_result_get_info(result, NULL), KNET_ERROR_ARGUMENT, "knet_result_info is NULL");
  knet_polygons polygons = {.struct_size = sizeof polygons};
  REFUSED(knet_result_polygons(result, info.objects, &polygons), KNET_ERROR_STATE, "the result has");
  REFUSED(knet_result_polygons(NULL, 0, &polygons), KNET_ERROR_ARGUMENT, "result is NULL");
  REFUSED(knet_result_polygons(result, 0, NULL), KNET_ERROR_ARGUMENT, "knet_polygons is NULL");

  knet_timings timings = {.struct_size = sizeof timings};
  CHECK(knet_session_timings(session, &timings) == KNET_OK && timings.network_ns > 0);

  /* What an earlier frame held is not taken for that of one that failed. */
  knet_result *stale = knet_result_new();
  CHECK(knet_segment(session, &frame, stale) == KNET_OK && info_of(stale).objects > 0);
  frame.memory = KNET_MEMORY_CUDA;
  REFUSED(knet_segment(session, &frame, stale), KNET_ERROR_USAGE, "in the memory of a GPU");
  CHECK(info_of(stale).objects == 0 && info_of(stale).height == 0);
  frame = make_frame();
  CHECK(knet_segment(session, &frame, stale) == KNET_OK && info_of(stale).objects > 0);
  frame.planes[0].stride = 1;
  REFUSED(knet_segment(session, &frame, stale), KNET_ERROR_ARGUMENT, "stride");
  CHECK(info_of(stale).objects == 0);
  knet_result_free(stale);
  frame = make_frame();

  /* A result outlives its session; other formats give other pixels, or the same. */
  static unsigned char bgr[HEIGHT * WIDTH * 3];
  for (int y = 0; y < HEIGHT; ++y)
    for (int x = 0; x < WIDTH; ++x)
      for (int c = 0; c < 3; ++c) bgr[(y * WIDTH + x) * 3 + 2 - c] = pixels[y * STRIDE + 3 * x + c];
  knet_result *again = knet_result_new();
  frame.format = KNET_FORMAT_BGR8;
  frame.planes[0].data = bgr;
  frame.planes[0].stride = 0;
  CHECK(knet_segment(session, &frame, again) == KNET_OK);
  knet_session_close(session);
  CHECK(knet_result_map(again, KNET_MAP_OBJECTS, 0, 2, expected, sizeof expected[0]) == KNET_OK);
  CHECK(memcmp(owner, expected, sizeof owner) == 0);
  knet_result_free(again);
  knet_result_free(result);
}

/* Fewer stages, told beforehand or for want of time. */
static void in_time(const knet_model *model) {
  static uint16_t one[HEIGHT][WIDTH], found[HEIGHT][WIDTH];
  knet_session_options options = session_options();
  options.stages = 1;
  knet_session *session = open_session(model, 0), *first = open_session_with(model, &options);
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).stages == 3);
  CHECK(knet_segment(first, &frame, result) == KNET_OK && info_of(result).stages == 1);
  objects_of(result, &one[0][0]);
  CHECK(knet_session_set_deadline(session, 1) == KNET_OK);
  CHECK(knet_session_warm_up(session, HEIGHT, WIDTH) == KNET_OK);
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).stages == 1);
  objects_of(result, &found[0][0]);
  CHECK(memcmp(found, one, sizeof found) == 0);
  CHECK(knet_session_set_deadline(session, UINT64_MAX) == KNET_OK);
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).stages == 3);
  CHECK(knet_session_set_deadline(session, 0) == KNET_OK);
  REFUSED(knet_session_set_deadline(NULL, 0), KNET_ERROR_ARGUMENT, "session is NULL");
  knet_session *none = NULL;
  options.stages = 4;
  REFUSED(knet_session_open(model, &options, &none), KNET_ERROR_USAGE, "stages is 4");
  knet_session_close(session);
  knet_session_close(first);
  knet_result_free(result);
}

/* Masks of the network's size are those of a frame that has it. */
static void masks_of_the_network(const knet_model *model) {
  static unsigned char twice[2 * HEIGHT][2 * WIDTH][3];
  for (int y = 0; y < 2 * HEIGHT; ++y)
    for (int x = 0; x < 2 * WIDTH; ++x) memcpy(twice[y][x], &pixels[y / 2 * STRIDE + x / 2 * 3], 3);
  knet_session_options options = session_options();
  knet_session *of_frame = open_session_with(model, &options);
  options.masks = KNET_MASKS_OF_NETWORK;
  knet_session *session = open_session_with(model, &options);
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  static uint16_t expected[HEIGHT][WIDTH], found[HEIGHT][WIDTH];
  CHECK(knet_segment(of_frame, &frame, result) == KNET_OK);
  objects_of(result, &expected[0][0]);
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).height == HEIGHT);
  objects_of(result, &found[0][0]);
  CHECK(memcmp(found, expected, sizeof found) == 0);
  frame.height = 2 * HEIGHT;
  frame.width = 2 * WIDTH;
  frame.planes[0] = (knet_plane){twice, 0};
  /* Both halves of a pixel are the same, and so is what the resize blends of them. */
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  CHECK(info_of(result).height == HEIGHT && info_of(result).width == WIDTH);
  objects_of(result, &found[0][0]);
  CHECK(memcmp(found, expected, sizeof found) == 0);
  CHECK(knet_segment(of_frame, &frame, result) == KNET_OK);
  CHECK(info_of(result).height == 2 * HEIGHT && info_of(result).width == 2 * WIDTH);
  knet_result_free(result);
  knet_session_close(session);
  knet_session_close(of_frame);
}

/* What a frame gives is what the blocking call gives; until it was waited for, session and result are taken. */
static void in_flight(const knet_model *model) {
  static uint16_t expected[HEIGHT][WIDTH], found[HEIGHT][WIDTH];
  knet_session *session = open_session(model, 0);
  knet_result *result = knet_result_new(), *other = knet_result_new();
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, other) == KNET_OK);
  objects_of(other, &expected[0][0]);
  for (uint64_t time = 1; time <= 3; ++time) {
    frame.timestamp_ns = time;
    CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
    REFUSED(knet_session_submit(session, &frame, other), KNET_ERROR_BUSY, "the session is taken by a frame in flight");
    REFUSED(knet_segment(session, &frame, other), KNET_ERROR_BUSY, "frame in flight");
    REFUSED(knet_session_warm_up(session, HEIGHT, WIDTH), KNET_ERROR_BUSY, "frame in flight");
    knet_timings timings = {.struct_size = sizeof timings};
    REFUSED(knet_session_timings(session, &timings), KNET_ERROR_BUSY, "frame in flight");
    knet_result_info info = {.struct_size = sizeof info};
    REFUSED(knet_result_get_info(result, &info), KNET_ERROR_BUSY, "the result is taken by a frame in flight");
    uint32_t done = 7;
    while (time == 2 && done != 1) {
      CHECK(knet_session_poll(session, &done) == KNET_OK && done <= 1);
      nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    CHECK(knet_session_wait(session) == KNET_OK);
    CHECK(info_of(result).timestamp_ns == time);
    objects_of(result, &found[0][0]);
    CHECK(memcmp(found, expected, sizeof found) == 0);
    CHECK(knet_session_timings(session, &timings) == KNET_OK && timings.network_ns > 0);
  }
  /* A frame that cannot be is refused at once, and one that nobody waits for does no harm. */
  frame.format = 99;
  REFUSED(knet_session_submit(session, &frame, result), KNET_ERROR_ARGUMENT, "format is 99");
  frame = make_frame();
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
  knet_session_close(session);
  CHECK(info_of(result).objects > 0);
  session = open_session(model, 0);
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
  knet_result_free(result);
  CHECK(knet_session_wait(session) == KNET_OK);
  /* A result can be filled by one session only. */
  knet_session *second = open_session(model, 0);
  CHECK(knet_session_submit(session, &frame, other) == KNET_OK);
  REFUSED(knet_session_submit(second, &frame, other), KNET_ERROR_BUSY, "the result is taken");
  CHECK(knet_session_wait(session) == KNET_OK);
  CHECK(knet_session_submit(second, &frame, other) == KNET_OK && knet_session_wait(second) == KNET_OK);
  /* A frame of a GPU is found out by the session's thread: its words reach who waits. */
  frame.memory = KNET_MEMORY_CUDA;
  CHECK(knet_session_submit(session, &frame, other) == KNET_OK);
  REFUSED(knet_session_wait(session), KNET_ERROR_USAGE, "in the memory of a GPU");
  CHECK(info_of(other).objects == 0);
  frame = make_frame();
  CHECK(knet_segment(session, &frame, other) == KNET_OK);
  knet_result_free(other);
  knet_session_close(second);
  knet_session_close(session);
}

static void nothing_in_flight(const knet_model *model) {
  uint32_t done = 0;
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  knet_session *session = open_session(model, 0);
  REFUSED(knet_session_wait(session), KNET_ERROR_STATE, "no frame was submitted");
  REFUSED(knet_session_poll(session, &done), KNET_ERROR_STATE, "no frame was submitted");
  REFUSED(knet_session_submit(NULL, &frame, result), KNET_ERROR_ARGUMENT, "session is NULL");
  REFUSED(knet_session_submit(session, NULL, result), KNET_ERROR_ARGUMENT, "knet_frame is NULL");
  REFUSED(knet_session_submit(session, &frame, NULL), KNET_ERROR_ARGUMENT, "result is NULL");
  REFUSED(knet_session_wait(NULL), KNET_ERROR_ARGUMENT, "session is NULL");
  REFUSED(knet_session_poll(NULL, &done), KNET_ERROR_ARGUMENT, "session is NULL");
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
  REFUSED(knet_session_poll(session, NULL), KNET_ERROR_ARGUMENT, "done is NULL");
  CHECK(knet_session_wait(session) == KNET_OK);
  REFUSED(knet_session_wait(session), KNET_ERROR_STATE, "waited for already");
  REFUSED(knet_session_poll(session, &done), KNET_ERROR_STATE, "waited for already");
  knet_result_free(result);
  knet_session_close(session);
}

static struct {
  int count, worst;
  char last[256];
} heard;

static void hear(uint32_t level, const char *message, void *user) {
  CHECK(user == &heard && level >= KNET_LOG_ERROR && level <= KNET_LOG_DEBUG);
  ++heard.count;
  heard.worst = (int)level;
  snprintf(heard.last, sizeof heard.last, "%s", message);
  CHECK(knet_set_log(NULL, NULL, 0) == KNET_ERROR_STATE);
}

/* A model whose loading was heard of. */
static knet_model *messages(void) {
  REFUSED(knet_set_log(hear, &heard, 9), KNET_ERROR_ARGUMENT, "level is 9");
  CHECK(knet_set_log(hear, &heard, KNET_LOG_WARNING) == KNET_OK);
  knet_model_close(open_model("knet_s3_lite0_fpn"));
  CHECK(heard.count == 0);
  CHECK(knet_set_log(hear, &heard, KNET_LOG_DEBUG) == KNET_OK);
  knet_model *model = open_model("knet_s3_lite0_fpn");
  CHECK(heard.count == 1 && heard.worst == KNET_LOG_INFO && strstr(heard.last, "knet_s3_lite0_fpn on cpu"));
  knet_session *session = open_session(model, 0);
  CHECK(knet_session_warm_up(session, HEIGHT, WIDTH) == KNET_OK);
  CHECK(heard.count == 2 && heard.worst == KNET_LOG_DEBUG && strstr(heard.last, "planned knet_s3_lite0_fpn for 64x96"));
  CHECK(knet_set_log(NULL, NULL, 0) == KNET_OK);
  CHECK(knet_session_warm_up(session, 2 * HEIGHT, WIDTH) == KNET_OK);
  CHECK(heard.count == 2);
  knet_session_close(session);
  return model;
}

static void maps(const char *name, uint32_t task) {
  knet_model *model = open_model(name);
  knet_session *session = open_session(model, 0);
  /* The session keeps what it needs of the model. */
  knet_model_close(model);
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  knet_result_info info = info_of(result);
  CHECK(info.task == task);
  static uint32_t objects[HEIGHT][WIDTH], classes[HEIGHT][WIDTH];
  CHECK(knet_result_map(result, KNET_MAP_OBJECTS, 0, 4, objects, sizeof objects[0]) == KNET_OK);
  CHECK(knet_result_map(result, KNET_MAP_CLASSES, 5000, 4, classes, sizeof classes[0]) == KNET_OK);
  static uint32_t both[2][HEIGHT][WIDTH];
  knet_maps two = {.struct_size = sizeof two, .none = 5000};
  two.objects = (knet_map){.pixels = both[0], .element_bytes = 4};
  two.classes = (knet_map){.pixels = both[1], .element_bytes = 4};
  CHECK(knet_result_maps(result, &two) == KNET_OK);
  CHECK(memcmp(both[0], objects, sizeof objects) == 0 && memcmp(both[1], classes, sizeof classes) == 0);
  uint64_t owned = 0, areas = 0;
  for (uint32_t i = 0; i < info.objects; ++i) {
    knet_object object = {.struct_size = sizeof object};
    CHECK(knet_result_get_object(result, i, &object) == KNET_OK);
    for (int y = 0; y < HEIGHT; ++y)
      for (int x = 0; x < WIDTH; ++x)
        if (objects[y][x] == i + 1) {
          CHECK(classes[y][x] == object.label);
          ++owned;
        }
    areas += object.area;
  }
  CHECK(owned == areas);
  CHECK(task != KNET_TASK_SEMANTIC || owned == HEIGHT * WIDTH);
  const uint8_t *bits;
  size_t size;
  REFUSED(knet_result_mask_bits(result, 0, &bits, &size), KNET_ERROR_STATE, "only instances have masks");
  knet_result_free(result);
  knet_session_close(session);
}

static knet_session *shared;
static atomic_int running;

static void *camera(void *unused) {
  (void)unused;
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  /* Frames that were refused do not count: while the other thread is in the midst of a call, they take no time. */
  for (int done = 0; done < 40;) {
    knet_status status = knet_segment(shared, &frame, result);
    CHECK(status == KNET_OK || status == KNET_ERROR_BUSY);
    done += status == KNET_OK;
  }
  knet_result_free(result);
  atomic_store(&running, 0);
  return NULL;
}

static void a_session_is_one_threads(const knet_model *model) {
  shared = open_session(model, 0);
  CHECK(knet_session_warm_up(shared, HEIGHT, WIDTH) == KNET_OK);
  atomic_store(&running, 1);
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, camera, NULL) == 0);
  int refused = 0;
  knet_timings timings = {.struct_size = sizeof timings};
  while (atomic_load(&running)) refused += knet_session_timings(shared, &timings) == KNET_ERROR_BUSY;
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(refused > 0 && strstr(knet_last_error(), "in use by another thread") != NULL);
  knet_session_close(shared);
}

int main(void) {
  make_pixels();
  versions();
  nothing_is_closed();
  models_that_cannot_be();
  knet_model *model = messages();
  what_a_model_says(model);
  sessions_that_cannot_be(model);
  instances(model);
  in_time(model);
  masks_of_the_network(model);
  in_flight(model);
  nothing_in_flight(model);
  a_session_is_one_threads(model);
  maps("knet_s3_r50_fpn_panoptic", KNET_TASK_PANOPTIC);
  maps("fcn_r50-d8", KNET_TASK_SEMANTIC);
  /* The model is left open: ending without closing is allowed. */
  (void)model;
  puts("ok");
  return 0;
}
