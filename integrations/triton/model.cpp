#include "model.hpp"

#include "failure.hpp"
#include "outputs.hpp"

namespace knet::triton {

namespace {

std::string config_of(TRITONBACKEND_Model* model) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  const std::unique_ptr<TRITONSERVER_Message, void (*)(TRITONSERVER_Message*)> owner(
      message, [](TRITONSERVER_Message* owned) { ignore(TRITONSERVER_MessageDelete(owned)); });
  const char* text = nullptr;
  std::size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
  return {text, size};
}

void set_config(TRITONBACKEND_Model* model, const std::string& config) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONSERVER_MessageNewFromSerializedJson(&message, config.data(), config.size()));
  TRITONSERVER_Error* error = TRITONBACKEND_ModelSetConfig(model, 1, message);
  ignore(TRITONSERVER_MessageDelete(message));
  check(error);
}

std::string version_folder(TRITONBACKEND_Model* model) {
  TRITONBACKEND_ArtifactType type;
  const char* folder = nullptr;
  check(TRITONBACKEND_ModelRepository(model, &type, &folder));
  std::uint64_t version = 0;
  check(TRITONBACKEND_ModelVersion(model, &version));
  return std::string(folder) + "/" + std::to_string(version);
}

/// Whether the configuration has a list that is not empty.
bool has(const Json& config, std::string_view list) {
  const Json* own = config.find(list);
  return own != nullptr && !own->items().empty();
}

/// The configuration with the lists of tensors that it has not.
std::string completed(const Json& config, std::uint32_t task) {
  std::string text;
  for (const auto& [name, value] : config.items())
    if ((name != "input" && name != "output") || has(config, name))
      text += "\"" + name + "\":" + std::string(value.source()) + ",";
  if (!has(config, "input")) text += "\"input\":" + config_list({image_input()}) + ",";
  if (!has(config, "output")) text += "\"output\":" + config_list(outputs_of(task)) + ",";
  text.back() = '}';
  return "{" + text;
}

/// Whether the tensors that the configuration names are those of this backend.
void check_tensors(const Json& config, std::uint32_t task) {
  const auto check_list = [&](const char* list, const std::vector<Tensor>& known) {
    const Json* named = config.find(list);
    if (named == nullptr) return;
    for (const auto& [_, entry] : named->items()) {
      const Json *name = entry.find("name"), *type = entry.find("data_type");
      const std::string found = name == nullptr ? "" : name->text();
      const std::string found_type = type == nullptr ? "" : type->text();
      std::string names;
      bool is_known = false;
      for (const Tensor& tensor : known) {
        names += (names.empty() ? "" : ", ") + tensor.name;
        is_known |= tensor.name == found;
        if (tensor.name == found && config_type(tensor.type) != found_type)
          throw invalid(found + " is " + found_type + " in the configuration, and " + config_type(tensor.type) +
                        " in truth");
      }
      if (!is_known) throw invalid("there is no " + std::string(list) + " " + found + "; there are " + names);
    }
  };
  check_list("input", {image_input()});
  check_list("output", outputs_of(task));
}

}  // namespace

Weights::Weights(const std::string& path, const ModelOptions& options) : model(path, options) {
  for (std::uint32_t i = 0; i < model.classes(); ++i) names.emplace_back(model.name(i));
}

ServedModel::ServedModel(TRITONBACKEND_Model* model) {
  const char* name = nullptr;
  check(TRITONBACKEND_ModelName(model, &name));
  name_ = name;
  const std::string text = config_of(model);
  const Json config = Json::parse(text);
  settings_ = std::make_unique<Settings>(config, version_folder(model));

  first_ = weights(settings_->first_device.empty() ? "cpu" : settings_->first_device);
  const std::uint32_t task = settings_->task == 0 ? first_->model.task() : settings_->task;
  bool complete = false;
  check(TRITONBACKEND_ModelAutoCompleteConfig(model, &complete));
  if (complete && !(has(config, "input") && has(config, "output"))) set_config(model, completed(config, task));
  check_tensors(config, task);
}

std::shared_ptr<const Weights> ServedModel::weights(const std::string& device) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<const Weights> found = loaded_[device].lock();
  if (found == nullptr) {
    ModelOptions options = settings_->model;
    found = std::make_shared<const Weights>(settings_->weights, options.device(device));
    loaded_[device] = found;
    log(TRITONSERVER_LOG_INFO,
        name_ + ": loaded " + settings_->weights + " for instances on " + found->model.device());
  }
  first_.reset();
  return found;
}

}  // namespace knet::triton
