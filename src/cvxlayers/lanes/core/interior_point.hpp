// The homogeneous embedding of
//
//   minimize ½ xᵀP x + qᵀx   subject to   A x + s = b,  s ∈ K
//
// by a predictor–corrector interior-point method (Goulart & Chen 2024, arXiv 2405.12762): with
// unknowns (x, z, s, τ, κ) and residuals
//
//   r_x = −P x − Aᵀz − q τ,   r_z = A x + s − b τ,   r_τ = qᵀx + bᵀz + κ + xᵀP x/τ
//
// a step is (dx, dz) = (x₁, z₁) + dτ (x₂, z₂), where K (x₂, z₂) = (−q, b), and
// K (x₁, z₁) = (ρ r_x, shift − ρ r_z), ds = −(H dz + shift), with ρ = 1 − σ.
//
// L instances are under way at once, each at a step of its own. One that has ended leaves its lane
// to the next of the queue.
#pragma once

#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "cones/all.hpp"
#include "data.hpp"
#include "equilibrate.hpp"

namespace lanes {

// What became of an instance, as the numbers of cvxlayers.status.Status would be too much to know
// here.
enum class Outcome : std::int8_t {
  kSolved,
  kAlmostSolved,
  kPrimalInfeasible,
  kDualInfeasible,
  kIterationLimit,
  kInsufficientProgress,
  kNumericalError,
  kStopped,
};

struct Settings {
  double gap_absolute = 1e-8, gap_relative = 1e-8, feasible = 1e-8;
  int iterations = 200;
};

// Where the answers go: rows of n and m numbers, and one number for each instance.
struct Answers {
  double *x, *z, *s, *seconds;
  std::int8_t* outcome;
  std::int64_t* iterations;
};

inline constexpr double kRegularisation = 1e-8;
// An answer of this accuracy is almost solved.
inline constexpr double kReducedGap = 5e-5, kReducedFeasible = 1e-4;
// Certificates are looked at from this κ/τ on, and hold to this tolerance.
inline constexpr double kCertain = 1e9, kInfeasible = 1e-9, kGain = 1e-6;
// A point of this size beside q and b is on its way to infinity, however small its residuals are
// beside it.
inline constexpr double kAbsurd = 1e10;
inline constexpr double kStepFraction = 0.99, kLeastStep = 1e-4, kSwitchStep = 0.1;
// Data below this size are scaled up: tolerances are absolute below one.
inline constexpr double kTiny = 1e-2;
// A bound of this size is none. Clarabel leaves such rows out, and so is who gets the instance.
inline constexpr double kInfinite = 1e20;
// A system is solved once its residual is at this level.
inline constexpr double kSystemRelative = 1e-12, kSystemAbsolute = 1e-12;

// The data of L instances, equilibrated. T is the number type of A: double where all instances share
// P and A.
template <class V, class T>
struct Data {
  static constexpr bool kShared = !std::is_same_v<V, T> || kLanes<V> == 1;

  std::vector<V> P, M, q, b, d, e, over_d, over_e;
  std::vector<T> A;
  V c{1.0}, unit{1.0}, norm_q{0.0}, norm_b{0.0};
  // The sum of v − v over the data, which is zero or NaN.
  T matrices_check{0.0};
  V check{0.0};
  // P and M before they are scaled by c.
  std::vector<V> P_unscaled, M_unscaled;

  explicit Data(const Structure& s)
      : P(s.P_entries()),
        M(s.M_entries()),
        q(s.n),
        b(s.m),
        d(s.n),
        e(s.m),
        over_d(s.n),
        over_e(s.m),
        A(s.A_entries()),
        P_unscaled(s.P_entries()),
        M_unscaled(s.M_entries()) {}

  // In the numbers of A: once for all lanes, or in each of them.
  void load_matrices(const Structure& s, const Program& program, const std::int64_t* instances) {
    std::vector<T> of_P(P.size()), of_M(M.size()), of_d(d.size()), of_e(e.size());
    load(program.P, instances, of_P.data());
    load(program.A, instances, A.data());
    if (s.M_is_given()) load(program.M, instances, of_M.data());
    matrices_check = T(0.0);
    for (const T& v : of_P) matrices_check += v - v;
    for (const T& v : A) matrices_check += v - v;
    equilibrate(s, kEquilibrationRounds, of_P.data(), A.data(), of_d.data(), of_e.data());
    make_products(s, of_P.data(), A.data(), of_d.data(), of_M.data());
    const auto spread = [](const std::vector<T>& from, std::vector<V>& to) {
      for (std::size_t k = 0; k < to.size(); ++k) to[k] = V(from[k]);
    };
    spread(of_P, P_unscaled);
    spread(of_M, M_unscaled);
    spread(of_d, d);
    spread(of_e, e);
    for (std::size_t j = 0; j < d.size(); ++j) over_d[j] = V(1.0) / d[j];
    for (std::size_t i = 0; i < e.size(); ++i) over_e[i] = V(1.0) / e[i];
  }

  // Whether an instance is one to begin with: its data are finite, and its bounds bound.
  bool is_usable(int lane) const {
    return get(check, lane) == 0.0 && get(norm_b, lane) * get(unit, lane) < kInfinite;
  }

  // q and b, in units of their size where they are small (cones are homogeneous), and c.
  void load_vectors(const Structure& s, const Program& program, const std::int64_t* instances) {
    load(program.q, instances, q.data());
    load(program.b, instances, b.data());
    check = V(matrices_check);
    for (const V& v : q) check += v - v;
    for (const V& v : b) check += v - v;
    norm_q = largest(q.data(), s.n);
    norm_b = largest(b.data(), s.m);
    const V size = max(norm_q, norm_b);
    V mantissa, exponent;
    split(size, mantissa, exponent);
    const auto tiny = (size < V(kTiny)) & (size > V(1e-290));
    unit = power_of_two(select(tiny, exponent, V(0.0)));
    const V over = V(1.0) / unit;
    norm_q *= over;
    norm_b *= over;
    for (int j = 0; j < s.n; ++j) q[j] *= d[j] * over;
    for (int i = 0; i < s.m; ++i) b[i] *= e[i] * over;
    c = cost_scale(s, P_unscaled.data(), q.data());
    for (std::size_t p = 0; p < P.size(); ++p) P[p] = P_unscaled[p] * c;
    for (std::size_t p = 0; p < M.size(); ++p) M[p] = M_unscaled[p] * c;
    for (V& v : q) v *= c;
  }

  // What all lanes share of `other`.
  void share(const Data& other) {
    A = other.A;
    d = other.d;
    e = other.e;
    over_d = other.over_d;
    over_e = other.over_e;
  }

  // Take one lane of `other`; not what is shared.
  void take(int lane, const Data& other, int from) {
    const auto copy = [&](auto& to, const auto& source) {
      for (std::size_t k = 0; k < to.size(); ++k) set(to[k], lane, get(source[k], from));
    };
    copy(P, other.P);
    copy(M, other.M);
    copy(q, other.q);
    copy(b, other.b);
    if constexpr (!kShared) {
      copy(A, other.A);
      copy(d, other.d);
      copy(e, other.e);
      copy(over_d, other.over_d);
      copy(over_e, other.over_e);
    }
    for (auto member : {&Data::c, &Data::unit, &Data::norm_q, &Data::norm_b}) {
      set(this->*member, lane, get(other.*member, from));
    }
  }
};

template <class V, class T>
class InteriorPoint {
  static constexpr int L = kLanes<V>;
  using Mask = MaskOf<V>;
  enum State { kIdle, kStarting, kRunning };
  // What the judgement of an iterate needs.
  struct Measures {
    V qx, bz, xPx, norm_x, norm_z, norm_s, residual_x, residual_z, norm_Az, norm_Axs, norm_Px;
  };

 public:
  explicit InteriorPoint(const Structure& structure)
      : s_(structure),
        kkt_(structure),
        data_(structure),
        staged_(structure),
        H_(structure.h_size),
        scaling_(structure.scaling_size),
        scratch_(structure.scratch_size) {
    const int n = s_.n, m = s_.m;
    for (auto* v : {&x_, &rx_, &Px_, &dx_, &minus_x_}) v->assign(n, V(0.0));
    for (auto* v : {&sl_, &z_, &rz_, &ds_, &dz_, &shift_, &w_}) v->assign(m, V(0.0));
    for (auto* v : {&constant_, &affine_, &right_[0], &right_[1], &error_, &change_}) {
      v->assign(n + m, V(0.0));
    }
    Hx_.assign(m, V(0.0));
    tau_ = kappa_ = V(1.0);
    start_s_.assign(m, 0.0);
    start_z_.assign(m, 0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) start_s_[i] = start_z_[i] = 1.0;
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.unit(start_s_.data() + block.row, start_z_.data() + block.row);
      });
    }
  }

  // Solve instances of the queue until it is empty.
  void run(const Program& program, const Settings& settings, Queue& queue, const Answers& answers) {
    settings_ = settings;
    program_ = &program;
    queue_ = &queue;
    answers_ = answers;
    staged_from_ = staged_count_ = 0;
    state_.fill(kIdle);
    if constexpr (Data<V, T>::kShared) {
      std::int64_t first[L] = {};
      staged_.load_matrices(s_, program, first);
      data_.share(staged_);
    }
    clock_ = now();
    while (fill()) {
      if (queue.is_over()) {
        for (int l = 0; l < L; ++l) {
          if (state_[l] != kIdle) finish(l, Outcome::kStopped);
        }
        return;
      }
      advance();
    }
  }

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  // ---- instances into lanes ----

  // Give idle lanes an instance; false once none is under way.
  bool fill() {
    bool loaded = false, busy = false;
    for (int l = 0; l < L; ++l) {
      while (state_[l] == kIdle && (staged_from_ < staged_count_ || stage())) {
        loaded = begin(l, staged_from_++) || loaded;
      }
      busy = busy || state_[l] != kIdle;
    }
    if (loaded) compute_residuals();
    return busy;
  }

  // Take the next instances from the queue and equilibrate them.
  bool stage() {
    const std::int64_t first = queue_->next.fetch_add(L, std::memory_order_relaxed);
    if (first >= queue_->count) {
      queue_->next.store(queue_->count, std::memory_order_relaxed);
      return false;
    }
    staged_from_ = 0;
    staged_count_ = static_cast<int>(std::min<std::int64_t>(L, queue_->count - first));
    for (int l = 0; l < L; ++l) instances_[l] = first + std::min(l, staged_count_ - 1);
    if constexpr (!Data<V, T>::kShared) {
      staged_.load_matrices(s_, *program_, instances_.data());
    }
    staged_.load_vectors(s_, *program_, instances_.data());
    return true;
  }

  // Whether there is an instance to begin with.
  bool begin(int lane, int from) {
    if (!staged_.is_usable(from)) {
      answers_.outcome[instances_[from]] = static_cast<std::int8_t>(Outcome::kNumericalError);
      return false;
    }
    data_.take(lane, staged_, from);
    instance_[lane] = instances_[from];
    state_[lane] = s_.symmetric ? kStarting : kRunning;
    iteration_[lane] = 0;
    seconds_[lane] = 0.0;
    set(dual_, lane, false);
    for (V& v : x_) set(v, lane, 0.0);
    for (int i = 0; i < s_.m; ++i) {
      set(sl_[i], lane, start_s_[i]);
      set(z_[i], lane, start_z_[i]);
    }
    set(tau_, lane, 1.0);
    set(kappa_, lane, 1.0);
    return true;
  }

  void finish(int lane, Outcome outcome) {
    const bool certificate =
        outcome == Outcome::kPrimalInfeasible || outcome == Outcome::kDualInfeasible;
    const double over = 1.0 / (certificate ? get(kappa_, lane) : get(tau_, lane));
    const double unit = certificate ? 1.0 : get(data_.unit, lane), c = get(data_.c, lane);
    const std::int64_t i = instance_[lane];
    for (int j = 0; j < s_.n; ++j) {
      answers_.x[i * s_.n + j] = get(x_[j], lane) * get(data_.d[j], lane) * (over * unit);
    }
    for (int k = 0; k < s_.m; ++k) {
      const double e = get(data_.e[k], lane);
      answers_.z[i * s_.m + k] = get(z_[k], lane) * e * (over * unit / c);
      answers_.s[i * s_.m + k] = get(sl_[k], lane) / e * (over * unit);
    }
    answers_.outcome[i] = static_cast<std::int8_t>(outcome);
    answers_.iterations[i] = iteration_[lane];
    answers_.seconds[i] = seconds_[lane];
    state_[lane] = kIdle;
  }

  // ---- one iteration ----

  void advance() {
    compute_scaling();
    kkt_.factor(data_.P.data(), data_.A.data(), data_.M.data(), H_.data(), kRegularisation);

    const int n = s_.n, m = s_.m;
    const Mask starting = in_state(kStarting);
    const bool some_start = any(starting), linear = s_.P_entries() == 0;
    for (int j = 0; j < n; ++j) {
      right_[0][j] = -data_.q[j];
      right_[1][j] = rx_[j];
    }
    for (int i = 0; i < m; ++i) {
      right_[0][n + i] = data_.b[i];
      right_[1][n + i] = sl_[i] - rz_[i];
    }
    if (some_start && linear) {
      // Without P the start takes two systems: (0, b) for x and s, (−q, 0) for z.
      for (int j = 0; j < n; ++j) {
        right_[1][j] = select(starting, right_[0][j], right_[1][j]);
        right_[0][j] = select(starting, V(0.0), right_[0][j]);
      }
      for (int i = 0; i < m; ++i) right_[1][n + i] = select(starting, V(0.0), right_[1][n + i]);
    }
    const V* rights[2] = {right_[0].data(), right_[1].data()};
    V* lefts[2] = {constant_.data(), affine_.data()};
    kkt_.template solve<2>(rights, lefts);
    refine(rights[0], lefts[0], !in_state(kIdle));
    // The affine step says how far to go, for which it is good as it is; the first point is not, nor
    // is what the third-order correction of cones that are not symmetric is made of beside expanded
    // ones.
    if (s_.degree == 0 || (!s_.arrows.empty() && !s_.symmetric)) {
      refine(rights[1], lefts[1], !in_state(kIdle));
    } else if (some_start && linear) {
      refine(rights[1], lefts[1], starting);
    }
    if (some_start) start(starting, linear ? affine_ : constant_);

    Mask switched = !(V(0.0) <= V(0.0)), stuck = switched;
    if (any(in_state(kRunning))) step(switched, stuck);
    compute_residuals();
    judge(switched, stuck);
  }

  // (x, s, z) from the solution of the system at H = I, moved into the cones.
  void start(const Mask& starting, const std::vector<V>& of_z) {
    const int n = s_.n, m = s_.m;
    for (int i = 0; i < m; ++i) {
      ds_[i] = -constant_[n + i];
      dz_[i] = of_z[n + i];
    }
    move_inside(ds_.data());
    move_inside(dz_.data());
    for (int j = 0; j < n; ++j) x_[j] = select(starting, constant_[j], x_[j]);
    for (int i = 0; i < m; ++i) {
      sl_[i] = select(starting, i < s_.zero ? V(0.0) : ds_[i], sl_[i]);
      z_[i] = select(starting, i < s_.zero ? V(0.0) : dz_[i], z_[i]);
    }
  }

  // v + t e with t such that its least eigenvalue is at least a tenth of the mean of the positive
  // ones, and one.
  void move_inside(V* v) {
    V least(1e300), positive(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      least = min(v[i], least);
      positive += max(v[i], V(0.0));
    }
    for (const Block& block : s_.blocks) {
      with_symmetric_cone<V>(block, [&](auto cone) {
        least = min(cone.margin(v + block.row, scratch_.data()), least);
        positive += cone.positive(v + block.row, scratch_.data());
      });
    }
    const V target = max(positive * V(0.1 / std::max(1, s_.degree)), V(1.0));
    const V t = select(least < target, target - least, V(0.0));
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) v[i] += t;
    for (const Block& block : s_.blocks) {
      with_symmetric_cone<V>(block, [&](auto cone) { cone.add_identity(v + block.row, t); });
    }
  }

  void step(Mask& switched, Mask& stuck) {
    const int n = s_.n, m = s_.m;
    const V zero(0.0), one(1.0);
    const Mask running = in_state(kRunning);
    const V mu = mu_, tau = tau_, kappa = kappa_;
    // The affine step, shift = s.
    for (int i = 0; i < m; ++i) shift_[i] = sl_[i];
    make_step(affine_, rt_, tau * kappa);
    const V reach = step_length(running);
    const V rest = one - reach, sigma = rest * rest * rest, damp = one - sigma;
    // Of the first iteration the second-order correction is weighed by the step.
    V second(1.0);
    for (int l = 0; l < L; ++l) set(second, l, iteration_[l] > 0 ? 1.0 : get(reach, l));
    const V sigma_mu = sigma * mu;
    compute_shift(sigma_mu, second);
    for (int j = 0; j < n; ++j) right_[0][j] = damp * rx_[j];
    for (int i = 0; i < m; ++i) right_[0][n + i] = shift_[i] - damp * rz_[i];
    const V of_kappa = second * dtau_ * dkappa_ + tau * kappa - sigma_mu;
    const V* rights[1] = {right_[0].data()};
    V* lefts[1] = {affine_.data()};
    kkt_.template solve<1>(rights, lefts);
    refine(rights[0], lefts[0], running);
    make_step(affine_, damp * rt_, of_kappa);

    V alpha = step_length(running) * V(kStepFraction);
    if (!s_.symmetric) {
      // Where the primal–dual scaling leads to short steps, the dual one takes over.
      switched = running & (!dual_) & (!(alpha >= V(kSwitchStep)));
      dual_ = dual_ | switched;
    }
    stuck = running & (!switched) & (!(alpha > V(kLeastStep)));
    alpha = select(running & (!switched), alpha, zero);
    const Mask moving = alpha > zero;
    const auto move = [&](V& value, const V& change) {
      value = select(moving, fma(alpha, change, value), value);
    };
    for (int j = 0; j < n; ++j) move(x_[j], dx_[j]);
    for (int i = 0; i < m; ++i) {
      move(sl_[i], ds_[i]);
      move(z_[i], dz_[i]);
    }
    move(tau_, dtau_);
    move(kappa_, dkappa_);
  }

  // (dx, dz, ds, dτ, dκ) from (x₁, z₁), with
  //   dτ = (ρ_τ − ρ_κ/τ + qᵀx₁ + bᵀz₁ + 2 ξᵀP x₁)
  //        / (κ/τ − qᵀx₂ − bᵀz₂ + ξᵀP ξ − 2 ξᵀP x₂),   ξ = x/τ.
  void make_step(const std::vector<V>& one, const V& of_tau, const V& of_kappa) {
    const int n = s_.n, m = s_.m;
    const V over = V(1.0) / tau_, twice = over + over;
    const V *x1 = one.data(), *z1 = x1 + n, *x2 = constant_.data(), *z2 = x2 + n;
    const V *q = data_.q.data(), *b = data_.b.data(), *Px = Px_.data();
    const V above = of_tau - of_kappa * over + dot(q, x1, n) + dot(b, z1, m) +
                    twice * dot(Px, x1, n);
    const V below = kappa_ * over - dot(q, x2, n) - dot(b, z2, m) +
                    over * over * dot(Px, x_.data(), n) - twice * dot(Px, x2, n);
    dtau_ = above / below;
    for (int j = 0; j < n; ++j) dx_[j] = fma(dtau_, x2[j], x1[j]);
    for (int i = 0; i < m; ++i) dz_[i] = fma(dtau_, z2[i], z1[i]);
    multiply_H(dz_.data(), ds_.data());
    for (int i = 0; i < m; ++i) ds_[i] = -(ds_[i] + shift_[i]);
    dkappa_ = -(of_kappa + kappa_ * dtau_) * over;
  }

  // ---- cones ----

  void compute_scaling() {
    for (int k = 0; k < s_.nonneg; ++k) {
      const int i = s_.zero + k;
      w_[i] = sl_[i] / z_[i];
      H_[k] = w_[i];
    }
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.scale(&sl_[block.row], &z_[block.row], mu_, dual_, scaling_.data() + block.scaling,
                   H_.data() + block.h, scratch_.data());
      });
    }
  }

  void multiply_H(const V* x, V* y) {
    for (int i = 0; i < s_.zero; ++i) y[i] = V(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) y[i] = w_[i] * x[i];
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.multiply(scaling_.data() + block.scaling, x + block.row, y + block.row,
                      scratch_.data());
      });
    }
  }

  void compute_shift(const V& sigma_mu, const V& second) {
    for (int i = 0; i < s_.zero; ++i) shift_[i] = V(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      shift_[i] = (fma(sl_[i], z_[i], second * ds_[i] * dz_[i]) - sigma_mu) / z_[i];
    }
    for (const Block& block : s_.blocks) {
      const int r = block.row;
      with_cone<V>(block, [&](auto cone) {
        cone.shift(&sl_[r], &z_[r], &ds_[r], &dz_[r], sigma_mu, second,
                   scaling_.data() + block.scaling, &shift_[r], scratch_.data());
      });
    }
  }

  V step_length(const Mask& running) {
    const V zero(0.0), one(1.0), never(1e300);
    V alpha = one;
    alpha = min(select(dtau_ < zero, -tau_ / dtau_, never), alpha);
    alpha = min(select(dkappa_ < zero, -kappa_ / dkappa_, never), alpha);
    V fastest(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      fastest = max(-ds_[i] / sl_[i], fastest);
      fastest = max(-dz_[i] / z_[i], fastest);
    }
    alpha = select(fastest > zero, min(one / fastest, alpha), alpha);
    // Symmetric cones tell how far it is; the others try, and so come last.
    for (const bool symmetric : {true, false}) {
      for (const Block& block : s_.blocks) {
        const int r = block.row;
        if (is_symmetric(block) != symmetric) continue;
        with_cone<V>(block, [&](auto cone) {
          alpha = cone.step(&sl_[r], &z_[r], &ds_[r], &dz_[r], alpha, running,
                            scaling_.data() + block.scaling, scratch_.data());
        });
      }
    }
    return alpha;
  }

  // ---- linear systems ----

  // Refinement of K (left) = right in the lanes `wanted`, where that helps: one round on the way, and
  // as many as it takes where the first step is the last, because there is no inequality.
  void refine(const V* right, V* left, const Mask& wanted) {
    const int size = s_.n + s_.m;
    V *error = error_.data(), *change = change_.data();
    const bool last = s_.degree == 0;
    const V accepted =
        last ? V(0.0) : fma(V(kSystemRelative), largest(right, size), V(kSystemAbsolute));
    V height = K_residual(right, left, error);
    for (int rounds = last ? 10 : 1; rounds > 0; --rounds) {
      const Mask pending = (!(height <= accepted)) & wanted;
      if (!any(pending)) return;
      const V* errors[1] = {error};
      V* changes[1] = {change};
      kkt_.template solve<1>(errors, changes);
      for (int i = 0; i < size; ++i) change[i] += left[i];
      const V again = K_residual(right, change, error);
      const Mask better = pending & (again < height);
      for (int i = 0; i < size; ++i) left[i] = select(better, change[i], left[i]);
      if (rounds == 1 || !any(better)) return;
      height = K_residual(right, left, error);
    }
  }

  // error = right − K left; its largest entry.
  V K_residual(const V* right, const V* left, V* error) {
    const int n = s_.n, m = s_.m;
    multiply_H(left + n, Hx_.data());
    for (int j = 0; j < n; ++j) error[j] = right[j];
    for (int i = 0; i < m; ++i) error[n + i] = right[n + i] + Hx_[i];
    const V *x[1] = {left}, *z[1] = {left + n};
    V *above[1] = {error}, *below[1] = {error + n};
    subtract_product<1>(s_.P_full, data_.P.data(), x, above);
    subtract_both<1>(s_.A, data_.A.data(), x, z, above, below);
    return largest(error, n + m);
  }

  // ---- judgement ----

  void compute_residuals() {
    const int n = s_.n, m = s_.m;
    const V zero(0.0);
    const auto add = [](V& sum, const V& value) { sum = fma(value, value, sum); };
    // −P x, −Aᵀz and s + A x.
    for (int j = 0; j < n; ++j) {
      Px_[j] = rx_[j] = zero;
      minus_x_[j] = -x_[j];
    }
    for (int i = 0; i < m; ++i) rz_[i] = sl_[i];
    const V *x[1] = {x_.data()}, *minus[1] = {minus_x_.data()}, *z[1] = {z_.data()};
    V *Px[1] = {Px_.data()}, *dual[1] = {rx_.data()}, *primal[1] = {rz_.data()};
    subtract_product<1>(s_.P_full, data_.P.data(), minus, Px);
    subtract_both<1>(s_.A, data_.A.data(), minus, z, dual, primal);
    V nx = zero, nrx = zero, nAz = zero, nPx = zero;
    for (int j = 0; j < n; ++j) {
      const V over = data_.over_d[j], r = rx_[j] - Px_[j] - tau_ * data_.q[j];
      add(nAz, rx_[j] * over);
      add(nPx, Px_[j] * over);
      add(nrx, r * over);
      add(nx, x[0][j] * data_.d[j]);
      rx_[j] = r;
    }
    V ns = zero, nz = zero, nrz = zero, nAxs = zero;
    for (int i = 0; i < m; ++i) {
      const V over = data_.over_e[i], r = rz_[i] - tau_ * data_.b[i];
      add(nAxs, rz_[i] * over);
      add(nrz, r * over);
      add(ns, sl_[i] * over);
      add(nz, z_[i] * data_.e[i]);
      rz_[i] = r;
    }
    Measures& f = measures_;
    f.qx = dot(data_.q.data(), x_.data(), n);
    f.bz = dot(data_.b.data(), z_.data(), m);
    f.xPx = dot(x_.data(), Px_.data(), n);
    const V sz = dot(sl_.data(), z_.data(), m);
    rt_ = f.qx + f.bz + kappa_ + f.xPx / tau_;
    mu_ = fma(tau_, kappa_, sz) * V(1.0 / (s_.degree + 1));
    f.norm_x = sqrt(nx);
    f.norm_z = sqrt(nz);
    f.norm_s = sqrt(ns);
    f.residual_x = sqrt(nrx);
    f.residual_z = sqrt(nrz);
    f.norm_Az = sqrt(nAz);
    f.norm_Axs = sqrt(nAxs);
    f.norm_Px = sqrt(nPx);
  }

  struct Progress {
    double dual, primal, gap, relative_gap;
  };

  void judge(const Mask& switched, const Mask& stuck) {
    const double time = now();
    int busy = 0;
    for (int l = 0; l < L; ++l) busy += state_[l] != kIdle;
    for (int l = 0; l < L; ++l) {
      if (state_[l] == kIdle) continue;
      seconds_[l] += (time - clock_) / busy;
      const bool started = state_[l] == kStarting;
      if (!started) ++iteration_[l];
      state_[l] = kRunning;
      judge(l, started, get(switched, l), get(stuck, l));
    }
    clock_ = time;
  }

  // As Clarabel does: Goulart & Chen 2024, section 6.
  void judge(int l, bool started, bool switched, bool stuck) {
    const Measures& f = measures_;
    const auto at = [l](const V& v) { return get(v, l); };
    const double over = 1.0 / at(tau_), over_c = 1.0 / at(data_.c);
    const double qx = at(f.qx), bz = at(f.bz), half = 0.5 * at(f.xPx) * over * over;
    const double primal_cost = (qx * over + half) * over_c;
    const double dual_cost = (-bz * over - half) * over_c;
    const double nx = at(f.norm_x), nz = at(f.norm_z) * over_c, ns = at(f.norm_s);
    Progress now;
    now.primal = at(f.residual_z) * over / std::max(1.0, at(data_.norm_b) + (nx + ns) * over);
    // Beside P x, not x: an x of 1e8 would excuse the dual residual of a linear program.
    now.dual = at(f.residual_x) * over * over_c /
               std::max(1.0, at(data_.norm_q) + (at(f.norm_Px) * over_c + nz) * over);
    now.gap = std::fabs(primal_cost - dual_cost);
    now.relative_gap =
        now.gap / std::max(1.0, std::min(std::fabs(primal_cost), std::fabs(dual_cost)));
    const double ratio = at(kappa_) * over;
    const double tolerance = settings_.feasible;
    const auto done = [&](Outcome outcome) { finish(l, outcome); };

    if (!std::isfinite(at(tau_)) || !std::isfinite(now.primal) || !std::isfinite(now.dual)) {
      return done(Outcome::kNumericalError);
    }
    const bool closed =
        now.gap < settings_.gap_absolute || now.relative_gap < settings_.gap_relative;
    const bool absurd = std::max(nx, nz) * over > kAbsurd * std::max({1.0, at(data_.norm_q),
                                                                      at(data_.norm_b)});
    if (ratio <= 1.0 && closed && now.primal < tolerance && now.dual < tolerance && !absurd) {
      return done(Outcome::kSolved);
    }
    if (ratio > kCertain) {
      const double Az = at(f.norm_Az) * over_c / std::max(1.0, nz);
      const double Px = at(f.norm_Px) / std::max(1.0, nx);
      const double Axs = at(f.norm_Axs) / std::max(1.0, nx + ns);
      // Clarabel's test is relative to z and x, and so is passed by any that grow fast enough: what
      // is left has to be small beside the gain, too.
      if (bz < -kInfeasible && Az < -kInfeasible * bz && at(f.norm_Az) < -kGain * bz) {
        return done(Outcome::kPrimalInfeasible);
      }
      if (qx < -kInfeasible && std::max(Px, Axs) < -kInfeasible * qx &&
          std::max(at(f.norm_Px), at(data_.c) * at(f.norm_Axs)) < -kGain * qx) {
        return done(Outcome::kDualInfeasible);
      }
    }
    const Progress before = previous_[l];
    previous_[l] = now;
    bool lost = stuck && !started;
    if (iteration_[l] > 1 && (now.dual > before.dual || now.primal > before.primal)) {
      const bool was_closed = before.gap < settings_.gap_absolute ||
                              before.relative_gap < settings_.gap_relative;
      const double rounding = 100.0 * std::numeric_limits<double>::epsilon();
      const auto worse = [&](double value, double earlier) {
        return value > 100.0 * tolerance && value > 100.0 * earlier;
      };
      lost = lost || (ratio < rounding && was_closed) ||
             (ratio < 1.0 && (worse(now.dual, before.dual) || worse(now.primal, before.primal)));
    }
    if (switched) lost = false;
    const bool limit = iteration_[l] >= settings_.iterations;
    if (!lost && !limit) return;
    const bool nearly = ratio <= 1.0 && !absurd &&
                        (now.gap < kReducedGap || now.relative_gap < kReducedGap) &&
                        now.primal < kReducedFeasible && now.dual < kReducedFeasible;
    if (nearly) return done(Outcome::kAlmostSolved);
    done(lost ? Outcome::kInsufficientProgress : Outcome::kIterationLimit);
  }

  Mask in_state(State wanted) const {
    Mask mask = !(V(0.0) <= V(0.0));
    for (int l = 0; l < L; ++l) set(mask, l, state_[l] == wanted);
    return mask;
  }

  const Structure& s_;
  Settings settings_;
  Kkt<V, T> kkt_;
  Data<V, T> data_, staged_;
  std::vector<V> H_, scaling_, scratch_;
  // The iterate, its residuals and the step; sl_ is s.
  std::vector<V> x_, minus_x_, sl_, z_, rx_, rz_, Px_, dx_, ds_, dz_, shift_, w_, Hx_;
  V tau_, kappa_, mu_{1.0}, rt_{0.0}, dtau_{0.0}, dkappa_{0.0};
  std::vector<V> constant_, affine_, right_[2], error_, change_;
  Measures measures_;
  Mask dual_ = !(V(0.0) <= V(0.0));
  std::vector<double> start_s_, start_z_;

  std::array<State, L> state_;
  std::array<std::int64_t, L> instance_{}, instances_{};
  std::array<int, L> iteration_{};
  std::array<double, L> seconds_{};
  std::array<Progress, L> previous_{};
  int staged_from_ = 0, staged_count_ = 0;
  double clock_ = 0.0;
  const Program* program_ = nullptr;
  Queue* queue_ = nullptr;
  Answers answers_{};
};

}  // namespace lanes
