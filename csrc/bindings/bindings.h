#ifndef GENTRIE_BINDINGS_H_
#define GENTRIE_BINDINGS_H_

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "gentrie/trie.h"
#include "gentrie/types.h"

namespace gentrie {

namespace py = pybind11;

/// C-contiguous input; another dtype or layout is copied once.
template <typename T>
using InputArray = py::array_t<T, py::array::c_style | py::array::forcecast>;

/// A NumPy array that takes over a vector's memory.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values) {
  auto* owned = new std::vector<T>(std::move(values));
  const py::capsule owner(owned, [](void* data) { delete static_cast<std::vector<T>*>(data); });
  return py::array_t<T>(static_cast<py::ssize_t>(owned->size()), owned->data(), owner);
}

/// The address of a tensor's data: Python checks dtype, device, shape and strides before it hands it over.
template <typename T>
T* at_address(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

/// Ids that no vocabulary holds become kNoToken, which matches nothing.
inline Token as_token(std::int64_t id) { return id >= 0 && id <= 0x7FFFFFFF ? static_cast<Token>(id) : kNoToken; }

inline constexpr std::uint64_t kItemsPerPoll = 1 << 16;

/// Lets Ctrl-C stop what runs without the GIL.
inline void check_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

/// check_signals() for one call, to be called as often as one likes: it looks some twenty times a second.
inline Poll signal_poll() {
  constexpr std::chrono::milliseconds kInterval(50);
  return [kInterval, next = std::chrono::steady_clock::now() + kInterval]() mutable {
    const auto now = std::chrono::steady_clock::now();
    if (now < next) return;
    next = now + kInterval;
    check_signals();
  };
}

void bind_trie(py::module_& module);
void bind_filter(py::module_& module);
void bind_constraint(py::module_& module);
void bind_beam_search(py::module_& module);

}  // namespace gentrie

#endif  // GENTRIE_BINDINGS_H_
