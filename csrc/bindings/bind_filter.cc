#include <string>
#include <utility>

#include "bindings.h"
#include "gentrie/batch.h"
#include "gentrie/builder.h"
#include "gentrie/filter.h"

namespace gentrie {

namespace {

using FilterPtr = std::shared_ptr<ItemFilter>;

FilterPtr unconst(ItemFilter::Ptr filter) { return std::const_pointer_cast<ItemFilter>(std::move(filter)); }

int threads_of(int num_threads) { return num_threads == 0 ? default_num_threads() : num_threads; }

/// A read-only view of memory that the filter keeps.
template <typename Values>
py::array view_of(const Values& values, const FilterPtr& filter) {
  py::array_t<typename Values::value_type> array(static_cast<py::ssize_t>(values.size()), values.data(),
                                                 py::cast(filter));
  array.attr("flags").attr("writeable") = false;
  return std::move(array);
}

py::array_t<bool> allowed_sequences(const ItemFilter& filter) {
  py::array_t<bool> allowed(static_cast<py::ssize_t>(filter.trie().view().num_leaves));
  bool* next = allowed.mutable_data();
  const py::gil_scoped_release no_gil;
  filter.trie().for_each_sequence(
      [&](std::uint32_t leaf, const std::vector<Token>&) { *next++ = filter.allows_leaf(leaf); }, signal_poll());
  return allowed;
}

/// Whether each row of the leaf-to-item table may be given.
py::array_t<bool> allowed_entries(const ItemFilter& filter) {
  py::array_t<bool> allowed(static_cast<py::ssize_t>(filter.trie().view().num_items));
  bool* out = allowed.mutable_data();
  const auto count = static_cast<std::uint64_t>(allowed.size());
  const py::gil_scoped_release no_gil;
  for (std::uint64_t entry = 0; entry < count; ++entry) out[entry] = filter.allows_entry(entry);
  return allowed;
}

py::array_t<std::int64_t> items_below(const ItemFilter& filter, State state) {
  std::vector<std::int64_t> items;
  {
    const py::gil_scoped_release no_gil;
    const TrieView& view = filter.trie().view();
    check_states(view, &state, 1);
    const LeafRange leaves = state < 0 ? LeafRange{} : view.leaves_below(state);
    const auto [begin, end] = view.items_of_leaves(leaves);
    const Poll poll = signal_poll();
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      if (filter.allows_entry(entry)) items.push_back(view.item_id(entry));
      if (entry % kItemsPerPoll == 0) poll();
    }
  }
  return to_array(std::move(items));
}

py::tuple next_tokens(const ItemFilter& filter, const InputArray<State>& states) {
  std::vector<Token> tokens;
  std::vector<std::int64_t> indptr;
  const auto count = static_cast<std::uint64_t>(states.size());
  {
    const py::gil_scoped_release no_gil;
    next_tokens_batch(filter, states.data(), count, &tokens, &indptr, signal_poll());
  }
  return py::make_tuple(to_array(std::move(tokens)), to_array(std::move(indptr)));
}

py::array_t<std::int64_t> num_sequences_below(const ItemFilter& filter, const InputArray<State>& states) {
  py::array_t<std::int64_t> counts(states.size());
  std::int64_t* out = counts.mutable_data();
  const auto count = static_cast<std::uint64_t>(states.size());
  const py::gil_scoped_release no_gil;
  count_below(filter, states.data(), count, out, signal_poll());
  return counts;
}

}  // namespace

void bind_filter(py::module_& module) {
  using py::arg;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<ItemFilter, FilterPtr>(module, "ItemFilter")
      .def_static(
          "from_item_ids",
          [](std::shared_ptr<Trie> trie, const InputArray<std::int64_t>& ids) {
            const py::gil_scoped_release released;
            return unconst(
                ItemFilter::from_item_ids(trie, ids.data(), static_cast<std::uint64_t>(ids.size()), signal_poll()));
          },
          arg("trie"), arg("item_ids"))
      .def_static(
          "from_mask",
          [](std::shared_ptr<Trie> trie, const InputArray<bool>& mask, int num_threads) {
            const py::gil_scoped_release released;
            return unconst(ItemFilter::from_mask(trie, reinterpret_cast<const std::uint8_t*>(mask.data()),
                                                 static_cast<std::uint64_t>(mask.size()), threads_of(num_threads),
                                                 signal_poll()));
          },
          arg("trie"), arg("mask"), arg("num_threads"))
      .def_static(
          "from_leaf_order",
          [](std::shared_ptr<Trie> trie, const InputArray<bool>& mask, int num_threads) {
            const py::gil_scoped_release released;
            return unconst(ItemFilter::from_leaf_order(trie, reinterpret_cast<const std::uint8_t*>(mask.data()),
                                                       static_cast<std::uint64_t>(mask.size()), threads_of(num_threads),
                                                       signal_poll()));
          },
          arg("trie"), arg("mask"), arg("num_threads"))
      .def(
          "deny",
          [](const ItemFilter& filter, const InputArray<std::int64_t>& ids) {
            const py::gil_scoped_release released;
            return unconst(filter.deny(ids.data(), static_cast<std::uint64_t>(ids.size()), signal_poll()));
          },
          arg("item_ids"))
      .def(
          "complement", [](const ItemFilter& filter) { return unconst(filter.complement(signal_poll())); }, no_gil)
      .def(
          "intersection",
          [](const ItemFilter& a, const ItemFilter& b) { return unconst(a.intersection(b, signal_poll())); },
          arg("other"), no_gil)
      .def(
          "union", [](const ItemFilter& a, const ItemFilter& b) { return unconst(a.union_with(b, signal_poll())); },
          arg("other"), no_gil)
      .def(
          "difference",
          [](const ItemFilter& a, const ItemFilter& b) { return unconst(a.difference(b, signal_poll())); },
          arg("other"), no_gil)
      .def_property_readonly("num_items", &ItemFilter::num_items)
      .def_property_readonly("num_sequences", &ItemFilter::num_sequences)
      .def_property_readonly("nbytes", &ItemFilter::nbytes)
      .def("next_tokens_batch", &next_tokens, arg("states"))
      .def("num_sequences_below_batch", &num_sequences_below, arg("states"))
      .def("items_below", &items_below, arg("state"))
      .def("allowed_sequences", &allowed_sequences)
      .def("allowed_entries", &allowed_entries)
      .def("leaf_words", [](const FilterPtr& filter) { return view_of(filter->leaf_words(), filter); })
      .def("closed_leaves", [](const FilterPtr& filter) { return view_of(filter->closed_leaves(), filter); });
  py::class_<ClosedRows, std::shared_ptr<ClosedRows>>(module, "ClosedRows")
      .def_property_readonly("dead", [](const ClosedRows& rows) { return rows.dead.load(); })
      .def_property_readonly("emptied", [](const ClosedRows& rows) { return rows.emptied.load(); });
  module.def("closed_rows", [](const Trie& trie) { return trie.closed_rows(); }, arg("trie"));
  module.def("item_index_nbytes", &Trie::item_index_nbytes, arg("trie"));
}

}  // namespace gentrie
