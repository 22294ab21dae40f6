#ifndef GENTRIE_PARALLEL_H_
#define GENTRIE_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "gentrie/types.h"

namespace gentrie {

/// Makes `least` the smaller of the two, whatever other threads do.
inline void lower_to(std::atomic<std::uint64_t>* least, std::uint64_t value) {
  std::uint64_t current = least->load(std::memory_order_relaxed);
  while (value < current && !least->compare_exchange_weak(current, value)) {
  }
}

/// A poll as the `tick` of parallel_for(), which must not outlive it.
inline std::function<void(std::uint64_t)> as_tick(const Poll& poll) {
  if (!poll) return {};
  return [&poll](std::uint64_t) { poll(); };
}

/// Runs body(begin, end) over chunks of [0, count) on up to `num_threads` threads, the caller among them; no thread
/// outlives the call. The first exception stops the hand-out of chunks and is rethrown. `tick(done)`, where given, is
/// called by the calling thread alone, between its chunks and while it waits for the others. A body whose chunks may
/// take long has a third parameter, to call now and then: body(begin, end, checkpoint).
template <typename Body>
void parallel_for(std::uint64_t count, int num_threads, std::uint64_t grain, const Body& body,
                  const std::function<void(std::uint64_t)>& tick = {}) {
  struct Stopped {};
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr failure;
  std::mutex mutex;
  std::condition_variable finished;
  int num_running = 0;  // threads beside the caller

  const auto guarded = [&](const auto& run) {
    try {
      run();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      failed = true;
    }
  };
  const auto work = [&](bool is_caller) {
    const auto checkpoint = [&, is_caller] {
      if (failed.load(std::memory_order_relaxed)) throw Stopped();  // what failed is rethrown, not this
      if (is_caller && tick) tick(std::min(count, next.load()));
    };
    guarded([&] {
      while (!failed.load(std::memory_order_relaxed)) {
        const std::uint64_t begin = next.fetch_add(grain);
        if (begin >= count) break;
        const std::uint64_t end = std::min(count, begin + grain);
        if constexpr (std::is_invocable_v<const Body&, std::uint64_t, std::uint64_t, decltype(checkpoint)>) {
          body(begin, end, checkpoint);
        } else {
          body(begin, end);
        }
        checkpoint();
      }
    });
  };
  const auto work_beside = [&] {
    work(false);
    const std::lock_guard<std::mutex> lock(mutex);
    --num_running;
    finished.notify_one();
  };

  const std::uint64_t num_chunks = (count + grain - 1) / grain;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 1; t < std::min<std::uint64_t>(num_threads, num_chunks); ++t) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      ++num_running;
    }
    try {
      threads.emplace_back(work_beside);
    } catch (const std::system_error&) {  // no more threads to be had: the others do the work
      const std::lock_guard<std::mutex> lock(mutex);
      --num_running;
      break;
    }
  }
  work(true);
  for (std::unique_lock<std::mutex> lock(mutex); tick && num_running > 0;) {
    finished.wait_for(lock, std::chrono::milliseconds(50));
    if (num_running == 0 || failed) continue;
    lock.unlock();
    guarded([&] { tick(std::min(count, next.load())); });
    lock.lock();
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace gentrie

#endif  // GENTRIE_PARALLEL_H_
