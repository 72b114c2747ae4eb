// The tensors of a request and of its answer.
#ifndef KNET_TRITON_OUTPUTS_HPP
#define KNET_TRITON_OUTPUTS_HPP

#include "triton.h"

#include <cstdint>
#include <knet.hpp>
#include <string>
#include <vector>

namespace knet::triton {

/// A tensor as a configuration describes it; -1: any number.
struct Tensor {
  std::string name;
  TRITONSERVER_DataType type;
  std::vector<std::int64_t> dims;
};

Tensor image_input();
/// What there is for a KNET_TASK_*.
std::vector<Tensor> outputs_of(std::uint32_t task);
/// The name of a type in configurations.
std::string config_type(TRITONSERVER_DataType type);
/// The list in a configuration.
std::string config_list(const std::vector<Tensor>& tensors);

/// What was found in the images of a request.
struct Found {
  /// The first `images` of them.
  const std::vector<Result>& results;
  std::size_t images;
  /// Whether tensors begin with the number of images.
  bool batched;
  /// Of the classes.
  const std::vector<std::string>& names;
};

/// Puts a tensor into a response. Where images of a batch have fewer objects than the one with the most, there is
/// padding: label -1, and zeros.
void write_output(TRITONBACKEND_Response* response, const std::string& name, const Found& found);

}  // namespace knet::triton

#endif  // KNET_TRITON_OUTPUTS_HPP
