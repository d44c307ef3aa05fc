// A batch of programs as it comes from NumPy, and the queue of its instances.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

#include "lane.hpp"

namespace lanes {

// Rows of numbers, one for each instance, or one for all of them.
struct Rows {
  const double* values = nullptr;
  std::int64_t rows = 0;
  int width = 0;

  bool shared() const { return rows == 1; }
  const double* row(std::int64_t instance) const {
    return values + (shared() ? 0 : instance) * width;
  }
};

struct Program {
  Rows P, q, A, b;
  Rows M;  // what the eliminated rows add to P
  std::int64_t batch = 0;

  // Whether the matrices are the same for all instances.
  bool matrices_shared() const { return P.shared() && A.shared(); }
};

// Read the numbers of L instances into lanes.
template <class V>
inline void load(const Rows& rows, const std::int64_t* instances, V* out) {
  constexpr int L = kLanes<V>;
  const double* line[L];
  for (int l = 0; l < L; ++l) line[l] = rows.row(instances[l]);
  auto* numbers = reinterpret_cast<double*>(out);
  for (int i = 0; i < rows.width; ++i) {
    for (int l = 0; l < L; ++l) numbers[i * L + l] = line[l][i];
  }
}

// Write one lane of so many numbers.
template <class V>
inline void store(const V* values, int lane, int count, double* out) {
  const auto* numbers = reinterpret_cast<const double*>(values) + lane;
  for (int i = 0; i < count; ++i) out[i] = numbers[i * kLanes<V>];
}

// What the threads of one call share: the next instance, and whether to stop.
struct Queue {
  using Clock = std::chrono::steady_clock;

  std::int64_t count = 0;
  std::atomic<std::int64_t> next{0};
  std::atomic<bool> stopped{false};
  bool has_deadline = false;
  Clock::time_point deadline{};
  // Asked from time to time, by the thread that made the queue alone: whether to stop.
  std::function<bool()> interrupted;
  std::thread::id owner = std::this_thread::get_id();
  Clock::time_point asked = Clock::now();

  // The next instances, up to `most`, the last of them repeated to make as many; how many they are.
  int take(int most, std::int64_t* instances) {
    const std::int64_t first = next.fetch_add(most, std::memory_order_relaxed);
    if (first >= count) {
      // However often it is asked for more, the number does not overflow.
      next.store(count, std::memory_order_relaxed);
      return 0;
    }
    const int taken = static_cast<int>(std::min<std::int64_t>(most, count - first));
    for (int l = 0; l < most; ++l) instances[l] = first + std::min(l, taken - 1);
    return taken;
  }

  bool is_over() {
    if (stopped.load(std::memory_order_relaxed)) return true;
    const auto now = Clock::now();
    if (has_deadline && now >= deadline) return true;
    if (interrupted && std::this_thread::get_id() == owner &&
        now - asked > std::chrono::milliseconds(20)) {
      asked = now;
      if (interrupted()) stopped = true;
    }
    return stopped.load(std::memory_order_relaxed);
  }
};

}  // namespace lanes
