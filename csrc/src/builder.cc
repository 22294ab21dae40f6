#include "gentrie/builder.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <thread>

#include "layout.h"
#include "sort_rows.h"

namespace gentrie {

namespace {

/// Processors that a cgroup v2 quota allows, or 0 where there is none.
int cgroup_quota() {
  std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return 0;
  long long quota = 0, period = 0;
  const int fields = std::fscanf(file, "%lld %lld", &quota, &period);
  std::fclose(file);
  return fields == 2 && quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

}  // namespace

int default_num_threads() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
#endif
  const int quota = cgroup_quota();
  if (quota > 0) count = std::min(count, quota);
  return std::max(count, 1);
}

std::shared_ptr<const Trie> build_trie(const SequenceSource& source, const BuildOptions& options) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : default_num_threads();
  const auto report = [&](double from, double to) {
    return [&options, &source, from, to](double share) {
      if (!options.progress) return;
      const double done = (from + share * (to - from)) * static_cast<double>(source.num_rows);
      options.progress(static_cast<std::uint64_t>(done), source.num_rows);
    };
  };
  const FrontCoded catalog = sort_rows(source, options, num_threads, report(0.0, 0.6));
  auto trie = lay_out(catalog, options.vocab_size, options.end_token_id, num_threads, report(0.6, 1.0));
  if (options.progress) options.progress(source.num_rows, source.num_rows);
  return trie;
}

}  // namespace gentrie
