/* A frame from the first byte to the last, on the calling thread: everything that was opened is closed. With an
 * argument it loses 77 bytes instead, which must be noticed. */
#include "common.h"

int main(int count, char **arguments) {
  (void)arguments;
  if (count > 1) return *(volatile char *)calloc(77, 1);
  make_pixels();
  knet_model *model = open_model("knet_s3_lite0_fpn");
  knet_session_options options = session_options();
  options.threads = 1;
  options.on_caller = 1;
  knet_session *session = open_session_with(model, &options);
  knet_result *result = knet_result_new();
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).objects > 0);
  static uint16_t objects[HEIGHT][WIDTH];
  static unsigned char classes[HEIGHT][WIDTH];
  knet_maps maps = {.struct_size = sizeof maps, .none = 255};
  maps.objects = (knet_map){.pixels = objects, .element_bytes = 2};
  maps.classes = (knet_map){.pixels = classes, .element_bytes = 1};
  CHECK(knet_result_maps(result, &maps) == KNET_OK);
  knet_polygons polygons = {.struct_size = sizeof polygons};
  CHECK(knet_result_polygons(result, 0, &polygons) == KNET_OK && polygons.ring_count > 0);
  /* Every byte that was written is one. */
  uint64_t sum = 0;
  for (int y = 0; y < HEIGHT; ++y)
    for (int x = 0; x < WIDTH; ++x) sum += objects[y][x] + classes[y][x];
  CHECK(sum > 0);
  frame.format = 99;
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_ARGUMENT, "format is 99");
  knet_result_free(result);
  knet_session_close(session);
  knet_model_close(model);
  puts("ok");
  return 0;
}
