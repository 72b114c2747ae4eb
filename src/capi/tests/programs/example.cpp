// The example of docs/embedding.md: a person model over a made-up frame.
#include <cstdio>
#include <knet.hpp>
#include <vector>

int main(int count, char** arguments) {
  const std::string weights = count > 1 ? arguments[1] : "seeded:0";
  knet::Model model(weights, knet::ModelOptions().device("cpu").name(count > 2 ? arguments[2] : ""));
  knet::Session session(model, knet::Options().size(96, 128).min_score(0.001f));
  knet::Result found;
  const std::vector<unsigned char> pixels(96 * 128 * 3, 90);
  for (const knet::Object& object : session.segment(knet::rgb8(pixels.data(), 96, 128), found)) {
    const knet::Box box = object.box();
    const knet::Mask mask = object.mask();
    unsigned long long area = 0;
    for (unsigned y = 0; y < mask.height(); ++y)
      for (unsigned x = 0; x < mask.width(); ++x) area += mask(y, x);
    if (area != object.area()) return 1;
    std::printf("%s %.3f %u,%u %ux%u %s\n", model.name(object.label()), object.score(), box.x, box.y, box.width,
                box.height, object.rle().c_str());
  }
  try {
    knet::Model("no/such.safetensors");
  } catch (const knet::Error& error) {
    std::printf("%u objects; %d: %s\n", found.size(), error.status(), error.what());
  }
  return found.object_map().size() == 96 * 128 && session.timings().network_ns > 0 ? 0 : 1;
}
