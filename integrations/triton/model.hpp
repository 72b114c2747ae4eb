// A model of the repository.
#ifndef KNET_TRITON_MODEL_HPP
#define KNET_TRITON_MODEL_HPP

#include "settings.hpp"
#include "triton.h"

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace knet::triton {

/// A model on a device, with the names of its classes.
struct Weights {
  Weights(const std::string& path, const ModelOptions& options);

  Model model;
  std::vector<std::string> names;
};

class ServedModel {
 public:
  /// Reads the configuration and completes it, if Triton wishes so.
  explicit ServedModel(TRITONBACKEND_Model* model);

  const Settings& settings() const { return *settings_; }
  /// The weights on a device: loaded once, for as long as an instance has them.
  std::shared_ptr<const Weights> weights(const std::string& device);

 private:
  std::string name_;
  std::unique_ptr<const Settings> settings_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<const Weights>> loaded_;
  /// What the configuration was completed with, until an instance has loaded its own.
  std::shared_ptr<const Weights> first_;
};

}  // namespace knet::triton

#endif  // KNET_TRITON_MODEL_HPP
