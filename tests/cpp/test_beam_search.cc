// The beam search against one that is written out, and sums of exponentials against those of double precision.

#include <algorithm>
#include <cassert>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "gentrie/beam_search.h"
#include "gentrie/builder.h"
#include "log_sum_exp.h"

namespace {

using namespace gentrie;
using Path = std::vector<Token>;

constexpr std::int64_t kVocabSize = 24;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::shared_ptr<const Trie> trie_of(const std::set<Path>& paths) {
  std::vector<std::int64_t> values, indptr{0};
  for (const Path& path : paths) {
    values.insert(values.end(), path.begin(), path.end());
    indptr.push_back(static_cast<std::int64_t>(values.size()));
  }
  SequenceSource source;
  source.values = values.data();
  source.num_values = values.size();
  source.indptr = indptr.data();
  source.num_rows = paths.size();
  BuildOptions options;
  options.vocab_size = kVocabSize;
  return build_trie(source, options);
}

/// Logits that depend on the prefix alone.
std::vector<double> logits_of(const Path& path, std::uint64_t seed) {
  for (const Token token : path) seed = seed * 1000003 + static_cast<std::uint64_t>(token) + 1;
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(0, 2);
  std::vector<double> logits(kVocabSize);
  for (double& logit : logits) logit = normal(generator);
  return logits;
}

/// Complete sequences with their log-probabilities over the vocabulary, best first: everything is scored.
std::vector<std::pair<double, Path>> lock_step(const std::set<Path>& paths, std::uint64_t seed, std::size_t width) {
  std::vector<std::pair<double, Path>> live{{0.0, {}}}, finished;
  while (!live.empty()) {
    std::vector<std::pair<double, Path>> grown;
    for (const auto& [score, prefix] : live) {
      const std::vector<double> logits = logits_of(prefix, seed);
      const double sum = log_sum_exp(logits.data(), logits.size());
      std::set<Token> next;
      for (const Path& path : paths) {
        if (path.size() > prefix.size() && std::equal(prefix.begin(), prefix.end(), path.begin())) {
          next.insert(path[prefix.size()]);
        }
      }
      for (const Token token : next) {
        Path longer = prefix;
        longer.push_back(token);
        grown.emplace_back(score + logits[static_cast<std::size_t>(token)] - sum, std::move(longer));
      }
    }
    std::sort(grown.begin(), grown.end(), std::greater<>());
    grown.resize(std::min(grown.size(), 2 * width));
    live.clear();
    for (std::size_t rank = 0; rank < grown.size(); ++rank) {
      if (paths.count(grown[rank].second) != 0) {
        if (rank < width) finished.push_back(grown[rank]);
      } else if (live.size() < width) {
        live.push_back(grown[rank]);
      }
    }
    std::sort(finished.begin(), finished.end(), std::greater<>());
    finished.resize(std::min(finished.size(), width));
    if (finished.size() == width && !live.empty() && live.front().first <= finished.back().first) break;
  }
  return finished;
}

std::vector<BeamItem> searched(BeamSearch* search, std::int64_t request, std::uint64_t seed, std::uint64_t room,
                               bool in_places) {
  std::map<std::int64_t, Path> paths{{-1, {}}};
  while (!search->is_finished(request)) {
    const BeamRows rows = search->rows(room);
    assert(!rows.handles.empty());
    std::vector<double> logits, sums;
    for (std::size_t row = 0; row < rows.handles.size(); ++row) {
      Path path = paths.at(rows.parents[row]);
      const auto length = static_cast<std::size_t>(rows.indptr[row + 1] - rows.indptr[row]);
      for (std::size_t i = 0; i <= length; ++i) {
        if (i > 0) path.push_back(static_cast<Token>(rows.tokens[static_cast<std::size_t>(rows.indptr[row]) + i - 1]));
        if (i + static_cast<std::size_t>(rows.logit_counts[row]) <= length) continue;
        const std::vector<double> own = logits_of(path, seed);
        logits.insert(logits.end(), own.begin(), own.end());
        sums.push_back(log_sum_exp(own.data(), own.size()));
      }
      paths[rows.handles[row]] = path;
    }
    assert(search->num_logits() == sums.size());
    if (in_places) {
      std::vector<double> wanted;
      for (std::size_t row = 0; row < sums.size(); ++row) {
        for (std::int64_t at = search->place_indptr()[row]; at < search->place_indptr()[row + 1]; ++at) {
          const Token token = search->place_tokens()[static_cast<std::size_t>(at)];
          wanted.push_back(logits[row * kVocabSize + static_cast<std::size_t>(token)]);
        }
      }
      search->step_places(wanted.data(), sums.data());
    } else {
      search->step({logits.data(), true, kVocabSize, kVocabSize, false, nullptr});
    }
  }
  std::shared_ptr<const ItemFilter> filter;
  return search->take(request, 512, &filter);
}

void test_finds_what_is_written_out() {
  std::mt19937 generator(7);
  for (int round = 0; round < 200; ++round) {
    std::set<Path> paths;
    const std::uint32_t longest = 2 + generator() % 6, tokens = 2 + generator() % 5;
    for (std::uint32_t i = 0; i < 1 + generator() % 30; ++i) {
      Path path(1 + generator() % longest);
      for (Token& token : path) token = static_cast<Token>(generator() % tokens);
      path.push_back(kVocabSize - 1);  // so that none is a prefix of another
      paths.insert(path);
    }
    BeamSearch search(trie_of(paths));
    BeamRules rules;
    rules.beam_width = 1 + generator() % 8;
    rules.over_vocabulary = true;
    rules.length_penalty = 0;
    rules.max_length = 64;
    const auto expected = lock_step(paths, static_cast<std::uint64_t>(round), rules.beam_width);
    for (std::int64_t request = 0; request < 4; ++request) {
      search.add(request, rules);
      const auto found =
          searched(&search, request, static_cast<std::uint64_t>(round), request < 2 ? 0 : 64, request % 2 != 0);
      assert(found.size() == expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        assert(found[i].tokens == expected[i].second);
        assert(std::abs(found[i].score - expected[i].first) < 1e-9);
      }
    }
    assert(search.handles_in_use().empty());
  }
}

void test_what_is_not_a_number_changes_nothing() {
  BeamSearch search(trie_of({{1, 2}, {3, 4}}));
  BeamRules rules;
  rules.over_vocabulary = true;
  rules.max_length = 8;
  search.add(5, rules);
  search.rows(0);
  std::vector<double> logits(kVocabSize, 0.0);
  for (const double bad : {std::nan(""), kInfinity}) {
    logits[3] = bad;
    bool refused = false;
    try {
      search.step({logits.data(), true, kVocabSize, kVocabSize, false, nullptr});
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    assert(refused);
  }
  logits[3] = 0;
  const BeamStep step = search.step({logits.data(), true, kVocabSize, kVocabSize, false, nullptr});
  assert(step.requests.size() == 2 && !search.is_finished(5));
}

void test_log_sum_exp() {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal(0, 8);
  for (const std::size_t count : {1U, 7U, 8U, 9U, 1023U, 1024U, 1025U, 5000U}) {
    std::vector<float> values(count);
    for (float& value : values) value = generator() % 10 == 0 ? -static_cast<float>(kInfinity) : normal(generator);
    values[count / 2] = 100;  // far above: most of the others vanish beside it
    const std::vector<double> exact(values.begin(), values.end());
    assert(std::abs(log_sum_exp(values.data(), count) - log_sum_exp(exact.data(), count)) < 1e-5);
    values[count / 2] = -1000;
    const std::vector<double> lower(values.begin(), values.end());
    const double expected = log_sum_exp(lower.data(), count);
    assert(std::abs(log_sum_exp(values.data(), count) - expected) < 1e-5 * std::max(1.0, std::abs(expected)));
    for (std::size_t at = 0; at < count; at += 1 + count / 3) {
      std::vector<float> odd = values;
      odd[at] = static_cast<float>(kInfinity);
      assert(log_sum_exp(odd.data(), count) == kInfinity);
      odd[count - 1 - at] = std::nanf("");
      assert(std::isnan(log_sum_exp(odd.data(), count)));
    }
    std::fill(values.begin(), values.end(), -static_cast<float>(kInfinity));
    assert(log_sum_exp(values.data(), count) == -kInfinity);
  }
}

}  // namespace

int main() {
  test_finds_what_is_written_out();
  test_what_is_not_a_number_changes_nothing();
  test_log_sum_exp();
}
