// A camera's loop: while one frame is segmented, the next one is fetched. Outlines as polygons, messages to a log.
#include <cstdio>
#include <knet.hpp>
#include <vector>

namespace {

constexpr unsigned height = 96, width = 128;

// Stands for a camera: frames until there are none left.
bool fetch(unsigned number, std::vector<unsigned char>& pixels) {
  for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<unsigned char>(i * (number + 3) % 251);
  return number < 4;
}

void print(const knet::Model& model, const knet::Result& found) {
  std::printf("frame %llu:", static_cast<unsigned long long>(found.info().timestamp_ns));
  for (const knet::Object& object : found) {
    std::size_t corners = 0;
    for (const knet::Polygon& polygon : object.polygons()) corners += polygon.points.size();
    std::printf(" %s %zu", model.name(object.label()), corners);
  }
  std::printf("\n");
}

}  // namespace

int main(int count, char** arguments) {
  knet::log(KNET_LOG_INFO, [](std::uint32_t level, const char* message, void*) {
    std::printf("%u: %s\n", level, message);
  });
  const std::string weights = count > 1 ? arguments[1] : "seeded:0";
  knet::Model model(weights, knet::ModelOptions().device("cpu").name(count > 2 ? arguments[2] : ""));
  knet::Session session(model, knet::Options().size(height, width).min_score(0.001f).threads(2));
  session.warm_up(height, width);

  // Two of each: one in flight, one in the program's hands.
  std::vector<unsigned char> pixels[2];
  for (auto& frame : pixels) frame.resize(std::size_t(3) * height * width);
  knet::Result found[2];
  bool flies = false;
  for (unsigned number = 0;; ++number) {
    const unsigned now = number % 2, last = 1 - now;
    const bool more = fetch(number, pixels[now]);
    if (flies) session.wait();
    const bool landed = flies;
    flies = more;
    if (more) session.submit(knet::rgb8(pixels[now].data(), height, width, 0, number), found[now]);
    if (landed) print(model, found[last]);
    if (!more) return 0;
  }
}
