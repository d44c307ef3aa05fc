// One structure, and the working memory of the calls that are under way on it.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "derivative.hpp"
#include "interior_point.hpp"
#include "pool.hpp"

namespace lanes {

#if defined(__AVX512F__)
inline constexpr int kWidth = 8;
#else
inline constexpr int kWidth = 4;
#endif

// Working memory that is kept from one call for the next: allocating it takes as long as a small
// solve. Nobody waits for it: in a child after a fork the lock may belong to a thread of the
// parent.
template <class Worker>
class Workers {
 public:
  template <class F>
  void with(const Structure& structure, F&& f) {
    std::unique_ptr<Worker> worker;
    {
      const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
      if (lock.owns_lock() && !idle_.empty()) {
        worker = std::move(idle_.back());
        idle_.pop_back();
      }
    }
    if (!worker) worker = std::make_unique<Worker>(structure);
    f(*worker);
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) idle_.push_back(std::move(worker));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

class Engine {
 public:
  Structure structure;

  explicit Engine(Structure structure) : structure(std::move(structure)) {}

  void solve(const Program& program, const Settings& settings, const Answers& answers, Queue& queue,
             int threads) {
    const auto run = [&](auto& worker) { worker.run(program, settings, queue, answers); };
    if (program.matrices_shared()) {
      each(queue, threads, solo_, shared_, run);
    } else {
      each(queue, threads, solo_, wide_, run);
    }
  }

  void polish(const Program& program, double* x, double* z, double* s, double* residual,
              Queue& queue, int threads) {
    each(queue, threads, solo_derivative_, wide_derivative_,
         [&](auto& worker) { worker.polish(program, queue, x, z, s, residual); });
  }

  void newton(const Program& program, const Points& points, const Rows& r1, const Rows& r2,
              double* u, double* v, double* residual, Queue& queue, int threads) {
    each(queue, threads, solo_derivative_, wide_derivative_, [&](auto& worker) {
      worker.solve(program, points, r1, r2, queue, u, v, residual);
    });
  }

 private:
  // A single instance has no neighbours to share a register with.
  template <class Solo, class Wide, class F>
  void each(Queue& queue, int threads, Workers<Solo>& solo, Workers<Wide>& wide, F&& f) {
    const std::int64_t groups = (queue.count + kWidth - 1) / kWidth;
    const int wanted = static_cast<int>(std::min<std::int64_t>(threads, groups));
    if (queue.count == 1) {
      solo.with(structure, f);
    } else {
      in_parallel(wanted, [&] { wide.with(structure, f); });
    }
  }

  Workers<InteriorPoint<double, double>> solo_;
  Workers<InteriorPoint<Lane<kWidth>, double>> shared_;
  Workers<InteriorPoint<Lane<kWidth>, Lane<kWidth>>> wide_;
  Workers<Derivative<double>> solo_derivative_;
  Workers<Derivative<Lane<kWidth>>> wide_derivative_;
};

}  // namespace lanes
