#include "json.hpp"

#include "failure.hpp"

namespace knet::triton {

/// A recursive descent over a text.
class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json value(int depth = 0) {
    if (depth > 100) fail();
    space();
    const std::size_t begin = at_;
    Json json;
    const char first = peek();
    if (first == '{' || first == '[') {
      members(json, first == '{', depth);
    } else if (first == '"') {
      json.text_ = string();
    } else {
      while (at_ < text_.size() && std::string_view(",]} \t\r\n").find(text_[at_]) == std::string_view::npos)
        json.text_ += text_[at_++];
      if (json.text_.empty()) fail();
    }
    json.source_ = text_.substr(begin, at_ - begin);
    return json;
  }

  void end() {
    space();
    if (at_ != text_.size()) fail();
  }

 private:
  [[noreturn]] void fail() const {
    throw Failure(TRITONSERVER_ERROR_INTERNAL,
                  "the model's configuration is no JSON at byte " + std::to_string(at_));
  }
  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  char peek() const {
    if (at_ == text_.size()) fail();
    return text_[at_];
  }
  char next() {
    const char found = peek();
    ++at_;
    return found;
  }
  void expect(char wanted) {
    space();
    if (next() != wanted) fail();
  }

  /// An object, whose members have names, or an array.
  void members(Json& json, bool named, int depth) {
    const char last = named ? '}' : ']';
    ++at_;
    space();
    if (peek() == last) {
      ++at_;
      return;
    }
    while (true) {
      std::string name;
      if (named) {
        space();
        name = string();
        expect(':');
      }
      json.items_.emplace_back(std::move(name), value(depth + 1));
      space();
      const char after = next();
      if (after == last) return;
      if (after != ',') fail();
    }
  }

  std::string string() {
    std::string found;
    expect('"');
    for (char c = next(); c != '"'; c = next()) found += c == '\\' ? escaped() : std::string(1, c);
    return found;
  }

  std::string escaped() {
    const char c = next();
    const std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const std::size_t letter = letters.find(c);
    if (letter != std::string_view::npos) return {meanings[letter]};
    if (c != 'u') fail();
    return utf8(code_unit());
  }

  unsigned code_unit() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const std::size_t digit = std::string_view("0123456789abcdefABCDEF").find(next());
      if (digit == std::string_view::npos) fail();
      code = 16 * code + unsigned(digit < 16 ? digit : digit - 6);
    }
    return code;
  }

  /// A character, which takes two code units above U+FFFF.
  std::string utf8(unsigned code) {
    if (code >= 0xd800 && code < 0xdc00) {
      if (next() != '\\' || next() != 'u') fail();
      code = 0x10000 + ((code - 0xd800) << 10) + ((code_unit() - 0xdc00) & 0x3ff);
    }
    const auto part = [code](int shift, unsigned mark) { return char(mark | ((code >> shift) & 0x3f)); };
    if (code < 0x80) return {char(code)};
    if (code < 0x800) return {char(0xc0 | code >> 6), part(0, 0x80)};
    if (code < 0x10000) return {char(0xe0 | code >> 12), part(6, 0x80), part(0, 0x80)};
    return {char(0xf0 | code >> 18), part(12, 0x80), part(6, 0x80), part(0, 0x80)};
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

Json Json::parse(std::string_view text) {
  JsonReader reader(text);
  Json json = reader.value();
  reader.end();
  return json;
}

const Json* Json::find(std::string_view name) const {
  for (const auto& [member, value] : items_)
    if (member == name) return &value;
  return nullptr;
}

}  // namespace knet::triton
