#include <algorithm>
#include <cstring>

#include "bindings.h"
#include "gentrie/types.h"
#include "gentrie/version.h"
#include "gentrie/zeros.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  module.doc() = "gentrie's C++ core; the public faces are in the gentrie package.";
  module.attr("__version__") = GENTRIE_VERSION;

  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const gentrie::FormatError& error) {
      // A damaged file's own words may be anything.
      PyErr_SetObject(
          PyExc_ValueError,
          py::reinterpret_steal<py::object>(
              PyUnicode_DecodeUTF8(error.what(), static_cast<py::ssize_t>(std::strlen(error.what())), "replace"))
              .ptr());
    } catch (const gentrie::IoError& error) {
      // Made here and not by PyErr_SetObject: until Python 3.12 `except FileNotFoundError` looks at the type that was
      // set, not at that of the object which OSError makes of an error number.
      const py::object made = py::reinterpret_borrow<py::object>(PyExc_OSError)(error.code(), error.what());
      PyErr_SetObject(py::type::of(made).ptr(), made.ptr());
    }
  });
  gentrie::bind_trie(module);
  gentrie::bind_filter(module);
  gentrie::bind_constraint(module);
  gentrie::bind_beam_search(module);
  module.def(
      "write_zeros",
      [](std::uintptr_t data, std::uint64_t nbytes) {
        const py::gil_scoped_release no_gil;
        constexpr std::uint64_t kPart = std::uint64_t{1} << 28;  // so much that each is written past the caches
        const gentrie::Poll poll = gentrie::signal_poll();
        for (std::uint64_t at = 0; at < nbytes; at += kPart) {
          gentrie::write_zeros(gentrie::at_address<char>(data) + at, std::min(kPart, nbytes - at));
          poll();
        }
      },
      py::arg("data"), py::arg("nbytes"));
}
