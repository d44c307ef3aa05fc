// The gradient of matrices: w (a bᵀ + c dᵀ) at the entries of a pattern.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "data.hpp"
#include "pool.hpp"

namespace lanes {

struct Outer {
  std::vector<int> i, j;
  std::vector<double> weight;

  // For every instance a row of `out`, or a single one, the sum over them.
  void apply(const Rows& a, const Rows& b, const Rows& c, const Rows& d, std::int64_t batch,
             bool total, double* out, int threads) const {
    const auto count = static_cast<std::int64_t>(i.size());
    const auto entries = [&](std::int64_t instance, std::int64_t begin, std::int64_t end,
                             auto&& put) {
      const double *ra = a.row(instance), *rb = b.row(instance);
      const double *rc = c.row(instance), *rd = d.row(instance);
      for (std::int64_t k = begin; k < end; ++k) {
        put(k, weight[k] * (ra[i[k]] * rb[j[k]] + rc[i[k]] * rd[j[k]]));
      }
    };
    std::atomic<std::int64_t> next{0};
    // Waking threads takes as long as this many entries.
    if (batch * count < 50'000) threads = 1;
    if (total) {
      // In pieces of entries, so that every sum is over the instances in their order.
      constexpr std::int64_t kPiece = 4096;
      in_parallel(threads, [&] {
        for (std::int64_t k; (k = next.fetch_add(kPiece)) < count;) {
          const std::int64_t end = std::min(count, k + kPiece);
          std::fill(out + k, out + end, 0.0);
          for (std::int64_t instance = 0; instance < batch; ++instance) {
            entries(instance, k, end, [&](std::int64_t e, double value) { out[e] += value; });
          }
        }
      });
    } else {
      in_parallel(threads, [&] {
        for (std::int64_t instance; (instance = next.fetch_add(1)) < batch;) {
          double* row = out + instance * count;
          entries(instance, 0, count, [&](std::int64_t e, double value) { row[e] = value; });
        }
      });
    }
  }
};

}  // namespace lanes
