// K-Net as a composable node: images in, maps of instances and classes out, under the header of the image.
// Topics and values are those of the node in Rust (docs/ros2.md); the overlay is drawn there alone.
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <knet.hpp>
#include <rclcpp/rclcpp.hpp>
#include <rclcpp_components/register_node_macro.hpp>
#include <sensor_msgs/msg/image.hpp>
#include <vision_msgs/msg/label_info.hpp>
#include <vision_msgs/msg/vision_class.hpp>

namespace knet_ros {

using Image = sensor_msgs::msg::Image;
using LabelInfo = vision_msgs::msg::LabelInfo;

namespace {

/// Warnings of a kind come this often, in milliseconds.
constexpr int kThrottle = 1000;

struct Encoding {
  const char* name;
  std::uint32_t format;
  /// Bytes of a pixel of the first plane.
  std::size_t bytes;
};

constexpr Encoding kEncodings[] = {
    {"rgb8", KNET_FORMAT_RGB8, 3},   {"bgr8", KNET_FORMAT_BGR8, 3},   {"rgba8", KNET_FORMAT_RGBA8, 4},
    {"bgra8", KNET_FORMAT_BGRA8, 4}, {"mono8", KNET_FORMAT_GRAY8, 1}, {"nv12", KNET_FORMAT_NV12, 1},
};

/// The pixels of an image, where they lie. Throws what is wrong with them, with the numbers.
knet_frame frame_of(const Image& image) {
  const std::string size = std::to_string(image.height) + "x" + std::to_string(image.width);
  for (const Encoding& encoding : kEncodings) {
    if (image.encoding != encoding.name) continue;
    const std::size_t step = image.step, row = encoding.bytes * image.width, rows = image.height;
    const bool is_nv12 = encoding.format == KNET_FORMAT_NV12;
    if (rows == 0 || row == 0 || step < row || (is_nv12 && (rows % 2 != 0 || image.width % 2 != 0)))
      throw std::invalid_argument("a " + size + " " + image.encoding + " image with a step of " + std::to_string(step));
    // The library is told where rows begin, and believes it. The last row may end with its pixels.
    const std::size_t needed = step * ((is_nv12 ? rows + rows / 2 : rows) - 1) + row;
    if (image.data.size() < needed)
      throw std::invalid_argument("a " + size + " " + image.encoding + " image with a step of " + std::to_string(step) +
                                  " takes " + std::to_string(needed) + " bytes, there are " +
                                  std::to_string(image.data.size()));
    const std::uint8_t* pixels = image.data.data();
    return is_nv12 ? knet::nv12(pixels, pixels + step * rows, image.height, image.width, step, step)
                   : knet::packed(encoding.format, pixels, image.height, image.width, step);
  }
  throw std::invalid_argument("a " + size + " image has the unknown encoding `" + image.encoding + "`");
}

/// An image of the frame with `header`, into which a map is written.
std::unique_ptr<Image> map_of(const std_msgs::msg::Header& header, const knet::Result& found, std::uint32_t kind,
                              std::uint32_t none, std::uint32_t bytes) {
  const knet_result_info info = found.info();
  auto image = std::make_unique<Image>();
  image->header = header;
  image->height = info.height;
  image->width = info.width;
  image->encoding = bytes == 1 ? "mono8" : "mono16";
  // The map is in the machine's order.
  const std::uint16_t one = 1;
  std::uint8_t first = 0;
  std::memcpy(&first, &one, 1);
  image->is_bigendian = first == 0;
  image->step = bytes * info.width;
  image->data.resize(std::size_t(image->step) * info.height);
  if (knet_result_map(found.get(), kind, none, bytes, image->data.data(), image->step) != KNET_OK)
    throw std::runtime_error(knet_last_error());
  return image;
}

}  // namespace

class Segmenter : public rclcpp::Node {
 public:
  explicit Segmenter(const rclcpp::NodeOptions& options)
      : Node("knet", options), model_(weights(), model_options()), session_(model_, session_options()) {
    class_bytes_ = model_.classes() <= 255 ? 1 : 2;
    unlabeled_ = class_bytes_ == 1 ? 255 : 65535;
    const auto results = rclcpp::QoS(rclcpp::KeepLast(4)).reliable();
    instances_ = create_publisher<Image>("instances", results);
    classes_ = create_publisher<Image>("classes", results);
    label_info_ = create_publisher<LabelInfo>("label_info", rclcpp::QoS(rclcpp::KeepLast(1)).reliable().transient_local());
    announce();
    images_ = create_subscription<Image>("image", rclcpp::SensorDataQoS().keep_last(1),
                                         [this](Image::ConstSharedPtr image) { segment(*image); });
    RCLCPP_INFO(get_logger(), "%s, %u classes", model_.device(), model_.classes());
  }

 private:
  std::string weights() {
    const auto path = declare_parameter<std::string>("weights", "");
    if (path.empty()) throw std::invalid_argument("the parameter `weights` names no file");
    return path;
  }

  knet::ModelOptions model_options() {
    return knet::ModelOptions().device(declare_parameter<std::string>("device", "auto"));
  }

  knet::Options session_options() {
    min_score_ = static_cast<float>(declare_parameter<double>("min_score", 0.3));
    knet::Options options;
    options.min_score(min_score_);
    options.threads(static_cast<std::uint32_t>(declare_parameter<std::int64_t>("threads", 0)));
    const auto sides = declare_parameter<std::vector<std::int64_t>>("size", std::vector<std::int64_t>{});
    if (sides.size() == 2)
      options.size(static_cast<std::uint32_t>(sides[0]), static_cast<std::uint32_t>(sides[1]));
    const auto deadline = declare_parameter<double>("deadline_ms", 0.0);
    if (deadline > 0)
      options.deadline(std::chrono::nanoseconds(static_cast<std::int64_t>(deadline * 1e6)));
    return options;
  }

  /// Says what the values of class maps mean, to those who come later, too.
  void announce() {
    auto info = std::make_unique<LabelInfo>();
    info->header.stamp = now();
    info->threshold = min_score_;
    vision_msgs::msg::VisionClass entry;
    for (std::uint32_t index = 0; index < model_.classes(); ++index) {
      entry.class_id = static_cast<std::uint16_t>(index);
      entry.class_name = model_.name(index);
      info->class_map.push_back(entry);
    }
    entry.class_id = unlabeled_;
    entry.class_name = "UNLABELED";
    info->class_map.push_back(entry);
    label_info_->publish(std::move(info));
  }

  /// Callbacks of a node exclude each other, so that the session is used by one at a time.
  void segment(const Image& image) {
    try {
      session_.segment(frame_of(image), found_);
      instances_->publish(map_of(image.header, found_, KNET_MAP_OBJECTS, 0, 2));
      classes_->publish(map_of(image.header, found_, KNET_MAP_CLASSES, unlabeled_, class_bytes_));
    } catch (const std::exception& error) {
      RCLCPP_WARN_THROTTLE(get_logger(), *get_clock(), kThrottle, "a frame is refused: %s", error.what());
      return;
    }
    const knet_timings timings = session_.timings();
    RCLCPP_DEBUG(get_logger(), "%u objects, network %.1f ms", found_.size(), static_cast<double>(timings.network_ns) / 1e6);
  }

  float min_score_ = 0;
  knet::Model model_;
  knet::Session session_;
  knet::Result found_;
  std::uint32_t class_bytes_ = 1;
  std::uint16_t unlabeled_ = 255;
  rclcpp::Publisher<Image>::SharedPtr instances_, classes_;
  rclcpp::Publisher<LabelInfo>::SharedPtr label_info_;
  rclcpp::Subscription<Image>::SharedPtr images_;
};

}  // namespace knet_ros

RCLCPP_COMPONENTS_REGISTER_NODE(knet_ros::Segmenter)
