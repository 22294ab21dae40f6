// The core against std::set, and damaged input that must be refused or at least never crash.

#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstdlib>
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
#include "xxhash64.h"

namespace {

using namespace gentrie;  // NOLINT: a test of the whole library
using Sequence = std::vector<std::int64_t>;

std::mt19937_64 random_bits(7);
std::uint64_t below(std::uint64_t limit) { return random_bits() % limit; }

std::shared_ptr<const Trie> build(const std::set<Sequence>& rows, std::int64_t vocab_size, std::int64_t end) {
  std::vector<std::int64_t> values, indptr{0};
  for (const Sequence& row : rows) {
    values.insert(values.end(), row.begin(), row.end());
    indptr.push_back(static_cast<std::int64_t>(values.size()));
  }
  SequenceSource source;
  source.values = values.data();
  source.indptr = indptr.data();
  source.num_rows = rows.size();
  source.num_values = values.size();
  BuildOptions options;
  options.vocab_size = vocab_size;
  options.end_token_id = end;
  options.num_threads = 2;
  return build_trie(source, options);
}

std::set<Sequence> random_rows(std::uint64_t count, std::uint64_t num_tokens) {
  std::set<Sequence> rows;
  for (std::uint64_t r = 0; r < count; ++r) {
    Sequence row(1 + below(7));
    for (std::int64_t& token : row) token = static_cast<std::int64_t>(2 + below(num_tokens));
    rows.insert(row);
  }
  return rows;
}

void test_packed() {
  for (std::uint32_t bits = 0; bits <= 32; ++bits) {
    const std::uint64_t count = 100;
    std::vector<std::uint32_t> words(PackedView::num_words(count, bits)), values(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      values[i] = static_cast<std::uint32_t>(random_bits() & ((std::uint64_t{1} << bits) - 1));
      for (std::uint32_t b = 0; b < bits; ++b) {
        const std::uint64_t at = i * bits + b;
        words[at / 32] |= (values[i] >> b & 1u) << (at % 32);
      }
    }
    for (std::uint64_t i = 0; i < count; ++i) assert((PackedView{words.data(), bits}[i] == values[i]));
  }
  for (const std::uint64_t count : {0, 1, 31, 32, 33, 500}) {
    std::vector<std::uint64_t> words(RankedBitmap::num_words(count));
    std::vector<bool> set(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      set[i] = below(2) != 0;
      words[i / 32] |= std::uint64_t{set[i]} << (i % 32);
    }
    RankedBitmap::index(words.data(), words.size());
    const RankedBitmap bitmap{words.data()};
    std::uint32_t ones = 0;
    for (std::uint64_t i = 0; i <= count; ++i) {
      assert(bitmap.rank(i) == ones);
      if (i == count) break;
      assert(bitmap.test(i) == set[i]);
      ones += set[i] ? 1 : 0;
    }
  }
}

void test_xxhash64() {
  std::string bytes;
  for (int i = 0; i < 101; ++i) bytes.push_back(static_cast<char>(i));
  assert(xxhash64("", 0) == 0xef46db3751d8e999);
  assert(xxhash64("a", 1) == 0xd24ec4f1a98c6e5b);
  assert(xxhash64("abc", 3) == 0x44bc2cf5ad770999);
  assert(xxhash64(bytes.data(), 32) == 0xcbf59c5116ff32b4);
  assert(xxhash64(bytes.data(), 101) == 0xe99038495f85381e);
  assert(xxhash64("", 0, 7) == 0x95f0626f6f0a4409);
  assert(xxhash64(bytes.data(), 101, 7) == 0xe878e9791dbc64fa);
}

void test_lookups() {
  for (int round = 0; round < 40; ++round) {
    const std::uint64_t num_tokens = 1 + below(round % 2 == 0 ? 3 : 400);
    const std::set<Sequence> rows = random_rows(1 + below(60), num_tokens);
    const auto trie = build(rows, static_cast<std::int64_t>(num_tokens) + 2, 1);
    const TrieView view = trie->view();
    std::set<Sequence> whole, prefixes, given;
    for (Sequence row : rows) {
      row.push_back(1);
      whole.insert(row);
      for (std::size_t n = 0; n <= row.size(); ++n) prefixes.emplace(row.begin(), row.begin() + n);
    }
    for (const Sequence& prefix : prefixes) {
      std::uint64_t used = 0, count = 0;
      const State state = view.walk(kRoot, prefix.data(), prefix.size(), &used);
      assert(used == prefix.size() && view.contains(state) && view.is_leaf(state) == (whole.count(prefix) == 1));
      for (const Sequence& row : whole) {
        count += row.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), row.begin());
      }
      assert(view.leaves_below(state).size() == count);
      for (Token token = 0; token < view.vocab_size; ++token) {
        Sequence longer = prefix;
        longer.push_back(token);
        assert((view.advance(state, token) >= 0) == (prefixes.count(longer) == 1));
      }
    }
    for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
      std::vector<Token> tokens;
      trie->append_sequence(leaf, &tokens);
      given.emplace(tokens.begin(), tokens.end());
    }
    assert(given == whole);
  }
}

void parse(const std::string& text) {
  try {
    parse_safetensors_header(text.data(), text.size());
  } catch (const FormatError&) {
  }
}

void test_malformed_headers() {
  SafetensorsHeader header;
  header.metadata["key \"\n"] = "value";
  header.tensors.push_back({"a", "U8", {3}, 0, 3});
  std::string text = write_safetensors_header(header);
  assert(parse_safetensors_header(text.data(), text.size()).metadata == header.metadata);
  text.erase(text.find_last_not_of(' ') + 1);
  for (std::size_t n = 0; n < text.size(); ++n) {
    const std::vector<char> cut(text.begin(), text.begin() + n);  // its own allocation: reads past it are seen
    bool refused = false;
    try {
      parse_safetensors_header(cut.data(), cut.size());
    } catch (const FormatError&) {
      refused = true;
    }
    assert(refused);
  }
  for (int round = 0; round < 3000; ++round) {
    std::string altered = text, noise(below(80), ' ');
    for (int i = 0; i < 3; ++i) altered[below(altered.size())] = static_cast<char>(random_bits());
    for (char& c : noise) c = static_cast<char>(random_bits());
    parse(altered);
    parse(noise);
  }
  for (const char* open : {"[", "{", "{\"a\":"}) {
    std::string nested;
    for (int i = 0; i < 100000; ++i) nested += open;
    parse(nested);
  }
}

void use_everything(const std::shared_ptr<const Trie>& trie) {
  const TrieView view = trie->view();
  const auto vocab = static_cast<std::uint64_t>(view.vocab_size);
  std::vector<Token> tokens;
  for (std::uint64_t target = 0; target < view.num_targets(); ++target) {
    const State state = TrieView::make_state(target, below(view.run_length(target) + 1));
    if (!view.contains(state)) continue;
    view.leaves_below(state);
    for (Token token = 0; token < view.vocab_size; ++token) view.advance(state, token);
    tokens.clear();
    append_forced(view, state, &tokens);
    std::vector<std::int64_t> indptr;
    next_tokens_batch(view, &state, 1, &tokens, &indptr);
  }
  for (std::uint32_t leaf = 0; leaf < view.num_leaves; ++leaf) {
    for (auto [at, end] = view.items_of_leaf(leaf); at < end; ++at) view.item_id(at);
    tokens.clear();
    trie->append_sequence(leaf, &tokens);
  }
  const std::int64_t wanted[] = {0, 3};
  for (const Token begin : {kNoToken, Token{0}}) {
    ConstraintOptions options;
    options.begin_token = begin;
    options.eos_tokens = {static_cast<Token>(vocab - 1)};
    options.unique = Unique::kItem;
    std::shared_ptr<const Constraint> constraint;
    try {
      constraint = std::make_shared<Constraint>(trie, options, ItemFilter::from_item_ids(trie, wanted, 2));
    } catch (const std::invalid_argument&) {  // the altered vocabulary now holds a control token
      continue;
    }
    Matcher matcher(constraint);
    std::vector<std::int64_t> ids;
    std::vector<std::int32_t> words((vocab + 31) / 32);
    for (int step = 0; step < 20; ++step) {
      fill_bitmask(matcher, words.data(), words.size());
      tokens.clear();
      matcher.allowed(&tokens);
      const Token token = tokens.empty() ? (begin == kNoToken ? Token{2} : begin) : tokens[below(tokens.size())];
      assert(token >= 0 && static_cast<std::uint64_t>(token) < vocab);
      matcher.accept(token);
      ids.push_back(token);
    }
    HistoryBatch batch;
    const std::int64_t prompt_length = 0;
    batch.ids = ids.data();
    batch.rows = 1;
    batch.length = ids.size();
    if (begin == kNoToken) batch.prompt_lengths = &prompt_length, batch.num_prompt_lengths = 1;
    const HistoryReader reader({constraint}, {}, OnDead::kEos);
    std::vector<float> scores(vocab), out(vocab);
    ScoreRows rows;
    rows.scores = scores.data();
    rows.out = out.data();
    rows.width = vocab;
    rows.minus_infinity = 0xFF800000;
    mask_scores(reader.allowed(batch), begin, rows);
    matcher.rollback(matcher.num_accepted());
  }
}

void test_files(const std::string& folder) {
  const std::string path = folder + "/trie.safetensors";
  const auto trie = build(random_rows(80, 30), 40, 1);
  save_trie(*trie, path, {{"key", "value"}});
  const auto loaded = load_trie(path, Verify::kAlways);
  verify_trie(*loaded);
  assert(loaded->fingerprint() == trie->fingerprint() && loaded->metadata().at("key") == "value");
  use_everything(loaded);
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  std::uint64_t header_length;
  std::memcpy(&header_length, bytes.data(), 8);
  const std::uint64_t body = 8 + header_length;
  for (int round = 0; round < 300; ++round) {
    std::string altered = bytes;
    const std::uint64_t changes = round % 3 == 0 ? altered.size() : 1 + below(20);
    for (std::uint64_t i = 0; i < changes; ++i) {
      altered[body + below(altered.size() - body)] = static_cast<char>(random_bits());
    }
    const std::string other = folder + "/altered.safetensors";
    std::ofstream(other, std::ios::binary) << altered;
    try {
      use_everything(load_trie(other, Verify::kNever));
    } catch (const FormatError&) {  // what does not fit the header may be refused at once
    }
    std::remove(other.c_str());
  }
  std::remove(path.c_str());
}

}  // namespace

int main() {
  test_packed();
  test_xxhash64();
  test_lookups();
  test_malformed_headers();
  char folder[] = "/tmp/gentrie-test-XXXXXX";
  assert(mkdtemp(folder) != nullptr);
  test_files(folder);
  rmdir(folder);
  return 0;
}
