/* Which threads there are, where they run, and that they sleep: by what the system says of this process. */
#include "common.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

/* Calls `each` with the number and the name of every thread; gives how many there are. */
static int each_thread(void (*each)(const char *number, const char *name)) {
  DIR *tasks = opendir("/proc/self/task");
  CHECK(tasks != NULL);
  int count = 0;
  for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    ++count;
    char path[300], name[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
    FILE *file = fopen(path, "r");
    if (file == NULL) continue;
    if (fscanf(file, "%31s", name) == 1 && each != NULL) each(entry->d_name, name);
    fclose(file);
  }
  closedir(tasks);
  return count;
}

/* Whether there are so many threads. One that was waited for is seen a moment longer. */
static int has_threads(int count) {
  for (int i = 0; i < 1000; ++i) {
    if (each_thread(NULL) == count) return 1;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  fprintf(stderr, "%d threads, not %d\n", each_thread(NULL), count);
  return 0;
}

/* A CPU that this process may use. */
static int some_cpu(void) {
  cpu_set_t allowed;
  CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
  int cpu = CPU_SETSIZE - 1;
  while (!CPU_ISSET(cpu, &allowed)) --cpu;
  return cpu;
}

static int pinned;

static void check_cpus(const char *number, const char *name) {
  if (strncmp(name, "knet-", 5) != 0) return;
  char path[300], line[256], expected[64];
  snprintf(path, sizeof path, "/proc/self/task/%s/status", number);
  snprintf(expected, sizeof expected, "Cpus_allowed_list:\t%d\n", some_cpu());
  FILE *file = fopen(path, "r");
  CHECK(file != NULL);
  while (fgets(line, sizeof line, file) != NULL)
    if (strncmp(line, "Cpus_allowed_list:", 18) == 0) {
      CHECK(strcmp(line, expected) == 0);
      ++pinned;
    }
  fclose(file);
}

static uint16_t expected[HEIGHT][WIDTH];

static void check_session(const knet_session *session) {
  static uint16_t found[HEIGHT][WIDTH];
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  objects_of(result, &found[0][0]);
  CHECK(memcmp(found, expected, sizeof found) == 0);
  knet_result_free(result);
}

/* Threads come with a session and go with it. */
static void threads_of_a_session(const knet_model *model) {
  CHECK(has_threads(1));
  knet_session *session = open_session(model, 0);
  CHECK(has_threads(3));
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  CHECK(knet_segment(session, &frame, result) == KNET_OK);
  objects_of(result, &expected[0][0]);
  CHECK(has_threads(3));
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK && has_threads(4));
  CHECK(knet_session_wait(session) == KNET_OK);
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK && has_threads(4));
  knet_session_close(session);
  CHECK(has_threads(1));
  knet_result_free(result);
}

/* What the processor has spent on this process while it slept. */
static void idle_threads_sleep(const knet_model *model) {
  knet_session *session = open_session(model, 0);
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK && knet_session_wait(session) == KNET_OK);
  /* Threads look for more work for a moment before they lie down. */
  nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
  const clock_t before = clock();
  nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
  const double milliseconds = 1e3 * (double)(clock() - before) / CLOCKS_PER_SEC;
  if (milliseconds >= 10) fprintf(stderr, "%f ms of CPU in an idle second\n", milliseconds);
  CHECK(milliseconds < 10);
  knet_result_free(result);
  knet_session_close(session);
}

static const knet_session *shared;

static void *elsewhere(void *unused) {
  check_session(shared);
  return unused;
}

/* A session without threads works wherever it is called, and no thread comes into being. */
static void no_thread_but_mine(const knet_model *model) {
  knet_session_options options = session_options();
  options.threads = 0;
  options.on_caller = 1;
  knet_session *session = open_session_with(model, &options), *second = open_session_with(model, &options);
  CHECK(has_threads(1));
  CHECK(knet_session_warm_up(session, HEIGHT, WIDTH) == KNET_OK);
  for (int i = 0; i < 3; ++i) {
    check_session(session);
    check_session(second);
    CHECK(has_threads(1));
  }
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  REFUSED(knet_session_submit(session, &frame, result), KNET_ERROR_USAGE, "has none to submit a frame to");
  knet_result_free(result);
  pthread_t thread;
  shared = session;
  CHECK(pthread_create(&thread, NULL, elsewhere, NULL) == 0 && pthread_join(thread, NULL) == 0);
  check_session(session);
  knet_session_close(session);
  knet_session_close(second);
  CHECK(has_threads(1));
}

static void threads_keep_to_their_cpus(const knet_model *model) {
  const uint32_t cpus[1] = {(uint32_t)some_cpu()};
  knet_session_options options = session_options();
  options.cpus = cpus;
  options.cpu_count = 1;
  knet_session *session = open_session_with(model, &options);
  knet_frame frame = make_frame();
  knet_result *result = knet_result_new();
  CHECK(knet_session_submit(session, &frame, result) == KNET_OK && knet_session_wait(session) == KNET_OK);
  each_thread(check_cpus);
  CHECK(pinned == 3);
  check_session(session);
  knet_session_close(session);
  /* One thread for each CPU if no number is said. */
  options.threads = 0;
  session = open_session_with(model, &options);
  CHECK(has_threads(2));
  knet_session_close(session);
  knet_result_free(result);
}

int main(void) {
  make_pixels();
  knet_model *model = open_model("knet_s3_lite0_fpn");
  threads_of_a_session(model);
  idle_threads_sleep(model);
  no_thread_but_mine(model);
  threads_keep_to_their_cpus(model);
  knet_model_close(model);
  CHECK(has_threads(1));
  puts("ok");
  return 0;
}
