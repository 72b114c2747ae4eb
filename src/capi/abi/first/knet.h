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
 * its sessions. Closing NULL does nothing.
 *
 * Memory. Handles are freed by their own close or free alone. Text and bits that a function lends live as
 * long as it says.
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
 * f16 on a GPU. The CPU computes in f32 whatever is set.
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
 * f16 in memory, f32 sums.
 */
#define KNET_PRECISION_F16 3

/**
 * bf16 in memory, f32 sums.
 */
#define KNET_PRECISION_BF16 4

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
 * How a call ended. Values never change; new ones may come.
 */
typedef enum knet_status {
  /**
   * Done.
   */
  KNET_OK = 0,
  /**
   * An argument cannot be meant: NULL where something must be, a struct_size that no header had, a stride
   * that is too small. The call did nothing.
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
   * The session or result is in use by another thread.
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
 * What a frame held. It is filled by knet_segment, any number of times, and keeps its memory. Opaque.
 */
typedef struct knet_result knet_result;

/**
 * A model at work: plans, memory, threads. One for each camera or thread. Opaque.
 */
typedef struct knet_session knet_session;

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
   * Rows of the frame, and of every mask and map.
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
   * Zero.
   */
  uint32_t reserved;
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
   * Threads of the session, which sleep between calls; 0 for one a core. Results do not depend on it.
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
} knet_session_options;

/**
 * Rows of bytes on the host.
 */
typedef struct knet_plane {
  /**
   * The first row.
   */
  const void *data;
  /**
   * Bytes from one row to the next; 0 where there is nothing between them.
   */
  size_t stride;
} knet_plane;

/**
 * An 8-bit image that the caller owns, rows from top to bottom. It is read during the call alone.
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
} knet_frame;

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
 * An empty result.
 */
struct knet_result *knet_result_new(void);

/**
 * Frees a result; NULL is allowed.
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
 * the first byte. They live until the result is filled again or freed.
 *
 * KNET_ERROR_STATE: the result has no such instance.
 */
enum knet_status knet_result_mask_bits(const struct knet_result *result,
                                       uint32_t index,
                                       const uint8_t **bits,
                                       size_t *size);

/**
 * Writes an instance's mask: `value` for its pixels, 0 for the others. `stride` is what lies between the
 * beginnings of rows, in bytes.
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
 * Writes a map of the whole frame, as robots publish them: a KNET_MAP_* with elements of `element_bytes` (1,
 * 2 or 4, unsigned). `stride` is what lies between the beginnings of rows, in bytes; `pixels` and `stride`
 * are multiples of the element. `none` is for KNET_MAP_CLASSES alone.
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
 * Makes a session of a model; `options` may be NULL. It is written to `*session`, NULL if there is none.
 *
 * KNET_ERROR_USAGE: a task the model cannot do, a size without pixels.
 */
enum knet_status knet_session_open(const struct knet_model *model,
                                   const struct knet_session_options *options,
                                   struct knet_session **session);

/**
 * Closes a session; NULL is allowed. Results that it filled stay.
 */
void knet_session_close(struct knet_session *session);

/**
 * Plans the network for frames of this size and loads its weights, so that the first frame is as fast as
 * the others.
 */
enum knet_status knet_session_warm_up(const struct knet_session *session, uint32_t height, uint32_t width);

/**
 * Segments a frame on the host by the session's threads, and waits. `result` holds what was
 * found, nothing of use after an error. From the second frame of a size on, nothing is allocated, also if up
 * to four sizes take turns.
 */
enum knet_status knet_segment(const struct knet_session *session,
                              const struct knet_frame *frame,
                              struct knet_result *result);

/**
 * Times of the last call of knet_segment.
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
