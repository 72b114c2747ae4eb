// What a model's config.pbtxt says.
#ifndef KNET_TRITON_SETTINGS_HPP
#define KNET_TRITON_SETTINGS_HPP

#include "json.hpp"

#include <cstdint>
#include <knet.hpp>
#include <string>

namespace knet::triton {

struct Settings {
  /// Reads a configuration; `folder` is that of the model's version.
  Settings(const Json& config, const std::string& folder);

  std::string weights;
  ModelOptions model;
  Options session;
  /// A KNET_TASK_*; 0 for the model's own.
  std::uint32_t task = 0;
  /// Of instances of KIND_MODEL.
  std::string device = "auto";
  /// A KNET_FORMAT_*: the order of a pixel's bytes.
  std::uint32_t format = KNET_FORMAT_RGB8;
  /// Whether inputs and outputs begin with the number of images.
  bool batched = false;
  /// Where the first instance computes, if the configuration says so.
  std::string first_device;
};

/// Where an instance of a KIND_* computes.
std::string device_of(const std::string& kind, int id, const Settings& settings);

}  // namespace knet::triton

#endif  // KNET_TRITON_SETTINGS_HPP
