#ifndef GENTRIE_PARALLEL_H_
#define GENTRIE_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace gentrie {

/// Runs body(begin, end) over chunks of [0, count) on up to `num_threads` threads, the caller among them; no thread
/// outlives the call. The first exception stops the hand-out of chunks and is rethrown. `tick(done)`, where given, is
/// called by the calling thread alone, between its chunks.
template <typename Body>
void parallel_for(std::uint64_t count, int num_threads, std::uint64_t grain, const Body& body,
                  const std::function<void(std::uint64_t)>& tick = {}) {
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  std::mutex failure_mutex;

  const auto work = [&](bool is_caller) {
    try {
      while (!failed.load(std::memory_order_relaxed)) {
        const std::uint64_t begin = next.fetch_add(grain);
        if (begin >= count) break;
        body(begin, std::min(count, begin + grain));
        if (is_caller && tick) tick(std::min(count, next.load()));
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      failed = true;
    }
  };

  const std::uint64_t num_chunks = (count + grain - 1) / grain;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 1; t < std::min<std::uint64_t>(num_threads, num_chunks); ++t) {
    try {
      threads.emplace_back(work, false);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the others do the work
    }
  }
  work(true);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace gentrie

#endif  // GENTRIE_PARALLEL_H_
