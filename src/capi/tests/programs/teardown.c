/* Ways to end: without closing, late, forked. The first argument says which. */
#include "common.h"

#include <sys/wait.h>
#include <unistd.h>

static knet_model *model;
static knet_session *session;
static knet_result *result;

static void use(void) {
  knet_frame frame = make_frame();
  CHECK(knet_segment(session, &frame, result) == KNET_OK && info_of(result).objects > 0);
}

static void open_all(uint32_t on_caller) {
  knet_session_options options = session_options();
  options.threads = on_caller ? 0 : 2;
  options.on_caller = on_caller;
  if (model == NULL) model = open_model("knet_s3_lite0_fpn");
  session = open_session_with(model, &options);
  result = knet_result_new();
}

static void close_all(void) {
  knet_model_close(model);
  knet_session_close(session);
  knet_result_free(result);
}

/* After everything that main has done, in an order that nobody chose. */
static void close_late(void) {
  use();
  close_all();
  puts("closed late");
}

/* What a child does, in a process of its own. */
static void in_a_child(void (*body)(void)) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    fflush(stdout);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void open_in_child(void) {
  open_all(0);
  use();
  close_all();
}

static void what_a_child_cannot_use(void) {
  knet_frame frame = make_frame();
  REFUSED(knet_segment(session, &frame, result), KNET_ERROR_STATE, "forked off");
  REFUSED(knet_session_submit(session, &frame, result), KNET_ERROR_STATE, "forked off");
  REFUSED(knet_session_warm_up(session, HEIGHT, WIDTH), KNET_ERROR_STATE, "forked off");
  knet_session_close(session);
  open_all(0);
  use();
  close_all();
}

int main(int count, char **arguments) {
  const char *how = count > 1 ? arguments[1] : "";
  make_pixels();
  if (strcmp(how, "exit") == 0) {
    /* In the midst of a frame, with nothing closed. */
    open_all(0);
    knet_frame frame = make_frame();
    CHECK(knet_session_submit(session, &frame, result) == KNET_OK);
  } else if (strcmp(how, "late") == 0) {
    CHECK(atexit(close_late) == 0);
    open_all(0);
    use();
  } else if (strcmp(how, "fork") == 0) {
    /* Before any use, beside a model, and beside sessions. */
    CHECK(knet_abi_version() == KNET_ABI_VERSION);
    in_a_child(open_in_child);
    model = open_model("knet_s3_lite0_fpn");
    in_a_child(open_in_child);
    open_all(0);
    use();
    knet_frame frame = make_frame();
    CHECK(knet_session_submit(session, &frame, result) == KNET_OK && knet_session_wait(session) == KNET_OK);
    in_a_child(what_a_child_cannot_use);
    use();
    knet_session_close(session);
    knet_result_free(result);
    /* A session without threads has left nothing behind. */
    open_all(1);
    use();
    in_a_child(use);
    use();
    close_all();
  } else {
    return 1;
  }
  puts("ok");
  return 0;
}
