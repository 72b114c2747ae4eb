// knet.hpp where nothing may be thrown: what fails is empty, and the first error waits to be taken.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <knet.hpp>
#include <vector>

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
      std::exit(1);                                                           \
    }                                                                         \
  } while (0)

static void a_model_that_is_not_there() {
  knet::Model model("no/such.safetensors");
  knet::Session session(model);
  knet::Result found;
  const unsigned char pixel[3] = {};
  for (const knet::Object& object : session.segment(knet::rgb8(pixel, 1, 1), found)) CHECK(object.label() > 999);
  CHECK(!session.warm_up(64, 64) && !session.submit(knet::rgb8(pixel, 1, 1), found));
  CHECK(session.is_done() && !session.wait());
  const knet::Error error = knet::take_error();
  CHECK(error && error.status() == KNET_ERROR_IO && std::strstr(error.what(), "no/such.safetensors") != nullptr);
  CHECK(!knet::take_error());
  CHECK(model.get() == nullptr && model.name(0) == nullptr);
  CHECK(knet::take_error().status() == KNET_ERROR_ARGUMENT);
}

static void frames() {
  const std::vector<unsigned char> pixels(96 * 128 * 3, 90);
  const auto options = knet::ModelOptions().device("cpu").name("knet_s3_lite0_fpn");
  knet::Model model("seeded:0", options);
  knet::Session session(model, knet::Options().size(96, 128).min_score(0.001f));
  knet::Result found;
  CHECK(session.warm_up(96, 128));
  const knet_frame good = knet::rgb8(pixels.data(), 96, 128);
  CHECK(session.segment(good, found).size() > 0 && !knet::take_error());

  std::vector<std::uint32_t> objects(96 * 128);
  std::vector<std::uint8_t> classes(96 * 130);
  CHECK(found.maps(objects.data(), classes.data(), std::uint8_t(255), 0, 130));
  const auto owner = found.object_map();
  const auto labels = found.class_map(255);
  for (std::size_t i = 0; i < owner.size(); ++i)
    CHECK(objects[i] == owner[i] && classes[i / 128 * 130 + i % 128] == labels[i]);

  knet_frame bad = good;
  bad.format = 99;
  for (const knet::Object& object : session.segment(bad, found)) CHECK(object.label() > 999);
  CHECK(knet::take_error().status() == KNET_ERROR_ARGUMENT);
  const knet::Object none = found[7];
  CHECK(none.rle().empty() && none.polygons().empty() && none.mask().bits() == nullptr);
  CHECK(knet::take_error().status() == KNET_ERROR_STATE);
  CHECK(session.submit(good, found) && session.wait() && found.size() > 0 && !knet::take_error());
}

int main() {
  a_model_that_is_not_there();
  frames();
  std::puts("ok");
}
