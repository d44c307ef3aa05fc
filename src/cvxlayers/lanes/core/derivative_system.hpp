// The linear system of the derivative of (P, q, A, b) ↦ (x, z), and of a Newton step to (x, z).
//
// With w = s − z, s = Π(w), D = DΠ(w), both solve
//
//   P u + Aᵀv = r₁,    (I − D)(A u − r₂) = D v                                            (1)
//
// (cvxlayers.derivative: the same system with U and λ of D = U diag(λ) Uᵀ). Dividing by I − D gives
// the symmetric K of `structure.hpp` with H = D (I − D)⁻¹, which the interior-point method factors,
// too. Where λ = 1 it is infinite; the factored H has λ <= 1 − margin, the factored K is
// regularised, and refinement against (1), which is exact for every λ in [0, 1], takes both away:
//
//   ρ₁ = r₁ − P u − Aᵀv,   ρ₂ = (I − D)(r₂ − A u) + D v,   K (du, dv) = (ρ₁, (I − D)⁻¹ρ₂).
#pragma once

#include <algorithm>
#include <vector>

#include "cone_product.hpp"
#include "derivative_data.hpp"
#include "kkt.hpp"

namespace lanes {

inline constexpr double kShift = 1e-8;  // regularisation of K
// Refinement ends at this relative residual.
inline constexpr double kExact = 1e-15;

template <class V>
class DerivativeSystem {
 public:
  DerivativeSystem(const Structure& structure, const DerivativeData<V>& data,
                   ConeProjection<V>& cones)
      : s_(structure),
        data_(data),
        cones_(cones),
        kkt_(structure),
        difference_(structure.m),
        slope_(structure.m) {
    for (int k = 0; k < 2; ++k) {
      for (auto* v : {&right_[k], &left_[k], &error_[k], &trial_[k], &trial_error_[k]}) {
        v->assign(s_.n + s_.m, V(0.0));
      }
    }
  }

  // Two right-hand sides (r₁, r₂), and the solutions (u, v).
  V* right(int k) { return right_[k].data(); }
  const V* left(int k) const { return left_[k].data(); }

  // D at w, where s = Π(w), and K.
  void factor(const V* w, const V* s) {
    cones_.linearize(w, s);
    kkt_.factor(data_.P.data(), data_.A.data(), data_.M.data(), cones_.H(), kShift);
  }

  // Solve (1) for the first R right-hand sides, with up to so many rounds of refinement; `relative`
  // is what is left of the residual.
  template <int R>
  void solve(int rounds, V (&relative)[R]) {
    const int size = s_.n + s_.m;
    const V *rights[R], *of_errors[R], *of_lefts[R], *of_changes[R];
    V *lefts[R], *errors[R], *changes[R], *trial_errors[R], bound[R], height[R], again[R];
    MaskOf<V> pending[R];
    for (int k = 0; k < R; ++k) {
      rights[k] = right_[k].data();
      errors[k] = error_[k].data();
      lefts[k] = left_[k].data();
      changes[k] = trial_[k].data();
      trial_errors[k] = trial_error_[k].data();
      of_errors[k] = errors[k];
      of_lefts[k] = lefts[k];
      of_changes[k] = changes[k];
      bound[k] = largest(rights[k], size);
    }
    kkt_.template solve<R>(rights, lefts);
    const auto is_pending = [&] {
      bool some = false;
      for (int k = 0; k < R; ++k) some = some || any(pending[k]);
      return some;
    };
    residual<R>(rights, of_lefts, errors, height);
    for (int k = 0; k < R; ++k) pending[k] = height[k] > V(kExact) * bound[k];
    for (int round = 0; round < rounds && is_pending(); ++round) {
      for (int k = 0; k < R; ++k) cones_.divide(errors[k] + s_.n);
      kkt_.template solve<R>(of_errors, changes);
      for (int k = 0; k < R; ++k) {
        for (int i = 0; i < size; ++i) changes[k][i] += lefts[k][i];
      }
      residual<R>(rights, of_changes, trial_errors, again);
      for (int k = 0; k < R; ++k) {
        const MaskOf<V> better = pending[k] & (again[k] < height[k]);
        for (int i = 0; i < size; ++i) {
          lefts[k][i] = select(better, changes[k][i], lefts[k][i]);
          errors[k][i] = select(better, trial_errors[k][i], errors[k][i]);
        }
        // One more round has to be worth it.
        pending[k] = better & (again[k] > V(kExact) * bound[k]) &
                     (again[k] < V(0.5) * height[k]);
        height[k] = select(better, again[k], height[k]);
      }
    }
    for (int k = 0; k < R; ++k) {
      relative[k] = height[k] / select(bound[k] > V(0.0), bound[k], V(1.0));
      // NaN does not get through a maximum.
      V total(0.0);
      for (int i = 0; i < size; ++i) total = fma(V(0.0), lefts[k][i], total);
      relative[k] = select(total <= V(0.0), relative[k], V(1e300));
    }
  }

 private:
  // error = (ρ₁, ρ₂), and their largest entries.
  template <int R>
  void residual(const V* const (&right)[R], const V* const (&left)[R], V* const (&error)[R],
                V (&height)[R]) {
    const int n = s_.n, m = s_.m;
    const V* v[R];
    V* below[R];
    for (int k = 0; k < R; ++k) {
      std::copy(right[k], right[k] + n + m, error[k]);
      v[k] = left[k] + n;
      below[k] = error[k] + n;
    }
    subtract_product<R>(s_.P_full, data_.P.data(), left, error);
    subtract_both<R>(s_, data_.A.data(), left, v, error, below);
    for (int k = 0; k < R; ++k) {
      // ρ₂ = g + D (v − g), g = r₂ − A u.
      for (int i = 0; i < m; ++i) difference_[i] = v[k][i] - below[k][i];
      cones_.derivative(difference_.data(), slope_.data());
      for (int i = 0; i < m; ++i) below[k][i] += slope_[i];
      height[k] = largest(error[k], n + m);
    }
  }

  const Structure& s_;
  const DerivativeData<V>& data_;
  ConeProjection<V>& cones_;
  Kkt<V, V> kkt_;
  std::vector<V> right_[2], left_[2], error_[2], trial_[2], trial_error_[2], difference_, slope_;
};

}  // namespace lanes
