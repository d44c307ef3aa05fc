// What the exponential and the power cone have in common: three rows, no symmetry.
//
// Both have a dual barrier
//
//   f*(z) = −log ψ(z) − Σ c_i log |z_i|
//
// and with it a small object `Barrier`, made at a point z strictly inside K*, with the members
//
//   void gradient(V* g)                            g = ∇f*(z)
//   void hessian(V* A)                             A = ∇²f*(z), as a triangle
//   void solve(const V* b, V* u)                   A u = b
//   void third(const V* u, const V* v, V* out)     ∇³f*(z)[u, v]
//   void keep(V* kept)                             kKept numbers, from which and from z it is made
//                                                  again for less
//
// The projections of both come down to one scalar equation, and away from kinks
// DΠ = λ₀ n nᵀ + λ₁ r rᵀ + λ₂ t tᵀ for a normal n of the surface of K at s, the ray r through s and
// t = n × r.
#pragma once

#include "cone.hpp"

namespace lanes {
namespace nonsymmetric {

inline constexpr double kEpsilon = 2.220446049250313e-16;  // from 1 to the next double

// ------------------------------------------------------------------- interior-point method

// Distance from the central path, <δs, δz>/<s, z>, up to which μ ∇²f*(z) is the scaling.
inline constexpr double kCentral = 1.4901161193847656e-08;

// H, the scaling of Tunçel (2001) that Dahl & Andersen (2022), §5, use: with shadow points
// s̃ = −∇f*(z) and z̃ = −∇f(s), μ = <s, z>/3, δs = s − μ s̃ and δz = z − μ z̃,
//
//   H = s sᵀ/<s, z> + δs δsᵀ/<δs, δz> + t x xᵀ,   x ⟂ z, z̃,
//
// so that H z = s and H z̃ = s̃. They take t from the BFGS update of μ ∇²f*(z), whose remainder,
// its Schur complement with respect to span(z, z̃), is of rank one in three dimensions: it is
//
//   t = μ/<x, ∇²f*(z)⁻¹ x>,
//
// positive without any difference of large numbers. x = z × δz has the direction of z × z̃.
//
// Where (s, z) is as good as central (s̃ and s, z̃ and z are parallel), or not inside the cones, it
// is μ ∇²f*(z), and in the lanes `dual` it is mu ∇²f*(z).
template <class V, class Barrier>
inline void primal_dual_scaling(const V* s, const V* z, const V* shadow_z, const Barrier& barrier,
                                const V& mu, const MaskOf<V>& dual, V* H) {
  V gradient[3];
  barrier.gradient(gradient);
  const V product = dot(s, z, 3);
  const V local_mu = product * V(1.0 / 3.0);
  V delta_s[3], delta_z[3];
  for (int i = 0; i < 3; ++i) {
    delta_s[i] = fma(local_mu, gradient[i], s[i]);
    delta_z[i] = fnma(local_mu, shadow_z[i], z[i]);
  }
  const V x[3] = {fnma(z[2], delta_z[1], z[1] * delta_z[2]),
                  fnma(z[0], delta_z[2], z[2] * delta_z[0]),
                  fnma(z[1], delta_z[0], z[0] * delta_z[1])};
  V u[3];
  barrier.solve(x, u);
  const V distance = dot(delta_s, delta_z, 3);
  const V square = dot(x, u, 3);

  MaskOf<V> usable = (product > V(0.0)) & (square > V(0.0));
  usable = usable & (distance > V(kCentral) * product) & !dual;
  const V along_s = V(1.0) / product;
  const V along_delta = V(1.0) / distance;
  const V across = local_mu / square;
  const V barrier_mu = select(dual, mu, local_mu);
  V A[6];
  barrier.hessian(A);
  for (int j = 0; j < 3; ++j) {
    const V sj = along_s * s[j], dj = along_delta * delta_s[j], xj = across * x[j];
    for (int i = 0; i <= j; ++i) {
      const V entry = fma(s[i], sj, fma(delta_s[i], dj, x[i] * xj));
      const int at = triangle(i, j);
      H[at] = select(usable, entry, barrier_mu * A[at]);
    }
  }
}

// ψ and its derivatives at z, and along two directions u and v.
template <class V>
struct Level {
  V inverse;                   // 1/ψ
  V gradient[3];               // ∇ψ
  V second_u[3], second_v[3];  // ∇²ψ u, ∇²ψ v
  V third[3];                  // ∇³ψ[u, v]
};

// Third derivative of −log ψ, from ψ_u = <∇ψ, u> and so on:
//
//   (ψ_uv/ψ² − 2 ψ_u ψ_v/ψ³) ∇ψ + (ψ_v/ψ²) ∇²ψ u + (ψ_u/ψ²) ∇²ψ v − ∇³ψ[u, v]/ψ.
template <class V>
inline void third_of_logarithm(const Level<V>& level, const V* u, const V* v, V* out) {
  const V along_u = dot(level.gradient, u, 3) * level.inverse;
  const V along_v = dot(level.gradient, v, 3) * level.inverse;
  const V both = dot(level.second_u, v, 3) * level.inverse;
  const V along = fnma(along_u + along_u, along_v, both);
  for (int i = 0; i < 3; ++i) {
    const V bend = fma(along_v, level.second_u[i], -level.third[i]);
    out[i] = level.inverse * fma(along, level.gradient[i], fma(along_u, level.second_v[i], bend));
  }
}

// s + sigma_mu ∇f*(z) − ½ ∇³f*(z)[second dz, ∇²f*(z)⁻¹ ds], Dahl & Andersen (2022), §4. It is
// Mehrotra's correction ds ∘ dz/z for f* = −log z.
template <class V, class Barrier>
inline void combined_shift(const V* s, const V* ds, const V* dz, const V& sigma_mu,
                           const V& second, const Barrier& barrier, V* out) {
  V gradient[3], u[3], v[3], third[3];
  barrier.gradient(gradient);
  barrier.solve(ds, u);
  for (int i = 0; i < 3; ++i) v[i] = second * dz[i];
  barrier.third(u, v, third);
  // Close to the boundary of K* its terms may overflow: better no correction than no step.
  const MaskOf<V> finite = abs(third[0]) + abs(third[1]) + abs(third[2]) < V(1e300);
  for (int i = 0; i < 3; ++i) {
    const V correction = select(finite, third[i], V(0.0));
    out[i] = fma(sigma_mu, gradient[i], fnma(V(0.5), correction, s[i]));
  }
}

inline constexpr double kLongestStep = 1.0 - 1.4901161193847656e-08;
inline constexpr double kShortestStep = 1e-4;
inline constexpr double kShrink = 0.8;
inline constexpr int kShrinkRounds = 45;  // 0.8^42 < kShortestStep

// The first of alpha, 0.8 alpha, 0.64 alpha, … for which `inside(alpha)` holds; 0 below
// kShortestStep, as for NaN.
template <class V, class Inside>
inline V backtrack(const V& alpha, const MaskOf<V>& live, const Inside& inside) {
  V step = min(alpha, V(kLongestStep));
  MaskOf<V> outside = live;
  for (int round = 0; round < kShrinkRounds; ++round) {
    outside = outside & !inside(step);
    if (!any(outside)) break;
    const V shorter = V(kShrink) * step;
    step = select(outside, select(shorter >= V(kShortestStep), shorter, V(0.0)), step);
    outside = outside & (step > V(0.0));
  }
  return step;
}

// ------------------------------------------------------------------------------ projection

// Splits w into a power of two, which it returns, and `unit` with the largest entry in [1, 2): ties
// stay exact (a point on the boundary stays on it), and squares and ratios are far from overflow.
// Entries below 1e-200 of the largest are dropped.
template <class V>
inline V rescale(const V* w, V* unit) {
  const V largest = max(max(abs(w[0]), abs(w[1])), abs(w[2]));
  V mantissa, exponent;
  split(max(largest, V(1e-290)), mantissa, exponent);
  exponent = min(exponent - V(1.0), V(1022.0));  // so that its negative is one of a normal number
  const V inverse = power_of_two(-exponent);
  for (int i = 0; i < 3; ++i) {
    unit[i] = w[i] * inverse;
    unit[i] = select(abs(unit[i]) <= V(1e-200), V(0.0), unit[i]);
  }
  return power_of_two(exponent);
}

// Where w lies: inside K, in K°, or in neither but where DΠ is diagonal (`flat`). In what remains
// there is an equation to solve.
template <class V>
struct Region {
  MaskOf<V> inside, polar, flat;

  MaskOf<V> solved() const { return inside | polar | flat; }
  // Of something that is zero in K°.
  V choose(const V& in_cone, const V& in_flat, const V& elsewhere) const {
    return select(inside, in_cone, select(polar, V(0.0), select(flat, in_flat, elsewhere)));
  }
};

// One more Newton step from this close is at rounding level.
inline constexpr double kClose = 1e-10;
// Bisection alone narrows the widest bracket in use (2200) to rounding in 64 rounds; a Newton step
// is taken at most every other time without halving either the bracket or the step.
inline constexpr int kRootRounds = 130;

// A scalar equation at x.
template <class V>
struct Evaluation {
  V value;          // its sign moves the bracket
  V step[2];        // to the root, the preferred one first
  MaskOf<V> close;  // one more step[1] is enough
};

// Approximate root of an equation that is negative left of it and positive right of it.
//
// Dekker's safeguard, as in `rtsafe` (Press et al., Numerical Recipes, §9.4): a step is taken if
// it stays inside the bracket and at least halves the step before; else bisect. `start` may be
// anything. Lanes in `done` stay at it or at the middle.
template <class V, class Evaluate>
inline V find_root(const Evaluate& evaluate, V lower, V upper, const V& start, MaskOf<V> done) {
  const V first = lower, last = upper;
  V x = select((start >= lower) & (start <= upper), start, V(0.5) * (lower + upper));
  V last_step = upper - lower;
  for (int round = 0; round < kRootRounds && !all(done); ++round) {
    const Evaluation<V> at = evaluate(x);
    lower = select(at.value < V(0.0), x, lower);
    upper = select(at.value > V(0.0), x, upper);
    const MaskOf<V> tight = upper - lower <= V(kEpsilon) * (V(1.0) + abs(x));
    // Not value = 0, so that NaN ends, too.
    done = done | at.close | tight | !((at.value < V(0.0)) | (at.value > V(0.0)));
    V following = V(0.5) * (lower + upper);
    for (int k = 1; k >= 0; --k) {
      const V proposal = min(max(x + at.step[k], first), last);
      const MaskOf<V> moves = (proposal < x) | (proposal > x);
      const MaskOf<V> shorter = abs(proposal - x) <= V(0.5) * last_step;
      // Some roots lie within rounding of an end: look there, which happens once at most.
      const MaskOf<V> at_end = (proposal <= first) | (proposal >= last);
      const MaskOf<V> fits = (proposal >= lower) & (proposal <= upper) & moves;
      following = select(fits & (shorter | at_end), proposal, following);
    }
    following = select(done, x, following);
    last_step = abs(following - x);
    x = following;
  }
  return x;
}

// ------------------------------------------------------------------------------ derivative

// DΠ = Σ λ_k u_k u_kᵀ with orthonormal u_k, as three λ and then the vectors.
inline constexpr int kSpectrumSize = 12;

// The orthonormal vectors (n, r, n × r) of an orthogonal pair, neither of them zero, and their
// lengths.
template <class V>
struct Frame {
  V vector[3][3];
  V normal_length, ray_length;

  Frame(const V* normal, const V* ray)
      : normal_length(sqrt(dot(normal, normal, 3))), ray_length(sqrt(dot(ray, ray, 3))) {
    const V shorten_normal = V(1.0) / normal_length, shorten_ray = V(1.0) / ray_length;
    V* n = vector[0];
    V* r = vector[1];
    V* t = vector[2];
    for (int i = 0; i < 3; ++i) {
      n[i] = normal[i] * shorten_normal;
      r[i] = ray[i] * shorten_ray;
    }
    t[0] = fnma(n[2], r[1], n[1] * r[2]);
    t[1] = fnma(n[0], r[2], n[2] * r[0]);
    t[2] = fnma(n[1], r[0], n[0] * r[1]);
  }
};

// Keeps λ = `smooth` with the frame, or where there is nothing to solve the λ of the axes: 1 inside
// K, 0 in K°, and else `flat`.
template <class V>
inline void store_spectrum(const Region<V>& region, const V* flat, const V* smooth,
                           const Frame<V>& frame, V* state) {
  const MaskOf<V> axes = region.solved();
  for (int k = 0; k < 3; ++k) {
    state[k] = region.choose(V(1.0), flat[k], smooth[k]);
    for (int i = 0; i < 3; ++i) {
      state[3 + 3 * k + i] = select(axes, V(i == k ? 1.0 : 0.0), frame.vector[k][i]);
    }
  }
}

// DΠ v.
template <class V>
inline void apply_spectrum(const V* state, const V* v, V* y) {
  V along[3];
  for (int k = 0; k < 3; ++k) along[k] = state[k] * dot(state + 3 + 3 * k, v, 3);
  for (int i = 0; i < 3; ++i) {
    y[i] = fma(state[3 + i], along[0], fma(state[6 + i], along[1], state[9 + i] * along[2]));
  }
}

// DΠ (I − DΠ)⁻¹ = Σ λ_k/(1 − λ_k) u_k u_kᵀ with λ_k at most 1 − delta.
template <class V>
inline void spectrum_block(const V* state, double delta, V* H) {
  V weight[3];
  for (int k = 0; k < 3; ++k) {
    const V lambda = min(state[k], V(1.0 - delta));
    weight[k] = lambda / (V(1.0) - lambda);
  }
  for (int j = 0; j < 3; ++j) {
    for (int i = 0; i <= j; ++i) {
      V sum(0.0);
      for (int k = 0; k < 3; ++k) {
        const V* u = state + 3 + 3 * k;
        sum = fma(u[i], weight[k] * u[j], sum);
      }
      H[triangle(i, j)] = sum;
    }
  }
}

// ------------------------------------------------------------------------------------ cone

// The members (see cone.hpp) that are the same for both. `Derived` has the others, and
//
//   Barrier                                        a type as above
//   Barrier barrier(const V* z)                    it, made at z
//   Barrier barrier(const V* z, const V* kept)     it, made again
//   void shadow_of_primal(const V* s, V* z)        z̃ = −∇f(s), s strictly inside K
//   Mask inside(const V* s, const V* z)            s strictly inside K, z strictly inside K*
template <class V, class Derived>
struct Cone {
  static constexpr int rows() { return 3; }
  static constexpr int scratch_size() { return 0; }
  static constexpr int degree() { return 3; }
  static constexpr int block_size() { return kBlock; }
  static constexpr int scaling_size() { return kBlock + Derived::Barrier::kKept; }
  static constexpr int projection_size() { return kSpectrumSize; }

  // Kept: H, then what the barrier keeps.
  void scale(const V* s, const V* z, const V& mu, const MaskOf<V>& dual, V* scaling, V* H,
             V*) const {
    V shadow_z[3];
    cone().shadow_of_primal(s, shadow_z);
    const auto barrier = cone().barrier(z);
    primal_dual_scaling(s, z, shadow_z, barrier, mu, dual, H);
    for (int k = 0; k < kBlock; ++k) scaling[k] = H[k];
    barrier.keep(scaling + kBlock);
  }

  void multiply(const V* scaling, const V* x, V* y, V*) const {
    multiply_triangle(3, scaling, x, y);
  }

  void shift(const V* s, const V* z, const V* ds, const V* dz, const V& sigma_mu, const V& second,
             const V* scaling, V* out, V*) const {
    combined_shift(s, ds, dz, sigma_mu, second, cone().barrier(z, scaling + kBlock), out);
  }

  V step(const V* s, const V* z, const V* ds, const V* dz, const V& alpha, const MaskOf<V>& live,
         const V*, V*) const {
    return backtrack(alpha, live, [&](const V& length) {
      V a[3], b[3];
      for (int i = 0; i < 3; ++i) {
        a[i] = fma(length, ds[i], s[i]);
        b[i] = fma(length, dz[i], z[i]);
      }
      return cone().inside(a, b);
    });
  }

  void derivative(const V* state, const V* v, V* y, V*) const { apply_spectrum(state, v, y); }
  void block(const V* state, double delta, V* H, V*) const { spectrum_block(state, delta, H); }

 private:
  static constexpr int kBlock = triangle_size(3);

  const Derived& cone() const { return static_cast<const Derived&>(*this); }
};

}  // namespace nonsymmetric
}  // namespace lanes
