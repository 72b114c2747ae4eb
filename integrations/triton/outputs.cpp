#include "outputs.hpp"

#include "failure.hpp"

#include <algorithm>
#include <cstring>

namespace knet::triton {

namespace {

using Shape = std::vector<std::int64_t>;

std::uint64_t product(const Shape& shape) {
  std::uint64_t elements = 1;
  for (const std::int64_t dim : shape) elements *= std::uint64_t(dim);
  return elements;
}

class Writer {
 public:
  Writer(TRITONBACKEND_Response* response, const Tensor& tensor, const Found& found)
      : response_(response), tensor_(tensor), found_(found) {
    for (std::size_t i = 0; i < found.images; ++i) places_ = std::max(places_, found.results[i].size());
    info_ = found.results.front().info();
  }

  void count() {
    auto* to = buffer<std::int32_t>({1});
    for (std::size_t i = 0; i < found_.images; ++i) to[i] = std::int32_t(found_.results[i].size());
  }
  void labels() {
    numbers<std::int32_t>({}, -1, [](const Object& object, std::int32_t* to) { *to = std::int32_t(object.label()); });
  }
  void scores() {
    numbers<float>({}, 0, [](const Object& object, float* to) { *to = object.score(); });
  }
  void boxes() {
    numbers<float>({4}, 0, [](const Object& object, float* to) {
      const Box box = object.box();
      to[0] = float(box.x), to[1] = float(box.y);
      to[2] = float(box.x + box.width), to[3] = float(box.y + box.height);
    });
  }
  void masks() {
    numbers<std::uint8_t>({info_.height, info_.width}, 0, [&](const Object& object, std::uint8_t* to) {
      object.mask_into(1, to, info_.width);
    });
  }
  void names() {
    texts([&](const Object& object) { return found_.names.at(object.label()); });
  }
  void rles() {
    texts([](const Object& object) { return object.rle(); });
  }
  void object_map() { map<std::uint16_t>(KNET_MAP_OBJECTS, 0); }
  void class_map() { map<std::uint8_t>(KNET_MAP_CLASSES, 255); }

 private:
  /// The memory of the output, on the host. It may be NULL where it has no bytes.
  template <class T>
  T* buffer(Shape shape, std::uint64_t bytes) {
    if (found_.batched) shape.insert(shape.begin(), std::int64_t(found_.images));
    TRITONBACKEND_Output* output = nullptr;
    check(TRITONBACKEND_ResponseOutput(response_, &output, tensor_.name.c_str(), tensor_.type, shape.data(),
                                       std::uint32_t(shape.size())));
    void* memory = nullptr;
    TRITONSERVER_MemoryType type = TRITONSERVER_MEMORY_CPU;
    std::int64_t id = 0;
    check(TRITONBACKEND_OutputBuffer(output, &memory, bytes, &type, &id));
    if (type == TRITONSERVER_MEMORY_GPU)
      throw Failure(TRITONSERVER_ERROR_UNSUPPORTED,
                    tensor_.name + " is asked for in the memory of a GPU; outputs are written to the host's");
    return static_cast<T*>(memory);
  }
  template <class T>
  T* buffer(const Shape& shape) {
    return buffer<T>(shape, found_.images * product(shape) * sizeof(T));
  }

  /// A tensor with a place for each object, which `write` fills.
  template <class T, class Write>
  void numbers(const Shape& each, T padding, Write write) {
    Shape shape = each;
    shape.insert(shape.begin(), places_);
    const std::size_t step = product(each);
    T* to = buffer<T>(shape);
    for (std::size_t i = 0; i < found_.images; ++i) {
      const Result& result = found_.results[i];
      for (const Object& object : result) write(object, to + object.index() * step);
      std::fill(to + result.size() * step, to + places_ * step, padding);
      to += places_ * step;
    }
  }

  /// A tensor of texts: each is four bytes with its length, lowest first, and the text.
  template <class Read>
  void texts(Read read) {
    std::string bytes;
    for (std::size_t i = 0; i < found_.images; ++i) {
      const std::uint32_t objects = found_.results[i].size();
      for (std::uint32_t j = 0; j < places_; ++j) {
        const std::string text = j < objects ? read(found_.results[i][j]) : std::string();
        for (int shift = 0; shift < 32; shift += 8) bytes += char(text.size() >> shift);
        bytes += text;
      }
    }
    char* to = buffer<char>({places_}, bytes.size());
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
  }

  template <class T>
  void map(std::uint32_t kind, std::uint32_t none) {
    T* to = buffer<T>({info_.height, info_.width});
    for (std::size_t i = 0; i < found_.images; ++i) {
      found_.results[i].map_into(kind, none, sizeof(T), to, info_.width * sizeof(T));
      to += std::size_t(info_.height) * info_.width;
    }
  }

  TRITONBACKEND_Response* response_;
  const Tensor& tensor_;
  const Found& found_;
  /// Objects of the image that has the most.
  std::uint32_t places_ = 0;
  knet_result_info info_;
};

/// An output, and what makes it.
struct Maker {
  Tensor tensor;
  /// Whether instances alone have it.
  bool of_instances;
  void (Writer::*write)();
};

const std::vector<Maker>& makers() {
  static const std::vector<Maker> MAKERS = {
      {{"COUNT", TRITONSERVER_TYPE_INT32, {1}}, false, &Writer::count},
      {{"LABELS", TRITONSERVER_TYPE_INT32, {-1}}, false, &Writer::labels},
      {{"NAMES", TRITONSERVER_TYPE_BYTES, {-1}}, false, &Writer::names},
      {{"SCORES", TRITONSERVER_TYPE_FP32, {-1}}, false, &Writer::scores},
      {{"BOXES", TRITONSERVER_TYPE_FP32, {-1, 4}}, true, &Writer::boxes},
      {{"MASKS", TRITONSERVER_TYPE_UINT8, {-1, -1, -1}}, true, &Writer::masks},
      {{"RLES", TRITONSERVER_TYPE_BYTES, {-1}}, true, &Writer::rles},
      {{"OBJECT_MAP", TRITONSERVER_TYPE_UINT16, {-1, -1}}, false, &Writer::object_map},
      {{"CLASS_MAP", TRITONSERVER_TYPE_UINT8, {-1, -1}}, false, &Writer::class_map},
  };
  return MAKERS;
}

}  // namespace

Tensor image_input() { return {"IMAGE", TRITONSERVER_TYPE_UINT8, {-1, -1, 3}}; }

std::vector<Tensor> outputs_of(std::uint32_t task) {
  std::vector<Tensor> tensors;
  for (const Maker& maker : makers())
    if (task == KNET_TASK_INSTANCE || !maker.of_instances) tensors.push_back(maker.tensor);
  return tensors;
}

std::string config_type(TRITONSERVER_DataType type) {
  return type == TRITONSERVER_TYPE_BYTES ? "TYPE_STRING"
                                         : std::string("TYPE_") + TRITONSERVER_DataTypeString(type);
}

std::string config_list(const std::vector<Tensor>& tensors) {
  std::string list;
  for (const Tensor& tensor : tensors) {
    std::string dims;
    for (const std::int64_t dim : tensor.dims) dims += (dims.empty() ? "" : ",") + std::to_string(dim);
    list += (list.empty() ? "{\"name\":\"" : ",{\"name\":\"") + tensor.name + "\",\"data_type\":\"" +
            config_type(tensor.type) + "\",\"dims\":[" + dims + "]}";
  }
  return "[" + list + "]";
}

void write_output(TRITONBACKEND_Response* response, const std::string& name, const Found& found) {
  for (const Maker& maker : makers()) {
    if (maker.tensor.name != name) continue;
    Writer writer(response, maker.tensor, found);
    (writer.*maker.write)();
    return;
  }
  throw invalid("there is no output " + name);
}

}  // namespace knet::triton
