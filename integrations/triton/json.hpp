// Enough JSON to read the configurations that Triton writes.
#ifndef KNET_TRITON_JSON_HPP
#define KNET_TRITON_JSON_HPP

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace knet::triton {

class Json {
 public:
  /// Reads a text that lives longer than this. Throws Failure where it is none of JSON's.
  static Json parse(std::string_view text);

  /// The member of an object; nullptr if there is none, or this is no object.
  const Json* find(std::string_view name) const;
  /// The elements of an array, the members of an object: names and values.
  const std::vector<std::pair<std::string, Json>>& items() const { return items_; }
  /// A string; a number, true, false or null as it is written.
  const std::string& text() const { return text_; }
  /// This value as it was written.
  std::string_view source() const { return source_; }

 private:
  friend class JsonReader;
  std::vector<std::pair<std::string, Json>> items_;
  std::string text_;
  std::string_view source_;
};

}  // namespace knet::triton

#endif  // KNET_TRITON_JSON_HPP
