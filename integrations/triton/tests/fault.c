/* For the test: knet_segment as if there were a fault inside the library for images of one width. To be loaded before
 * everything else; the library is looked for when it is called, as Triton loads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <knet.h>

enum { WIDTH = 77 };

static const knet_session *poisoned;
static int told;

static void *real(const char *name) { return dlsym(dlopen("libknet.so.1", RTLD_NOW | RTLD_NOLOAD), name); }

enum knet_status knet_segment(const knet_session *session, const knet_frame *frame, knet_result *result) {
  enum knet_status (*segment)(const knet_session *, const knet_frame *, knet_result *);
  *(void **)&segment = real("knet_segment");
  if (frame->width == WIDTH) poisoned = session;
  told = session == poisoned;
  if (!told) return segment(session, frame, result);
  return frame->width == WIDTH ? KNET_ERROR_INTERNAL : KNET_ERROR_POISONED;
}

const char *knet_last_error(void) {
  const char *(*last_error)(void);
  *(void **)&last_error = real("knet_last_error");
  return told ? "a made fault" : last_error();
}

void knet_session_close(knet_session *session) {
  void (*close)(knet_session *);
  *(void **)&close = real("knet_session_close");
  if (session == poisoned) poisoned = 0;
  close(session);
}
