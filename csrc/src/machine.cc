#include "machine.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <thread>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "gentrie/builder.h"

namespace gentrie {

namespace {

constexpr const char* kCgroup = "/sys/fs/cgroup/";

/// Processors that a cgroup v2 quota allows, or 0 where there is none.
int cgroup_quota() {
  std::ifstream file(std::string(kCgroup) + "cpu.max");
  std::int64_t quota = 0, period = 0;
  return file >> quota >> period && quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

/// A number that a cgroup v2 file holds; `otherwise` where it holds none, or "max".
std::uint64_t cgroup_number(const char* name, std::uint64_t otherwise) {
  std::ifstream file(std::string(kCgroup) + name);
  std::uint64_t number = 0;
  return file >> number ? number : otherwise;
}

/// The number behind `name` in a cgroup v2 file of lines "name number", or 0.
std::uint64_t named_number(const char* file_name, const std::string& name) {
  std::ifstream file(std::string(kCgroup) + file_name);
  std::uint64_t number = 0;
  for (std::string key; file >> key >> number;) {
    if (key == name) return number;
  }
  return 0;
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

std::uint64_t available_memory() {
  constexpr std::uint64_t kUnknown = std::numeric_limits<std::uint64_t>::max() / 2;
  std::uint64_t available = kUnknown;
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key, unit; meminfo >> key;) {
    std::uint64_t kilobytes = 0;
    if (!(meminfo >> kilobytes)) break;
    if (key == "MemAvailable:") available = kilobytes << 10;
    std::getline(meminfo, unit);
  }
  const std::uint64_t limit = cgroup_number("memory.max", kUnknown), used = cgroup_number("memory.current", 0);
  const std::uint64_t kept = std::min(used, named_number("memory.stat", "inactive_file"));  // files, dropped on demand
  return std::min(available, limit > used - kept ? limit - (used - kept) : 0);
}

void return_freed_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace gentrie
