// knet for C++17: the C interface of knet.h with owners, exceptions and ranges. Header only.
//
//   knet::Model model("model.safetensors");               // any number of sessions share it
//   knet::Session session(model, knet::Options().size(384, 512).min_score(0.4f));
//   knet::Result found;                                   // reused: nothing is allocated from the second frame on
//   while (auto frame = camera.next())
//     for (const knet::Object& object : session.segment(knet::rgb8(frame.data, frame.height, frame.width), found))
//       track(model.name(object.label()), object.score(), object.box(), object.mask());
//
// A call that fails throws knet::Error, with the status and its words. Threads, memory and lifetimes are those
// of knet.h.
//
// Without exceptions (-fno-exceptions, or KNET_NO_EXCEPTIONS defined before this header is included) it returns
// false or what is empty instead, and the thread keeps the first error until it is taken:
//
//   knet::Model model("model.safetensors");
//   knet::Session session(model);                         // of a model that could not be loaded: fails, too
//   if (const knet::Error error = knet::take_error()) return report(error.status(), error.what());
#ifndef KNET_HPP
#define KNET_HPP

#include <knet.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(KNET_NO_EXCEPTIONS) && !defined(__cpp_exceptions)
#define KNET_NO_EXCEPTIONS
#endif

namespace knet {

#ifdef KNET_NO_EXCEPTIONS

// Parts of a program may be built this way and others the other way.
inline namespace no_exceptions {

/// A call that failed, or none.
class Error {
 public:
  Error() = default;
  Error(knet_status status, const char* text) : status_(status), text_(text) {}
  /// Whether there is one.
  explicit operator bool() const noexcept { return status_ != KNET_OK; }
  knet_status status() const noexcept { return status_; }
  const char* what() const noexcept { return text_.c_str(); }

 private:
  knet_status status_ = KNET_OK;
  std::string text_;
};

namespace detail {

inline Error& first_error() noexcept {
  static thread_local Error error;
  return error;
}

/// Whether it worked.
inline bool check(knet_status status) {
  if (status != KNET_OK && !first_error()) first_error() = Error(status, knet_last_error());
  return status == KNET_OK;
}

}  // namespace detail

/// The first error of this thread since the last that was taken.
inline Error take_error() { return std::exchange(detail::first_error(), Error()); }

#else

/// A call that failed.
class Error : public std::runtime_error {
 public:
  Error(knet_status status, const char* text) : std::runtime_error(text), status_(status) {}
  knet_status status() const noexcept { return status_; }

 private:
  knet_status status_;
};

namespace detail {

inline bool check(knet_status status) {
  if (status != KNET_OK) throw Error(status, knet_last_error());
  return true;
}

}  // namespace detail

#endif

namespace detail {

/// A struct of the interface, with its size.
template <class T>
T sized() {
  T value{};
  value.struct_size = sizeof(T);
  return value;
}

/// Owns a handle.
template <class T, void (*close)(T*)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T* handle) noexcept : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      close(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Handle() { close(handle_); }
  T* get() const noexcept { return handle_; }

 private:
  T* handle_ = nullptr;
};

}  // namespace detail

/// Sends messages up to a KNET_LOG_* to a function that may be called by any thread and must not throw; nullptr:
/// to nobody.
inline bool log(std::uint32_t level, knet_log_callback callback, void* user = nullptr) {
  return detail::check(knet_set_log(callback, user, level));
}

/// How a model is loaded: knet_model_options.
class ModelOptions {
 public:
  ModelOptions& device(std::string device) {
    device_ = std::move(device);
    return *this;
  }
  ModelOptions& name(std::string name) {
    name_ = std::move(name);
    return *this;
  }
  /// A KNET_PRECISION_*.
  ModelOptions& precision(std::uint32_t precision) noexcept {
    precision_ = precision;
    return *this;
  }
  /// Kernels of the CPU round as PyTorch's do.
  ModelOptions& exact(bool exact = true) noexcept {
    exact_ = exact;
    return *this;
  }

 private:
  friend class Model;
  std::string device_ = "auto", name_;
  std::uint32_t precision_ = KNET_PRECISION_DEFAULT;
  bool exact_ = false;
};

/// Weights in memory, shared by sessions.
class Model {
 public:
  /// Loads a file, or "seeded:N".
  explicit Model(const std::string& weights, const ModelOptions& options = {}) {
    auto c = detail::sized<knet_model_options>();
    c.weights = weights.c_str();
    c.device = options.device_.c_str();
    c.name = options.name_.empty() ? nullptr : options.name_.c_str();
    c.precision = options.precision_;
    c.exact = options.exact_;
    knet_model* model = nullptr;
    detail::check(knet_model_open(&c, &model));
    handle_ = Handle(model);
  }

  std::uint32_t task() const noexcept { return knet_model_task(get()); }
  const char* device() const noexcept { return knet_model_device(get()); }
  std::uint32_t classes() const noexcept { return knet_model_class_count(get()); }
  /// What a class index means.
  knet_class class_of(std::uint32_t index) const {
    auto found = detail::sized<knet_class>();
    detail::check(knet_model_class(get(), index, &found));
    return found;
  }
  const char* name(std::uint32_t index) const { return class_of(index).name; }
  const knet_model* get() const noexcept { return handle_.get(); }

 private:
  using Handle = detail::Handle<knet_model, knet_model_close>;
  Handle handle_;
};

/// What a session gives, and with what: knet_session_options.
class Options {
 public:
  Options() : options_(detail::sized<knet_session_options>()) {}
  /// A KNET_TASK_*.
  Options& task(std::uint32_t task) noexcept {
    options_.task = task;
    return *this;
  }
  Options& threads(std::uint32_t threads) noexcept {
    options_.threads = threads;
    return *this;
  }
  /// Frames are resized to fit into these sides.
  Options& size(std::uint32_t short_side, std::uint32_t long_side) noexcept {
    options_.short_side = short_side;
    options_.long_side = long_side;
    return *this;
  }
  Options& as_they_are() noexcept {
    options_.as_they_are = 1;
    return *this;
  }
  /// Masks and maps have the size that the frame has in the network.
  Options& masks_of_network() noexcept {
    options_.masks = KNET_MASKS_OF_NETWORK;
    return *this;
  }
  Options& min_score(float score) noexcept {
    options_.min_score = score;
    return *this;
  }
  Options& confidence() noexcept {
    options_.confidence = 1;
    return *this;
  }
  /// No threads: whoever calls the session does all the work.
  Options& on_caller() noexcept {
    options_.on_caller = 1;
    return *this;
  }
  /// The only CPUs that the session's threads run on.
  Options& cpus(std::vector<std::uint32_t> cpus) {
    cpus_ = std::move(cpus);
    return *this;
  }
  /// Stages of the network that are run, in place of all.
  Options& stages(std::uint32_t count) noexcept {
    options_.stages = count;
    return *this;
  }
  /// Time from the call to masks: as many stages are run as it has room for.
  Options& deadline(std::chrono::nanoseconds time) noexcept {
    options_.deadline_ns = static_cast<std::uint64_t>(time.count());
    return *this;
  }

 private:
  friend class Session;
  knet_session_options options_;
  std::vector<std::uint32_t> cpus_;
};

/// A frame of one plane; `stride` 0 where rows follow each other.
inline knet_frame packed(std::uint32_t format, const void* pixels, std::uint32_t height, std::uint32_t width,
                         std::size_t stride = 0, std::uint64_t timestamp_ns = 0) noexcept {
  auto frame = detail::sized<knet_frame>();
  frame.format = format;
  frame.height = height;
  frame.width = width;
  frame.planes[0] = {pixels, stride};
  frame.timestamp_ns = timestamp_ns;
  return frame;
}

inline knet_frame rgb8(const void* pixels, std::uint32_t height, std::uint32_t width, std::size_t stride = 0,
                       std::uint64_t timestamp_ns = 0) noexcept {
  return packed(KNET_FORMAT_RGB8, pixels, height, width, stride, timestamp_ns);
}

inline knet_frame bgr8(const void* pixels, std::uint32_t height, std::uint32_t width, std::size_t stride = 0,
                       std::uint64_t timestamp_ns = 0) noexcept {
  return packed(KNET_FORMAT_BGR8, pixels, height, width, stride, timestamp_ns);
}

/// A frame of luma and interleaved chroma.
inline knet_frame nv12(const void* luma, const void* chroma, std::uint32_t height, std::uint32_t width,
                       std::size_t luma_stride = 0, std::size_t chroma_stride = 0,
                       std::uint64_t timestamp_ns = 0) noexcept {
  auto frame = packed(KNET_FORMAT_NV12, luma, height, width, luma_stride, timestamp_ns);
  frame.planes[1] = {chroma, chroma_stride};
  return frame;
}

/// A frame whose planes are in the memory of the model's GPU.
inline knet_frame on_device(knet_frame frame) noexcept {
  frame.memory = KNET_MEMORY_CUDA;
  return frame;
}

/// Columns and rows.
struct Box {
  std::uint32_t x, y, width, height;
};

/// A part of a mask, or a hole in one: corners of pixels, the last joined to the first.
struct Polygon {
  std::vector<knet_point> points;
  /// The polygon that this one is a hole in; its own number if it is none.
  std::uint32_t outer;
};

/// The bits of a mask, lent by a result.
class Mask {
 public:
  Mask(const std::uint8_t* bits, std::uint32_t height, std::uint32_t width) noexcept
      : bits_(bits), height_(height), width_(width) {}
  std::uint32_t height() const noexcept { return height_; }
  std::uint32_t width() const noexcept { return width_; }
  bool operator()(std::uint32_t y, std::uint32_t x) const noexcept {
    const std::size_t at = std::size_t(y) * width_ + x;
    return bits_[at / 8] >> (7 - at % 8) & 1;
  }
  const std::uint8_t* bits() const noexcept { return bits_; }

 private:
  const std::uint8_t* bits_;
  std::uint32_t height_, width_;
};

/// An object of a result. It lives as long as the result is not filled again.
class Object {
 public:
  Object(const knet_result* result, std::uint32_t index) : result_(result), index_(index) {
    object_.struct_size = sizeof object_;
    detail::check(knet_result_get_object(result, index, &object_));
  }
  std::uint32_t index() const noexcept { return index_; }
  std::uint32_t label() const noexcept { return object_.label; }
  float score() const noexcept { return object_.score; }
  bool is_thing() const noexcept { return object_.is_thing != 0; }
  std::uint64_t area() const noexcept { return object_.area; }
  Box box() const noexcept { return {object_.x, object_.y, object_.width, object_.height}; }
  /// The mask of an instance.
  Mask mask() const {
    const std::uint8_t* bits = nullptr;
    std::size_t size = 0;
    auto info = detail::sized<knet_result_info>();
    if (!detail::check(knet_result_mask_bits(result_, index_, &bits, &size)) ||
        !detail::check(knet_result_get_info(result_, &info)))
      return {nullptr, 0, 0};
    return {bits, info.height, info.width};
  }
  /// Writes the mask of an instance: `value` for its pixels, 0 for the others.
  bool mask_into(std::uint8_t value, std::uint8_t* pixels, std::size_t stride) const {
    return detail::check(knet_result_mask_u8(result_, index_, value, pixels, stride));
  }
  /// The outline of the mask of an instance, exactly: parts and the holes in them, along the edges of pixels.
  std::vector<Polygon> polygons() const {
    auto found = detail::sized<knet_polygons>();
    detail::check(knet_result_polygons(result_, index_, &found));
    std::vector<Polygon> polygons;
    polygons.reserve(found.ring_count);
    for (std::uint32_t i = 0; i < found.ring_count; ++i) {
      const knet_ring& ring = found.rings[i];
      const knet_point* first = found.points + ring.first;
      polygons.push_back({std::vector<knet_point>(first, first + ring.count), ring.outer});
    }
    return polygons;
  }
  /// COCO's compressed run lengths of the mask.
  std::string rle() const {
    std::size_t needed = 0;
    if (!detail::check(knet_result_mask_rle(result_, index_, nullptr, 0, &needed))) return {};
    std::string text(needed, '\0');
    detail::check(knet_result_mask_rle(result_, index_, text.data(), text.size(), &needed));
    text.pop_back();
    return text;
  }

 private:
  const knet_result* result_;
  std::uint32_t index_;
  knet_object object_{};
};

/// What a frame held: a range of objects.
class Result {
 public:
  Result() : handle_(knet_result_new()) {}

  class Iterator {
   public:
    Iterator(const knet_result* result, std::uint32_t index) noexcept : result_(result), index_(index) {}
    Object operator*() const { return {result_, index_}; }
    Iterator& operator++() noexcept {
      ++index_;
      return *this;
    }
    bool operator!=(const Iterator& other) const noexcept { return index_ != other.index_; }

   private:
    const knet_result* result_;
    std::uint32_t index_;
  };

  knet_result_info info() const {
    auto info = detail::sized<knet_result_info>();
    detail::check(knet_result_get_info(get(), &info));
    return info;
  }
  std::uint32_t size() const { return info().objects; }
  Object operator[](std::uint32_t index) const { return {get(), index}; }
  Iterator begin() const noexcept { return {get(), 0}; }
  Iterator end() const { return {get(), size()}; }

  /// Object of each pixel plus one, 0 where there is none; row by row.
  std::vector<std::uint16_t> object_map() const { return map(KNET_MAP_OBJECTS, 0); }
  /// Class of each pixel, `none` where there is none; row by row.
  std::vector<std::uint16_t> class_map(std::uint16_t none = 65535) const { return map(KNET_MAP_CLASSES, none); }
  /// Writes a KNET_MAP_* with elements of 1, 2 or 4 bytes.
  bool map_into(std::uint32_t kind, std::uint32_t none, std::uint32_t element_bytes, void* pixels,
                std::size_t stride) const {
    return detail::check(knet_result_map(get(), kind, none, element_bytes, pixels, stride));
  }
  /// Both in one go, into memory of the caller: unsigned elements of 1, 2 or 4 bytes, strides in bytes, 0 where rows
  /// follow each other.
  template <class Objects, class Classes>
  bool maps(Objects* objects, Classes* classes, Classes none, std::size_t object_stride = 0,
            std::size_t class_stride = 0) const {
    static_assert(std::is_unsigned_v<Objects> && std::is_unsigned_v<Classes>, "elements are unsigned");
    auto maps = detail::sized<knet_maps>();
    maps.none = none;
    maps.objects = {objects, object_stride, sizeof(Objects), 0};
    maps.classes = {classes, class_stride, sizeof(Classes), 0};
    return detail::check(knet_result_maps(get(), &maps));
  }
  knet_result* get() const noexcept { return handle_.get(); }

 private:
  std::vector<std::uint16_t> map(std::uint32_t kind, std::uint16_t none) const {
    const auto found = info();
    std::vector<std::uint16_t> pixels(std::size_t(found.height) * found.width);
    map_into(kind, none, 2, pixels.data(), 2 * std::size_t(found.width));
    return pixels;
  }

  detail::Handle<knet_result, knet_result_free> handle_;
};

/// A model at work: one for each camera or thread.
class Session {
 public:
  explicit Session(const Model& model, const Options& options = {}) {
    knet_session_options c = options.options_;
    c.cpus = options.cpus_.empty() ? nullptr : options.cpus_.data();
    c.cpu_count = static_cast<std::uint32_t>(options.cpus_.size());
    knet_session* session = nullptr;
    detail::check(knet_session_open(model.get(), &c, &session));
    handle_ = Handle(session);
  }

  /// Plans for frames of this size, so that the first is as fast as the others.
  bool warm_up(std::uint32_t height, std::uint32_t width) {
    return detail::check(knet_session_warm_up(handle_.get(), height, width));
  }
  /// Segments a frame into `result`, which it returns.
  const Result& segment(const knet_frame& frame, Result& result) {
    detail::check(knet_segment(handle_.get(), &frame, result.get()));
    return result;
  }
  /// Hands a frame to a thread of the session; wait() has to follow. Until it has returned, pixels and result
  /// must be left alone.
  bool submit(const knet_frame& frame, Result& result) {
    return detail::check(knet_session_submit(handle_.get(), &frame, result.get()));
  }
  /// Whether wait() would return at once.
  bool is_done() const {
    std::uint32_t done = 0;
    return !detail::check(knet_session_poll(handle_.get(), &done)) || done != 0;
  }
  /// From the next frame on: as many stages are run as there is time for; zero takes the deadline back.
  bool set_deadline(std::chrono::nanoseconds time) {
    return detail::check(knet_session_set_deadline(handle_.get(), static_cast<std::uint64_t>(time.count())));
  }
  /// Waits for the frame that was submitted.
  bool wait() { return detail::check(knet_session_wait(handle_.get())); }
  /// Enqueues the work for a frame in the memory of the model's GPU on a stream (CUstream, cudaStream_t), after
  /// one event and before another, where there are any; says where the results will lie.
  knet_device_result segment_on_device(const knet_frame& frame, void* stream, void* wait_for = nullptr,
                                       void* signal = nullptr) {
    auto work = detail::sized<knet_cuda_work>();
    work.stream = stream;
    work.wait_for = wait_for;
    work.signal = signal;
    auto result = detail::sized<knet_device_result>();
    detail::check(knet_segment_on_device(handle_.get(), &frame, &work, &result));
    return result;
  }
  knet_timings timings() const {
    auto timings = detail::sized<knet_timings>();
    detail::check(knet_session_timings(handle_.get(), &timings));
    return timings;
  }

 private:
  using Handle = detail::Handle<knet_session, knet_session_close>;
  Handle handle_;
};

#ifdef KNET_NO_EXCEPTIONS
}  // namespace no_exceptions
#endif

}  // namespace knet

#endif  // KNET_HPP
