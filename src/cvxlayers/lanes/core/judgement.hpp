// What becomes of an instance, judged by plain numbers of its iterate, as Clarabel does (Goulart &
// Chen 2024, section 6) except where a comment says so.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "lane.hpp"

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

// An answer of this accuracy is almost solved.
inline constexpr double kReducedGap = 5e-5, kReducedFeasible = 1e-4;
// Certificates are looked at from this κ/τ on, and hold to this tolerance.
inline constexpr double kCertain = 1e9, kInfeasible = 1e-9, kGain = 1e-6;
// A point of this size beside q and b is on its way to infinity, however small its residuals are
// beside it.
inline constexpr double kAbsurd = 1e10;
// A κ/τ below this is rounding.
inline constexpr double kNoRatio = 100.0 * std::numeric_limits<double>::epsilon();
// A residual has grown if it is this much larger than the tolerance, and than it was.
inline constexpr double kGrown = 100.0;

// What an iterate (x, z, s, τ, κ) is judged by: in the scale of the program, but not divided by τ,
// and with the factor c in P, q and z, and in all that is made of them.
template <class V>
struct Measures {
  V tau, kappa, qx, bz, xPx;
  // Norms; the residuals are r_x and r_z of `iterate.hpp`.
  V x, z, s, residual_x, residual_z, Az, Axs, Px;
  // c, and the largest entries of q and b, without it.
  V c, q, b;

  Measures<double> of(int lane) const {
    const auto at = [lane](const V& v) { return get(v, lane); };
    return {at(tau), at(kappa), at(qx), at(bz), at(xPx), at(x), at(z), at(s), at(residual_x),
            at(residual_z), at(Az), at(Axs), at(Px), at(c), at(q), at(b)};
  }
};

// Residuals relative to their terms, and the distance of the two objectives.
struct Progress {
  double dual, primal, gap, relative_gap;
};

inline Progress progress_at(const Measures<double>& f) {
  const double over = 1.0 / f.tau, over_c = 1.0 / f.c, half = 0.5 * f.xPx * over * over;
  const double primal_cost = (f.qx * over + half) * over_c;
  const double dual_cost = (-f.bz * over - half) * over_c;
  Progress now;
  now.primal = f.residual_z * over / std::max(1.0, f.b + (f.x + f.s) * over);
  // Beside P x, not x: an x of 1e8 would excuse the dual residual of a linear program.
  now.dual =
      f.residual_x * over * over_c / std::max(1.0, f.q + (f.Px * over_c + f.z * over_c) * over);
  now.gap = std::fabs(primal_cost - dual_cost);
  now.relative_gap =
      now.gap / std::max(1.0, std::min(std::fabs(primal_cost), std::fabs(dual_cost)));
  return now;
}

// The certificate that (x, z, s) is.
//
// Clarabel's test is relative to z and x, and so is passed by any that grow fast enough: what is
// left has to be small beside the gain, too.
inline std::optional<Outcome> certificate(const Measures<double>& f) {
  const double over_c = 1.0 / f.c;
  const double Az = f.Az * over_c / std::max(1.0, f.z * over_c);
  const double Px = f.Px / std::max(1.0, f.x), Axs = f.Axs / std::max(1.0, f.x + f.s);
  if (f.bz < -kInfeasible && Az < -kInfeasible * f.bz && f.Az < -kGain * f.bz) {
    return Outcome::kPrimalInfeasible;
  }
  if (f.qx < -kInfeasible && std::max(Px, Axs) < -kInfeasible * f.qx &&
      std::max(f.Px, f.c * f.Axs) < -kGain * f.qx) {
    return Outcome::kDualInfeasible;
  }
  return std::nullopt;
}

// The step that led to an iterate: its number, whether another scaling takes over from here, and
// whether it was too short to go on.
struct Step {
  int number;
  bool switched, stuck;
};

// The verdict on an iterate, beside the one before; none where the method goes on.
inline std::optional<Outcome> verdict(const Settings& settings, const Measures<double>& f,
                                      const Progress& now, const Progress& before,
                                      const Step& step) {
  if (!std::isfinite(f.tau) || !std::isfinite(now.primal) || !std::isfinite(now.dual)) {
    return Outcome::kNumericalError;
  }
  const double over = 1.0 / f.tau, ratio = f.kappa * over, size = std::max(f.x, f.z * (1.0 / f.c));
  const bool finite = ratio <= 1.0 && !(size * over > kAbsurd * std::max({1.0, f.q, f.b}));
  const auto is_closed = [&](const Progress& at) {
    return at.gap < settings.gap_absolute || at.relative_gap < settings.gap_relative;
  };
  if (finite && is_closed(now) && now.primal < settings.feasible && now.dual < settings.feasible) {
    return Outcome::kSolved;
  }
  if (ratio > kCertain) {
    if (const auto found = certificate(f)) return found;
  }

  bool lost = step.stuck;
  if (step.number > 1 && (now.dual > before.dual || now.primal > before.primal)) {
    const auto has_grown = [&](double value, double earlier) {
      return value > kGrown * settings.feasible && value > kGrown * earlier;
    };
    const bool grown = has_grown(now.dual, before.dual) || has_grown(now.primal, before.primal);
    lost = lost || (ratio < kNoRatio && is_closed(before)) || (ratio < 1.0 && grown);
  }
  if (step.switched) lost = false;
  if (!lost && step.number < settings.iterations) return std::nullopt;
  const bool nearly = finite && (now.gap < kReducedGap || now.relative_gap < kReducedGap) &&
                      now.primal < kReducedFeasible && now.dual < kReducedFeasible;
  if (nearly) return Outcome::kAlmostSolved;
  return lost ? Outcome::kInsufficientProgress : Outcome::kIterationLimit;
}

}  // namespace lanes
