// The predictor–corrector interior-point method of Goulart & Chen (2024, arXiv 2405.12762) on the
// homogeneous embedding. With the unknowns (x, z, s, τ, κ) and the residuals of `iterate.hpp`, a
// step is (dx, dz) = (x₁, z₁) + dτ (x₂, z₂), where K (x₂, z₂) = (−q, b), and
// K (x₁, z₁) = (ρ r_x, shift − ρ r_z), ds = −(H dz + shift), with ρ = 1 − σ.
//
// L instances are under way at once, each at a step of its own. One that has ended leaves its lane
// to the next of the queue.
#pragma once

#include <array>
#include <chrono>
#include <vector>

#include "iterate.hpp"
#include "step_system.hpp"

namespace lanes {

// Where the answers go: rows of n and m numbers, and one number for each instance.
struct Answers {
  double *x, *z, *s, *seconds;
  std::int8_t* outcome;
  std::int64_t* iterations;
};

inline constexpr double kStepFraction = 0.99, kLeastStep = 1e-4, kSwitchStep = 0.1;

template <class V, class T>
class InteriorPoint {
  static constexpr int L = kLanes<V>;
  using Mask = MaskOf<V>;
  enum State { kIdle, kStarting, kRunning };

 public:
  explicit InteriorPoint(const Structure& structure)
      : s_(structure),
        data_(structure),
        staged_(structure),
        cones_(structure),
        system_(structure, data_, cones_),
        at_(structure) {
    const int n = s_.n, m = s_.m;
    dx_.assign(n, V(0.0));
    for (auto* v : {&ds_, &dz_, &shift_}) v->assign(m, V(0.0));
    for (auto* v : {&constant_, &affine_, &right_[0], &right_[1]}) v->assign(n + m, V(0.0));
    start_s_.assign(m, 0.0);
    start_z_.assign(m, 0.0);
    cones_.unit(start_s_.data(), start_z_.data());
  }

  // `system_` refers to `data_` and `cones_`.
  InteriorPoint(const InteriorPoint&) = delete;

  // Solve instances of the queue until it is empty.
  void run(const Program& program, const Settings& settings, Queue& queue, const Answers& answers) {
    settings_ = settings;
    program_ = &program;
    queue_ = &queue;
    answers_ = answers;
    staged_from_ = staged_count_ = 0;
    state_.fill(kIdle);
    if constexpr (ScaledData<V, T>::kShared) {
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
    if (loaded) at_.compute_residuals(s_, data_);
    return busy;
  }

  // Take the next instances from the queue and equilibrate them.
  bool stage() {
    staged_from_ = 0;
    staged_count_ = queue_->take(L, instances_.data());
    if (staged_count_ == 0) return false;
    if constexpr (!ScaledData<V, T>::kShared) {
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
    for (V& v : at_.x) set(v, lane, 0.0);
    for (int i = 0; i < s_.m; ++i) {
      set(at_.s[i], lane, start_s_[i]);
      set(at_.z[i], lane, start_z_[i]);
    }
    set(at_.tau, lane, 1.0);
    set(at_.kappa, lane, 1.0);
    return true;
  }

  void finish(int lane, Outcome outcome) {
    const bool certificate =
        outcome == Outcome::kPrimalInfeasible || outcome == Outcome::kDualInfeasible;
    const double over = 1.0 / (certificate ? get(at_.kappa, lane) : get(at_.tau, lane));
    const double unit = certificate ? 1.0 : get(data_.unit, lane), c = get(data_.c, lane);
    const std::int64_t i = instance_[lane];
    for (int j = 0; j < s_.n; ++j) {
      answers_.x[i * s_.n + j] = get(at_.x[j], lane) * get(data_.d[j], lane) * (over * unit);
    }
    for (int k = 0; k < s_.m; ++k) {
      const double e = get(data_.e[k], lane);
      answers_.z[i * s_.m + k] = get(at_.z[k], lane) * e * (over * unit / c);
      answers_.s[i * s_.m + k] = get(at_.s[k], lane) / e * (over * unit);
    }
    answers_.outcome[i] = static_cast<std::int8_t>(outcome);
    answers_.iterations[i] = iteration_[lane];
    answers_.seconds[i] = seconds_[lane];
    state_[lane] = kIdle;
  }

  // ---- one iteration ----

  void advance() {
    cones_.scale(at_.s.data(), at_.z.data(), at_.mu, dual_);
    system_.factor();

    const int n = s_.n, m = s_.m;
    const Mask starting = in_state(kStarting);
    const bool some_start = any(starting), linear = s_.P_entries() == 0;
    for (int j = 0; j < n; ++j) {
      right_[0][j] = -data_.q[j];
      right_[1][j] = at_.rx[j];
    }
    for (int i = 0; i < m; ++i) {
      right_[0][n + i] = data_.b[i];
      right_[1][n + i] = at_.s[i] - at_.rz[i];
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
    system_.template solve<2>(rights, lefts);
    system_.refine(rights[0], lefts[0], !in_state(kIdle));
    // The affine step says how far to go, for which it is good as it is; the first point is not,
    // nor is what the third-order correction of cones that are not symmetric is made of beside
    // expanded ones.
    if (s_.degree == 0 || (!s_.arrows.empty() && !s_.symmetric)) {
      system_.refine(rights[1], lefts[1], !in_state(kIdle));
    } else if (some_start && linear) {
      system_.refine(rights[1], lefts[1], starting);
    }
    if (some_start) start(starting, linear ? affine_ : constant_);

    Mask switched = !(V(0.0) <= V(0.0)), stuck = switched;
    if (any(in_state(kRunning))) step(switched, stuck);
    at_.compute_residuals(s_, data_);
    judge(switched, stuck);
  }

  // (x, s, z) from the solution of the system at H = I, moved into the cones.
  void start(const Mask& starting, const std::vector<V>& of_z) {
    const int n = s_.n, m = s_.m;
    for (int i = 0; i < m; ++i) {
      ds_[i] = -constant_[n + i];
      dz_[i] = of_z[n + i];
    }
    cones_.move_inside(ds_.data());
    cones_.move_inside(dz_.data());
    for (int j = 0; j < n; ++j) at_.x[j] = select(starting, constant_[j], at_.x[j]);
    for (int i = 0; i < m; ++i) {
      at_.s[i] = select(starting, i < s_.zero ? V(0.0) : ds_[i], at_.s[i]);
      at_.z[i] = select(starting, i < s_.zero ? V(0.0) : dz_[i], at_.z[i]);
    }
  }

  void step(Mask& switched, Mask& stuck) {
    const int n = s_.n, m = s_.m;
    const V zero(0.0), one(1.0);
    const Mask running = in_state(kRunning);
    const V mu = at_.mu, tau = at_.tau, kappa = at_.kappa;
    // The affine step, shift = s.
    for (int i = 0; i < m; ++i) shift_[i] = at_.s[i];
    make_step(affine_, at_.rt, tau * kappa);
    const V reach = step_length(running);
    const V rest = one - reach, sigma = rest * rest * rest, damp = one - sigma;
    // Of the first iteration the second-order correction is weighed by the step.
    V second(1.0);
    for (int l = 0; l < L; ++l) set(second, l, iteration_[l] > 0 ? 1.0 : get(reach, l));
    const V sigma_mu = sigma * mu;
    cones_.shift(at_.s.data(), at_.z.data(), ds_.data(), dz_.data(), sigma_mu, second,
                 shift_.data());
    for (int j = 0; j < n; ++j) right_[0][j] = damp * at_.rx[j];
    for (int i = 0; i < m; ++i) right_[0][n + i] = shift_[i] - damp * at_.rz[i];
    const V of_kappa = second * dtau_ * dkappa_ + tau * kappa - sigma_mu;
    const V* rights[1] = {right_[0].data()};
    V* lefts[1] = {affine_.data()};
    system_.template solve<1>(rights, lefts);
    system_.refine(rights[0], lefts[0], running);
    make_step(affine_, damp * at_.rt, of_kappa);

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
    for (int j = 0; j < n; ++j) move(at_.x[j], dx_[j]);
    for (int i = 0; i < m; ++i) {
      move(at_.s[i], ds_[i]);
      move(at_.z[i], dz_[i]);
    }
    move(at_.tau, dtau_);
    move(at_.kappa, dkappa_);
  }

  // (dx, dz, ds, dτ, dκ) from (x₁, z₁), with
  //   dτ = (ρ_τ − ρ_κ/τ + qᵀx₁ + bᵀz₁ + 2 ξᵀP x₁)
  //        / (κ/τ − qᵀx₂ − bᵀz₂ + ξᵀP ξ − 2 ξᵀP x₂),   ξ = x/τ.
  void make_step(const std::vector<V>& one, const V& of_tau, const V& of_kappa) {
    const int n = s_.n, m = s_.m;
    const V over = V(1.0) / at_.tau, twice = over + over;
    const V *x1 = one.data(), *z1 = x1 + n, *x2 = constant_.data(), *z2 = x2 + n;
    const V *q = data_.q.data(), *b = data_.b.data(), *Px = at_.Px.data();
    const V above = of_tau - of_kappa * over + dot(q, x1, n) + dot(b, z1, m) +
                    twice * dot(Px, x1, n);
    const V below = at_.kappa * over - dot(q, x2, n) - dot(b, z2, m) +
                    over * over * dot(Px, at_.x.data(), n) - twice * dot(Px, x2, n);
    dtau_ = above / below;
    for (int j = 0; j < n; ++j) dx_[j] = fma(dtau_, x2[j], x1[j]);
    for (int i = 0; i < m; ++i) dz_[i] = fma(dtau_, z2[i], z1[i]);
    cones_.multiply(dz_.data(), ds_.data());
    for (int i = 0; i < m; ++i) ds_[i] = -(ds_[i] + shift_[i]);
    dkappa_ = -(of_kappa + at_.kappa * dtau_) * over;
  }

  // The largest step up to one that stays in the cones, and leaves τ and κ positive.
  V step_length(const Mask& running) {
    const V zero(0.0), never(1e300);
    V alpha(1.0);
    alpha = min(select(dtau_ < zero, -at_.tau / dtau_, never), alpha);
    alpha = min(select(dkappa_ < zero, -at_.kappa / dkappa_, never), alpha);
    return cones_.step(at_.s.data(), at_.z.data(), ds_.data(), dz_.data(), alpha, running);
  }

  // ---- judgement ----

  void judge(const Mask& switched, const Mask& stuck) {
    const double time = now();
    int busy = 0;
    for (int l = 0; l < L; ++l) busy += state_[l] != kIdle;
    for (int l = 0; l < L; ++l) {
      if (state_[l] == kIdle) continue;
      seconds_[l] += (time - clock_) / busy;
      // The first point is no iteration.
      if (state_[l] == kRunning) ++iteration_[l];
      state_[l] = kRunning;
      const Measures<double> measures = at_.measures.of(l);
      const Progress progress = progress_at(measures);
      const auto outcome = verdict(settings_, measures, progress, previous_[l],
                                   {iteration_[l], get(switched, l), get(stuck, l)});
      previous_[l] = progress;
      if (outcome) finish(l, *outcome);
    }
    clock_ = time;
  }

  Mask in_state(State wanted) const {
    Mask mask = !(V(0.0) <= V(0.0));
    for (int l = 0; l < L; ++l) set(mask, l, state_[l] == wanted);
    return mask;
  }

  const Structure& s_;
  Settings settings_;
  ScaledData<V, T> data_, staged_;
  ConeScaling<V> cones_;
  StepSystem<V, T> system_;
  Iterate<V> at_;
  // The step, (x₂, z₂), (x₁, z₁), and right-hand sides.
  std::vector<V> dx_, ds_, dz_, shift_, constant_, affine_, right_[2];
  V dtau_{0.0}, dkappa_{0.0};
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
