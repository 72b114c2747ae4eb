/* A program that was built against the first header: its structs are shorter than those of today. */
#include <knet.h>

#include <stdio.h>
#include <string.h>

enum { HEIGHT = 64, WIDTH = 96 };

/* What lies behind the old structs is not zero. */
static struct {
  knet_frame frame;
  unsigned char behind[64];
} given;
static struct {
  knet_session_options options;
  unsigned char behind[64];
} with;

int main(void) {
  static unsigned char pixels[HEIGHT * WIDTH * 3];
  static unsigned short objects[HEIGHT * WIDTH];
  if (knet_abi_version() != KNET_ABI_VERSION) return 1;
  memset(given.behind, 0xee, sizeof given.behind);
  memset(with.behind, 0xee, sizeof with.behind);
  knet_model_options options = {.struct_size = sizeof options};
  options.weights = "seeded:0";
  options.name = "knet_s3_lite0_fpn";
  options.device = "cpu";
  knet_model *model = NULL;
  if (knet_model_open(&options, &model) != KNET_OK) return 2;
  with.options.struct_size = sizeof with.options;
  with.options.threads = 2;
  with.options.as_they_are = 1;
  knet_session *session = NULL;
  if (knet_session_open(model, &with.options, &session) != KNET_OK) return 3;
  knet_frame *frame = &given.frame;
  frame->struct_size = sizeof *frame;
  frame->format = KNET_FORMAT_RGB8;
  frame->height = HEIGHT;
  frame->width = WIDTH;
  frame->planes[0].data = pixels;
  frame->timestamp_ns = 5;
  knet_result *result = knet_result_new();
  if (knet_segment(session, frame, result) != KNET_OK) return 4;
  knet_result_info info = {.struct_size = sizeof info};
  if (knet_result_get_info(result, &info) != KNET_OK || info.objects == 0 || info.timestamp_ns != 5) return 5;
  if (knet_result_map(result, KNET_MAP_OBJECTS, 0, 2, objects, 2 * WIDTH) != KNET_OK) return 6;
  knet_result_free(result);
  knet_session_close(session);
  knet_model_close(model);
  printf("frame %zu options %zu\nok\n", sizeof given.frame, sizeof with.options);
  return 0;
}
