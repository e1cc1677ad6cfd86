// Stands in for fmt, of which Kompute needs fmt::format in two error messages: fills the {} of a text.
#pragma once

#include <sstream>
#include <string>

namespace fmt {

namespace detail {

inline void fill(std::ostringstream& out, const std::string& text) { out << text; }

template <class First, class... Rest>
void fill(std::ostringstream& out, const std::string& text, const First& first, const Rest&... rest) {
  const auto place = text.find("{}");
  if (place == std::string::npos) {
    out << text;
    return;
  }
  out << text.substr(0, place) << first;
  fill(out, text.substr(place + 2), rest...);
}

}  // namespace detail

template <class... Values>
std::string format(const std::string& text, const Values&... values) {
  std::ostringstream out;
  detail::fill(out, text, values...);
  return out.str();
}

}  // namespace fmt
