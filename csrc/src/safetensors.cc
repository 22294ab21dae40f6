#include "safetensors.h"

#include <cstdio>
#include <limits>

#include "gentrie/types.h"

namespace gentrie {

namespace {

void append_quoted(const std::string& text, std::string* out) {
  *out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (byte < 0x20) {
      char escape[7];
      std::snprintf(escape, sizeof escape, "\\u%04x", byte);
      *out += escape;
    } else {
      *out += c;
    }
  }
  *out += '"';
}

/// Reads the part of JSON that a safetensors header may hold.
class Parser {
 public:
  Parser(const char* text, std::uint64_t length) : at_(text), end_(text + length) {}

  SafetensorsHeader header() {
    SafetensorsHeader header;
    object([&](const std::string& name) {
      if (name == "__metadata__") {
        object([&](const std::string& key) {
          if (!header.metadata.emplace(key, string()).second) fail("a metadata key stands twice");
          if (header.metadata.size() > kMaxHeaderEntries) fail("too many metadata keys");
        });
      } else {
        header.tensors.push_back(tensor(name));
        if (header.tensors.size() > kMaxHeaderEntries) fail("too many tensors");
      }
    });
    while (at_ < end_ && *at_ == ' ') ++at_;
    if (at_ != end_) fail("text after the header's object");
    return header;
  }

 private:
  [[noreturn]] static void fail(const std::string& why) { throw FormatError("not a safetensors header: " + why); }

  void skip_space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("expected '") + c + "'");
  }

  template <typename Member>
  void object(const Member& member) {
    expect('{');
    if (take('}')) return;
    do {
      const std::string key = string();
      expect(':');
      member(key);
    } while (take(','));
    expect('}');
  }

  std::vector<std::uint64_t> numbers() {
    constexpr std::size_t kMaxNumbers = 64;  // dimensions of a tensor
    std::vector<std::uint64_t> values;
    expect('[');
    if (take(']')) return values;
    do {
      if (values.size() == kMaxNumbers) fail("too many numbers in a row");
      values.push_back(number());
    } while (take(','));
    expect(']');
    return values;
  }

  std::uint64_t number() {
    skip_space();
    std::uint64_t value = 0;
    const char* const start = at_;
    for (; at_ < end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
      const auto digit = static_cast<std::uint64_t>(*at_ - '0');
      if (value > (std::numeric_limits<std::uint64_t>::max() - digit) / 10) fail("a number is too large");
      value = value * 10 + digit;
    }
    if (at_ == start) fail("expected a number");
    return value;
  }

  std::string string() {
    expect('"');
    std::string out;
    while (true) {
      if (at_ == end_) fail("a string does not end");
      const char c = *at_++;
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ == end_) fail("a string does not end");
      switch (*at_++) {
        case '"':
          out += '"';
          break;
        case '\\':
          out += '\\';
          break;
        case '/':
          out += '/';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'n':
          out += '\n';
          break;
        case 'r':
          out += '\r';
          break;
        case 't':
          out += '\t';
          break;
        case 'u':
          append_utf8(code_point(), &out);
          break;
        default:
          fail("an unknown escape in a string");
      }
    }
  }

  std::uint32_t code_unit() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      if (at_ == end_) fail("a string does not end");
      const char c = *at_++;
      std::uint32_t digit;
      if (c >= '0' && c <= '9') {
        digit = static_cast<std::uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<std::uint32_t>(c - 'a' + 10);
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<std::uint32_t>(c - 'A' + 10);
      } else {
        fail("a bad \\u escape");
      }
      value = value << 4 | digit;
    }
    return value;
  }

  std::uint32_t code_point() {
    const std::uint32_t high = code_unit();
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') fail("a lone surrogate");
    at_ += 2;
    const std::uint32_t low = code_unit();
    if (low < 0xDC00 || low > 0xDFFF) fail("a lone surrogate");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  static void append_utf8(std::uint32_t point, std::string* out) {
    const auto byte = [out](std::uint32_t value) { *out += static_cast<char>(value); };
    if (point < 0x80) {
      byte(point);
    } else if (point < 0x800) {
      byte(0xC0 | point >> 6);
      byte(0x80 | (point & 0x3F));
    } else if (point < 0x10000) {
      byte(0xE0 | point >> 12);
      byte(0x80 | (point >> 6 & 0x3F));
      byte(0x80 | (point & 0x3F));
    } else {
      byte(0xF0 | point >> 18);
      byte(0x80 | (point >> 12 & 0x3F));
      byte(0x80 | (point >> 6 & 0x3F));
      byte(0x80 | (point & 0x3F));
    }
  }

  TensorEntry tensor(const std::string& name) {
    TensorEntry entry;
    entry.name = name;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    object([&](const std::string& key) {
      if (key == "dtype" && !has_dtype) {
        entry.dtype = string();
        has_dtype = true;
      } else if (key == "shape" && !has_shape) {
        entry.shape = numbers();
        has_shape = true;
      } else if (key == "data_offsets" && !has_offsets) {
        const std::vector<std::uint64_t> offsets = numbers();
        if (offsets.size() != 2) fail("data_offsets needs two numbers");
        entry.begin = offsets[0];
        entry.end = offsets[1];
        has_offsets = true;
      } else {
        fail("an unexpected field in tensor " + name);
      }
    });
    if (!has_dtype || !has_shape || !has_offsets) fail("a field is missing in tensor " + name);
    return entry;
  }

  const char* at_;
  const char* end_;
};

}  // namespace

std::string write_safetensors_header(const SafetensorsHeader& header) {
  std::string text = "{\"__metadata__\":{";
  const char* separator = "";
  for (const auto& [key, value] : header.metadata) {
    text += separator;
    append_quoted(key, &text);
    text += ':';
    append_quoted(value, &text);
    separator = ",";
  }
  text += "}";
  for (const TensorEntry& tensor : header.tensors) {
    text += ',';
    append_quoted(tensor.name, &text);
    text += ":{\"dtype\":";
    append_quoted(tensor.dtype, &text);
    text += ",\"shape\":[";
    separator = "";
    for (const std::uint64_t size : tensor.shape) {
      text += separator + std::to_string(size);
      separator = ",";
    }
    text += "],\"data_offsets\":[" + std::to_string(tensor.begin) + "," + std::to_string(tensor.end) + "]}";
  }
  text += "}";
  text.resize((text.size() + 8 + 63) / 64 * 64 - 8, ' ');
  return text;
}

SafetensorsHeader parse_safetensors_header(const char* text, std::uint64_t length) {
  return Parser(text, length).header();
}

}  // namespace gentrie
