// Long calls look for whoever wants to stop them: every one polls while it works, and ends when the poll throws.

#include <unistd.h>

#include <cassert>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "gentrie/batch.h"
#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/filter.h"
#include "gentrie/history.h"
#include "gentrie/matcher.h"

namespace {

using gentrie::Poll;

constexpr std::uint64_t kRows = 300'000, kLength = 3;

struct Stop {};

/// Whether `call` polls at least `least` times, and is ended by an exception from the first poll.
void check(const char* name, std::uint64_t least, const std::function<void(const Poll&)>& call) {
  std::uint64_t polls = 0;
  call([&polls] { ++polls; });
  if (polls < least) {
    std::fprintf(stderr, "%s: %llu polls, expected %llu\n", name, static_cast<unsigned long long>(polls),
                 static_cast<unsigned long long>(least));
    std::abort();
  }
  bool stopped = false;
  try {
    call([] { throw Stop(); });
  } catch (const Stop&) {
    stopped = true;
  }
  assert(stopped);
}

std::vector<std::int64_t> random_values() {
  std::mt19937 rng(0);
  std::vector<std::int64_t> values(kRows * kLength);
  for (std::int64_t& value : values) value = rng() % 500;
  return values;
}

gentrie::SequenceSource source_of(const std::vector<std::int64_t>& values, const std::vector<std::int64_t>& ids) {
  gentrie::SequenceSource source;
  source.values = values.data();
  source.length = kLength;
  source.num_rows = kRows;
  source.num_values = values.size();
  source.item_ids = ids.data();
  return source;
}

}  // namespace

int main() {
  const std::vector<std::int64_t> values = random_values();
  std::vector<std::int64_t> ids(kRows);
  for (std::uint64_t i = 0; i < kRows; ++i) ids[i] = static_cast<std::int64_t>(i) << 20;
  gentrie::BuildOptions options;
  options.vocab_size = 1000;
  options.num_threads = 2;
  const auto trie = gentrie::build_trie(source_of(values, ids), options);
  const gentrie::TrieView& view = trie->view();

  for (const int num_threads : {1, 2}) {
    bool stopped = false;
    gentrie::BuildOptions stopping = options;
    stopping.num_threads = num_threads;
    stopping.progress = [](std::uint64_t, std::uint64_t) { throw Stop(); };
    try {
      gentrie::build_trie(source_of(values, ids), stopping);
    } catch (const Stop&) {
      stopped = true;
    }
    assert(stopped);
  }

  const std::vector<gentrie::State> roots(kRows, gentrie::kRoot);
  const std::vector<std::int64_t> tokens(kRows, 1);
  std::vector<gentrie::State> states(kRows);
  check("advance_batch", 10, [&](const Poll& poll) {
    gentrie::advance_batch(view, roots.data(), tokens.data(), states.data(), kRows, 1, poll);
  });
  check("next_tokens_batch", 10, [&](const Poll& poll) {
    std::vector<gentrie::Token> next;
    std::vector<std::int64_t> indptr;
    gentrie::next_tokens_batch(view, roots.data(), 3000, &next, &indptr, poll);
  });
  check("token_states", 10, [&](const Poll& poll) {
    gentrie::token_states(view, tokens.data(), kRows / 10, 10, 1, nullptr, states.data(), 1, poll);
  });
  check("for_each_sequence", 5, [&](const Poll& poll) {
    trie->for_each_sequence([](std::uint32_t, const std::vector<gentrie::Token>&) {}, poll);
  });
  check("checksums_of", 5, [&](const Poll& poll) { gentrie::checksums_of(trie->arrays(), 1, poll); });
  check("verify_trie", 5, [&](const Poll& poll) { gentrie::verify_trie(*trie, 1, [&](double) { poll(); }); });

  // An index is made once: a fresh trie for each attempt.
  check("item_index", 5,
        [&](const Poll& poll) { gentrie::build_trie(source_of(values, ids), options)->item_index(poll); });
  check("from_item_ids", 4,
        [&](const Poll& poll) { gentrie::ItemFilter::from_item_ids(trie, ids.data(), kRows, poll); });
  const std::vector<std::uint8_t> mask(view.num_items, 1);
  check("from_leaf_order", 4,
        [&](const Poll& poll) { gentrie::ItemFilter::from_leaf_order(trie, mask.data(), mask.size(), 1, poll); });
  const auto filter = gentrie::ItemFilter::from_item_ids(trie, ids.data(), kRows / 2);
  check("complement", 4, [&](const Poll& poll) { filter->complement(poll); });
  check("intersection", 4, [&](const Poll& poll) { filter->intersection(*filter, poll); });
  check("filter: next_tokens_batch", 10, [&](const Poll& poll) {
    std::vector<gentrie::Token> next;
    std::vector<std::int64_t> indptr;
    gentrie::next_tokens_batch(*filter, roots.data(), 3000, &next, &indptr, poll);
  });
  std::vector<std::int64_t> counts(kRows);
  check("count_below", 4,
        [&](const Poll& poll) { gentrie::count_below(*filter, roots.data(), kRows, counts.data(), poll); });

  const auto triggered = std::make_shared<const gentrie::Constraint>(trie, gentrie::ConstraintOptions{998, {999}});
  const std::vector<std::int64_t> history(kRows, 1);
  check("HistoryReader::allowed", 3, [&](const Poll& poll) {
    gentrie::HistoryReader({triggered}, {}, gentrie::OnDead::kEos)
        .allowed({history.data(), nullptr, kRows / 10, 10, nullptr, 0}, poll);
  });
  const std::vector<gentrie::Token> text(kRows, 1);
  check("Matcher::validate", 3,
        [&](const Poll& poll) { gentrie::Matcher(triggered).validate(text.data(), text.size(), poll); });

  const std::string path = "test_poll_" + std::to_string(::getpid()) + ".safetensors";
  check("save_trie", 10, [&](const Poll& poll) { gentrie::save_trie(*trie, path, {}, poll); });
  for (const bool copy : {false, true}) {
    check("load_trie", 5, [&](const Poll& poll) {
      gentrie::LoadOptions load;
      load.verify = gentrie::Verify::kAlways;
      load.prefault = true;
      load.copy = copy;
      load.poll = poll;
      gentrie::load_trie(path, load);
    });
  }
  ::unlink(path.c_str());
  return 0;
}
