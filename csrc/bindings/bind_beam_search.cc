#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "gentrie/beam_search.h"

namespace gentrie {

namespace {

using FilterPtr = std::shared_ptr<ItemFilter>;

/// A small array, copied: cheaper than one that owns a vector.
template <typename T>
py::array_t<T> as_array(const T* values, std::size_t count) {
  py::array_t<T> array(static_cast<py::ssize_t>(count));
  std::copy_n(values, count, array.mutable_data());
  return array;
}

template <typename T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return as_array(values.data(), values.size());
}

template <typename T>
py::list as_list(const std::vector<T>& values) {
  py::list list(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<py::ssize_t>(i), PyLong_FromLongLong(values[i]));
  }
  return list;
}

py::tuple rows(BeamSearch& search, std::uint64_t room) {
  const BeamRows& rows = search.rows(room);
  return py::make_tuple(as_array(rows.handles), as_array(rows.requests), as_array(rows.parents), as_array(rows.states),
                        as_array(rows.tokens), as_array(rows.indptr), as_array(rows.logit_counts));
}

py::tuple as_tuple(const BeamStep& step) {
  py::list forced(step.forced.size());
  for (std::size_t i = 0; i < step.forced.size(); ++i) {
    const std::vector<Token>& tokens = step.forced[i];
    py::tuple own(tokens.size());
    for (std::size_t t = 0; t < tokens.size(); ++t) own[t] = py::int_(tokens[t]);
    PyList_SET_ITEM(forced.ptr(), static_cast<py::ssize_t>(i), own.release().ptr());
  }
  return py::make_tuple(as_array(step.requests), as_array(step.parents), as_array(step.tokens), as_array(step.states),
                        std::move(forced), as_list(step.finished));
}

const double* data_of(const std::optional<InputArray<double>>& values) { return values ? values->data() : nullptr; }

py::tuple take(BeamSearch& search, std::int64_t request, std::uint64_t limit) {
  std::shared_ptr<const ItemFilter> filter;
  const std::vector<BeamItem> items = search.take(request, limit, &filter);
  const TrieView& view = search.trie().view();
  py::list sequences(items.size()), token_scores(items.size()), item_ids(items.size());
  py::array_t<double> scores(static_cast<py::ssize_t>(items.size()));
  std::uint64_t num_forced = 0;
  std::vector<std::int64_t> ids;
  for (std::size_t i = 0; i < items.size(); ++i) {
    sequences[i] = as_list(items[i].tokens);
    scores.mutable_data()[i] = items[i].score;
    token_scores[i] = as_array(items[i].token_scores);
    ids.clear();
    const auto [begin, end] = view.items_of_leaf(items[i].leaf);
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      if (filter == nullptr || filter->allows_entry(entry)) ids.push_back(view.item_id(entry));
    }
    item_ids[i] = as_array(ids);
    num_forced += items[i].num_forced;
  }
  return py::make_tuple(std::move(sequences), std::move(scores), std::move(token_scores), std::move(item_ids),
                        num_forced);
}

}  // namespace

void bind_beam_search(py::module_& module) {
  using py::arg;
  py::class_<BeamRules>(module, "BeamRules")
      .def(py::init([](std::uint32_t beam_width, std::uint32_t num_beam_groups, double diversity_penalty,
                       bool over_vocabulary, double length_penalty, const std::string& early_stopping,
                       std::uint64_t max_length) {
             const EarlyStopping stopping = early_stopping == "never" ? EarlyStopping::kNever
                                            : early_stopping == "yes" ? EarlyStopping::kTrue
                                                                      : EarlyStopping::kFalse;
             return BeamRules{beam_width,     num_beam_groups, diversity_penalty, over_vocabulary,
                              length_penalty, stopping,        max_length};
           }),
           arg("beam_width"), arg("num_beam_groups"), arg("diversity_penalty"), arg("over_vocabulary"),
           arg("length_penalty"), arg("early_stopping"), arg("max_length"));
  py::class_<ItemTerm, std::shared_ptr<ItemTerm>>(module, "ItemTerm");
  module.def(
      "share_term",
      [](const Trie& trie, const InputArray<double>& scores, double alpha) {
        const py::gil_scoped_release no_gil;
        return std::make_shared<ItemTerm>(
            share_term(trie.view(), scores.data(), static_cast<std::uint64_t>(scores.size()), alpha, signal_poll()));
      },
      arg("trie"), arg("scores"), arg("alpha"));
  module.def(
      "best_term",
      [](const Trie& trie, const FilterPtr& filter, const InputArray<double>& scores) {
        const py::gil_scoped_release no_gil;
        return std::make_shared<ItemTerm>(best_term(trie.view(), filter.get(), scores.data(),
                                                    static_cast<std::uint64_t>(scores.size()), signal_poll()));
      },
      arg("trie"), arg("item_filter"), arg("scores"));

  // The GIL is held: a search belongs to one thread at a time, and two that share it by mistake must not tear it.
  py::class_<BeamSearch>(module, "BeamSearch")
      .def(py::init([](const std::shared_ptr<Trie>& trie) { return std::make_unique<BeamSearch>(trie); }), arg("trie"))
      .def("has", &BeamSearch::has, arg("request"))
      .def(
          "add",
          [](BeamSearch& search, std::int64_t request, const BeamRules& rules, const FilterPtr& filter,
             const std::shared_ptr<ItemTerm>& term) { search.add(request, rules, filter, term); },
          arg("request"), arg("rules"), arg("item_filter"), arg("term"))
      .def("drop", &BeamSearch::drop, arg("request"))
      .def("is_finished", &BeamSearch::is_finished, arg("request"))
      .def("take", &take, arg("request"), arg("limit"))
      .def("rows", &rows, arg("room"))
      .def_property_readonly("num_logits", &BeamSearch::num_logits)
      .def_property_readonly("needs_log_sums", &BeamSearch::needs_log_sums)
      .def("places",
           [](const BeamSearch& search) {
             return py::make_tuple(as_array(search.place_tokens()), as_array(search.place_indptr()));
           })
      .def(
          "step",
          [](BeamSearch& search, std::uintptr_t logits, bool is_double, std::uint64_t width, std::int64_t row_stride,
             bool is_narrow, const std::optional<InputArray<double>>& log_sums) {
            return as_tuple(search.step(
                {at_address<const void>(logits), is_double, width, row_stride, is_narrow, data_of(log_sums)},
                signal_poll()));
          },
          arg("logits"), arg("is_double"), arg("width"), arg("row_stride"), arg("is_narrow"), arg("log_sums"))
      .def(
          "step_places",
          [](BeamSearch& search, const InputArray<double>& logits, const std::optional<InputArray<double>>& log_sums) {
            return as_tuple(search.step_places(logits.data(), data_of(log_sums)));
          },
          arg("logits"), arg("log_sums"))
      .def("handles_in_use", [](const BeamSearch& search) { return to_array(search.handles_in_use()); });
}

}  // namespace gentrie
