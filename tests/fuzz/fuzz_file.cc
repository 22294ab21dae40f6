// Files whose checksums fit and whose contents do not, under whatever is called: no read or write outside, no call
// without end. An input is a list of choices: which sound file to begin with, what to alter, what to call.
//
//   fuzz_file --seconds 60 [--seed 1]    inputs drawn at random, by a mutator of our own
//   fuzz_file INPUT...                   these files
//
// Where clang is at hand it is a libFuzzer target too (GENTRIE_LIBFUZZER). The input at hand lies in last-input: a
// crash leaves it there, to be run again and to be kept in tests/fuzz/corpus.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "gentrie/batch.h"
#include "gentrie/beam_search.h"
#include "gentrie/builder.h"
#include "gentrie/file.h"
#include "gentrie/history.h"
#include "gentrie/matcher.h"
#include "safetensors.h"
#include "xxhash64.h"

namespace {

using gentrie::State;
using gentrie::Token;
using Bytes = std::vector<std::uint8_t>;

constexpr unsigned kSecondsPerInput = 20;

/// Numbers that an input holds, and once it ends those of a generator.
class Choices {
 public:
  Choices(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size), rng_(size) {}
  std::uint64_t below(std::uint64_t limit) { return next() % std::max<std::uint64_t>(limit, 1); }
  std::uint64_t next() {
    std::uint64_t value = 0;
    for (int i = 0; i < 2; ++i) value = value << 8 | (at_ < end_ ? *at_++ : rng_() & 0xFF);
    return value;
  }
  /// One that is likely to be at an edge.
  std::uint64_t number() {
    const std::array<std::uint64_t, 8> kinds = {
        0, 1, ~std::uint64_t{0}, next(), 0x7FFFFFFF, 0xFFFFFFFE, std::uint64_t{1} << below(64), next() & 63};
    return kinds[below(kinds.size())] + below(3) - 1;
  }

 private:
  const std::uint8_t *at_, *end_;
  std::minstd_rand rng_;
};

/// A file taken apart.
struct Parts {
  std::map<std::string, std::string> metadata;
  std::vector<gentrie::TensorEntry> tensors;
  std::vector<Bytes> arrays;
};

std::string hex(std::uint64_t value) {
  char digits[17];
  std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value));
  return digits;
}

Parts taken_apart(const Bytes& bytes) {
  std::uint64_t length;
  std::memcpy(&length, bytes.data(), 8);
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
  const gentrie::SafetensorsHeader header = gentrie::parse_safetensors_header(text, length);
  Parts parts{header.metadata, header.tensors, {}};
  const auto body = bytes.begin() + static_cast<std::ptrdiff_t>(8 + length);
  for (const gentrie::TensorEntry& tensor : header.tensors) {
    parts.arrays.emplace_back(body + static_cast<std::ptrdiff_t>(tensor.begin),
                              body + static_cast<std::ptrdiff_t>(tensor.end));
  }
  return parts;
}

std::uint64_t itemsize_of(const gentrie::TensorEntry& tensor) { return std::stoull(tensor.dtype.substr(1)) / 8; }
std::uint64_t count_of(const Parts& parts, const std::string& name) {
  return std::strtoull(parts.metadata.at("gentrie." + name).c_str(), nullptr, 10);
}

/// The file of these parts, with checksums and fingerprint that fit.
Bytes put_together(Parts parts) {
  gentrie::TrieHeader header;
  header.vocab_size = static_cast<std::int64_t>(count_of(parts, "vocab_size"));
  header.end_token_id =
      static_cast<std::int64_t>(std::strtoll(parts.metadata["gentrie.end_token_id"].c_str(), nullptr, 10));
  header.num_nodes = count_of(parts, "num_nodes");
  header.num_leaves = count_of(parts, "num_sequences");
  header.num_items = count_of(parts, "num_items");
  gentrie::ArrayTable table;
  std::array<std::uint64_t, gentrie::kNumArrays> checksums{};
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < gentrie::kNumArrays; ++i) {
    gentrie::TensorEntry& tensor = parts.tensors[i];
    Bytes& array = parts.arrays[i];
    const std::uint64_t count = count_of(parts, "length." + tensor.name), itemsize = itemsize_of(tensor);
    if (count < 1 << 20) array.resize((count * itemsize + 63) / 64 * 64);
    checksums[i] = gentrie::xxhash64(array.data(), array.size());
    table[i].count = count;
    parts.metadata["gentrie.xxh64." + tensor.name] = hex(checksums[i]);
    tensor.shape = {array.size() / itemsize};
    tensor.begin = offset;
    tensor.end = offset += array.size();
  }
  parts.metadata["gentrie.fingerprint"] = gentrie::fingerprint_of(header, table, checksums);
  gentrie::Xxhash64 hash;
  for (const auto& [key, value] : parts.metadata) {
    if (key == "gentrie.header_xxh64") continue;
    hash.update(key.c_str(), key.size() + 1);
    hash.update(value.c_str(), value.size() + 1);
  }
  parts.metadata["gentrie.header_xxh64"] = hex(hash.digest());
  const std::string text = gentrie::write_safetensors_header({parts.metadata, parts.tensors});
  const std::uint64_t length = text.size();
  Bytes bytes(8);
  std::memcpy(bytes.data(), &length, 8);
  bytes.insert(bytes.end(), text.begin(), text.end());
  for (const Bytes& array : parts.arrays) bytes.insert(bytes.end(), array.begin(), array.end());
  return bytes;
}

void alter(Parts* parts, Choices* choices) {
  const std::size_t a = choices->below(gentrie::kNumArrays);
  Bytes& array = parts->arrays[a];
  const std::uint64_t itemsize = itemsize_of(parts->tensors[a]), words = array.size() / itemsize;
  const auto set = [&](std::uint64_t word, std::uint64_t value) {
    if (word < words) std::memcpy(array.data() + word * itemsize, &value, itemsize);
  };
  const auto get = [&](std::uint64_t word) {
    std::uint64_t value = 0;
    if (word < words) std::memcpy(&value, array.data() + word * itemsize, itemsize);
    return value;
  };
  switch (choices->below(8)) {
    case 0:
      return set(choices->below(words), choices->number());
    case 1:
      return set(choices->below(words), get(choices->below(words)));
    case 2: {
      const std::uint64_t word = choices->below(words);
      return set(word, get(word) ^ std::uint64_t{1} << choices->below(itemsize * 8));
    }
    case 3: {
      const std::uint64_t value = choices->number();
      for (std::uint64_t word = choices->below(words); word < words; ++word) set(word, value);
      return;
    }
    case 4: {
      const std::uint64_t value = choices->number(), step = choices->number();
      for (std::uint64_t word = 0; word < words; ++word) set(word, value + word * step);
      return;
    }
    case 5: {
      std::string& length = parts->metadata["gentrie.length." + parts->tensors[a].name];
      length = std::to_string(std::strtoull(length.c_str(), nullptr, 10) + choices->below(5) - 2);
      return;
    }
    default: {
      static constexpr const char* kCounts[] = {"num_nodes",       "num_sequences", "num_items",     "num_run_tokens",
                                                "run_token_bits",  "max_depth",     "max_branching", "vocab_size",
                                                "run_offset_bits", "end_token_id"};
      std::string& count = parts->metadata[std::string("gentrie.") + kCounts[choices->below(std::size(kCounts))]];
      const auto value = static_cast<std::int64_t>(choices->below(3) == 0 ? choices->number() & ((1ULL << 40) - 1)
                                                                          : std::strtoull(count.c_str(), nullptr, 10) +
                                                                                choices->below(5) - 2);
      count = std::to_string(value);
    }
  }
}

std::shared_ptr<const gentrie::Trie> build(unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<Token> values;
  std::vector<std::int64_t> indptr{0}, ids;
  const std::size_t num_rows = 1 + rng() % (seed % 2 == 0 ? 20 : 600),
                    num_tokens = 1 + rng() % (seed % 3 == 0 ? 300 : 6);
  for (std::size_t row = 0; row < num_rows; ++row) {
    for (std::size_t i = 0, length = 1 + rng() % 8; i < length; ++i) {
      values.push_back(static_cast<Token>(3 + rng() % num_tokens));
    }
    indptr.push_back(static_cast<std::int64_t>(values.size()));
    ids.push_back(seed % 2 == 0 ? static_cast<std::int64_t>(rng() % 50) : static_cast<std::int64_t>(rng()) << 8);
  }
  gentrie::SequenceSource source;
  source.values = values.data();
  source.value_bytes = sizeof(Token);
  source.indptr = indptr.data();
  source.num_rows = num_rows;
  source.num_values = values.size();
  source.item_ids = ids.data();
  gentrie::BuildOptions options;
  options.vocab_size = 310;
  options.end_token_id = 1;
  options.num_threads = 1;
  return gentrie::build_trie(source, options);
}

template <typename Call>
void tried(const Call& call) {
  try {
    call();
  } catch (const gentrie::FormatError&) {  // a contradiction seen is fine
  } catch (const std::invalid_argument&) {
  }
}

void use(const std::shared_ptr<const gentrie::Trie>& trie, Choices* choices) {
  const gentrie::TrieView& view = trie->view();
  std::vector<State> states{gentrie::kRoot};
  std::vector<Token> tokens;
  std::vector<std::int64_t> indptr, ids;
  for (std::size_t i = 0; i < states.size() && states.size() < 60; ++i) {
    tokens.clear();
    indptr.clear();
    gentrie::next_tokens_batch(view, &states[i], 1, &tokens, &indptr);
    for (std::size_t t = 0; t < std::min<std::size_t>(tokens.size(), 6); ++t) {
      const State next = view.advance(states[i], tokens[t]);
      if (next >= 0 && view.contains(next)) states.push_back(next);
    }
    gentrie::append_forced(view, states[i], &tokens);
    const auto [begin, end] = view.items_of_leaves(view.leaves_below(states[i]));
    for (std::uint64_t entry = begin; entry < end; ++entry) ids.push_back(view.item_id(entry));
    ids.resize(std::min<std::size_t>(ids.size(), 400));
  }
  std::vector<std::int64_t> history;
  for (int i = 0; i < 40; ++i) history.push_back(static_cast<std::int64_t>(choices->below(8)));
  std::uint64_t used = 0;
  view.walk(gentrie::kRoot, history.data(), history.size(), &used);
  tried([&] { trie->for_each_sequence([](std::uint32_t, const std::vector<Token>&) {}); });
  tried([&] { trie->append_sequence(static_cast<std::uint32_t>(choices->below(view.num_leaves)), &tokens); });
  tried([&] {
    using gentrie::ItemFilter;
    ItemFilter::Ptr filter = ItemFilter::from_item_ids(trie, ids.data(), ids.size() / 2);
    if (choices->below(2) == 0) filter = ~*filter;
    if (choices->below(2) == 0) filter = filter->deny(ids.data(), std::min<std::size_t>(ids.size(), 30));
    filter = *filter | *filter->deny(ids.data(), std::min<std::size_t>(ids.size(), 3));
    tokens.clear();
    gentrie::next_tokens_batch(*filter, states.data(), states.size(), &tokens, &indptr);
    if (choices->below(3) == 0) filter = nullptr;
    const bool triggered = choices->below(2) == 0;
    const auto constraint = std::make_shared<const gentrie::Constraint>(
        trie,
        gentrie::ConstraintOptions{
            triggered ? 0 : gentrie::kNoToken, {2}, static_cast<gentrie::Unique>(choices->below(3))},
        filter);
    gentrie::Matcher matcher(constraint);
    std::vector<std::int32_t> mask(static_cast<std::size_t>(view.vocab_size) / 32 + 1);
    for (int step = 0; step < 40; ++step) {
      tokens.clear();
      const bool is_item = matcher.allowed(&tokens) == gentrie::Verdict::kItem;
      const Token any = static_cast<Token>(choices->below(8));
      matcher.accept(is_item && !tokens.empty() && choices->below(4) > 0 ? tokens[choices->below(tokens.size())] : any);
      if (choices->below(8) == 0) matcher.rollback(choices->below(matcher.num_accepted() + 1));
      if (choices->below(8) == 0) constraint->forced(matcher.cursor(), &tokens);
      if (choices->below(8) == 0 && mask.size() < 1 << 16) gentrie::fill_bitmask(matcher, mask.data(), mask.size());
      if (choices->below(16) == 0) matcher = gentrie::Matcher(matcher);
    }
    const std::int64_t prompt = 0;
    gentrie::HistoryBatch batch{history.data(), nullptr, 4, 10, triggered ? nullptr : &prompt, triggered ? 0ULL : 1ULL};
    gentrie::HistoryReader({constraint}, {}, gentrie::OnDead::kEos).allowed(batch);
  });
}

void search(const std::shared_ptr<const gentrie::Trie>& trie, Choices* choices) {
  const gentrie::TrieView& view = trie->view();
  if (view.vocab_size > 1 << 16) return;  // a row of logits for each place is what an engine pays, not a fault
  gentrie::BeamSearch search(trie);
  for (std::int64_t request = 0; request < 2; ++request) {
    gentrie::BeamRules rules;
    rules.num_groups = static_cast<std::uint32_t>(1 + choices->below(2));
    rules.beam_width = rules.num_groups * static_cast<std::uint32_t>(1 + choices->below(4));
    rules.diversity_penalty = static_cast<double>(choices->below(2));
    rules.over_vocabulary = choices->below(2) == 0;
    rules.max_length = 1 + choices->below(40);
    gentrie::ItemFilter::Ptr filter;
    if (choices->below(2) == 0) {
      std::vector<std::int64_t> ids;
      for (std::uint64_t entry = 0; entry < std::min<std::uint64_t>(view.num_items, 20); entry += 2) {
        ids.push_back(view.item_id(entry));
      }
      filter = gentrie::ItemFilter::from_item_ids(trie, ids.data(), ids.size());
    }
    std::shared_ptr<const gentrie::ItemTerm> term;
    const std::vector<double> scores(50, 0.5);
    tried([&] {
      if (choices->below(2) == 0) return;
      term = std::make_shared<const gentrie::ItemTerm>(
          choices->below(2) == 0 ? gentrie::share_term(view, scores.data(), scores.size(), 0.5)
                                 : gentrie::best_term(view, filter.get(), scores.data(), scores.size()));
    });
    search.add(request, rules, filter, term);
  }
  for (int step = 0; step < 60 && !search.rows(choices->below(3) * 8).handles.empty(); ++step) {
    const auto width = static_cast<std::uint64_t>(view.vocab_size);
    if (search.num_logits() * width > 1 << 20) return;
    std::vector<float> logits(search.num_logits() * width);
    for (float& logit : logits) logit = static_cast<float>(choices->below(16));
    search.step({logits.data(), false, width, static_cast<std::int64_t>(width), false, nullptr});
    search.handles_in_use();
  }
  for (std::int64_t request = 0; request < 2; ++request) {
    std::shared_ptr<const gentrie::ItemFilter> filter;
    if (search.is_finished(request)) search.take(request, 8, &filter);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = ::memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  static const std::vector<Parts> sound = [] {
    std::vector<Parts> all;
    for (unsigned seed = 0; seed < 12; ++seed) {
      const std::string name = "fuzz-" + std::to_string(::getpid()) + ".safetensors";
      gentrie::save_trie(*build(seed), name, {});
      std::ifstream stream(name, std::ios::binary);
      all.push_back(taken_apart(Bytes(std::istreambuf_iterator<char>(stream), {})));
      ::unlink(name.c_str());
    }
    return all;
  }();
  ::alarm(kSecondsPerInput);
  Choices choices(data, size);
  Parts parts = sound[choices.below(sound.size())];
  for (std::uint64_t i = choices.below(6); i > 0; --i) alter(&parts, &choices);
  Bytes bytes = put_together(std::move(parts));
  if (choices.below(16) == 0) bytes[choices.below(bytes.size())] ^= static_cast<std::uint8_t>(1 << choices.below(8));
  if (choices.below(64) == 0) bytes.resize(choices.below(bytes.size()) + 1);
  if (::ftruncate(file, 0) != 0 ||
      ::pwrite(file, bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    std::abort();
  }
  for (const gentrie::Verify verify : {gentrie::Verify::kNever, gentrie::Verify::kAlways}) {
    tried([&] {
      gentrie::LoadOptions options;
      options.verify = verify;
      options.num_threads = 1;
      const std::shared_ptr<const gentrie::Trie> trie = gentrie::load_trie(path, options);
      use(trie, &choices);
      search(trie, &choices);
    });
  }
  ::alarm(0);
  return 0;
}

#ifndef GENTRIE_LIBFUZZER
int main(int argc, char** argv) {
  double seconds = 0;
  std::uint64_t seed = 1, num_inputs = 0;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (word == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else {
      names.push_back(word);
    }
  }
  for (const std::string& name : names) {
    std::ifstream stream(name, std::ios::binary);
    const Bytes input(std::istreambuf_iterator<char>(stream), {});
    LLVMFuzzerTestOneInput(input.data(), input.size());
    ++num_inputs;
  }
  // A mapping of the file is written back however the process ends.
  constexpr std::size_t kMaxInput = 512;
  const int last = ::open("last-input", O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  void* mapped = last < 0 || ::ftruncate(last, kMaxInput) != 0
                     ? MAP_FAILED
                     : ::mmap(nullptr, kMaxInput, PROT_READ | PROT_WRITE, MAP_SHARED, last, 0);
  if (mapped == MAP_FAILED) {
    std::perror("last-input");
    return 1;
  }
  auto* const input = static_cast<std::uint8_t*>(mapped);
  std::mt19937_64 rng(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end) {
    for (std::size_t i = 0; i < kMaxInput; ++i) input[i] = static_cast<std::uint8_t>(rng());
    LLVMFuzzerTestOneInput(input, kMaxInput);
    ++num_inputs;
  }
  ::unlink("last-input");
  std::printf("%llu inputs, none of them a crash\n", static_cast<unsigned long long>(num_inputs));
  return 0;
}
#endif
