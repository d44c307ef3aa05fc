// K of `structure.hpp` for L instances: assembled, factored, solved. T is the number type of A.
#pragma once

#include <vector>

#include "arrows.hpp"
#include "elimination.hpp"
#include "ldl.hpp"
#include "products.hpp"

namespace lanes {

// The smallest pivot that is not replaced, and by what it is.
inline constexpr double kLeastPivot = 1e-13, kReplacedPivot = 2e-7;

template <class V, class T>
class Kkt {
 public:
  explicit Kkt(const Structure& structure)
      : s_(structure),
        elimination_(structure),
        X_(structure.symbolic.store),
        D_(structure.size()),
        D_inverse_(structure.size()),
        work_(structure.symbolic.work),
        y_(2 * structure.size()),
        arrows_(structure) {}

  // Factor [P Aᵀ; A −H] + regularisation diag(±1), where M is what the eliminated rows add to P.
  // P, A and H are referred to by `solve`.
  void factor(const V* P, const T* A, const V* M, const V* H, double regularisation) {
    for (V& x : X_) x = V(0.0);
    for (int i = 0; i < s_.size(); ++i) X_[s_.diagonal[i]] = V(regularisation * s_.sign[i]);
    add(s_.of_P, P);
    add(s_.of_A, A);
    add(s_.of_M, M);
    const Scatter& of_H = s_.of_H;
    for (std::size_t k = 0; k < of_H.place.size(); ++k) X_[of_H.place[k]] -= H[of_H.value[k]];
    elimination_.set(P, A, H, regularisation);
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      X_[s_.bounded[k]] = elimination_.add_bound(k, X_[s_.bounded[k]]);
    }
    lanes::factor(s_.symbolic, s_.pivot_sign.data(), kLeastPivot, kReplacedPivot, X_.data(),
                  D_.data(), D_inverse_.data(), work_.data());
    arrows_.set(H, X_.data(), D_inverse_.data());
  }

  // K⁻¹ of R right-hand sides (r₁, r₂) of n + m numbers; those of the cones' unknowns are zero.
  template <int R>
  void solve(const V* const (&right)[R], V* const (&left)[R]) {
    const int size = s_.size(), n = s_.n, coupled = n + s_.m;
    const std::vector<int>& order = s_.symbolic.order;
    const V* top[R];
    elimination_.template eliminate<R>(right, top);
    for (int i = 0; i < size; ++i) {
      const int k = s_.unknowns[order[i]];
      for (int q = 0; q < R; ++q) {
        y_[q * size + i] = k < n ? top[q][k] : k < coupled ? right[q][k] : V(0.0);
      }
    }
    lanes::solve<R>(s_.symbolic, X_.data(), D_inverse_.data(), y_.data());
    arrows_.template refine<R>(y_.data());
    for (int i = 0; i < size; ++i) {
      const int k = s_.unknowns[order[i]];
      if (k >= coupled) continue;
      for (int q = 0; q < R; ++q) left[q][k] = y_[q * size + i];
    }
    elimination_.template substitute<R>(right, left);
  }

 private:
  template <class U>
  void add(const Scatter& scatter, const U* values) {
    for (std::size_t k = 0; k < scatter.place.size(); ++k) {
      X_[scatter.place[k]] += V(values[scatter.value[k]]);
    }
  }

  const Structure& s_;
  Elimination<V, T> elimination_;
  std::vector<V> X_, D_, D_inverse_, work_, y_;
  ArrowRefinement<V> arrows_;
};

}  // namespace lanes
