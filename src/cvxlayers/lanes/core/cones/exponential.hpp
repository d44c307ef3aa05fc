// The exponential cone K = closure{(x, y, z) : y > 0, y exp(x/y) <= z}.
//
// K* = closure{(x, y, z) : x < 0, z > 0, y − x − x log(−z/x) >= 0}.
#pragma once

#include "nonsymmetric.hpp"

namespace lanes {

// f*(z) = −log ψ − log(−z₀) − log z₂ with ψ = z₁ − z₀ − z₀ l, l = log(−z₂/z₀).
//
// With a = ∇ψ/ψ = (−l, 1, −z₀/z₂)/ψ, q = −z₀/ψ > 0 and t = (1/z₀, 0, −1/z₂), ∇²ψ = z₀ t tᵀ and
//
//   ∇f* = −a − (1/z₀, 0, 1/z₂),   ∇²f* = a aᵀ + q t tᵀ + diag(1/z₀², 0, 1/z₂²).
template <class V>
struct ExponentialBarrier {
  static constexpr int kKept = 4;
  V z0, z2;
  V log_ratio;           // l
  V inverse_level;       // 1/ψ
  V inverse0, inverse2;  // 1/z₀, 1/z₂

  explicit ExponentialBarrier(const V* z)
      : z0(z[0]), z2(z[2]), inverse0(V(1.0) / z[0]), inverse2(V(1.0) / z[2]) {
    log_ratio = log(-z2 * inverse0);
    inverse_level = V(1.0) / fnma(z0, log_ratio, z[1] - z0);
  }
  // From what `keep` left.
  ExponentialBarrier(const V* z, const V* kept)
      : z0(z[0]),
        z2(z[2]),
        log_ratio(kept[0]),
        inverse_level(kept[1]),
        inverse0(kept[2]),
        inverse2(kept[3]) {}
  void keep(V* kept) const {
    kept[0] = log_ratio;
    kept[1] = inverse_level;
    kept[2] = inverse0;
    kept[3] = inverse2;
  }

  void gradient(V* g) const {
    g[0] = fma(log_ratio, inverse_level, -inverse0);
    g[1] = -inverse_level;
    g[2] = inverse2 * fma(z0, inverse_level, V(-1.0));
  }

  void hessian(V* A) const {
    const V q = -z0 * inverse_level;
    const V a0 = -log_ratio * inverse_level, a1 = inverse_level, a2 = q * inverse2;
    const V one_more = V(1.0) + q;
    A[0] = fma(a0, a0, one_more * inverse0 * inverse0);
    A[1] = a0 * a1;
    A[2] = a1 * a1;
    A[3] = fnma(q, inverse0 * inverse2, a0 * a2);
    A[4] = a1 * a2;
    A[5] = fma(a2, a2, one_more * inverse2 * inverse2);
  }

  // Eliminating u₁ leaves q t tᵀ + diag(1/z₀², 1/z₂²), for (u₀/z₀, u₂/z₂) the matrix
  // I + q (1, −1)(1, −1)ᵀ: nothing cancels, however close z is to the boundary.
  void solve(const V* b, V* u) const {
    const V q = -z0 * inverse_level;
    const V b0 = z0 * fma(log_ratio, b[1], b[0]);
    const V b2 = fma(z2, b[2], z0 * b[1]);
    const V shared = q * (b0 + b2), scale = V(1.0) / (V(1.0) + (q + q));
    const V relative0 = (shared + b0) * scale, relative2 = (shared + b2) * scale;
    // ψ = −z₀/q, but q may underflow.
    const V level = V(1.0) / inverse_level;
    u[0] = z0 * relative0;
    u[1] = fma(level * level, b[1], z0 * fma(log_ratio, relative0, relative2));
    u[2] = z2 * relative2;
  }

  void third(const V* u, const V* v, V* out) const {
    const V u0 = u[0] * inverse0, u2 = u[2] * inverse2;
    const V v0 = v[0] * inverse0, v2 = v[2] * inverse2;
    const V turn_u = u0 - u2, turn_v = v0 - v2;  // <t, u>, <t, v>
    const V ratio = z0 * inverse2;
    const nonsymmetric::Level<V> level = {
        inverse_level,
        {-log_ratio, V(1.0), -ratio},
        {turn_u, V(0.0), -ratio * turn_u},
        {turn_v, V(0.0), -ratio * turn_v},
        {fnma(u0, turn_v, fnma(v0, turn_u, turn_u * turn_v)), V(0.0),
         ratio * fma(u2, turn_v, v2 * turn_u)},
    };
    nonsymmetric::third_of_logarithm(level, u, v, out);
    out[0] = fnma(V(2.0) * inverse0, u0 * v0, out[0]);
    out[2] = fnma(V(2.0) * inverse2, u2 * v2, out[2]);
  }
};

// The root d > 0 of d + log(1 + d) = p for p > 0, that is ω(1 + p) − 1 with Wright's function ω.
//
// d = p − log(1 + p/2) leaves a residual below log 2; then two steps of Fritsch, Shafer & Crowley
// (Algorithm 443, 1973), of fourth order: the first leaves 1e-7. As corrections of d, with a
// log(1 + d) whose relative accuracy does not suffer where d is small, they keep that of d.
template <class V>
inline V wright_minus_one(const V& p) {
  V d = p - log(fma(V(0.5), p, V(1.0)));
  for (int round = 0; round < 2; ++round) {
    const V w = V(1.0) + d, inverse = V(1.0) / w;
    const V lost = d - (w - V(1.0));  // by the rounding of w
    const V residual = p - d - fma(lost, inverse, log(w));
    const V one_more = V(2.0) + d;
    const V t = one_more * fma(V(2.0 / 3.0), residual, one_more);
    const V relative = residual * fnma(V(0.5), residual, t) / (one_more * (t - residual));
    d = fma(w, relative, d);
  }
  return d;
}

template <class V>
struct Exponential : nonsymmetric::Cone<V, Exponential<V>> {
  using Mask = MaskOf<V>;
  using Barrier = ExponentialBarrier<V>;

  // The central point with μ = 1 and s = z.
  void unit(double* s, double* z) const {
    constexpr double point[] = {-1.051383945322714, 0.556409619469370, 1.258967884768947};
    for (int i = 0; i < 3; ++i) s[i] = z[i] = point[i];
  }

  void project(const V* w, const V* near, V* s, V*) const {
    V unit[3];
    const V size = nonsymmetric::rescale(w, unit);
    const Split part = split_point(unit, near);
    const V smooth[3] = {part.slope * part.y, part.y, part.z};
    const V face[3] = {w[0], V(0.0), max(w[2], V(0.0))};
    for (int i = 0; i < 3; ++i) s[i] = part.choose(w[i], face[i], size * smooth[i]);
  }

  // Eigenvalues 0, 1 and y/(y + μ κ²) for the normal, the ray and their cross product.
  //
  // s = w − ν ∇g(s) with g = y e^(x/y) − z and ν = μ e^−ρ. On the tangent plane DΠ = (I + ν ∇²g)⁻¹,
  // and ν ∇²g = (μ/y) v vᵀ with v = (1, −ρ, 0) orthogonal to the ray. With N = (1, 1 − ρ, −e^−ρ),
  // R = (ρ, 1, e^ρ), t = N × R/(‖N‖ ‖R‖): <v, t> = κ = e^−ρ ‖R‖/‖N‖.
  //
  // On the face w₀, w₁ <= 0 they are diag(w₀ < 0, 0, w₂ > 0).
  void linearize(const V* w, const V* s, V* state, V*) const {
    V unit[3];
    nonsymmetric::rescale(w, unit);
    const Split part = split_point(unit, s);
    // N grows and R shrinks by the same power of e that keeps e^|ρ| out of them.
    const Mask right = part.slope >= V(0.0);
    const V grow = select(right, V(1.0), part.decay), shrink = select(right, part.decay, V(1.0));
    const V normal[3] = {grow, (V(1.0) - part.slope) * grow, -shrink};
    const V ray[3] = {part.slope * shrink, shrink, grow};
    const nonsymmetric::Frame<V> frame(normal, ray);
    const V stretch = frame.ray_length / frame.normal_length;  // κ
    const V total = max(fma(part.mu, stretch * stretch, part.y), V(kTiny));

    const V negative = select(w[0] < V(0.0), V(1.0), V(0.0));
    const V positive = select(w[2] > V(0.0), V(1.0), V(0.0));
    const V smooth[3] = {V(0.0), V(1.0), part.y / total};
    const V face[3] = {negative, V(0.0), positive};
    nonsymmetric::store_spectrum(part, face, smooth, frame, state);
  }

 private:
  friend nonsymmetric::Cone<V, Exponential>;

  // With entries in [1e-200, 2], y e^ρ = μ e^−ρ + w₂ cannot hold for |ρ| beyond 1100, except
  // within rounding of the end of the interval.
  static constexpr double kFar = 1100.0;
  static constexpr double kFarthest = 1e90;  // keeps ρ² finite
  static constexpr double kTiny = 1e-300;

  static V within(const V& x, double lower, double upper) {
    return min(max(x, V(lower)), V(upper));
  }

  static Barrier barrier(const V* z) { return Barrier(z); }
  static Barrier barrier(const V* z, const V* kept) { return Barrier(z, kept); }

  static Mask inside(const V* s, const V* z) {
    const V primal = fma(s[1], log(s[2] / s[1]), -s[0]);
    const V dual = fnma(z[0], log(-z[2] / z[0]), z[1] - z[0]);
    const Mask in_primal = (s[1] > V(0.0)) & (s[2] > V(0.0)) & (primal > V(0.0));
    const Mask in_dual = (z[0] < V(0.0)) & (z[2] > V(0.0)) & (dual > V(0.0));
    return in_primal & in_dual;
  }

  // z̃ = −∇f(s), the solution of ∇f*(z̃) = −s: with p = log(s₂/s₁) − s₀/s₁ > 0 and d + log(1 + d) =
  // p it is
  //
  //   z̃ = (−1, 2 d + s₀/s₁ − 1, (1 + d) s₁/s₂)/(d s₁).
  //
  // (Dahl & Andersen 2022, §6, in terms of ω = 1 + d.)
  static void shadow_of_primal(const V* s, V* z) {
    const V inverse1 = V(1.0) / s[1], slope = s[0] * inverse1;
    const V d = wright_minus_one(log(s[2] * inverse1) - slope);
    const V size = inverse1 / d;
    z[0] = -size;
    z[1] = size * (d + d + slope - V(1.0));
    z[2] = size * (V(1.0) + d) * (s[1] / s[2]);
  }

  // Where w lies, `flat` being the face w₀, w₁ <= 0, and its two parts elsewhere.
  //
  // Boundary points of K and of its polar cone that belong together (Friberg 2021) are
  //
  //   s = y (ρ, 1, e^ρ),   w − s = μ (1, 1 − ρ, −e^−ρ),   y, μ >= 0,
  //
  // orthogonal for every slope ρ.
  struct Split : nonsymmetric::Region<V> {
    V slope;     // ρ
    V decay;     // e^−|ρ|
    V y, z, mu;  // of w/size
  };

  // The equation for ρ. Adding the two points and solving the first two rows,
  //
  //   y(ρ) = (w₁ + (ρ − 1) w₀)/δ,   μ(ρ) = (w₀ − ρ w₁)/δ,   δ = ρ² − ρ + 1,
  //
  // leaves h(ρ) = y e^ρ − μ e^−ρ − w₂ = 0. h increases where y and μ are positive, so its sign
  // brackets the root. Two equations with that sign are used:
  //
  //   L(ρ) = ρ − log E,  E > 0 the root of y E² − w₂ E − μ = 0: nearly straight in the middle;
  //   H(ρ) = h(ρ) e^−|ρ|: bounded, and smooth where y or μ vanishes at the ends.
  struct Slope {
    V wx, wy, wz;

    struct Weights {
      V y, mu;
      V slope_y, slope_mu;  // their derivatives
    };
    Weights weights(const V& rho) const {
      const V inverse = V(1.0) / fma(rho, rho - V(1.0), V(1.0));  // 1/δ
      const V slope = rho + rho - V(1.0);                         // δ'
      Weights at;
      at.y = fma(rho - V(1.0), wx, wy) * inverse;
      at.mu = fnma(rho, wy, wx) * inverse;
      at.slope_y = fnma(slope, at.y, wx) * inverse;
      at.slope_mu = fnma(slope, at.mu, -wy) * inverse;
      return at;
    }

    // L and its Newton step: L' = (d + E y' − μ'/E)/d with d = √(w₂² + 4 y μ).
    void log_equation(const V& rho, const Weights& at, V& value, V& step) const {
      const V y = max(at.y, V(kTiny)), mu = max(at.mu, V(kTiny));
      const V d = max(sqrt(fma(wz, wz, V(4.0) * y * mu)), V(kTiny));
      const V total = d + abs(wz);
      const Mask up = wz >= V(0.0);  // of two ways to write E, that without a difference
      const V above = select(up, total, mu + mu), below = select(up, y + y, total);
      const V E = above / below;
      value = rho - log(E);
      const V slope = fma(E, at.slope_y, fnma(below / above, at.slope_mu, d));
      step = -value * d / select(slope > V(kTiny), slope, d);
    }

    // The Newton step of H, mirrored, (y, μ, w₂) to (μ, y, −w₂), where ρ < 0.
    V bounded_step(const V& rho, const Weights& at) const {
      const Mask right = rho >= V(0.0);
      const V sign = select(right, V(1.0), V(-1.0));
      const V E = exp(-abs(rho));
      const V main = select(right, at.y, at.mu), other = select(right, at.mu, at.y);
      const V third = sign * wz;
      const V slope_main = sign * select(right, at.slope_y, at.slope_mu);
      const V slope_other = sign * select(right, at.slope_mu, at.slope_y);
      // In σ = |ρ|: main − (third + other E) E with E = e^−σ.
      const V value = fnma(fma(other, E, third), E, main);
      const V slope = fma(fma(other + other - slope_other, E, third), E, slope_main);
      return -sign * value / select(abs(slope) > V(kTiny), slope, V(1.0));
    }

    nonsymmetric::Evaluation<V> operator()(const V& rho) const {
      const Weights at = weights(rho);
      nonsymmetric::Evaluation<V> result;
      log_equation(rho, at, result.value, result.step[0]);
      result.step[1] = bounded_step(rho, at);
      result.close = abs(result.step[1]) <= V(nonsymmetric::kClose) * (V(1.0) + abs(rho));
      return result;
    }
  };

  // ρ to rounding, for entries 0 or of size 1e-200 to 2 outside K, K° and the face w₀, w₁ <= 0;
  // anything in the lanes `done`.
  static V find_slope(const Slope& equation, const V* near, const Mask& done) {
    // Where y(ρ) and μ(ρ) are positive, cut to where the root can be.
    const V &wx = equation.wx, &wy = equation.wy;
    const Mask below = wx > V(0.0), above = wy > V(0.0);
    V lower = within(V(1.0) - wy / select(below, wx, V(1.0)), -kFar, kFarthest);
    V upper = within(wx / select(above, wy, V(1.0)), -kFarthest, kFar);
    const V cut_lower = select(below, lower, min(V(-kFar), upper));
    upper = select(above, upper, max(V(kFar), lower));
    lower = cut_lower;

    V start = select(above, upper, lower + V(1.0));
    start = select(below, start, upper - V(1.0));
    start = select(below & above, V(0.5) * (lower + upper), start);
    const Mask known = near[1] > V(kTiny) * (V(1.0) + abs(near[0]));
    const V guess = near[0] / select(known, near[1], V(1.0));
    start = select(known & (guess > lower) & (guess < upper), guess, start);
    V rho = nonsymmetric::find_root(equation, lower, upper, start, done);
    const V polish = equation.bounded_step(rho, equation.weights(rho));
    const Mask small = abs(polish) <= V(1e-6) * (V(1.0) + abs(rho));
    rho = rho + select(small, polish, V(0.0));
    return min(max(rho, lower), upper);
  }

  static Split split_point(const V* unit, const V* near) {
    Split part;
    regions(unit, part);
    // Any point on the smooth part serves where there is nothing to solve.
    const Mask solved = part.solved();
    const Slope equation = {select(solved, V(1.0), unit[0]), select(solved, V(1.0), unit[1]),
                            select(solved, V(0.0), unit[2])};
    part.slope = find_slope(equation, near, solved);
    part.decay = exp(-abs(part.slope));
    const typename Slope::Weights at = equation.weights(part.slope);

    // y (μ) is tiny and cancels where e^ρ (e^−ρ) is large, so take it from the third row there.
    const Mask right = part.slope >= V(0.0);
    const V from_mu = fma(at.mu, part.decay, equation.wz);
    part.z = max(select(right, from_mu, at.y * part.decay), V(0.0));
    part.y = select(right, part.z * part.decay, max(at.y, V(0.0)));
    part.mu = max(select(right, at.mu, part.decay * (part.z - equation.wz)), V(0.0));
    return part;
  }

  // Strictly inside K: w₁ e^a < w₂ with a = w₀/w₁. In K°: w₀ e^b <= −w₂ with b = w₁/w₀ − 1, or
  // w₀ = 0 and w₁, w₂ <= 0. The face: w₀, w₁ <= 0 and neither. With NaN, any of them.
  static void regions(const V* w, Split& part) {
    const V zero(0.0), one(1.0);
    const Mask first = w[0] > zero, second = w[1] > zero, third = w[2] > zero;
    // w₂ says which of the two can hold, so that one exponential is enough.
    const V a = w[0] / select(second, w[1], one);
    const V b = w[1] / select(first, w[0], one) - one;
    const V power = select(third, a, b);
    const V small = exp(-abs(power));
    const Mask falling = power < zero;
    const V up = select(falling, small, one), down = select(falling, one, small);
    part.inside = third & second & (w[1] * up < w[2] * down);
    part.polar = first & !third & (w[0] * up <= -w[2] * down);
    const Mask corner = (w[0] <= zero) & (w[1] <= zero);
    part.polar = part.polar | (corner & (w[0] >= zero) & (w[2] <= zero));
    part.flat = corner & !part.polar;
  }
};

}  // namespace lanes
