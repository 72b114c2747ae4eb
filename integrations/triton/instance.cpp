#include "instance.hpp"

#include "failure.hpp"
#include "outputs.hpp"

#include <chrono>
#include <cstring>

namespace knet::triton {

namespace {

std::uint64_t now() {
  return std::uint64_t(std::chrono::duration_cast<std::chrono::nanoseconds>(
                           std::chrono::steady_clock::now().time_since_epoch())
                           .count());
}

std::string shown(const std::int64_t* shape, std::uint32_t dims) {
  std::string text;
  for (std::uint32_t i = 0; i < dims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return "[" + text + "]";
}

std::string kind_of(TRITONBACKEND_ModelInstance* instance) {
  TRITONSERVER_InstanceGroupKind kind;
  check(TRITONBACKEND_ModelInstanceKind(instance, &kind));
  switch (kind) {
    case TRITONSERVER_INSTANCEGROUPKIND_CPU:
      return "KIND_CPU";
    case TRITONSERVER_INSTANCEGROUPKIND_GPU:
      return "KIND_GPU";
    default:
      return "KIND_MODEL";
  }
}

}  // namespace

Instance::Instance(TRITONBACKEND_ModelInstance* instance, ServedModel& model)
    : instance_(instance), model_(model) {
  const char* name = nullptr;
  check(TRITONBACKEND_ModelInstanceName(instance, &name));
  name_ = name;
  std::int32_t id = 0;
  check(TRITONBACKEND_ModelInstanceDeviceId(instance, &id));
  const std::string device = device_of(kind_of(instance), id, model.settings());
  if (device.rfind("cuda:", 0) == 0) gpu_ = std::strtol(device.c_str() + 5, nullptr, 10);
  weights_ = model.weights(device);
  session_.emplace(weights_->model, model.settings().session);
}

void Instance::answer(TRITONBACKEND_Request* request) noexcept {
  Times times{now(), 0, 0};
  std::uint64_t images = 0;
  TRITONBACKEND_Response* response = nullptr;
  TRITONSERVER_Error* error = caught([&] {
    check(TRITONBACKEND_ResponseNew(&response, request));
    respond(request, response, times, images);
  });
  const bool success = error == nullptr;
  if (response != nullptr) ignore(TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error));
  ignore(error);
  const std::uint64_t end = now();
  ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request, success, times.begin, times.compute,
                                                     times.computed, end));
  if (success)
    ignore(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, images, times.begin, times.compute,
                                                            times.computed, end));
  ignore(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL));
}

void Instance::respond(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response, Times& times,
                       std::uint64_t& images) {
  bool cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(request, &cancelled));
  if (cancelled) throw Failure(TRITONSERVER_ERROR_CANCELLED, "the request was cancelled before it was begun");
  const Images found = images_of(request);
  images = found.count;
  times.compute = now();
  segment(found);
  times.computed = now();

  std::uint32_t outputs = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &outputs));
  for (std::uint32_t i = 0; i < outputs; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    write_output(response, name, {results_, found.count, model_.settings().batched, weights_->names});
  }
}

Instance::Images Instance::images_of(TRITONBACKEND_Request* request) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInput(request, "IMAGE", &input));
  TRITONSERVER_DataType type;
  const std::int64_t* shape = nullptr;
  std::uint32_t dims = 0, buffers = 0;
  std::uint64_t bytes = 0;
  check(TRITONBACKEND_InputProperties(input, nullptr, &type, &shape, &dims, &bytes, &buffers));
  const bool batched = model_.settings().batched;
  const std::string wanted = batched ? "[images, height, width, 3]" : "[height, width, 3]";
  if (type != TRITONSERVER_TYPE_UINT8)
    throw invalid(std::string("IMAGE is ") + TRITONSERVER_DataTypeString(type) + ", not UINT8");
  if (dims != (batched ? 4u : 3u) || shape[dims - 1] != 3)
    throw invalid("IMAGE is " + shown(shape, dims) + ", not " + wanted);
  // Sides of more than 2^24 pixels are no image's; products of these fit 64 bits.
  constexpr std::int64_t MOST = 1 << 24;
  for (std::uint32_t i = 0; i < dims; ++i)
    if (shape[i] < 1 || shape[i] > MOST)
      throw invalid("IMAGE is " + shown(shape, dims) + ": it has no pixels, or too many");
  const std::int64_t *last = shape + dims - 3, count = batched ? shape[0] : 1;
  const std::uint64_t image = std::uint64_t(last[0]) * std::uint64_t(last[1]) * 3;
  if (bytes % image != 0 || bytes / image != std::uint64_t(count))
    throw invalid("IMAGE is " + shown(shape, dims) + ", and has " + std::to_string(bytes) + " bytes");

  Images images{std::uint32_t(count), std::uint32_t(last[0]), std::uint32_t(last[1]), nullptr, false};
  images.pixels = pixels_of(input, buffers, bytes, images.on_device);
  return images;
}

/// The bytes of an input: as they lie, if they are in one piece.
const std::uint8_t* Instance::pixels_of(TRITONBACKEND_Input* input, std::uint32_t buffers, std::uint64_t bytes,
                                        bool& on_device) {
  const auto piece_at = [&](std::uint32_t i, std::uint64_t& size) {
    const void* piece = nullptr;
    TRITONSERVER_MemoryType memory = gpu_ < 0 ? TRITONSERVER_MEMORY_CPU : TRITONSERVER_MEMORY_GPU;
    std::int64_t id = gpu_ < 0 ? 0 : gpu_;
    check(TRITONBACKEND_InputBuffer(input, i, &piece, &size, &memory, &id));
    on_device = memory == TRITONSERVER_MEMORY_GPU;
    if (on_device && (buffers > 1 || id != gpu_))
      throw Failure(TRITONSERVER_ERROR_UNSUPPORTED,
                    "IMAGE is in the memory of GPU " + std::to_string(id) + ", and " + name_ + " reads " +
                        (gpu_ < 0 ? "the host's" : "that of GPU " + std::to_string(gpu_) + ", in one piece"));
    return static_cast<const std::uint8_t*>(piece);
  };
  std::uint64_t size = 0;
  if (buffers == 1) return piece_at(0, size);
  joined_.resize(bytes);
  std::uint64_t at = 0;
  for (std::uint32_t i = 0; i < buffers; ++i, at += size) {
    const std::uint8_t* piece = piece_at(i, size);
    if (size > bytes - at) throw invalid("IMAGE has more bytes than it says");
    std::memcpy(joined_.data() + at, piece, size);
  }
  return joined_.data();
}

void Instance::segment(const Images& images) {
  while (results_.size() < images.count) results_.emplace_back();
  const std::size_t bytes = std::size_t(images.height) * images.width * 3;
  try {
    if (!session_) session_.emplace(weights_->model, model_.settings().session);
    for (std::uint32_t i = 0; i < images.count; ++i) {
      knet_frame frame =
          packed(model_.settings().format, images.pixels + i * bytes, images.height, images.width);
      session_->segment(images.on_device ? on_device(frame) : frame, results_[i]);
    }
  } catch (const Error& error) {
    // What was in use is of no more use; weights are shared, and are not touched by a frame.
    if (error.status() == KNET_ERROR_INTERNAL || error.status() == KNET_ERROR_POISONED) {
      session_.reset();
      results_.clear();
      log(TRITONSERVER_LOG_ERROR, name_ + ": " + error.what() + "; the next request gets a new session");
    }
    throw;
  }
}

}  // namespace knet::triton
