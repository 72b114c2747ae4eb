// Errors of Triton's and of knet's as exceptions, and back.
#ifndef KNET_TRITON_FAILURE_HPP
#define KNET_TRITON_FAILURE_HPP

#include "triton.h"

#include <knet.hpp>
#include <new>
#include <stdexcept>
#include <string>

namespace knet::triton {

/// What a request or a model is refused with.
class Failure : public std::runtime_error {
 public:
  Failure(TRITONSERVER_Error_Code code, const std::string& text) : std::runtime_error(text), code_(code) {}
  TRITONSERVER_Error_Code code() const noexcept { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

inline Failure invalid(const std::string& text) { return {TRITONSERVER_ERROR_INVALID_ARG, text}; }

/// Throws what a function of Triton's has returned.
inline void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

/// Where there is nobody to be told.
inline void ignore(TRITONSERVER_Error* error) {
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

inline void log(TRITONSERVER_LogLevel level, const std::string& text) {
  ignore(TRITONSERVER_LogMessage(level, "knet", 0, text.c_str()));
}

inline TRITONSERVER_Error_Code code_of(knet_status status) {
  switch (status) {
    case KNET_ERROR_ARGUMENT:
    case KNET_ERROR_USAGE:
    case KNET_ERROR_IMAGE:
    case KNET_ERROR_CHECKPOINT:
    case KNET_ERROR_WEIGHTS:
      return TRITONSERVER_ERROR_INVALID_ARG;
    case KNET_ERROR_IO:
      return TRITONSERVER_ERROR_NOT_FOUND;
    case KNET_ERROR_NO_DEVICE:
    case KNET_ERROR_DEVICE_LOST:
    case KNET_ERROR_MEMORY:
      return TRITONSERVER_ERROR_UNAVAILABLE;
    default:
      return TRITONSERVER_ERROR_INTERNAL;
  }
}

/// What `work` throws, as an error of Triton's; NULL if it does not throw.
template <class Work>
TRITONSERVER_Error* caught(Work&& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code(), failure.what());
  } catch (const Error& error) {
    return TRITONSERVER_ErrorNew(code_of(error.status()), error.what());
  } catch (const std::bad_alloc&) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, "knet: not enough memory");
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, error.what());
  }
}

}  // namespace knet::triton

#endif  // KNET_TRITON_FAILURE_HPP
