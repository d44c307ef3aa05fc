// Newton's method on F(x, w) = (P x + q + Aᵀ(Π(w) − w), A x + Π(w) − b), from points near its zero.
//
// With s = Π(w), z = s − w and D of `derivative_system.hpp`, a step (dx, dw) has dz = (D − I) dw,
// so that (dx, dz) solves (1) with the right-hand side −F; and dw = ds − dz with ds = −F₂ − A dx.
#pragma once

#include <vector>

#include "derivative_system.hpp"

namespace lanes {

// A residual that is rounding, one that is good enough, factors, steps with each, and rounds of
// refinement of each.
inline constexpr double kRounding = 1e-15, kSmall = 1e-13;
inline constexpr int kFactors = 10, kSteps = 3, kStepRefinements = 4;

template <class V>
class Newton {
  using Mask = MaskOf<V>;

 public:
  // The best point, and the larger of ‖F₁‖ and the rows of F₂ there, each relative to its terms.
  std::vector<V> x, z, s;
  V residual{0.0};

  Newton(const Structure& structure, const DerivativeData<V>& data, ConeProjection<V>& cones,
         DerivativeSystem<V>& system)
      : s_(structure),
        data_(data),
        cones_(cones),
        system_(system),
        at_(structure),
        trial_(structure) {}

  // From the points of the data.
  void run() {
    at_.x = data_.x;
    for (int i = 0; i < s_.m; ++i) at_.w[i] = data_.s[i] - data_.z[i];
    V error = evaluate(data_.s.data(), at_);
    residual = error;
    x = at_.x;
    z = at_.z;
    s = at_.s;
    Mask going = error < V(1e300);
    for (int factors = 0; factors < kFactors && any(going); ++factors) {
      system_.factor(at_.w.data(), at_.s.data());
      Mask pending = going;
      for (int k = 0; k < kSteps && any(pending); ++k) error = step(pending, k == 0, error);
      going = going & (residual > V(kSmall));
    }
  }

 private:
  // (x, w), and what follows from it.
  struct Point {
    std::vector<V> x, w, s, z, F1, F2;

    explicit Point(const Structure& of)
        : x(of.n), w(of.m), s(of.m), z(of.m), F1(of.n), F2(of.m) {}
  };

  // s, z and F at (x, w), s being near `near`; the residual.
  V evaluate(const V* near, Point& at) {
    const int n = s_.n, m = s_.m;
    cones_.project(at.w.data(), near, at.s.data());
    for (int i = 0; i < m; ++i) at.z[i] = at.s[i] - at.w[i];
    // Line by line: with the kernels of `products.hpp`, which leave their results in arrays, small
    // programs take a twentieth longer.
    V height(0.0), of_dual(0.0), of_primal(0.0);
    for (int j = 0; j < n; ++j) {
      V Px(0.0), Az(0.0);
      for (int p = s_.P_full.start[j]; p < s_.P_full.start[j + 1]; ++p) {
        Px = fma(data_.P[s_.P_full.value[p]], at.x[s_.P_full.index[p]], Px);
      }
      for (int p = s_.A.start[j]; p < s_.A.start[j + 1]; ++p) {
        Az = fma(data_.A[p], at.z[s_.A.index[p]], Az);
      }
      at.F1[j] = Px + data_.q[j] + Az;
      const V over = V(1.0) / (data_.c * data_.d[j]);
      height = max(max(max(abs(Px), abs(Az)), abs(data_.q[j])) * over, height);
      of_dual = max(abs(at.F1[j]) * over, of_dual);
    }
    of_dual = of_dual / (V(1.0) + height);
    for (int i = 0; i < m; ++i) {
      V sum = at.s[i] - data_.b[i];
      for (int p = s_.A_rows.start[i]; p < s_.A_rows.start[i + 1]; ++p) {
        sum = fma(data_.A[s_.A_rows.value[p]], at.x[s_.A_rows.index[p]], sum);
      }
      at.F2[i] = sum;
      of_primal = max(abs(sum) / (data_.e[i] + abs(at.s[i]) + abs(data_.b[i])), of_primal);
    }
    // NaN does not get through a maximum.
    V total = of_primal + of_dual;
    for (int i = 0; i < m; ++i) total = fma(V(0.0), at.w[i], total);
    for (int j = 0; j < n; ++j) total = fma(V(0.0), at.x[j] + at.F1[j], total);
    return select(total <= V(1e300), max(of_primal, of_dual), V(1e300));
  }

  // One step in the lanes `pending`; the new residual. The first with a factor is taken whatever it
  // does to the residual, because Newton's method exchanges active constraints, the others for as
  // long as it falls tenfold.
  V step(Mask& pending, bool first, const V& error) {
    const int n = s_.n, m = s_.m;
    V* right = system_.right(0);
    for (int j = 0; j < n; ++j) right[j] = -at_.F1[j];
    for (int i = 0; i < m; ++i) right[n + i] = -at_.F2[i];
    V relative[1];
    system_.template solve<1>(kStepRefinements, relative);
    const V *dx = system_.left(0), *dz = dx + n;
    for (int j = 0; j < n; ++j) trial_.x[j] = at_.x[j] + dx[j];
    for (int i = 0; i < m; ++i) trial_.w[i] = at_.w[i] - at_.F2[i] - dz[i];
    const V* steps[1] = {dx};
    V* moved[1] = {trial_.w.data()};
    subtract_product<1>(s_.A_rows, data_.A.data(), steps, moved);
    const V again = evaluate(at_.s.data(), trial_);
    const Mask falling = again < error;
    const Mask taken = first ? pending & (again < V(1e300)) : pending & falling;
    const Mask better = taken & (again < residual);
    for (int j = 0; j < n; ++j) {
      at_.x[j] = select(taken, trial_.x[j], at_.x[j]);
      at_.F1[j] = select(taken, trial_.F1[j], at_.F1[j]);
      x[j] = select(better, trial_.x[j], x[j]);
    }
    for (int i = 0; i < m; ++i) {
      at_.w[i] = select(taken, trial_.w[i], at_.w[i]);
      at_.s[i] = select(taken, trial_.s[i], at_.s[i]);
      at_.F2[i] = select(taken, trial_.F2[i], at_.F2[i]);
      s[i] = select(better, trial_.s[i], s[i]);
      z[i] = select(better, trial_.z[i], z[i]);
    }
    residual = select(better, again, residual);
    pending = taken & (again < V(0.1) * error) & (again > V(kRounding));
    return select(taken, again, error);
  }

  const Structure& s_;
  const DerivativeData<V>& data_;
  ConeProjection<V>& cones_;
  DerivativeSystem<V>& system_;
  Point at_, trial_;
};

}  // namespace lanes
