/*
 * knet: masks for instance, panoptic and semantic segmentation.
 *
 * Made by cbindgen from src/capi; `KNET_UPDATE=1 cargo test -p knet-capi --test header` writes it anew.
 *
 * Errors. Functions that can fail return a knet_status; knet_last_error() has the words, of the calling thread.
 * Neither a panic nor an exception crosses this interface. After a fault inside the library
 * (KNET_ERROR_INTERNAL) the session or result that was in use answers KNET_ERROR_POISONED: close it.
 *
 * Structs begin with struct_size: set it to sizeof the struct, and all you do not use to zero. A program that
 * was built against an older header then runs with a newer library, and the other way round as long as it
 * asks for nothing that the library does not know.
 *
 * Threads. A model may be used by any number of threads at once. A session and a result are used by one
 * thread at a time, any thread; a second one is refused with KNET_ERROR_BUSY. A model may be closed before
 * its sessions. Closing NULL does nothing. Threads of a session end with it, and sleep while it has no frame.
 *
 * Memory. Handles are freed by their own close or free alone. Text, bits and points that a function lends
 * live as long as it says.
 *
 * Processes. Ending without closing anything is allowed, at any time. So is dlclose after all sessions are
 * closed. A process that was forked off may use what it opens itself; of what was opened before, it may use
 * models on the CPU and sessions that are on_caller, and others answer KNET_ERROR_STATE.
 *
 * Output. The library prints nothing: see knet_set_log.
 */

#ifndef KNET_H
#define KNET_H

#include <stddef.h>
#include <stdint.h>

/**
 * Version of this interface. It is raised when a program built against an older header would no longer work.
 */
#define KNET_ABI_VERSION 1

/**
 * Three bytes a pixel: red, green, blue.
 */
#define KNET_FORMAT_RGB8 0

/**
 * Three bytes a pixel: blue, green, red.
 */
#define KNET_FORMAT_BGR8 1

/**
 * Four bytes a pixel: red, green, blue, and one that is not looked at.
 */
#define KNET_FORMAT_RGBA8 2

/**
 * Four bytes a pixel: blue, green, red, and one that is not looked at.
 */
#define KNET_FORMAT_BGRA8 3

/**
 * A byte a pixel.
 */
#define KNET_FORMAT_GRAY8 4

/**
 * A plane of luma, and one of interleaved U and V for 2 x 2 pixels, BT.601, video range. Even sides.
 */
#define KNET_FORMAT_NV12 5

/**
 * As NV12, BT.709.
 */
#define KNET_FORMAT_NV12_BT709 6

/**
 * A plane of luma, one of U and one of V for 2 x 2 pixels, BT.601, video range. Even sides.
 */
#define KNET_FORMAT_I420 7

/**
 * As I420, BT.709.
 */
#define KNET_FORMAT_I420_BT709 8

/**
 * The planes are on the host.
 */
#define KNET_MEMORY_HOST 0

/**
 * The planes are in the memory of the model's GPU, at addresses of the driver's (CUdeviceptr).
 */
#define KNET_MEMORY_CUDA 1

/**
 * Object of each pixel: its index in the result plus one, 0 where there is none. Of instances that overlap,
 * the best.
 */
#define KNET_MAP_OBJECTS 1

/**
 * Class index of each pixel, `none` where there is none. Of instances that overlap, the best.
 */
#define KNET_MAP_CLASSES 2

/**
 * A fault inside the library.
 */
#define KNET_LOG_ERROR 1

/**
 * Something is not as it was asked for, such as the CPU in place of a GPU.
 */
#define KNET_LOG_WARNING 2

/**
 * What was loaded, and where it computes.
 */
#define KNET_LOG_INFO 3

/**
 * What is planned, and how long it took.
 */
#define KNET_LOG_DEBUG 4

/**
 * One mask per object; objects may overlap.
 */
#define KNET_TASK_INSTANCE 1

/**
 * Every pixel belongs to one segment, an object or a region.
 */
#define KNET_TASK_PANOPTIC 2

/**
 * Every pixel belongs to one class.
 */
#define KNET_TASK_SEMANTIC 3

/**
 * f16 on a GPU; on a CPU bf16 if it has AMX and `exact` is 0, else f32.
 */
#define KNET_PRECISION_DEFAULT 0

/**
 * f32.
 */
#define KNET_PRECISION_F32 1

/**
 * f32 in memory, multiplied as three tf32 products on tensor cores.
 */
#define KNET_PRECISION_TF32X3 2

/**
 * f16 in memory, f32 sums. A CPU takes f32.
 */
#define KNET_PRECISION_F16 3

/**
 * bf16 in memory, f32 sums. A CPU needs AVX-512 BF16 or AMX for it.
 */
#define KNET_PRECISION_BF16 4

/**
 * The 8-bit integers of weights that `knet quantize` made, multiplied by AVX-VNNI, AVX-512 VNNI or AMX of a
 * CPU; the rest as by default. By default such weights are computed so where they can be.
 */
#define KNET_PRECISION_INT8 5

/**
 * Masks and maps have the size of the frame.
 */
#define KNET_MASKS_OF_FRAME 0

/**
 * Masks and maps have the size that the frame has in the network, after the resize: less to write and to
 * read where frames are larger than what the network sees. knet_result_info says how large that is.
 */
#define KNET_MASKS_OF_NETWORK 1

/**
 * How a call ended. Values never change; new ones may come.
 */
typedef enum knet_status {
  /**
   * Done.
   */
  KNET_OK = 0,
  /**
   * An argument cannot be meant: NULL where something must be, a struct_size that no header had, a stride
   * that is too small. The call did nothing, but a result that it was to fill may be empty.
   */
  KNET_ERROR_ARGUMENT = 1,
  /**
   * A request that cannot be served as worded: an unknown model, device or option.
   */
  KNET_ERROR_USAGE = 2,
  /**
   * The operating system refused to read a file.
   */
  KNET_ERROR_IO = 3,
  /**
   * An image of a size that cannot be.
   */
  KNET_ERROR_IMAGE = 4,
  /**
   * A checkpoint that is damaged or of no known format.
   */
  KNET_ERROR_CHECKPOINT = 5,
  /**
   * A sound checkpoint that does not fit the model.
   */
  KNET_ERROR_WEIGHTS = 6,
  /**
   * A network that breaks a rule: a fault of the library.
   */
  KNET_ERROR_GRAPH = 7,
  /**
   * No GPU that can be used, or none of that number. The CPU can do the work.
   */
  KNET_ERROR_NO_DEVICE = 8,
  /**
   * The GPU's context is of no further use: close everything that uses it.
   */
  KNET_ERROR_DEVICE_LOST = 9,
  /**
   * Another fault of the driver, of the compiler or of a kernel.
   */
  KNET_ERROR_CUDA = 10,
  /**
   * More memory is needed than there is.
   */
  KNET_ERROR_MEMORY = 11,
  /**
   * A call that does not fit what was called before, such as asking an empty result for a mask.
   */
  KNET_ERROR_STATE = 12,
  /**
   * The session or result is in use by another thread, or by a frame in flight.
   */
  KNET_ERROR_BUSY = 13,
  /**
   * A fault inside the library, which was caught. The message says where; please report it.
   */
  KNET_ERROR_INTERNAL = 14,
  /**
   * The session or result was in use when a fault was caught: close it.
   */
  KNET_ERROR_POISONED = 15,
} knet_status;

/**
 * Weights in memory, shared by any number of sessions. Opaque.
 */
typedef struct knet_model knet_model;

/**
 * What a frame held. It is filled by knet_segment or knet_session_submit, any number of times, and keeps its
 * memory. Opaque.
 */
typedef struct knet_result knet_result;

/**
 * A model at work: plans, memory, threads. One for each camera or thread. Opaque.
 */
typedef struct knet_session knet_session;

/**
 * Rows of bytes.
 */
typedef struct knet_plane {
  /**
   * The first row: any address, any alignment.
   */
  const void *data;
  /**
   * Bytes from one row to the next; 0 where there is nothing between them.
   */
  size_t stride;
} knet_plane;

/**
 * An 8-bit image that the caller owns, rows from top to bottom. How long its pixels are read, the functions
 * say.
 */
typedef struct knet_frame {
  /**
   * sizeof(knet_frame).
   */
  uint32_t struct_size;
  /**
   * A KNET_FORMAT_*.
   */
  uint32_t format;
  /**
   * Rows.
   */
  uint32_t height;
  /**
   * Columns.
   */
  uint32_t width;
  /**
   * As many planes as the format has, in its order; the others are not looked at.
   */
  struct knet_plane planes[3];
  /**
   * Comes back in knet_result_info.
   */
  uint64_t timestamp_ns;
  /**
   * A KNET_MEMORY_*: where the planes are. On a GPU they must be whole for knet_segment and
   * knet_session_submit, which wait for no stream of the program's.
   */
  uint32_t memory;
  /**
   * Zero.
   */
  uint32_t reserved;
} knet_frame;

/**
 * Where work on a GPU is enqueued, and what it is ordered by. All are of the device's primary context, as
 * the CUDA runtime uses it.
 */
typedef struct knet_cuda_work {
  /**
   * sizeof(knet_cuda_work).
   */
  uint32_t struct_size;
  /**
   * Zero.
   */
  uint32_t reserved;
  /**
   * A CUstream (cudaStream_t); NULL: the default stream.
   */
  void *stream;
  /**
   * A CUevent (cudaEvent_t) that the work waits for, such as the end of the frame's upload; NULL: none.
   */
  void *wait_for;
  /**
   * A CUevent that is recorded when the work is done; NULL: none.
   */
  void *signal;
} knet_cuda_work;

/**
 * Where the results of a frame will lie in the memory of the GPU: addresses of the driver's, 0 for what a
 * result of this kind has not.
 */
typedef struct knet_device_result {
  /**
   * sizeof(knet_device_result).
   */
  uint32_t struct_size;
  /**
   * A KNET_TASK_*.
   */
  uint32_t task;
  /**
   * Rows of masks and maps: the frame's, or what the session was told.
   */
  uint32_t height;
  /**
   * Columns.
   */
  uint32_t width;
  /**
   * Places for instances; objects that pixels of a panoptic map are given to, the things first; 0 for a
   * semantic map.
   */
  uint32_t objects;
  /**
   * Zero.
   */
  uint32_t reserved;
  /**
   * The frame's.
   */
  uint64_t timestamp_ns;
  /**
   * Instances: bits of the masks by place, in the order of knet_result_mask_bits.
   */
  uint64_t masks;
  /**
   * Bytes from one mask to the next.
   */
  uint64_t mask_bytes;
  /**
   * f32, a score for each object, instances best first.
   */
  uint64_t scores;
  /**
   * Instances: i32, object * classes + class.
   */
  uint64_t pairs;
  /**
   * Instances: u32, the place of its mask. UINT32_MAX: there is none, nor any after it.
   */
  uint64_t places;
  /**
   * u16 for each pixel, row by row: its object in a panoptic map, its class in a semantic one.
   */
  uint64_t map;
  /**
   * Panoptic: u32, pixels that each object was given, then for each object those of its own mask.
   */
  uint64_t areas;
  /**
   * Panoptic: u32, the class of each object.
   */
  uint64_t classes;
  /**
   * Semantic: f32 for each pixel, the probability of its class, if it was asked for.
   */
  uint64_t confidence;
} knet_device_result;

/**
 * Memory of the caller for a map.
 */
typedef struct knet_map {
  /**
   * The first row; a multiple of the element.
   */
  void *pixels;
  /**
   * Bytes from one row to the next, a multiple of the element; 0 where there is nothing between them.
   */
  size_t stride;
  /**
   * 1, 2 or 4: elements are unsigned.
   */
  uint32_t element_bytes;
  /**
   * Zero.
   */
  uint32_t reserved;
} knet_map;

/**
 * What robots publish of a frame: two maps of it.
 */
typedef struct knet_maps {
  /**
   * sizeof(knet_maps).
   */
  uint32_t struct_size;
  /**
   * Class of pixels that no object has.
   */
  uint32_t none;
  /**
   * Gets what KNET_MAP_OBJECTS is.
   */
  struct knet_map objects;
  /**
   * Gets what KNET_MAP_CLASSES is.
   */
  struct knet_map classes;
} knet_maps;

/**
 * Takes a message: a KNET_LOG_*, a line in UTF-8 that lives during the call alone, and what knet_set_log was
 * given. It may be called by any thread, by several at once, and must return: no exception, no longjmp.
 */
typedef void (*knet_log_callback)(uint32_t level, const char *message, void *user);

/**
 * Where a model comes from and where it computes.
 */
typedef struct knet_model_options {
  /**
   * sizeof(knet_model_options).
   */
  uint32_t struct_size;
  /**
   * A KNET_PRECISION_*.
   */
  uint32_t precision;
  /**
   * The file with the weights, UTF-8; or "seeded:N", random weights that are the same everywhere.
   */
  const char *weights;
  /**
   * Instead of `weights`, such a file in memory. It must stay there until the model and all its sessions
   * are closed.
   */
  const void *weights_data;
  /**
   * Bytes of `weights_data`.
   */
  size_t weights_size;
  /**
   * Name of the model, for weights that do not say it; else NULL.
   */
  const char *name;
  /**
   * "cpu", "cuda", "cuda:N"; "auto" or NULL: a GPU if there is one, else the CPU.
   */
  const char *device;
  /**
   * Not 0: kernels of the CPU round as PyTorch's do, and are a fifth slower.
   */
  uint32_t exact;
  /**
   * Zero.
   */
  uint32_t reserved;
} knet_model_options;

/**
 * What a class index means.
 */
typedef struct knet_class {
  /**
   * sizeof(knet_class).
   */
  uint32_t struct_size;
  /**
   * Category id in result files (COCO's ids have gaps).
   */
  uint32_t id;
  /**
   * Name for people, UTF-8. Lives as long as the model.
   */
  const char *name;
  /**
   * 1 for countable objects, 0 for regions (sky, grass).
   */
  uint32_t is_thing;
  /**
   * Usual colour: red, green, blue, and 255.
   */
  uint8_t colour[4];
} knet_class;

/**
 * A closed line along the edges of pixels; the last point is joined to the first.
 */
typedef struct knet_ring {
  /**
   * Its first point.
   */
  uint32_t first;
  /**
   * Number of its points.
   */
  uint32_t count;
  /**
   * The ring around the part of the mask that it belongs to: its own number for the outline of a part,
   * another one for a hole in it.
   */
  uint32_t outer;
} knet_ring;

/**
 * A corner of pixels: the pixel in column x of row y is the square from (x, y) to (x + 1, y + 1).
 */
typedef struct knet_point {
  /**
   * From the left edge of the frame.
   */
  uint32_t x;
  /**
   * From the upper edge.
   */
  uint32_t y;
} knet_point;

/**
 * The outline of a mask: rings around its parts, and around holes in them. Pixels that touch at a corner
 * alone are two parts. Parts are gone around clockwise, as a frame is looked at, holes counterclockwise;
 * there are points only where a ring turns. By the even-odd rule as by the winding rule, all rings together
 * hold exactly the mask's pixels.
 */
typedef struct knet_polygons {
  /**
   * sizeof(knet_polygons).
   */
  uint32_t struct_size;
  /**
   * Number of rings.
   */
  uint32_t ring_count;
  /**
   * The rings.
   */
  const struct knet_ring *rings;
  /**
   * The points of all rings.
   */
  const struct knet_point *points;
  /**
   * Number of points.
   */
  size_t point_count;
} knet_polygons;

/**
 * What a result holds.
 */
typedef struct knet_result_info {
  /**
   * sizeof(knet_result_info).
   */
  uint32_t struct_size;
  /**
   * A KNET_TASK_*: what kind of result it is.
   */
  uint32_t task;
  /**
   * Rows of every mask and map: the frame's, or what the session was told.
   */
  uint32_t height;
  /**
   * Columns.
   */
  uint32_t width;
  /**
   * Number of objects: instances, best first; segments of a panoptic map; classes that a semantic map has,
   * largest first.
   */
  uint32_t objects;
  /**
   * Stages of the network that made it; 0 of a model without any.
   */
  uint32_t stages;
  /**
   * The frame's.
   */
  uint64_t timestamp_ns;
} knet_result_info;

/**
 * An instance, a segment of a panoptic map, or a class of a semantic one.
 */
typedef struct knet_object {
  /**
   * sizeof(knet_object).
   */
  uint32_t struct_size;
  /**
   * Class index; knet_model_class says what it means.
   */
  uint32_t label;
  /**
   * From 0 to 1; 1 for a class of a semantic map.
   */
  float score;
  /**
   * 1 for a countable object, 0 for a region.
   */
  uint32_t is_thing;
  /**
   * Pixels.
   */
  uint64_t area;
  /**
   * First column of the smallest box that holds the mask. Instances alone have a box: it is empty for
   * others.
   */
  uint32_t x;
  /**
   * First row of the box.
   */
  uint32_t y;
  /**
   * Columns of the box.
   */
  uint32_t width;
  /**
   * Rows of the box.
   */
  uint32_t height;
} knet_object;

/**
 * What a session gives, and with what. Zeros are the defaults.
 */
typedef struct knet_session_options {
  /**
   * sizeof(knet_session_options).
   */
  uint32_t struct_size;
  /**
   * A KNET_TASK_*; 0 for the model's own. A panoptic model gives instances too.
   */
  uint32_t task;
  /**
   * Threads of the session, which sleep between calls; 0 for one a core, or for one for each of `cpus`.
   * Results do not depend on it.
   */
  uint32_t threads;
  /**
   * Frames are resized to fit into so many pixels, short side and long side, before the network sees them;
   * both 0 for the model's own size.
   */
  uint32_t short_side;
  /**
   * See short_side.
   */
  uint32_t long_side;
  /**
   * Not 0: frames are not resized.
   */
  uint32_t as_they_are;
  /**
   * Objects that score lower are dropped, from 0 to 1.
   */
  float min_score;
  /**
   * Not 0: semantic maps come with the probability of each pixel's class.
   */
  uint32_t confidence;
  /**
   * Not 0: the session has no threads; whoever calls it does all the work. `threads` is then 0 or 1, there
   * are no `cpus`, and frames cannot be submitted. A thread that has called such a session keeps a few
   * kilobytes for it until the process ends.
   */
  uint32_t on_caller;
  /**
   * How many `cpus` there are.
   */
  uint32_t cpu_count;
  /**
   * Numbers of the CPUs that the session's threads run on, and no others; NULL: any. They are read during
   * the call alone. Linux.
   */
  const uint32_t *cpus;
  /**
   * Nanoseconds from the call to masks, as knet_session_set_deadline takes them; 0: none.
   */
  uint64_t deadline_ns;
  /**
   * Stages of the network that are run, each of which gives finished masks and the next one better ones;
   * 0: all.
   */
  uint32_t stages;
  /**
   * A KNET_MASKS_*: what size masks and maps have, boxes and polygons with them.
   */
  uint32_t masks;
} knet_session_options;

/**
 * Wall-clock time of the parts of a call, in nanoseconds. A GPU does all of it in one go: there `network` is
 * the whole of its work.
 */
typedef struct knet_timings {
  /**
   * sizeof(knet_timings).
   */
  uint32_t struct_size;
  /**
   * Zero.
   */
  uint32_t reserved;
  /**
   * Resize, normalise, pad.
   */
  uint64_t pre_ns;
  /**
   * The network.
   */
  uint64_t network_ns;
  /**
   * Masks or map at the size of the frame.
   */
  uint64_t post_ns;
} knet_timings;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The KNET_ABI_VERSION that the library was built with. A program compares it with its own.
 */
uint32_t knet_abi_version(void);

/**
 * The version of the library, such as "0.1.0". Lives for ever.
 */
const char *knet_version(void);

/**
 * Segments a frame in the memory of the model's GPU: enqueues all work on the caller's stream and returns
 * without waiting. `work` may be NULL for the default stream. `result` says where the results will lie; they
 * are there once the work is done, until the session gets another frame of this size. Objects of a panoptic
 * map are as the network has them, whatever their score. The first frame of a size is planned for, which
 * takes time and waits.
 *
 * Until the work is done the frame's pixels must stay as they are, as far as the stream's order goes, and
 * stream and events must live. One frame may follow the other, also on another stream: runs of a session
 * follow each other. knet_session_close waits for the work.
 *
 * KNET_ERROR_USAGE: the model computes on the CPU; the frame is on the host; as far as the driver tells, the
 * planes are no memory of the GPU or too little of it; a stream of another context, or an event that is none
 * (if that is `signal`, the work has been enqueued). KNET_ERROR_NO_DEVICE: the library was built without the
 * code for GPUs.
 */
enum knet_status knet_segment_on_device(const struct knet_session *session,
                                        const struct knet_frame *frame,
                                        const struct knet_cuda_work *work,
                                        struct knet_device_result *result);

/**
 * Writes a map of the whole frame, of the size that knet_result_info says: a KNET_MAP_* with elements of
 * `element_bytes` (1, 2 or 4, unsigned). `stride` is what lies between the beginnings of rows, in bytes, 0
 * where they follow each other; `pixels` and `stride` are multiples of the element. `none` is for
 * KNET_MAP_CLASSES alone.
 *
 * KNET_ERROR_ARGUMENT: a value does not fit the element; nothing is written.
 */
enum knet_status knet_result_map(const struct knet_result *result,
                                 uint32_t map,
                                 uint32_t none,
                                 uint32_t element_bytes,
                                 void *pixels,
                                 size_t stride);

/**
 * Writes both maps of a frame in one go: to which object each pixel belongs, and of which class that is.
 *
 * KNET_ERROR_ARGUMENT: a value does not fit an element; nothing is written.
 */
enum knet_status knet_result_maps(const struct knet_result *result, const struct knet_maps *maps);

/**
 * Sends messages up to `level`, a KNET_LOG_*, to a callback, for the whole process; with a callback of NULL,
 * to nobody, as at the beginning. When it returns, the callback before is not called any more.
 *
 * KNET_ERROR_STATE: called by the callback itself.
 */
enum knet_status knet_set_log(knet_log_callback callback, void *user, uint32_t level);

/**
 * Loads a model. It is written to `*model`, NULL if it cannot be loaded.
 *
 * KNET_ERROR_USAGE: unknown model or device. KNET_ERROR_IO, _CHECKPOINT, _WEIGHTS: the file.
 * KNET_ERROR_NO_DEVICE: a GPU was named and cannot be used.
 */
enum knet_status knet_model_open(const struct knet_model_options *options, struct knet_model **model);

/**
 * Closes a model; NULL is allowed. Its sessions go on until they are closed themselves.
 */
void knet_model_close(struct knet_model *model);

/**
 * The KNET_TASK_* that the model was made for; 0 for NULL.
 */
uint32_t knet_model_task(const struct knet_model *model);

/**
 * Where the model computes, for people: the GPU's name and the precision, or the CPU's instruction set.
 * Lives as long as the model; empty for NULL.
 */
const char *knet_model_device(const struct knet_model *model);

/**
 * Why device "auto" took the CPU; NULL if it did not, or a device was named. Lives as long as the model.
 */
const char *knet_model_device_note(const struct knet_model *model);

/**
 * Number of classes; 0 for NULL.
 */
uint32_t knet_model_class_count(const struct knet_model *model);

/**
 * What the class of this index, from 0, means.
 */
enum knet_status knet_model_class(const struct knet_model *model, uint32_t index, struct knet_class *class_);

/**
 * Lends the outline of an instance's mask as polygons. They live until the next call of this function with
 * the result, a frame is segmented into it or it is freed. The same mask has the same polygons, always.
 *
 * KNET_ERROR_STATE: the result has no such instance.
 */
enum knet_status knet_result_polygons(const struct knet_result *result,
                                      uint32_t index,
                                      struct knet_polygons *polygons);

/**
 * An empty result.
 */
struct knet_result *knet_result_new(void);

/**
 * Frees a result; NULL is allowed. One that a frame in flight fills is freed when that is done.
 */
void knet_result_free(struct knet_result *result);

/**
 * What the result holds.
 */
enum knet_status knet_result_get_info(const struct knet_result *result, struct knet_result_info *info);

/**
 * One object.
 *
 * KNET_ERROR_STATE: the result has fewer.
 */
enum knet_status knet_result_get_object(const struct knet_result *result,
                                        uint32_t index,
                                        struct knet_object *object);

/**
 * Lends the bits of an instance's mask: pixel (y, x) is bit y * width + x, the first in the highest bit of
 * the first byte. They live until a frame is segmented into the result or it is freed.
 *
 * KNET_ERROR_STATE: the result has no such instance.
 */
enum knet_status knet_result_mask_bits(const struct knet_result *result,
                                       uint32_t index,
                                       const uint8_t **bits,
                                       size_t *size);

/**
 * Writes an instance's mask: `value` for its pixels, 0 for the others. `stride` is what lies between the
 * beginnings of rows, in bytes; 0: rows follow each other.
 *
 * KNET_ERROR_STATE: the result has no such instance.
 */
enum knet_status knet_result_mask_u8(const struct knet_result *result,
                                     uint32_t index,
                                     uint8_t value,
                                     uint8_t *pixels,
                                     size_t stride);

/**
 * Writes the compressed run lengths of an instance's mask, as COCO's tools have them, with a zero byte at
 * the end. `*needed` is the number of bytes that takes. With a `capacity` below it, nothing is written: ask
 * with capacity 0 and `text` NULL first.
 *
 * KNET_ERROR_STATE: the result has no such instance.
 */
enum knet_status knet_result_mask_rle(const struct knet_result *result,
                                      uint32_t index,
                                      char *text,
                                      size_t capacity,
                                      size_t *needed);

/**
 * Makes a session of a model; `options` may be NULL. It is written to `*session`, NULL if there is none.
 *
 * KNET_ERROR_USAGE: a task the model cannot do, a size without pixels, CPUs or stages that are not there.
 */
enum knet_status knet_session_open(const struct knet_model *model,
                                   const struct knet_session_options *options,
                                   struct knet_session **session);

/**
 * From the next frame on, runs as many stages of the network as there is time for, so that masks are there
 * so many nanoseconds after the call; knet_result_info.stages says how many these were. 0 takes the deadline
 * back. The first stage is always run, however long it takes. The network is planned anew when a deadline is
 * set for the first time or taken back: call knet_session_warm_up then. Frames on a GPU
 * (knet_segment_on_device) run all stages.
 */
enum knet_status knet_session_set_deadline(const struct knet_session *session, uint64_t deadline_ns);

/**
 * Closes a session; NULL is allowed. It waits for a frame in flight and for the session's threads to end.
 * Results that it filled stay.
 */
void knet_session_close(struct knet_session *session);

/**
 * Plans the network for frames of this size and loads its weights, so that the first frame is as fast as
 * the others.
 */
enum knet_status knet_session_warm_up(const struct knet_session *session, uint32_t height, uint32_t width);

/**
 * Segments a frame and waits. `result` holds what was found, on the host; after an error it is empty.
 * From the second frame of a size on, nothing is allocated, also if up to four sizes take turns.
 */
enum knet_status knet_segment(const struct knet_session *session,
                              const struct knet_frame *frame,
                              struct knet_result *result);

/**
 * Hands a frame to a thread of the session and returns: knet_session_wait has to follow. A session has one
 * frame in flight at a time; as long as it has one, and until it was waited for, other calls with the
 * session or the result, but for knet_session_wait, knet_session_poll, their close and their free, get
 * KNET_ERROR_BUSY.
 *
 * Until knet_session_poll has said that the frame is done, or knet_session_wait or knet_session_close has
 * returned, what `planes` points to must stay as it is. `frame` itself is read during the call alone, and
 * `result` may be freed at any time.
 *
 * KNET_ERROR_BUSY: a frame is in flight. KNET_ERROR_USAGE: the session is `on_caller`.
 */
enum knet_status knet_session_submit(const struct knet_session *session,
                                     const struct knet_frame *frame,
                                     struct knet_result *result);

/**
 * Whether the frame in flight is done, without waiting: `*done` is 1, or 0. Any thread may ask.
 *
 * KNET_ERROR_STATE: no frame was submitted, or it was waited for already.
 */
enum knet_status knet_session_poll(const struct knet_session *session, uint32_t *done);

/**
 * Waits for the frame in flight, without spinning. What it returns, and the words, are what knet_segment
 * would have returned for it; session and result can be used again. Any thread may wait.
 *
 * KNET_ERROR_STATE: no frame was submitted, or it was waited for already.
 */
enum knet_status knet_session_wait(const struct knet_session *session);

/**
 * Times of the last frame that was segmented.
 */
enum knet_status knet_session_timings(const struct knet_session *session, struct knet_timings *timings);

/**
 * The words of the last call on this thread that did not return KNET_OK; empty before the first. Never NULL.
 * Lives until another call on this thread fails.
 */
const char *knet_last_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KNET_H */
