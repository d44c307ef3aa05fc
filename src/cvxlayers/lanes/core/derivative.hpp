// What is asked of points of the queue, L instances at a time: Newton's method from them, and the
// solution of the derivative's system there. Both are checked before they are handed out.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "newton.hpp"

namespace lanes {

inline constexpr int kRefinements = 10;
// Up to this relative residual the system counts as solved.
inline constexpr double kAccepted = 1e-12;
// A system that is regular can be solved for any right-hand side to this accuracy.
inline constexpr double kRegular = 1e-9;

template <class V>
class Derivative {
  static constexpr int L = kLanes<V>;

 public:
  explicit Derivative(const Structure& structure)
      : s_(structure),
        data_(structure),
        cones_(structure),
        system_(structure, data_, cones_),
        newton_(structure, data_, cones_, system_),
        w_(structure.m) {
    // Any numbers that no null vector is orthogonal to by accident: the fractional parts of
    // multiples of the golden ratio.
    for (int i = 0; i < s_.n + s_.m; ++i) {
      const double multiple = 0.6180339887498949 * (i + 1);
      probe_.push_back(2.0 * (multiple - std::floor(multiple)) - 1.0);
    }
  }

  // Members refer to each other.
  Derivative(const Derivative&) = delete;

  // Improve the points of the queue in place, where that succeeds; `residual` is that of `Newton`,
  // and infinite where it does not.
  void polish(const Program& program, Queue& queue, double* x, double* z, double* s,
              double* residual) {
    const int n = s_.n, m = s_.m;
    const Points points{{x, program.batch, n}, {z, program.batch, m}, {s, program.batch, m}};
    begin(program);
    while (next(program, points, queue)) {
      data_.load_vectors(program, instances_.data());
      newton_.run();
      for (int l = 0; l < count_; ++l) {
        const std::int64_t i = instances_[l];
        const double error = get(newton_.residual, l);
        const bool good = error <= kSmall;
        residual[i] = good ? error : std::numeric_limits<double>::infinity();
        if (!good) continue;
        const double unit = get(data_.unit, l), c = get(data_.c, l);
        for (int j = 0; j < n; ++j) {
          x[i * n + j] = get(newton_.x[j], l) * get(data_.d[j], l) * unit;
        }
        for (int k = 0; k < m; ++k) {
          const double e = get(data_.e[k], l);
          z[i * m + k] = get(newton_.z[k], l) * e * (unit / c);
          s[i * m + k] = get(newton_.s[k], l) / e * unit;
        }
      }
    }
  }

  // (u, v) of (1) at the points, for right-hand sides (r₁, r₂) of which the second may be missing;
  // `residual` is that of the scaled system relative to its right-hand side, infinite where the
  // system may be singular.
  void solve(const Program& program, const Points& points, const Rows& r1, const Rows& r2,
             Queue& queue, double* u, double* v, double* residual) {
    const int n = s_.n, m = s_.m;
    V *right = system_.right(0), *probe = system_.right(1);
    const V* left = system_.left(0);
    begin(program);
    while (next(program, points, queue)) {
      for (int i = 0; i < m; ++i) w_[i] = data_.s[i] - data_.z[i];
      system_.factor(w_.data(), data_.s.data());
      load(r1, instances_.data(), right);
      for (int j = 0; j < n; ++j) right[j] *= data_.c * data_.d[j];
      if (r2.values) load(r2, instances_.data(), right + n);
      for (int i = 0; i < m; ++i) right[n + i] = r2.values ? right[n + i] * data_.e[i] : V(0.0);
      for (int i = 0; i < n + m; ++i) probe[i] = V(probe_[i]);
      V relative[2];
      system_.template solve<2>(kRefinements, relative);
      for (int l = 0; l < count_; ++l) {
        const std::int64_t i = instances_[l];
        const bool good = get(relative[0], l) <= kAccepted && get(relative[1], l) <= kRegular;
        residual[i] = good ? get(relative[0], l) : std::numeric_limits<double>::infinity();
        const double over = 1.0 / get(data_.c, l);
        for (int j = 0; j < n; ++j) u[i * n + j] = get(left[j], l) * get(data_.d[j], l);
        for (int k = 0; k < m; ++k) {
          v[i * m + k] = get(left[n + k], l) * get(data_.e[k], l) * over;
        }
      }
    }
  }

 private:
  void begin(const Program& program) {
    shared_ = program.matrices_shared();
    if (shared_) {
      std::int64_t first[L] = {};
      data_.load_matrices(program, first);
    }
  }

  // The next instances of the queue, their matrices and points; false after the last.
  bool next(const Program& program, const Points& points, Queue& queue) {
    count_ = queue.take(L, instances_.data());
    if (count_ == 0 || queue.is_over()) return false;
    if (!shared_) data_.load_matrices(program, instances_.data());
    data_.load_points(points, instances_.data());
    return true;
  }

  const Structure& s_;
  DerivativeData<V> data_;
  ConeProjection<V> cones_;
  DerivativeSystem<V> system_;
  Newton<V> newton_;
  std::vector<V> w_;
  std::vector<double> probe_;
  std::array<std::int64_t, L> instances_{};
  int count_ = 0;
  bool shared_ = false;
};

}  // namespace lanes
