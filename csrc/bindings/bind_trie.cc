#include <map>
#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "gentrie/batch.h"
#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/filter.h"

namespace gentrie {

namespace {

using TriePtr = std::shared_ptr<Trie>;

TriePtr unconst(std::shared_ptr<const Trie> trie) { return std::const_pointer_cast<Trie>(std::move(trie)); }

/// Rows as `values` with `indptr`, or as the rows of a 2-d `values`.
SequenceSource as_source(const py::array& values, const std::optional<InputArray<std::int64_t>>& indptr,
                         const std::optional<InputArray<std::int64_t>>& item_ids) {
  SequenceSource source;
  source.values = values.data();
  source.value_bytes = static_cast<std::uint32_t>(values.itemsize());
  source.num_values = static_cast<std::uint64_t>(values.size());
  if (indptr) {
    source.indptr = indptr->data();
    source.num_rows = static_cast<std::uint64_t>(indptr->size()) - 1;
  } else {
    source.num_rows = static_cast<std::uint64_t>(values.shape(0));
    source.length = static_cast<std::uint64_t>(values.shape(1));
  }
  if (item_ids) source.item_ids = item_ids->data();
  return source;
}

BuildOptions as_options(std::int64_t vocab_size, std::int64_t end_token_id, int num_threads, std::uint64_t memory_limit,
                        const py::object& progress) {
  BuildOptions options;
  options.vocab_size = vocab_size;
  options.end_token_id = end_token_id;
  options.num_threads = num_threads;
  options.memory_limit = memory_limit;
  options.progress = [&progress](std::uint64_t done, std::uint64_t total) {
    check_signals();
    const py::gil_scoped_acquire gil;
    if (!progress.is_none()) progress(done, total);
  };
  return options;
}

TriePtr build(const py::array& values, const std::optional<InputArray<std::int64_t>>& indptr, std::int64_t vocab_size,
              std::int64_t end_token_id, const std::optional<InputArray<std::int64_t>>& item_ids, int num_threads,
              std::uint64_t memory_limit, const py::object& progress) {
  const SequenceSource source = as_source(values, indptr, item_ids);
  const BuildOptions options = as_options(vocab_size, end_token_id, num_threads, memory_limit, progress);
  const py::gil_scoped_release no_gil;
  return unconst(build_trie(source, options));
}

/// ChunkedBuilder for Python, which has one thread at a time in it.
class PyChunkedBuilder {
 public:
  PyChunkedBuilder(std::int64_t vocab_size, std::int64_t end_token_id, int num_threads, std::uint64_t memory_limit,
                   const std::string& spill_folder, py::object progress)
      : progress_(std::move(progress)),
        builder_(as_options(vocab_size, end_token_id, num_threads, memory_limit, progress_), spill_folder) {}

  void add(const py::array& values, const std::optional<InputArray<std::int64_t>>& indptr,
           const std::optional<InputArray<std::int64_t>>& item_ids, const std::string& name) {
    SequenceSource source = as_source(values, indptr, item_ids);
    source.name = name;
    source.first_item_id = static_cast<std::int64_t>(builder_.num_rows());
    const py::gil_scoped_release no_gil;
    builder_.add(source);
  }

  TriePtr finish() {
    const py::gil_scoped_release no_gil;
    return unconst(builder_.finish());
  }

 private:
  py::object progress_;  // the builder's callback refers to it
  ChunkedBuilder builder_;
};

py::dict arrays_of(const TriePtr& trie) {
  py::dict arrays;
  for (std::size_t i = 0; i < kNumArrays; ++i) {
    const ArrayRef& ref = trie->arrays()[i];
    const py::dtype dtype(std::string(ref.is_signed ? "i" : "u") + std::to_string(ref.itemsize));
    py::array array(dtype, {static_cast<py::ssize_t>(ref.count)}, {static_cast<py::ssize_t>(ref.itemsize)}, ref.data,
                    py::cast(trie));
    array.attr("flags").attr("writeable") = false;
    arrays[array_name(static_cast<ArrayId>(i))] = std::move(array);
  }
  return arrays;
}

/// The counts without which the arrays cannot be read.
py::dict header_of(const Trie& trie) {
  const TrieHeader& header = trie.header();
  py::dict counts;
  counts["num_nodes"] = header.num_nodes;
  counts["num_leaves"] = header.num_leaves;
  counts["num_run_tokens"] = header.num_run_tokens;
  counts["run_token_bits"] = header.run_token_bits;
  counts["run_offset_bits"] = header.run_offset_bits;
  return counts;
}

State checked(const TrieView& view, State state) {
  check_states(view, &state, 1);
  return state;
}

State walk(const TrieView& view, State state, const InputArray<std::int64_t>& tokens) {
  std::uint64_t used = 0;
  const auto count = static_cast<std::uint64_t>(tokens.size());
  state = view.walk(state, tokens.data(), count, &used);
  return state >= 0 && used < count ? kOffTrie : state;  // tokens behind a complete sequence
}

/// The state after a list of plain ints, or -3 where something else is in it and has to be named.
State walk_list(const TrieView& view, const py::list& tokens, State state) {
  constexpr State kNotPlain = -3;
  std::vector<std::int64_t> ids(tokens.size());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    PyObject* const token = PyList_GET_ITEM(tokens.ptr(), static_cast<py::ssize_t>(i));
    int overflow = 0;
    if (!PyLong_CheckExact(token)) return kNotPlain;
    ids[i] = PyLong_AsLongLongAndOverflow(token, &overflow);
    if (overflow != 0) return kNotPlain;
  }
  std::uint64_t used = 0;
  state = view.walk(state, ids.data(), ids.size(), &used);
  return state >= 0 && used < ids.size() ? kOffTrie : state;
}

py::array_t<std::int64_t> items_of(const TrieView& view, LeafRange leaves) {
  std::vector<std::int64_t> items;
  {
    const py::gil_scoped_release no_gil;
    const auto [begin, end] = view.items_of_leaves(leaves);
    items.reserve(end - begin);
    const Poll poll = signal_poll();
    for (std::uint64_t entry = begin; entry < end; ++entry) {
      items.push_back(view.item_id(entry));
      if (entry % kItemsPerPoll == 0) poll();
    }
  }
  return to_array(std::move(items));
}

py::array_t<std::int64_t> resolve(const Trie& trie, const InputArray<std::int64_t>& tokens) {
  const TrieView& view = trie.view();
  State state = walk(view, kRoot, tokens);
  if (state >= 0 && !view.is_leaf(state) && view.end_token != kNoToken) state = view.advance(state, view.end_token);
  return items_of(view, view.is_leaf(state) ? view.leaves_below(state) : LeafRange{});
}

/// All sequences with their items, or only those that stand for several.
py::tuple to_sequences(const Trie& trie, bool only_shared) {
  const TrieView& view = trie.view();
  std::vector<Token> values;
  std::vector<std::int64_t> indptr{0}, items, item_indptr{0};
  {
    const py::gil_scoped_release no_gil;
    const auto append = [&](std::uint32_t leaf, const std::vector<Token>& tokens) {
      const auto [begin, end] = view.items_of_leaf(leaf);
      if (only_shared && end - begin < 2) return;
      values.insert(values.end(), tokens.begin(), tokens.end());
      indptr.push_back(static_cast<std::int64_t>(values.size()));
      for (std::uint64_t entry = begin; entry < end; ++entry) items.push_back(view.item_id(entry));
      item_indptr.push_back(static_cast<std::int64_t>(items.size()));
    };
    trie.for_each_sequence(append, signal_poll());
  }
  return py::make_tuple(to_array(std::move(values)), to_array(std::move(indptr)), to_array(std::move(items)),
                        to_array(std::move(item_indptr)));
}

py::array_t<State> advance_states(const Trie& trie, const InputArray<State>& states,
                                  const InputArray<std::int64_t>& tokens, int num_threads) {
  py::array_t<State> out(states.size());
  State* target = out.mutable_data();
  const py::gil_scoped_release no_gil;
  advance_batch(trie.view(), states.data(), tokens.data(), target, static_cast<std::uint64_t>(states.size()),
                num_threads, signal_poll());
  return out;
}

py::tuple next_tokens(const Trie& trie, const InputArray<State>& states) {
  std::vector<Token> tokens;
  std::vector<std::int64_t> indptr;
  {
    const py::gil_scoped_release no_gil;
    next_tokens_batch(trie.view(), states.data(), static_cast<std::uint64_t>(states.size()), &tokens, &indptr,
                      signal_poll());
  }
  return py::make_tuple(to_array(std::move(tokens)), to_array(std::move(indptr)));
}

py::array_t<State> states_of_tokens(const Trie& trie, const InputArray<std::int64_t>& tokens,
                                    std::int64_t begin_token_id, const std::optional<InputArray<std::int64_t>>& starts,
                                    int num_threads) {
  py::array_t<State> out({tokens.shape(0), tokens.shape(1)});
  State* target = out.mutable_data();
  const std::int64_t* start = starts ? starts->data() : nullptr;
  const py::gil_scoped_release no_gil;
  token_states(trie.view(), tokens.data(), static_cast<std::uint64_t>(tokens.shape(0)),
               static_cast<std::uint64_t>(tokens.shape(1)), as_token(begin_token_id), start, target, num_threads,
               signal_poll());
  return out;
}

}  // namespace

void bind_trie(py::module_& module) {
  using py::arg;
  py::class_<Trie, TriePtr>(module, "Trie")
      .def_static("build", &build, arg("values"), arg("indptr"), arg("vocab_size"), arg("end_token_id"),
                  arg("item_ids"), arg("num_threads"), arg("memory_limit"), arg("progress"))
      .def_static(
          "load",
          [](const std::string& path, std::optional<bool> verify, bool prefault, bool copy) {
            LoadOptions options;
            options.verify = !verify ? Verify::kAuto : *verify ? Verify::kAlways : Verify::kNever;
            options.prefault = prefault;
            options.copy = copy;
            options.poll = signal_poll();
            const py::gil_scoped_release no_gil;
            return unconst(load_trie(path, options));
          },
          arg("path"), arg("verify"), arg("prefault"), arg("copy"))
      .def(
          "save",
          [](const Trie& trie, const std::string& path, const std::map<std::string, std::string>& metadata) {
            save_trie(trie, path, metadata, signal_poll());
          },
          arg("path"), arg("metadata"), py::call_guard<py::gil_scoped_release>())
      .def(
          "verify",
          [](const Trie& trie, const py::object& progress) {
            const py::gil_scoped_release no_gil;
            verify_trie(trie, 0, [&, poll = signal_poll()](double share) {
              poll();
              if (progress.is_none()) return;
              const py::gil_scoped_acquire gil;
              const std::uint32_t total = trie.view().num_leaves;
              progress(static_cast<std::uint32_t>(share * total), total);
            });
          },
          arg("progress"))
      .def("check_file_unchanged", &check_file_unchanged)
      .def_property_readonly("num_items", [](const Trie& trie) { return trie.view().num_items; })
      .def_property_readonly("num_sequences", [](const Trie& trie) { return trie.view().num_leaves; })
      .def_property_readonly("vocab_size", [](const Trie& trie) { return trie.view().vocab_size; })
      .def_property_readonly("end_token_id", [](const Trie& trie) { return trie.view().end_token; })
      .def_property_readonly("max_depth", [](const Trie& trie) { return trie.view().max_depth; })
      .def_property_readonly("max_branching", [](const Trie& trie) { return trie.view().max_branching; })
      .def_property_readonly("fingerprint", &Trie::fingerprint)
      .def_property_readonly("token_index_nbytes", &Trie::token_index_nbytes)
      .def_property_readonly("metadata", &Trie::metadata)
      .def("arrays", &arrays_of)
      .def("header", &header_of)
      .def(
          "next_tokens",
          [](const Trie& trie, State state) {
            checked(trie.view(), state);
            std::vector<Token> tokens;
            std::vector<std::int64_t> indptr;
            next_tokens_batch(trie.view(), &state, 1, &tokens, &indptr);
            return to_array(std::move(tokens));
          },
          arg("state"))
      .def("next_tokens_batch", &next_tokens, arg("states"))
      .def(
          "advance",
          [](const Trie& trie, State state, std::int64_t token) {
            return trie.view().advance(checked(trie.view(), state), as_token(token));
          },
          arg("state"), arg("token"))
      .def("advance_batch", &advance_states, arg("states"), arg("tokens"), arg("num_threads"))
      .def(
          "walk",
          [](const Trie& trie, const InputArray<std::int64_t>& tokens, State state) {
            return walk(trie.view(), checked(trie.view(), state), tokens);
          },
          arg("tokens"), arg("state"))
      .def(
          "walk_list",
          [](const Trie& trie, const py::list& tokens, State state) {
            return walk_list(trie.view(), tokens, checked(trie.view(), state));
          },
          arg("tokens"), arg("state"))
      .def(
          "forced_tokens",
          [](const Trie& trie, State state) {
            std::vector<Token> tokens;
            append_forced(trie.view(), checked(trie.view(), state), &tokens);
            return to_array(std::move(tokens));
          },
          arg("state"))
      .def(
          "is_leaf", [](const Trie& trie, State state) { return trie.view().is_leaf(checked(trie.view(), state)); },
          arg("state"))
      .def(
          "num_sequences_below",
          [](const Trie& trie, State state) {
            return checked(trie.view(), state) < 0 ? 0 : trie.view().leaves_below(state).size();
          },
          arg("state"))
      .def(
          "items_below",
          [](const Trie& trie, State state) {
            const bool on_trie = checked(trie.view(), state) >= 0;
            return items_of(trie.view(), on_trie ? trie.view().leaves_below(state) : LeafRange{});
          },
          arg("state"))
      .def("resolve", &resolve, arg("tokens"))
      .def("token_states", &states_of_tokens, arg("token_ids"), arg("begin_token_id"), arg("starts"),
           arg("num_threads"))
      .def("to_sequences", &to_sequences, arg("only_shared"));

  py::class_<PyChunkedBuilder>(module, "ChunkedBuilder")
      .def(py::init<std::int64_t, std::int64_t, int, std::uint64_t, const std::string&, py::object>(),
           arg("vocab_size"), arg("end_token_id"), arg("num_threads"), arg("memory_limit"), arg("spill_folder"),
           arg("progress"))
      .def("add", &PyChunkedBuilder::add, arg("values"), arg("indptr"), arg("item_ids"), arg("name"))
      .def("finish", &PyChunkedBuilder::finish);
}

}  // namespace gentrie
