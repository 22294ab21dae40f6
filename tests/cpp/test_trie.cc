// The core without Python: lookups against a std::set of sequences, a file and back, and damaged files under whatever
// is called. Run it under the sanitizers: cmake --workflow --preset sanitize.

#include <unistd.h>

#include <cassert>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gentrie/batch.h"
#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/history.h"
#include "gentrie/matcher.h"
#include "safetensors.h"

namespace {

using gentrie::State;
using gentrie::Token;
using Sequences = std::set<std::vector<Token>>;

constexpr Token kBegin = 0, kEnd = 1, kEos = 2, kFirst = 3;
constexpr std::int64_t kVocabSize = 100;

std::shared_ptr<const gentrie::Trie> build(const std::vector<std::vector<Token>>& rows, int num_threads) {
  std::vector<Token> values;
  std::vector<std::int64_t> indptr{0};
  for (const auto& row : rows) {
    values.insert(values.end(), row.begin(), row.end());
    indptr.push_back(static_cast<std::int64_t>(values.size()));
  }
  gentrie::SequenceSource source;
  source.values = values.data();
  source.value_bytes = sizeof(Token);
  source.indptr = indptr.data();
  source.num_rows = rows.size();
  source.num_values = values.size();
  gentrie::BuildOptions options;
  options.vocab_size = kVocabSize;
  options.end_token_id = kEnd;
  options.num_threads = num_threads;
  return gentrie::build_trie(source, options);
}

std::vector<std::vector<Token>> random_rows(std::mt19937& rng) {
  const auto below = [&rng](std::size_t limit) { return static_cast<std::size_t>(rng() % limit); };
  const std::size_t num_tokens = 1 + below(6);
  std::vector<std::vector<Token>> rows(1 + below(40));
  for (auto& row : rows) {
    row.resize(1 + below(8));
    for (Token& token : row) token = kFirst + static_cast<Token>(below(num_tokens));
  }
  return rows;
}

void check_lookups(const gentrie::Trie& trie, const Sequences& sequences) {
  const gentrie::TrieView& view = trie.view();
  assert(view.num_leaves == sequences.size());
  std::vector<std::uint32_t> leaves;
  std::vector<std::vector<Token>> in_order;
  trie.for_each_sequence([&](std::uint32_t leaf, const std::vector<Token>& tokens) {
    leaves.push_back(leaf);
    in_order.push_back(tokens);
  });
  assert(std::equal(in_order.begin(), in_order.end(), sequences.begin(), sequences.end()));
  auto leaf = leaves.begin();
  for (const auto& sequence : sequences) {
    std::vector<Token> found;
    trie.append_sequence(*leaf, &found);
    assert(found == sequence);
    State state = gentrie::kRoot;
    for (std::size_t depth = 0; depth <= sequence.size(); ++depth) {
      const std::vector<Token> prefix(sequence.begin(), sequence.begin() + static_cast<std::ptrdiff_t>(depth));
      std::uint32_t below = 0;
      std::set<Token> next;
      for (const auto& other : sequences) {
        if (other.size() < depth || !std::equal(prefix.begin(), prefix.end(), other.begin())) continue;
        ++below;
        if (other.size() > depth) next.insert(other[depth]);
      }
      assert(view.contains(state));
      assert(view.leaves_below(state).size() == below);
      assert(view.is_leaf(state) == next.empty());
      for (Token token = 0; token < kVocabSize; ++token) assert((view.advance(state, token) >= 0) == next.count(token));
      if (depth < sequence.size()) state = view.advance(state, sequence[depth]);
    }
    assert(view.leaf_of(state) == *leaf++);
  }
}

/// Calls everything with whatever the arrays say; only exceptions may come of it.
void use(const std::shared_ptr<const gentrie::Trie>& trie) {
  const gentrie::TrieView& view = trie->view();
  std::vector<State> states{gentrie::kRoot, gentrie::kOffTrie, gentrie::kFreeText};
  std::vector<Token> tokens;
  std::vector<std::int64_t> indptr;
  for (std::size_t i = 0; i < states.size() && states.size() < 200; ++i) {
    tokens.clear();
    indptr.clear();
    try {
      gentrie::check_states(view, &states[i], 1);
      gentrie::next_tokens_batch(view, &states[i], 1, &tokens, &indptr);
      if (states[i] >= 0) view.leaves_below(states[i]);
    } catch (const std::invalid_argument&) {
      continue;
    }
    for (const Token token : tokens) {
      const State next = view.advance(states[i], token);
      if (next >= 0) states.push_back(next);
    }
    gentrie::append_forced(view, states[i], &tokens);
  }
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    try {
      trie->append_sequence(leaf, &tokens);
    } catch (const gentrie::FormatError&) {
    }
    view.items_of_leaf(leaf);
  }
  try {
    trie->for_each_sequence([](std::uint32_t, const std::vector<Token>&) {});
  } catch (const gentrie::FormatError&) {
  }
  const std::int64_t items[] = {0, 2, 4, 6};
  for (const auto& filter :
       {std::shared_ptr<const gentrie::ItemFilter>(), gentrie::ItemFilter::from_item_ids(trie, items, 4)}) {
    std::shared_ptr<const gentrie::Constraint> constraint;
    try {
      const gentrie::ConstraintOptions options{kBegin, {kEos}, gentrie::Unique::kItem};
      constraint = std::make_shared<const gentrie::Constraint>(trie, options, filter);
    } catch (const std::invalid_argument&) {
      continue;
    }
    gentrie::Matcher matcher(constraint);
    std::vector<std::int32_t> bitmask((kVocabSize + 31) / 32);
    std::vector<std::int64_t> history{5, kBegin, 3, 4, 1, kBegin, 4, 3, 1, kBegin, 3};
    for (const std::int64_t token : history) {
      matcher.accept(static_cast<Token>(token));
      gentrie::fill_bitmask(matcher, bitmask.data(), bitmask.size());
      tokens.clear();
      constraint->forced(matcher.cursor(), &tokens);
    }
    const gentrie::Matcher fork = matcher;
    matcher.rollback(matcher.num_accepted());
    assert(matcher.cursor().spent.empty());
    gentrie::fill_bitmask(fork, bitmask.data(), bitmask.size());
    const gentrie::HistoryReader reader({constraint}, {}, gentrie::OnDead::kEos);
    gentrie::HistoryBatch batch;
    batch.ids = history.data();
    batch.rows = 1;
    for (batch.length = 0; batch.length <= history.size(); ++batch.length) {
      std::vector<float> scores(kVocabSize), out(kVocabSize);
      gentrie::mask_scores(reader.allowed(batch), kBegin,
                           {scores.data(), out.data(), scores.size(), 4, 0xFF800000, 0xCE6E6B28});
    }
  }
}

void test_lookups_and_files(const std::string& path) {
  std::mt19937 rng(1);
  for (int round = 0; round < 60; ++round) {
    const auto rows = random_rows(rng);
    Sequences sequences;
    for (auto row : rows) {
      row.push_back(kEnd);
      sequences.insert(row);
    }
    const auto trie = build(rows, 1 + round % 3);
    check_lookups(*trie, sequences);
    gentrie::verify_trie(*trie, 1 + round % 3);
    gentrie::save_trie(*trie, path, {{"key", "value \"\\\n"}});
    const auto loaded = gentrie::load_trie(path, {gentrie::Verify::kAlways});
    assert(loaded->fingerprint() == trie->fingerprint());
    assert(loaded->metadata().at("key") == "value \"\\\n");
    check_lookups(*loaded, sequences);
    use(loaded);
  }
}

void test_damaged_files(const std::string& path) {
  std::mt19937 rng(2);
  for (int round = 0; round < 300; ++round) {
    if (round % 20 == 0) gentrie::save_trie(*build(random_rows(rng), 1), path, {});
    std::ifstream in(path, std::ios::binary);
    std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    std::uint64_t header;
    std::memcpy(&header, bytes.data(), sizeof header);
    const std::size_t body = 8 + header;
    for (int change = 0; change < 1 << (round % 9); ++change) {
      bytes[body + rng() % (bytes.size() - body)] = static_cast<char>(rng() % 3 == 0 ? 0xFF : rng());
    }
    const std::string damaged = path + ".damaged";
    std::ofstream(damaged, std::ios::binary) << bytes;
    use(gentrie::load_trie(damaged, {gentrie::Verify::kNever}));
    std::ofstream(damaged, std::ios::binary) << bytes.substr(0, rng() % bytes.size());
    bool refused = false;
    try {
      gentrie::load_trie(damaged, {gentrie::Verify::kNever});
    } catch (const gentrie::FormatError&) {
      refused = true;
    }
    assert(refused);
    ::unlink(damaged.c_str());
  }
}

void test_damaged_headers() {
  gentrie::SafetensorsHeader header;
  header.metadata = {{"a", "b\"\\\u00e9"}, {"c", ""}};
  header.tensors = {{"x", "U8", {64}, 0, 64}};
  const std::string text = gentrie::write_safetensors_header(header);
  assert(gentrie::parse_safetensors_header(text.data(), text.size()).metadata == header.metadata);
  std::mt19937 rng(3);
  for (int round = 0; round < 20000; ++round) {
    std::string altered = text.substr(0, rng() % (text.size() + 1));
    for (unsigned change = rng() % 3; change > 0 && !altered.empty(); --change) {
      altered[rng() % altered.size()] = "{}[]\",:\\u0 x\xff"[rng() % 13];
    }
    try {
      gentrie::parse_safetensors_header(altered.data(), altered.size());
    } catch (const gentrie::FormatError&) {
    }
  }
}

}  // namespace

int main() {
  char folder[] = "/tmp/gentrie-test-XXXXXX";
  assert(::mkdtemp(folder) != nullptr);
  const std::string path = std::string(folder) + "/trie.safetensors";
  test_lookups_and_files(path);
  test_damaged_files(path);
  test_damaged_headers();
  ::unlink(path.c_str());
  ::rmdir(folder);
  std::puts("3 passed, 0 failed");
}
