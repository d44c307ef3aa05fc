// The derivative of (P, q, A, b) ↦ (x, z) at points of L instances, and Newton steps to them.
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
//
// All of it is in scaled data, x̂ = D⁻¹x, ŝ = E s, ẑ = c E⁻¹z. Scales are powers of two and round
// nothing. Those of a curved cone bring s and z to one size: w = s − z would lose the smaller.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cones/all.hpp"
#include "data.hpp"
#include "equilibrate.hpp"

namespace lanes {

// In a block beside others that are zero, which rounding must not make negative by more than the
// regularisation.
inline constexpr double kMargin = 1e-8, kBlockMargin = 1e-7;
inline constexpr double kShift = 1e-8;  // regularisation of K
inline constexpr int kScalingRounds = 2;
inline constexpr int kRefinements = 10;
// Refinement ends at this relative residual; up to the next one the system counts as solved.
inline constexpr double kExact = 1e-15, kAccepted = 1e-12;
// A system that is regular can be solved for any right-hand side to this accuracy.
inline constexpr double kRegular = 1e-9;
// A slack or dual this small beside those of the other rows is at the apex, or inactive.
inline constexpr double kVanishing = 1e-6;
inline constexpr double kLeft = 1e-7;
// Newton's method: a residual that is rounding, one that is good enough, factors, steps with each.
inline constexpr double kRounding = 1e-15, kSmall = 1e-13;
inline constexpr int kFactors = 10, kSteps = 3;

struct Points {
  Rows x, z, s;
};

template <class V>
class Derivative {
  static constexpr int L = kLanes<V>;
  using Mask = MaskOf<V>;

 public:
  explicit Derivative(const Structure& structure)
      : s_(structure),
        kkt_(structure),
        P_(structure.P_entries()),
        A_(structure.A_entries()),
        M_(structure.M_entries()),
        P_base_(structure.P_entries()),
        A_base_(structure.A_entries()),
        H_(structure.h_size),
        state_(structure.projection_size),
        scratch_(structure.scratch_size) {
    const int n = s_.n, m = s_.m;
    for (auto* v : {&q_, &d_, &d_base_, &x_, &F1_, &best_x_}) v->assign(n, V(0.0));
    for (auto* v : {&b_, &e_, &e_base_, &z_, &sl_, &w_, &F2_, &lambda_, &best_z_, &best_s_, &row_,
                    &slope_}) {
      v->assign(m, V(0.0));
    }
    for (int k = 0; k < 2; ++k) {
      for (auto* v : {&right_[k], &left_[k], &error_[k], &trial_[k], &trial_error_[k]}) {
        v->assign(n + m, V(0.0));
      }
    }
    // Any numbers that no null vector is orthogonal to by accident: the fractional parts of
    // multiples of the golden ratio.
    for (int i = 0; i < n + m; ++i) {
      const double multiple = 0.6180339887498949 * (i + 1);
      probe_.push_back(2.0 * (multiple - std::floor(multiple)) - 1.0);
    }
  }

  // ---- Newton's method on F(x, w) = (P x + q + Aᵀ(Π(w) − w), A x + Π(w) − b) ----

  // Improve the points of the queue in place, where that succeeds; `residual` is the larger of
  // ‖F₁‖ and the rows of F₂, each relative to its terms, and infinite where it does not.
  void polish(const Program& program, Queue& queue, double* x, double* z, double* s,
              double* residual) {
    const Points points{{x, program.batch, s_.n}, {z, program.batch, s_.m},
                        {s, program.batch, s_.m}};
    begin(program);
    while (next(program, points, queue)) {
      load(program.q, instances_.data(), q_.data());
      load(program.b, instances_.data(), b_.data());
      scale_vectors();
      newton();
      for (int l = 0; l < count_; ++l) {
        const std::int64_t i = instances_[l];
        const double error = get(best_, l);
        const bool good = error <= kSmall;
        residual[i] = good ? error : std::numeric_limits<double>::infinity();
        if (!good) continue;
        const double unit = get(unit_, l), c = get(c_, l);
        for (int j = 0; j < s_.n; ++j) x[i * s_.n + j] = get(best_x_[j], l) * get(d_[j], l) * unit;
        for (int k = 0; k < s_.m; ++k) {
          const double e = get(e_[k], l);
          z[i * s_.m + k] = get(best_z_[k], l) * e * (unit / c);
          s[i * s_.m + k] = get(best_s_[k], l) / e * unit;
        }
      }
    }
  }

  // ---- the linear system ----

  // (u, v) of (1) at the points, for right-hand sides (r₁, r₂) of which the second may be missing;
  // `residual` is that of the scaled system relative to its right-hand side, infinite where the
  // system may be singular.
  void solve(const Program& program, const Points& points, const Rows& r1, const Rows& r2,
             Queue& queue, double* u, double* v, double* residual) {
    const int n = s_.n, m = s_.m;
    begin(program);
    while (next(program, points, queue)) {
      for (int i = 0; i < m; ++i) w_[i] = sl_[i] - z_[i];
      factor();
      load(r1, instances_.data(), right_[0].data());
      for (int j = 0; j < n; ++j) right_[0][j] *= c_ * d_[j];
      if (r2.values) load(r2, instances_.data(), right_[0].data() + n);
      for (int i = 0; i < m; ++i) {
        right_[0][n + i] = r2.values ? right_[0][n + i] * e_[i] : V(0.0);
      }
      for (int i = 0; i < n + m; ++i) right_[1][i] = V(probe_[i]);
      V relative[2];
      refine<2>(kRefinements, relative);
      for (int l = 0; l < count_; ++l) {
        const std::int64_t i = instances_[l];
        const bool good = get(relative[0], l) <= kAccepted && get(relative[1], l) <= kRegular;
        residual[i] = good ? get(relative[0], l) : std::numeric_limits<double>::infinity();
        const double over = 1.0 / get(c_, l);
        for (int j = 0; j < n; ++j) u[i * n + j] = get(left_[0][j], l) * get(d_[j], l);
        for (int k = 0; k < m; ++k) {
          v[i * m + k] = get(left_[0][n + k], l) * get(e_[k], l) * over;
        }
      }
    }
  }

 private:
  // ---- data ----

  void begin(const Program& program) {
    shared_ = program.matrices_shared();
    if (shared_) {
      std::int64_t first[L] = {};
      load_matrices(program, first);
    }
  }

  // D, E and c for the matrices alone.
  void load_matrices(const Program& program, const std::int64_t* instances) {
    load(program.P, instances, P_base_.data());
    load(program.A, instances, A_base_.data());
    if (s_.M_is_given()) load(program.M, instances, M_.data());
    P_ = P_base_;
    A_ = A_base_;
    equilibrate(s_, kScalingRounds, P_.data(), A_.data(), d_base_.data(), e_base_.data());
    for (V& v : d_base_) v = nearest_power(v);
    for (V& v : e_base_) v = nearest_power(v);
    V sum(0.0);
    for (int j = 0; j < s_.n; ++j) {
      V height(0.0);
      for (int p = s_.P_full.start[j]; p < s_.P_full.start[j + 1]; ++p) {
        const int k = s_.P_full.value[p];
        height = max(abs(P_[k]), height);
      }
      sum += height;
    }
    const V mean = sum * V(1.0 / std::max(1, s_.n));
    c_base_ = nearest_power(select(mean > V(0.0), V(1.0) / mean, V(1.0)));
    for (int j = 0; j < s_.n; ++j) {
      for (int p = s_.P.start[j]; p < s_.P.start[j + 1]; ++p) {
        P_base_[p] *= c_base_ * d_base_[j] * d_base_[s_.P.index[p]];
      }
      for (int p = s_.A.start[j]; p < s_.A.start[j + 1]; ++p) {
        A_base_[p] *= d_base_[j] * e_base_[s_.A.index[p]];
      }
    }
    make_products(s_, P_base_.data(), A_base_.data(), d_base_.data(), M_.data());
    if (s_.M_is_given()) {
      for (V& v : M_) v *= c_base_;
    }
    P_ = P_base_;
    A_ = A_base_;
    c_ = c_base_;
    d_ = d_base_;
    e_ = e_base_;
  }

  static V nearest_power(const V& v) {
    V mantissa, exponent;
    split(v, mantissa, exponent);
    return power_of_two(select(mantissa < V(0.70710678118654752), exponent - V(1.0), exponent));
  }

  // The next instances of the queue, their matrices and points, scaled; false after the last.
  bool next(const Program& program, const Points& points, Queue& queue) {
    const std::int64_t first = queue.next.fetch_add(L, std::memory_order_relaxed);
    if (first >= queue.count || queue.is_over()) {
      queue.next.store(queue.count, std::memory_order_relaxed);
      return false;
    }
    count_ = static_cast<int>(std::min<std::int64_t>(L, queue.count - first));
    for (int l = 0; l < L; ++l) instances_[l] = first + std::min(l, count_ - 1);
    if (!shared_) load_matrices(program, instances_.data());
    load(points.x, instances_.data(), x_.data());
    load(points.z, instances_.data(), z_.data());
    load(points.s, instances_.data(), sl_.data());
    if (!s_.blocks.empty()) balance();
    for (int j = 0; j < s_.n; ++j) x_[j] /= d_[j];
    for (int i = 0; i < s_.m; ++i) {
      sl_[i] *= e_[i];
      z_[i] *= c_ / e_[i];
    }
    return true;
  }

  // Rows of curved cones in a scale in which s and z are of one size.
  void balance() {
    const V tiny(1e-150), size_s = largest(sl_.data(), s_.m), size_z = largest(z_.data(), s_.m);
    // What the solver leaves of the product of a slack and a dual that is zero, beside xᵀP x, P being
    // of size one.
    V size_x(0.0);
    for (int j = 0; j < s_.n; ++j) size_x = max(abs(x_[j]) / d_[j], size_x);
    const V left = V(kLeft) * size_x * size_x;
    const V least_s = V(kVanishing) * size_s, least_z = V(kVanishing) * size_z;
    for (int i = 0; i < s_.m; ++i) row_[i] = V(1.0);
    for (const Block& block : s_.blocks) {
      const V *s = &sl_[block.row], *z = &z_[block.row];
      const V of_s = largest(s, block.rows), of_z = largest(z, block.rows);
      const auto known = (of_s > max(least_s, tiny)) & (of_z > max(least_z, tiny)) &
                         (c_ * of_s * of_z > left);
      const V wanted = nearest_power(sqrt(c_ * max(of_z, tiny) / max(of_s, tiny)));
      const V base = e_base_[block.row], scale = select(known, wanted, base);
      for (int i = block.row; i < block.row + block.rows; ++i) {
        row_[i] = scale / base;
        e_[i] = scale;
      }
    }
    for (int j = 0; j < s_.n; ++j) {
      for (int p = s_.A.start[j]; p < s_.A.start[j + 1]; ++p) {
        A_[p] = A_base_[p] * row_[s_.A.index[p]];
      }
    }
  }

  // q and b, everything in units of their size where they are small: residuals are absolute below
  // one.
  void scale_vectors() {
    const V size = max(largest(q_.data(), s_.n), largest(b_.data(), s_.m));
    unit_ = nearest_power(select((size < V(1e-2)) & (size > V(1e-290)), size, V(1.0)));
    const V over = V(1.0) / unit_;
    for (int j = 0; j < s_.n; ++j) {
      q_[j] *= c_ * d_[j] * over;
      x_[j] *= over;
    }
    for (int i = 0; i < s_.m; ++i) {
      b_[i] *= e_[i] * over;
      z_[i] *= over;
      sl_[i] *= over;
    }
  }

  // ---- cones ----

  void project(const V* w, const V* near, V* s) {
    for (int i = 0; i < s_.zero; ++i) s[i] = V(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) s[i] = max(w[i], V(0.0));
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.project(w + block.row, near + block.row, s + block.row, scratch_.data());
      });
    }
  }

  // D at w, and K.
  void factor() {
    for (int i = 0; i < s_.zero; ++i) lambda_[i] = V(0.0);
    for (int k = 0; k < s_.nonneg; ++k) {
      const int i = s_.zero + k;
      const auto inactive = w_[i] > V(0.0);
      lambda_[i] = select(inactive, V(1.0), V(0.0));
      H_[k] = select(inactive, V((1.0 - kMargin) / kMargin), V(0.0));
    }
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        V* state = state_.data() + block.projection;
        cone.linearize(&w_[block.row], &sl_[block.row], state, scratch_.data());
        cone.block(state, kBlockMargin, H_.data() + block.h, scratch_.data());
      });
    }
    kkt_.factor(P_.data(), A_.data(), M_.data(), H_.data(), kShift);
  }

  // y = D v.
  void differentiate(const V* v, V* y) {
    for (int i = 0; i < s_.zero + s_.nonneg; ++i) y[i] = lambda_[i] * v[i];
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.derivative(state_.data() + block.projection, v + block.row, y + block.row,
                        scratch_.data());
      });
    }
  }

  // v ← (I − D)⁻¹ v, as in the factored K.
  void divide(V* v) {
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      v[i] = select(lambda_[i] > V(0.5), v[i] * V(1.0 / kMargin), v[i]);
    }
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        lanes::divide(cone, state_.data() + block.projection, kBlockMargin, H_.data() + block.h,
                      v + block.row, &slope_[block.row]);
      });
      for (int i = block.row; i < block.row + block.rows; ++i) v[i] = slope_[i];
    }
  }

  // ---- linear systems ----

  // error = (ρ₁, ρ₂), and their largest entries.
  template <int R>
  void system_residual(const V* const (&right)[R], const V* const (&left)[R], V* const (&error)[R],
                       V (&height)[R]) {
    const int n = s_.n, m = s_.m;
    const V* v[R];
    V* below[R];
    for (int k = 0; k < R; ++k) {
      std::copy(right[k], right[k] + n + m, error[k]);
      v[k] = left[k] + n;
      below[k] = error[k] + n;
    }
    subtract_product<R>(s_.P_full, P_.data(), left, error);
    subtract_both<R>(s_.A, A_.data(), left, v, error, below);
    for (int k = 0; k < R; ++k) {
      // ρ₂ = g + D (v − g), g = r₂ − A u.
      for (int i = 0; i < m; ++i) row_[i] = v[k][i] - below[k][i];
      differentiate(row_.data(), slope_.data());
      for (int i = 0; i < m; ++i) below[k][i] += slope_[i];
      height[k] = largest(error[k], n + m);
    }
  }

  // left = the solution of (1) for `right`, refined; `relative` is what is left of the residual.
  template <int R>
  void refine(int rounds, V (&relative)[R]) {
    const int size = s_.n + s_.m;
    const V *rights[R], *of_errors[R], *of_lefts[R], *of_changes[R];
    V *lefts[R], *errors[R], *changes[R], *trial_errors[R], bound[R], height[R], again[R];
    Mask pending[R];
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
    system_residual<R>(rights, of_lefts, errors, height);
    for (int k = 0; k < R; ++k) {
      pending[k] = height[k] > V(kExact) * bound[k];
    }
    for (int round = 0; round < rounds && is_pending(); ++round) {
      for (int k = 0; k < R; ++k) divide(error_[k].data() + s_.n);
      kkt_.template solve<R>(of_errors, changes);
      for (int k = 0; k < R; ++k) {
        for (int i = 0; i < size; ++i) changes[k][i] += lefts[k][i];
      }
      system_residual<R>(rights, of_changes, trial_errors, again);
      for (int k = 0; k < R; ++k) {
        const Mask better = pending[k] & (again[k] < height[k]);
        for (int i = 0; i < size; ++i) {
          lefts[k][i] = select(better, changes[k][i], lefts[k][i]);
          error_[k][i] = select(better, trial_error_[k][i], error_[k][i]);
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

  // ---- Newton's method ----

  // s, z, F at (x, w); the residual.
  V conditions(const V* x, const V* w, const V* near, V* s, V* z, V* F1, V* F2) {
    const int n = s_.n, m = s_.m;
    project(w, near, s);
    for (int i = 0; i < m; ++i) z[i] = s[i] - w[i];
    V height(0.0), dual(0.0);
    for (int j = 0; j < n; ++j) {
      V Px(0.0), Az(0.0);
      for (int p = s_.P_full.start[j]; p < s_.P_full.start[j + 1]; ++p) {
        Px = fma(P_[s_.P_full.value[p]], x[s_.P_full.index[p]], Px);
      }
      for (int p = s_.A.start[j]; p < s_.A.start[j + 1]; ++p) {
        Az = fma(A_[p], z[s_.A.index[p]], Az);
      }
      F1[j] = Px + q_[j] + Az;
      const V over = V(1.0) / (c_ * d_[j]);
      height = max(max(max(abs(Px), abs(Az)), abs(q_[j])) * over, height);
      dual = max(abs(F1[j]) * over, dual);
    }
    dual = dual / (V(1.0) + height);
    V primal(0.0);
    for (int i = 0; i < m; ++i) {
      V sum = s[i] - b_[i];
      for (int p = s_.A_rows.start[i]; p < s_.A_rows.start[i + 1]; ++p) {
        sum = fma(A_[s_.A_rows.value[p]], x[s_.A_rows.index[p]], sum);
      }
      F2[i] = sum;
      primal = max(abs(sum) / (e_[i] + abs(s[i]) + abs(b_[i])), primal);
    }
    // NaN does not get through a maximum.
    V total = primal + dual;
    for (int i = 0; i < m; ++i) total = fma(V(0.0), w[i], total);
    for (int j = 0; j < n; ++j) total = fma(V(0.0), x[j] + F1[j], total);
    return select(total <= V(1e300), max(primal, dual), V(1e300));
  }

  void newton() {
    const int m = s_.m;
    for (int i = 0; i < m; ++i) {
      w_[i] = sl_[i] - z_[i];
      slope_[i] = sl_[i];
    }
    V error = conditions(x_.data(), w_.data(), slope_.data(), sl_.data(), z_.data(), F1_.data(),
                         F2_.data());
    best_ = error;
    best_x_ = x_;
    best_z_ = z_;
    best_s_ = sl_;
    Mask going = error < V(1e300);
    for (int factors = 0; factors < kFactors && any(going); ++factors) {
      factor();
      Mask pending = going;
      for (int step = 0; step < kSteps && any(pending); ++step) {
        error = newton_step(pending, step == 0, error);
      }
      going = going & (best_ > V(kSmall));
    }
  }

  // One step in the lanes `pending`; the new residual. The first with a factor is taken whatever it
  // does to the residual, because Newton's method exchanges active constraints, the others for as
  // long as it falls tenfold.
  V newton_step(Mask& pending, bool first, const V& error) {
    const int n = s_.n, m = s_.m;
    for (int j = 0; j < n; ++j) right_[0][j] = -F1_[j];
    for (int i = 0; i < m; ++i) right_[0][n + i] = -F2_[i];
    V relative[1];
    refine<1>(4, relative);
    V *x = trial_[0].data(), *w = x + n, *F1 = error_[0].data(), *F2 = F1 + n;
    V *s = trial_[1].data(), *z = trial_error_[1].data();
    const V *dx = left_[0].data(), *dz = dx + n;
    for (int j = 0; j < n; ++j) x[j] = x_[j] + dx[j];
    // dw = ds − dz with ds = −F₂ − A dx.
    for (int i = 0; i < m; ++i) w[i] = w_[i] - F2_[i] - dz[i];
    const V* steps[1] = {dx};
    V* moved[1] = {w};
    subtract_product<1>(s_.A_rows, A_.data(), steps, moved);
    const V again = conditions(x, w, sl_.data(), s, z, F1, F2);
    const Mask falling = again < error;
    const Mask taken = first ? pending & (again < V(1e300)) : pending & falling;
    const Mask better = taken & (again < best_);
    for (int j = 0; j < n; ++j) {
      x_[j] = select(taken, x[j], x_[j]);
      F1_[j] = select(taken, F1[j], F1_[j]);
      best_x_[j] = select(better, x[j], best_x_[j]);
    }
    for (int i = 0; i < m; ++i) {
      w_[i] = select(taken, w[i], w_[i]);
      sl_[i] = select(taken, s[i], sl_[i]);
      F2_[i] = select(taken, F2[i], F2_[i]);
      best_s_[i] = select(better, s[i], best_s_[i]);
      best_z_[i] = select(better, z[i], best_z_[i]);
    }
    best_ = select(better, again, best_);
    pending = taken & (again < V(0.1) * error) & (again > V(kRounding));
    return select(taken, again, error);
  }

  const Structure& s_;
  Kkt<V, V> kkt_;
  // Data and scales of the instances; `base`, before curved cones have theirs.
  std::vector<V> P_, A_, M_, P_base_, A_base_, H_, state_, scratch_;
  std::vector<V> q_, b_, d_, e_, d_base_, e_base_;
  V c_{1.0}, c_base_{1.0}, unit_{1.0};
  // The iterate, F there, and the best point; sl_ is s, lambda_ that of nonnegative rows.
  std::vector<V> x_, z_, sl_, w_, F1_, F2_, lambda_, best_x_, best_z_, best_s_, row_, slope_;
  V best_{0.0};
  std::vector<V> right_[2], left_[2], error_[2], trial_[2], trial_error_[2];
  std::vector<double> probe_;
  std::array<std::int64_t, L> instances_{};
  int count_ = 0;
  bool shared_ = false;
};

}  // namespace lanes
