#include <pybind11/native_enum.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "bindings.h"
#include "gentrie/bitmask.h"
#include "gentrie/constraint.h"
#include "gentrie/filter.h"
#include "gentrie/history.h"
#include "gentrie/matcher.h"

namespace gentrie {

namespace {

using FilterPtr = std::shared_ptr<ItemFilter>;
using ConstraintPtr = std::shared_ptr<Constraint>;

std::vector<Token> as_tokens(const InputArray<std::int64_t>& ids) {
  std::vector<Token> tokens(static_cast<std::size_t>(ids.size()));
  for (py::ssize_t i = 0; i < ids.size(); ++i) tokens[static_cast<std::size_t>(i)] = as_token(ids.data()[i]);
  return tokens;
}

HistoryBatch history_batch(std::uintptr_t ids, bool is_narrow, std::uint64_t rows, std::uint64_t length,
                           const std::optional<InputArray<std::int64_t>>& prompt_lengths) {
  HistoryBatch batch;
  if (is_narrow) {
    batch.narrow_ids = at_address<const std::int32_t>(ids);
  } else {
    batch.ids = at_address<const std::int64_t>(ids);
  }
  batch.rows = rows;
  batch.length = length;
  if (prompt_lengths) {
    batch.prompt_lengths = prompt_lengths->data();
    batch.num_prompt_lengths = static_cast<std::uint64_t>(prompt_lengths->size());
  }
  return batch;
}

void bind_matcher(py::module_& module) {
  using py::arg;
  py::class_<Matcher>(module, "Matcher")
      .def(py::init([](const ConstraintPtr& constraint) { return Matcher(constraint); }), arg("constraint"))
      .def("fork", [](const Matcher& matcher) { return Matcher(matcher); })
      .def(
          "accept_token", [](Matcher& matcher, std::int64_t token) { return matcher.accept(as_token(token)); },
          arg("token"))
      .def(
          "validate_tokens",
          [](const Matcher& matcher, const InputArray<std::int64_t>& ids) {
            const std::vector<Token> tokens = as_tokens(ids);
            return matcher.validate(tokens.data(), tokens.size(), signal_poll());
          },
          arg("tokens"))
      .def("rollback", &Matcher::rollback, arg("num_tokens"))
      .def("reset", &Matcher::reset)
      .def("is_terminated", &Matcher::is_terminated)
      .def_property_readonly("num_accepted", &Matcher::num_accepted)
      .def_property_readonly("state", [](const Matcher& matcher) { return matcher.cursor().state; })
      .def("allowed_tokens",
           [](const Matcher& matcher) {
             std::vector<Token> tokens;
             const Verdict verdict = matcher.allowed(&tokens);
             return py::make_tuple(verdict, to_array(std::move(tokens)));
           })
      .def("forced_tokens",
           [](const Matcher& matcher) {
             std::vector<Token> tokens;
             matcher.constraint().forced(matcher.cursor(), &tokens);
             return to_array(std::move(tokens));
           })
      .def(
          "fill_bitmask",
          [](const Matcher& matcher, std::uintptr_t row, std::uint64_t num_words) {
            const py::gil_scoped_release no_gil;
            return fill_bitmask(matcher, at_address<std::int32_t>(row), num_words);
          },
          arg("row"), arg("num_words"));
  module.def(
      "fill_bitmasks",
      [](const std::vector<const Matcher*>& matchers, std::uintptr_t bitmask, std::uint64_t num_words,
         std::int64_t row_stride, const std::optional<InputArray<std::int64_t>>& rows, int num_threads) {
        const std::int64_t* row = rows ? rows->data() : nullptr;
        const py::gil_scoped_release no_gil;
        fill_bitmasks(matchers, at_address<std::int32_t>(bitmask), num_words, row_stride, row, num_threads,
                      signal_poll());
      },
      arg("matchers"), arg("bitmask"), arg("num_words"), arg("row_stride"), arg("rows"), arg("num_threads"));
  module.def(
      "accept_tokens",
      [](const std::vector<Matcher*>& matchers, const InputArray<std::int64_t>& tokens) {
        py::array_t<bool> accepted(static_cast<py::ssize_t>(matchers.size()));
        for (std::size_t i = 0; i < matchers.size(); ++i) {
          accepted.mutable_data()[i] = matchers[i]->accept(as_token(tokens.data()[i]));
        }
        return accepted;
      },
      arg("matchers"), arg("tokens"));
}

void bind_history(py::module_& module) {
  using py::arg;
  py::class_<AllowedRows>(module, "AllowedRows")
      .def_property_readonly("verdicts",
                             [](const AllowedRows& allowed) {
                               std::vector<std::uint8_t> verdicts(allowed.verdicts.size());
                               std::transform(allowed.verdicts.begin(), allowed.verdicts.end(), verdicts.begin(),
                                              [](Verdict verdict) { return static_cast<std::uint8_t>(verdict); });
                               return to_array(std::move(verdicts));
                             })
      .def_property_readonly("is_open", &AllowedRows::is_open)
      .def_property_readonly("num_dead", &AllowedRows::num_dead)
      .def_property_readonly("first_closed", &AllowedRows::first_closed)
      .def(
          "tokens",
          [](const AllowedRows& allowed, std::uint64_t row) {
            const auto [begin, end] = allowed.spans.at(row);
            return to_array(std::vector<Token>(allowed.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                               allowed.tokens.begin() + static_cast<std::ptrdiff_t>(end)));
          },
          arg("row"));

  py::class_<HistoryReader>(module, "HistoryReader")
      .def(py::init([](const std::vector<ConstraintPtr>& constraints, const InputArray<std::int64_t>& after,
                       bool mask_dead) {
             return HistoryReader({constraints.begin(), constraints.end()}, as_tokens(after),
                                  mask_dead ? OnDead::kNothing : OnDead::kEos);
           }),
           arg("constraints"), arg("after"), arg("mask_dead"))
      .def_property_readonly("num_constraints", &HistoryReader::num_constraints)
      .def("row", &HistoryReader::row, arg("row"))
      .def(
          "allowed",
          [](const HistoryReader& reader, std::uintptr_t ids, bool is_narrow, std::uint64_t rows, std::uint64_t length,
             const std::optional<InputArray<std::int64_t>>& prompt_lengths) {
            const HistoryBatch batch = history_batch(ids, is_narrow, rows, length, prompt_lengths);
            const py::gil_scoped_release no_gil;
            std::optional<AllowedRows> allowed = reader.allowed(batch, signal_poll());
            if (allowed->is_unconstrained()) allowed.reset();  // an object less to make at most tokens of free text
            return allowed;
          },
          arg("ids"), arg("is_narrow"), arg("rows"), arg("length"), arg("prompt_lengths"));

  module.def(
      "mask_scores",
      [](const AllowedRows& allowed, std::int64_t begin_token_id, std::uintptr_t scores, std::uintptr_t out,
         std::uint64_t width, std::uint32_t itemsize, std::uint64_t minus_infinity, std::uint64_t last_resort,
         std::uint64_t highest) {
        const py::gil_scoped_release no_gil;
        return mask_scores(allowed, as_token(begin_token_id),
                           {at_address<const void>(scores), at_address<void>(out), width, itemsize, minus_infinity,
                            last_resort, highest});
      },
      arg("allowed"), arg("begin_token_id"), arg("scores"), arg("out"), arg("width"), arg("itemsize"),
      arg("minus_infinity"), arg("last_resort"), arg("highest"));
}

}  // namespace

void bind_constraint(py::module_& module) {
  using py::arg;
  py::native_enum<Unique>(module, "Unique", "enum.IntEnum")
      .value("NO", Unique::kNo)
      .value("SEQUENCE", Unique::kSequence)
      .value("ITEM", Unique::kItem)
      .finalize();
  py::native_enum<Verdict>(module, "Verdict", "enum.IntEnum")
      .value("FREE", Verdict::kFree)
      .value("FREE_NO_BEGIN", Verdict::kFreeNoBegin)
      .value("ITEM", Verdict::kItem)
      .value("FINISHED", Verdict::kFinished)
      .value("DEAD", Verdict::kDead)
      .value("EMPTIED", Verdict::kEmptied)
      .finalize();
  py::class_<Constraint, ConstraintPtr>(module, "Constraint")
      .def(py::init([](std::shared_ptr<Trie> trie, std::int64_t begin_token_id, const std::vector<Token>& eos_token_ids,
                       Unique unique, FilterPtr filter, std::int64_t vocab_size) {
             return std::make_shared<Constraint>(
                 std::move(trie), ConstraintOptions{as_token(begin_token_id), eos_token_ids, unique, vocab_size},
                 std::move(filter));
           }),
           arg("trie"), arg("begin_token_id"), arg("eos_token_ids"), arg("unique"), arg("item_filter"),
           arg("vocab_size"))
      .def_property_readonly("begin_token_id",
                             [](const Constraint& constraint) { return constraint.options().begin_token; });
  bind_matcher(module);
  bind_history(module);
  module.def(
      "apply_bitmask",
      [](std::uintptr_t logits, std::uint64_t width, std::int64_t logits_stride, std::uint32_t itemsize,
         std::uint64_t minus_infinity, std::uintptr_t bitmask, std::uint64_t num_words, std::int64_t bitmask_stride,
         std::uint64_t vocab_size, const InputArray<std::int64_t>& rows) {
        const std::int64_t* row = rows.data();
        const auto num_rows = static_cast<std::uint64_t>(rows.size());
        const py::gil_scoped_release no_gil;
        constexpr std::uint64_t kRowsPerPoll = 64;
        const Poll poll = signal_poll();
        for (std::uint64_t first = 0; first < num_rows; first += kRowsPerPoll) {
          apply_bitmask({at_address<void>(logits), width, logits_stride, itemsize, minus_infinity,
                         at_address<const std::int32_t>(bitmask), num_words, bitmask_stride, vocab_size},
                        row + first, std::min(kRowsPerPoll, num_rows - first));
          poll();
        }
      },
      arg("logits"), arg("width"), arg("logits_stride"), arg("itemsize"), arg("minus_infinity"), arg("bitmask"),
      arg("num_words"), arg("bitmask_stride"), arg("vocab_size"), arg("rows"));
}

}  // namespace gentrie
