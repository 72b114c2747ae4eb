/* Loads the library, uses it and unloads it, three times over. Not linked with it: the argument is its path. */
#define _GNU_SOURCE
#include <knet.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK(condition)                                        \
  do {                                                          \
    if (!(condition)) {                                         \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                  \
    }                                                           \
  } while (0)

static void *library;

/* A function of the library, by its name. */
static void *function(const char *name) {
  void *found = dlsym(library, name);
  CHECK(found != NULL);
  return found;
}

static void ignore(uint32_t level, const char *message, void *user) { (void)level, (void)message, (void)user; }

static void use(void) {
  knet_status (*set_log)(knet_log_callback, void *, uint32_t);
  knet_status (*open_model)(const knet_model_options *, knet_model **);
  knet_status (*open_session)(const knet_model *, const knet_session_options *, knet_session **);
  knet_result *(*new_result)(void);
  knet_status (*submit)(const knet_session *, const knet_frame *, knet_result *);
  knet_status (*wait_for)(const knet_session *);
  void (*close_session)(knet_session *);
  void (*free_result)(knet_result *);
  void (*close_model)(knet_model *);
  *(void **)&set_log = function("knet_set_log");
  *(void **)&open_model = function("knet_model_open");
  *(void **)&open_session = function("knet_session_open");
  *(void **)&new_result = function("knet_result_new");
  *(void **)&submit = function("knet_session_submit");
  *(void **)&wait_for = function("knet_session_wait");
  *(void **)&close_session = function("knet_session_close");
  *(void **)&free_result = function("knet_result_free");
  *(void **)&close_model = function("knet_model_close");

  static unsigned char pixels[64 * 96];
  knet_frame frame = {.struct_size = sizeof frame, .format = KNET_FORMAT_GRAY8, .height = 64, .width = 96};
  frame.planes[0].data = pixels;
  knet_model_options options = {.struct_size = sizeof options, .weights = "seeded:0", .device = "cpu"};
  options.name = "knet_s3_lite0_fpn";
  knet_session_options with = {.struct_size = sizeof with, .threads = 2, .as_they_are = 1};
  knet_model *model = NULL;
  knet_session *session = NULL;
  CHECK(set_log(ignore, NULL, KNET_LOG_DEBUG) == KNET_OK);
  CHECK(open_model(&options, &model) == KNET_OK && open_session(model, &with, &session) == KNET_OK);
  knet_result *result = new_result();
  CHECK(submit(session, &frame, result) == KNET_OK && wait_for(session) == KNET_OK);
  /* For this one nobody waits but close. */
  CHECK(submit(session, &frame, result) == KNET_OK);
  close_session(session);
  free_result(result);
  close_model(model);
  CHECK(set_log(NULL, NULL, 0) == KNET_OK);
}

int main(int count, char **arguments) {
  CHECK(count == 2);
  for (int round = 0; round < 3; ++round) {
    library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) fprintf(stderr, "%s\n", dlerror());
    CHECK(library != NULL);
    use();
    CHECK(dlclose(library) == 0);
    /* If anything of it still runs, it has nothing to run on. */
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
  }
  puts("ok");
  return 0;
}
