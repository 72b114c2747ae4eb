#include "settings.hpp"

#include "failure.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <thread>

namespace knet::triton {

namespace {

const Json NOTHING;

const Json& member(const Json& json, const char* name) {
  const Json* found = json.find(name);
  return found == nullptr ? NOTHING : *found;
}

/// A parameter of the model.
struct Parameter {
  std::string name, value;

  [[noreturn]] void fail(const std::string& wanted) const {
    throw invalid("parameter " + name + " is \"" + value + "\", not " + wanted);
  }

  double number(double least, double most, const char* wanted) const {
    char* end = nullptr;
    const double found = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !(found >= least && found <= most)) fail(wanted);
    return found;
  }

  std::uint32_t whole(std::uint32_t most, const char* wanted) const {
    const double found = number(0, most, wanted);
    if (found != std::uint32_t(found)) fail(wanted);
    return std::uint32_t(found);
  }

  std::uint32_t one_of(const std::map<std::string, std::uint32_t>& choices) const {
    const auto found = choices.find(value);
    if (found != choices.end()) return found->second;
    std::string names;
    for (const auto& choice : choices) names += (names.empty() ? "" : ", ") + choice.first;
    fail("one of " + names);
  }
};

constexpr const char* SIZE = "SHORTxLONG, the sides that images are made to fit, or \"as they are\"";

void set_size(Options& session, const Parameter& parameter) {
  if (parameter.value == "as they are") {
    session.as_they_are();
    return;
  }
  const std::size_t cross = parameter.value.find('x');
  if (cross == std::string::npos) parameter.fail(SIZE);
  const auto side = [&](const std::string& text) {
    if (text.empty() || text.find_first_not_of("0123456789") != std::string::npos || text.size() > 5)
      parameter.fail(SIZE);
    return std::uint32_t(std::strtoul(text.c_str(), nullptr, 10));
  };
  session.size(side(parameter.value.substr(0, cross)), side(parameter.value.substr(cross + 1)));
}

using Setter = std::function<void(Settings&, const Parameter&)>;

const std::map<std::string, Setter>& setters() {
  static const std::map<std::string, Setter> SETTERS = {
      {"weights", [](Settings& to, const Parameter& from) { to.weights = from.value; }},
      {"name", [](Settings& to, const Parameter& from) { to.model.name(from.value); }},
      {"device", [](Settings& to, const Parameter& from) { to.device = from.value; }},
      {"precision",
       [](Settings& to, const Parameter& from) {
         to.model.precision(from.one_of({{"bf16", KNET_PRECISION_BF16},
                                         {"f16", KNET_PRECISION_F16},
                                         {"f32", KNET_PRECISION_F32},
                                         {"tf32x3", KNET_PRECISION_TF32X3}}));
       }},
      {"exact",
       [](Settings& to, const Parameter& from) {
         to.model.exact(from.one_of({{"false", 0}, {"true", 1}}) != 0);
       }},
      {"task",
       [](Settings& to, const Parameter& from) {
         to.task = from.one_of({{"instance", KNET_TASK_INSTANCE},
                                {"panoptic", KNET_TASK_PANOPTIC},
                                {"semantic", KNET_TASK_SEMANTIC}});
         to.session.task(to.task);
       }},
      {"format",
       [](Settings& to, const Parameter& from) {
         to.format = from.one_of({{"bgr", KNET_FORMAT_BGR8}, {"rgb", KNET_FORMAT_RGB8}});
       }},
      {"size", [](Settings& to, const Parameter& from) { set_size(to.session, from); }},
      {"min_score",
       [](Settings& to, const Parameter& from) {
         to.session.min_score(float(from.number(0, 1, "a score from 0 to 1")));
       }},
      {"threads",
       [](Settings& to, const Parameter& from) { to.session.threads(from.whole(1024, "a number of threads")); }},
      {"stages",
       [](Settings& to, const Parameter& from) { to.session.stages(from.whole(1024, "a number of stages")); }},
      {"deadline_ms",
       [](Settings& to, const Parameter& from) {
         const double ms = from.number(0, 1e6, "a time in milliseconds");
         to.session.deadline(std::chrono::nanoseconds(std::int64_t(ms * 1e6)));
       }},
  };
  return SETTERS;
}

void set(Settings& settings, const Parameter& parameter) {
  const auto setter = setters().find(parameter.name);
  if (setter != setters().end()) {
    setter->second(settings, parameter);
    return;
  }
  // Triton's own are no business of a backend.
  if (parameter.name.rfind("TRITON_", 0) == 0) return;
  std::string names;
  for (const auto& known : setters()) names += (names.empty() ? "" : ", ") + known.first;
  throw invalid("unknown parameter " + parameter.name + "; known are " + names);
}

/// Instances of the model on the CPU.
unsigned long instances_on_cpu(const Json& groups, const Settings& settings) {
  unsigned long instances = 0;
  for (const auto& [_, group] : groups.items())
    if (device_of(member(group, "kind").text(), 0, settings) == "cpu")
      instances += std::max(1ul, std::strtoul(member(group, "count").text().c_str(), nullptr, 10));
  return instances;
}

int first_gpu(const Json& group) {
  const auto& gpus = member(group, "gpus").items();
  return gpus.empty() ? 0 : std::atoi(gpus.front().second.text().c_str());
}

}  // namespace

std::string device_of(const std::string& kind, int id, const Settings& settings) {
  if (kind == "KIND_CPU") return "cpu";
  if (kind == "KIND_GPU") return "cuda:" + std::to_string(id);
  return settings.device;
}

Settings::Settings(const Json& config, const std::string& folder) {
  weights = member(config, "default_model_filename").text();
  batched = std::atoi(member(config, "max_batch_size").text().c_str()) > 0;

  const Json& groups = member(config, "instance_group");
  const Json& parameters = member(config, "parameters");
  for (const auto& [name, value] : parameters.items())
    set(*this, {name, member(value, "string_value").text()});
  // Instances that each took all cores would be in each other's way.
  if (const unsigned long instances = instances_on_cpu(groups, *this);
      instances > 1 && parameters.find("threads") == nullptr)
    session.threads(unsigned(std::max(1ul, std::thread::hardware_concurrency() / instances)));
  if (!groups.items().empty()) {
    const Json& group = groups.items().front().second;
    first_device = device_of(member(group, "kind").text(), first_gpu(group), *this);
  }

  if (weights.empty()) weights = "model.safetensors";
  const bool is_path = weights.rfind("seeded:", 0) != 0;
  if (is_path && weights.front() != '/') weights = folder + "/" + weights;
}

}  // namespace knet::triton
