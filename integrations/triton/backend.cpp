// libtriton_knet.so: the functions that Triton calls. No exception leaves them.
#include "failure.hpp"
#include "instance.hpp"
#include "model.hpp"
#include "triton.h"

#include <memory>

namespace knet::triton {

namespace {

ServedModel* model_of(TRITONBACKEND_Model* model) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelState(model, &state));
  return static_cast<ServedModel*>(state);
}

Instance* instance_of(TRITONBACKEND_ModelInstance* instance) {
  void* state = nullptr;
  check(TRITONBACKEND_ModelInstanceState(instance, &state));
  return static_cast<Instance*>(state);
}

/// A message of the library's, as one of Triton's.
void pass_on(std::uint32_t level, const char* message, void*) {
  const auto levels = [level] {
    switch (level) {
      case KNET_LOG_ERROR:
        return TRITONSERVER_LOG_ERROR;
      case KNET_LOG_WARNING:
        return TRITONSERVER_LOG_WARN;
      case KNET_LOG_INFO:
        return TRITONSERVER_LOG_INFO;
      default:
        return TRITONSERVER_LOG_VERBOSE;
    }
  };
  ignore(TRITONSERVER_LogMessage(levels(), "knet", 0, message));
}

void check_versions() {
  std::uint32_t major = 0, minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major != TRITONBACKEND_API_VERSION_MAJOR)
    throw Failure(TRITONSERVER_ERROR_UNSUPPORTED,
                  "this backend is for version " + std::to_string(TRITONBACKEND_API_VERSION_MAJOR) +
                      " of the backend interface, and Triton has " + std::to_string(major));
  if (knet_abi_version() != KNET_ABI_VERSION)
    throw Failure(TRITONSERVER_ERROR_UNSUPPORTED,
                  "this backend is for version " + std::to_string(KNET_ABI_VERSION) +
                      " of knet's interface, and libknet.so has " + std::to_string(knet_abi_version()));
}

}  // namespace

}  // namespace knet::triton

using namespace knet::triton;

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  return caught([] {
    check_versions();
    knet::log(TRITONSERVER_LogIsEnabled(TRITONSERVER_LOG_VERBOSE) ? KNET_LOG_DEBUG : KNET_LOG_INFO, pass_on);
    log(TRITONSERVER_LOG_INFO, std::string("knet ") + knet_version());
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_Finalize(TRITONBACKEND_Backend*) {
  return caught([] { knet::log(0, nullptr); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
  return caught([&] {
    auto state = std::make_unique<ServedModel>(model);
    check(TRITONBACKEND_ModelSetState(model, state.get()));
    state.release();
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
  return caught([&] { delete model_of(model); });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  return caught([&] {
    TRITONBACKEND_Model* model = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    auto state = std::make_unique<Instance>(instance, *model_of(model));
    check(TRITONBACKEND_ModelInstanceSetState(instance, state.get()));
    state.release();
  });
}

EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  return caught([&] { delete instance_of(instance); });
}

// Each request is answered as soon as it is done, in turn: a session computes one image at a time.
EXPORTED TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                                TRITONBACKEND_Request** requests,
                                                                const std::uint32_t count) {
  return caught([&] {
    Instance* state = instance_of(instance);
    for (std::uint32_t i = 0; i < count; ++i) state->answer(requests[i]);
  });
}
