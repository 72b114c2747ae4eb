// An instance of a model: a session.
#ifndef KNET_TRITON_INSTANCE_HPP
#define KNET_TRITON_INSTANCE_HPP

#include "model.hpp"
#include "triton.h"

#include <cstdint>
#include <knet.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace knet::triton {

class Instance {
 public:
  Instance(TRITONBACKEND_ModelInstance* instance, ServedModel& model);

  /// Answers a request and releases it.
  void answer(TRITONBACKEND_Request* request) noexcept;

 private:
  /// The images of a request.
  struct Images {
    std::uint32_t count, height, width;
    const std::uint8_t* pixels;
    bool on_device;
  };
  /// When the parts of a request began.
  struct Times {
    std::uint64_t begin, compute, computed;
  };

  Images images_of(TRITONBACKEND_Request* request);
  const std::uint8_t* pixels_of(TRITONBACKEND_Input* input, std::uint32_t buffers, std::uint64_t bytes,
                                bool& on_device);
  void segment(const Images& images);
  void respond(TRITONBACKEND_Request* request, TRITONBACKEND_Response* response, Times& times, std::uint64_t& images);

  TRITONBACKEND_ModelInstance* instance_;
  ServedModel& model_;
  std::string name_;
  /// The GPU's number, or -1.
  std::int64_t gpu_ = -1;
  std::shared_ptr<const Weights> weights_;
  /// None after a fault inside it: the next request opens another.
  std::optional<Session> session_;
  /// One for each image of a request; they keep their memory.
  std::vector<Result> results_;
  /// Where pixels that came in several pieces are put together.
  std::vector<std::uint8_t> joined_;
};

}  // namespace knet::triton

#endif  // KNET_TRITON_INSTANCE_HPP
