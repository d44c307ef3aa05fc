// The power cone K = {(x, y, z) : x^α y^(1−α) >= |z|, x, y >= 0}, with β = 1 − α throughout.
//
// K* = {(x, y, z) : (x/α)^α (y/β)^β >= |z|, x, y >= 0}.
#pragma once

#include "nonsymmetric.hpp"

namespace lanes {

// f*(z) = −log ψ − β log z₀ − α log z₁ with ψ = G − z₂², G = (z₀/α)^2α (z₁/β)^2β.
//
// With p = G/ψ, c = (2α/z₀, 2β/z₁) and h = (2α/z₀², 2β/z₁²), ∇²G = G (c cᵀ − diag h) and
//
//   ∇f* = (−(2αp + β)/z₀, −(2βp + α)/z₁, 2z₂/ψ),
//   ∇²f* = [ p (p − 1) c cᵀ + diag((2αp + β)/z₀², (2βp + α)/z₁²)    −(2 z₂ p/ψ) c          ]
//          [ −(2 z₂ p/ψ) cᵀ                                         2 (G + z₂²)/ψ²         ].
template <class V>
struct PowerBarrier {
  static constexpr int kKept = 4;
  double alpha, beta;
  V z0, z1, z2;
  V product;             // G
  V inverse_level;       // 1/ψ
  V inverse0, inverse1;  // 1/z₀, 1/z₁

  PowerBarrier(double exponent, const V* z)
      : alpha(exponent),
        beta(1.0 - exponent),
        z0(z[0]),
        z1(z[1]),
        z2(z[2]),
        inverse0(V(1.0) / z[0]),
        inverse1(V(1.0) / z[1]) {
    const V log0 = V(alpha) * log(z0 * V(1.0 / alpha));
    const V height = exp(fma(V(beta), log(z1 * V(1.0 / beta)), log0));
    product = height * height;
    const V size = abs(z2);
    inverse_level = V(1.0) / ((height - size) * (height + size));
  }
  // From what `keep` left.
  PowerBarrier(double exponent, const V* z, const V* kept)
      : alpha(exponent),
        beta(1.0 - exponent),
        z0(z[0]),
        z1(z[1]),
        z2(z[2]),
        product(kept[0]),
        inverse_level(kept[1]),
        inverse0(kept[2]),
        inverse1(kept[3]) {}
  void keep(V* kept) const {
    kept[0] = product;
    kept[1] = inverse_level;
    kept[2] = inverse0;
    kept[3] = inverse1;
  }

  void gradient(V* g) const {
    const V p = product * inverse_level;
    g[0] = -fma(V(2.0 * alpha), p, V(beta)) * inverse0;
    g[1] = -fma(V(2.0 * beta), p, V(alpha)) * inverse1;
    g[2] = (z2 + z2) * inverse_level;
  }

  void hessian(V* A) const {
    const V p = product * inverse_level, less = z2 * z2 * inverse_level;  // less = p − 1
    const V c0 = V(2.0 * alpha) * inverse0, c1 = V(2.0 * beta) * inverse1;
    const V along = p * less, mixed = -(z2 + z2) * inverse_level * p;
    A[0] = fma(along * c0, c0, fma(V(2.0 * alpha), p, V(beta)) * inverse0 * inverse0);
    A[1] = along * c0 * c1;
    A[2] = fma(along * c1, c1, fma(V(2.0 * beta), p, V(alpha)) * inverse1 * inverse1);
    A[3] = mixed * c0;
    A[4] = mixed * c1;
    A[5] = fma(V(4.0), less, V(2.0)) * inverse_level;
  }

  // Eliminating u₂ leaves, for (u₀/z₀, u₁/z₁), with e = 2G/(G + z₂²) and k = 2pαβ,
  //
  //   e (α, β)(α, β)ᵀ + k (1, −1)(1, −1)ᵀ + diag(β, α)
  //
  // of determinant αβ + e (α³ + β³) + k (1 + e): nothing cancels, however close z is to the
  // boundary.
  void solve(const V* b, V* u) const {
    const V a(alpha), o(beta);
    const V shared = V(1.0) / fma(z2, z2, product);
    const V e = (product + product) * shared;
    const V k = V(2.0 * alpha * beta) * product * inverse_level;
    const V coupled = e * z2;  // of the eliminated row
    const V b0 = fma(z0, b[0], a * coupled * b[2]);
    const V b1 = fma(z1, b[1], o * coupled * b[2]);
    const double cubes = alpha * alpha * alpha + beta * beta * beta;
    const V scale = V(1.0) / fma(e, V(cubes), fma(k, V(1.0) + e, V(alpha * beta)));
    const V sum = k * (b0 + b1), difference = e * fnma(a, b1, o * b0);
    const V relative0 = scale * fma(a, b0, fma(o, difference, sum));
    const V relative1 = scale * fma(o, b1, fnma(a, difference, sum));
    // ψ²/(2 (G + z₂²)), where ψ is better known than its parts.
    const V level = V(1.0) / inverse_level;
    u[0] = z0 * relative0;
    u[1] = z1 * relative1;
    u[2] = fma(coupled, fma(a, relative0, o * relative1), V(0.5) * level * level * shared * b[2]);
  }

  void third(const V* u, const V* v, V* out) const {
    const V inverse[2] = {inverse0, inverse1};
    const V c[2] = {V(2.0 * alpha) * inverse0, V(2.0 * beta) * inverse1};
    const V h[2] = {c[0] * inverse0, c[1] * inverse1};
    const V slope_u = fma(c[0], u[0], c[1] * u[1]), slope_v = fma(c[0], v[0], c[1] * v[1]);
    const V bend = fnma(h[0] * u[0], v[0], fnma(h[1] * u[1], v[1], slope_u * slope_v));
    nonsymmetric::Level<V> level;
    level.inverse = inverse_level;
    for (int i = 0; i < 2; ++i) {
      const V hu = h[i] * u[i], hv = h[i] * v[i];
      const V turn = fnma(hu, slope_v, fnma(hv, slope_u, V(2.0) * hu * v[i] * inverse[i]));
      level.gradient[i] = product * c[i];
      level.second_u[i] = product * fma(c[i], slope_u, -hu);
      level.second_v[i] = product * fma(c[i], slope_v, -hv);
      level.third[i] = product * fma(c[i], bend, turn);
    }
    level.gradient[2] = V(-2.0) * z2;
    level.second_u[2] = V(-2.0) * u[2];
    level.second_v[2] = V(-2.0) * v[2];
    level.third[2] = V(0.0);
    nonsymmetric::third_of_logarithm(level, u, v, out);
    const double weight[2] = {beta, alpha};
    for (int i = 0; i < 2; ++i) {
      const V cube = inverse[i] * inverse[i] * inverse[i];
      out[i] = fnma(V(2.0 * weight[i]) * cube, u[i] * v[i], out[i]);
    }
  }
};

template <class V>
struct Power : nonsymmetric::Cone<V, Power<V>> {
  using Mask = MaskOf<V>;
  using Barrier = PowerBarrier<V>;

  double alpha;

  explicit Power(double exponent) : alpha(exponent) {}

  // The central point with μ = 1 and s = z.
  void unit(double* s, double* z) const {
    const double point[] = {std::sqrt(1.0 + alpha), std::sqrt(2.0 - alpha), 0.0};
    for (int i = 0; i < 3; ++i) s[i] = z[i] = point[i];
  }

  void project(const V* w, const V* near, V* s, V*) const {
    V unit[3];
    const V size = nonsymmetric::rescale(w, unit);
    const Split part = split_point(unit, near, size);
    const V sign = select(w[2] < V(0.0), V(-1.0), V(1.0));
    const V smooth[3] = {part.x, part.y, sign * part.r};
    const V plane[3] = {max(w[0], V(0.0)), max(w[1], V(0.0)), V(0.0)};
    for (int i = 0; i < 3; ++i) s[i] = part.choose(w[i], plane[i], size * smooth[i]);
  }

  // Eigenvalues 0, 1 and 1/(1 + ν κ²) for the normal, the ray and their cross product.
  //
  // s = w − ν ∇g(s) with g = |z| − x^α y^β. On the tangent plane DΠ = (I + ν ∇²g)⁻¹, and
  // ∇²g = αβ r v vᵀ with v = (1/x, −1/y, 0) orthogonal to the ray. With R = (x, y, ±r),
  // N = (−α r y, −β r x, ±x y), t = N × R/(‖N‖ ‖R‖): |<v, t>| = ‖R‖/‖N‖, so
  // κ² = αβ r ‖R‖²/‖N‖².
  void linearize(const V* w, const V* s, V* state, V*) const {
    V unit[3];
    const V size = nonsymmetric::rescale(w, unit);
    const Split part = split_point(unit, s, size);
    const V sign = select(w[2] < V(0.0), V(-1.0), V(1.0));
    // All is homogeneous in s and in N.
    const V length = max(part.x, part.y), shorten = V(1.0) / length;
    const V x = part.x * shorten, y = part.y * shorten, r = part.r * shorten;
    const V ray[3] = {x, y, sign * r};
    V normal[3] = {V(-alpha) * r * y, V(-beta()) * r * x, sign * x * y};
    const V largest = max(max(abs(normal[0]), abs(normal[1])), abs(normal[2]));
    const V inverse = V(1.0) / largest;
    for (V& entry : normal) entry = entry * inverse;
    const nonsymmetric::Frame<V> frame(normal, ray);
    const V flatness = length * largest * frame.normal_length * frame.normal_length;
    const V curvature =
        V(alpha * beta()) * (r * inverse) * frame.ray_length * frame.ray_length;
    const V tangent = flatness / fma(part.nu, curvature, flatness);

    const V smooth[3] = {V(0.0), V(1.0), tangent};
    V plane[3];
    spectrum_in_plane(w, plane);
    nonsymmetric::store_spectrum(part, plane, smooth, frame, state);
  }

 private:
  friend nonsymmetric::Cone<V, Power>;

  // |w₂| below 1e-100 of the rest is zero for all purposes, and so are parts of it below e^−100.
  static constexpr double kFlat = 1e-100;
  static constexpr double kFar = 100.0;
  // Keeps ψ, which is computed otherwise, positive where `step` ends.
  static constexpr double kMargin = 1e-14;
  // From e^−300 of the rest on, s₂ is zero for the barrier.
  static constexpr double kFlatLog = 600.0;
  static constexpr int kShadowRounds = 3;

  double beta() const { return 1.0 - alpha; }

  // α log(x/z) + β log(y/z) for positive x, y; large where z = 0.
  V log_ratio(const V& x, const V& y, const V& z) const {
    return fma(V(alpha), log(x / z), V(beta()) * log(y / z));
  }

  Barrier barrier(const V* z) const { return Barrier(alpha, z); }
  Barrier barrier(const V* z, const V* kept) const { return Barrier(alpha, z, kept); }

  Mask inside(const V* s, const V* z) const {
    const V primal = log_ratio(s[0], s[1], abs(s[2]));
    const V dual = log_ratio(z[0] * V(1.0 / alpha), z[1] * V(1.0 / beta()), abs(z[2]));
    const Mask in_primal = (s[0] > V(0.0)) & (s[1] > V(0.0)) & (primal > V(kMargin));
    const Mask in_dual = (z[0] > V(0.0)) & (z[1] > V(0.0)) & (dual > V(kMargin));
    return in_primal & in_dual;
  }

  // z̃ = −∇f(s), the solution of ∇f*(z̃) = −s. In terms of d = p − 1 its rows say
  //
  //   z̃ = ((1 + α + 2αd)/s₀, (1 + β + 2βd)/s₁, −2d/s₂),
  //
  // and G = 4 d (1 + d)/s₂², from p = G/(G − z₂²), leaves one equation: with
  // C = 2α log(s₀/|s₂|) + 2β log(s₁/|s₂|) > 0,
  //
  //   F(d) = log(4 d (1 + d)) − 2α log((1 + α)/α + 2d) − 2β log((1 + β)/β + 2d) + C = 0.
  //
  // F increases, is straight in log d where d is small, and tends to C − 2/d where it is large. So
  // does the equation d/(d + 2) = e^−C, whose root is within a factor 2.3, exact for large d; from
  // there Halley's iteration, of third order, reaches rounding in 3 rounds whatever C and α are.
  void shadow_of_primal(const V* s, V* z) const {
    const V a(alpha), b(beta()), one(1.0);
    const V full = V(2.0) * log_ratio(s[0], s[1], abs(s[2]));
    const V C = min(max(full, V(nonsymmetric::kEpsilon)), V(kFlatLog));
    const V small = exp(-C);
    // 1 − e^−C by its series where that would cancel.
    V d = (small + small) / max(one - small, fnma(V(0.5) * C, C, C));

    const double over0 = (1.0 + alpha) / alpha, over1 = (1.0 + beta()) / beta();
    for (int round = 0; round < kShadowRounds; ++round) {
      const V four = V(4.0) * d * (one + d);
      const V i0 = one / fma(V(2.0), d, V(over0)), i1 = one / fma(V(2.0), d, V(over1));
      const V i2 = one / (one + d);
      const V F = fma(a, log(four * i0 * i0), fma(b, log(four * i1 * i1), C));
      // d F' and d² F''.
      const V slope0 = V(2.0 + 2.0 * alpha) * i0, slope1 = V(2.0 + 2.0 * beta()) * i1;
      const V first = slope0 + slope1 - i2;
      const V bend = fnma(V(2.0) * slope0, i0, fnma(V(2.0) * slope1, i1, i2 * i2));
      const V second = fma(d, bend, -first);
      const V newton = F / first;
      d = fnma(d, newton / fnma(V(0.5) * newton, second / first, one), d);
    }
    z[0] = fma(V(2.0 * alpha), d, V(1.0 + alpha)) / s[0];
    z[1] = fma(V(2.0 * beta()), d, V(1.0 + beta())) / s[1];
    z[2] = select(full < V(kFlatLog), -(d + d) / s[2], V(0.0));
  }

  // Where w lies, `flat` being the plane w₂ = 0, and the projection of w/size elsewhere.
  struct Split : nonsymmetric::Region<V> {
    V x, y, r, nu;  // |s₂| = r and |w₂| = r + ν
  };

  // Away from K, K° and the plane w₂ = 0, Hien (2015), Proposition 2.2, writes the projection
  // through r = |s₂| in (0, |w₂|) alone: with ν = |w₂| − r,
  //
  //   x = ½ (w₀ + √(w₀² + 4 α r ν)),   y = ½ (w₁ + √(w₁² + 4 β r ν)),   x^α y^β = r.
  //
  // Both r and ν may be tiny, so the unknown is τ = log(r/ν). The residual
  //
  //   L(τ) = log r − α log x − β log y
  //
  // crosses zero once, upwards. It is nearly straight in τ where x or y stays put or is
  // proportional to ν, and in r or ν where it levels off; a Newton step in r is one in τ,
  // transformed.
  struct Height {
    double alpha, beta;
    V wx, wy, height;  // height = |w₂|
    V inverse_height;

    struct Parts {
      V r, nu;
      V root_x, root_y;  // the square roots
      V x, y;
    };
    Parts parts(const V& tau) const {
      const V ratio = exp(-abs(tau));
      const V large = height / (V(1.0) + ratio), small = ratio * large;
      const Mask low = tau < V(0.0);
      Parts at;
      at.r = select(low, small, large);
      at.nu = select(low, large, small);
      const V product = at.r * at.nu;
      positive_root(wx, V(alpha) * product, at.root_x, at.x);
      positive_root(wy, V(beta) * product, at.root_y, at.y);
      return at;
    }
    // √(b² + 4c) and the positive root of t² − b t − c = 0, without cancellation.
    static void positive_root(const V& b, const V& c, V& root, V& positive) {
      root = sqrt(fma(b, b, V(4.0) * c));
      const V far = V(0.5) * (abs(b) + root);
      positive = select(b >= V(0.0), far, c / far);
    }

    nonsymmetric::Evaluation<V> operator()(const V& tau) const {
      const Parts at = parts(tau);
      const V one(1.0), inverse_r = one / at.r;
      const V x = at.x * inverse_r, y = at.y * inverse_r;
      const V log_x = V(alpha) * log(x), log_y = V(beta) * log(y);
      nonsymmetric::Evaluation<V> result;
      result.value = -(log_x + log_y);
      // dr/dτ = r ν/|w₂| and dx/dr = α (ν − r)/√(w₀² + 4 α r ν), so that with α + β = 1 and
      // x √(w₀² + 4 α r ν) = x² + α r ν
      //
      //   L' = (α (x² + α r²)/(x² + α r ν) + β (y² + β r²)/(y² + β r ν)) ν/|w₂|,
      //
      // where nothing cancels as L levels off.
      const V slope_x = V(alpha) * fma(at.x, x, V(alpha) * at.r) / (at.root_x * x);
      const V slope_y = V(beta) * fma(at.y, y, V(beta) * at.r) / (at.root_y * y);
      const V share_nu = at.nu * inverse_height, share_r = at.r * inverse_height;
      const V straight = -result.value / ((slope_x + slope_y) * share_nu);
      // A step Δ in r is Δ = straight · r ν/|w₂|; then τ + step = log((r + Δ)/(ν − Δ)).
      const V more = fma(straight, share_nu, one), less = fnma(straight, share_r, one);
      const Mask valid = (more > V(0.0)) & (less > V(0.0));
      const V levelling = log(select(valid, more, one) / select(valid, less, one));
      result.step[0] = select(valid, levelling, straight);
      result.step[1] = straight;
      // What rounding leaves of L.
      const V noise = V(4.0 * nonsymmetric::kEpsilon) * (one + abs(log_x) + abs(log_y));
      const Mask solved = abs(result.value) <= noise;
      const Mask near = abs(straight) <= V(nonsymmetric::kClose);
      result.close = solved | near;
      return result;
    }
  };

  Split split_point(const V* unit, const V* near, const V& size) const {
    const V zero(0.0), one(1.0);
    const V height = abs(unit[2]);
    Split part;
    const Mask above = (unit[0] > zero) & (unit[1] > zero);
    part.inside = above & (log_ratio(unit[0], unit[1], height) > zero);
    const V dual = log_ratio(unit[0] / V(-alpha), unit[1] / V(-beta()), height);
    const Mask below = (unit[0] <= zero) & (unit[1] <= zero);
    // The logarithms say nothing where height = 0, and are −1e300 where another entry is.
    part.polar = below & ((dual >= zero) | (height <= zero));
    part.flat = (height <= V(kFlat)) & !(part.inside | part.polar);

    // Any point on the smooth part serves where there is nothing to solve.
    const Mask solved = part.solved();
    Height equation = {alpha, beta(), select(solved, zero, unit[0]), select(solved, zero, unit[1]),
                       select(solved, one, height), one};
    equation.inverse_height = one / equation.height;
    const V r = abs(near[2]) / size;
    const Mask known = (r > zero) & (r < equation.height);
    const V held = select(known, r, V(0.5) * equation.height);
    const V guess = log(held / (equation.height - held));
    const V far(kFar);
    const V tau = nonsymmetric::find_root(equation, -far, far, guess, solved);
    const V polish = equation(tau).step[1];
    const typename Height::Parts at =
        equation.parts(tau + select(abs(polish) <= V(1e-3), polish, zero));
    part.x = at.x;
    part.y = at.y;
    part.r = at.r;
    part.nu = at.nu;
    return part;
  }

  // Eigenvalues along the axes where w₂ = 0 outside K and K°: s is on an edge of the quadrant. With
  // β the exponent of the positive entry p, and m >= 0 minus the other, they are 1, 0, and across
  // the plane 0 for β < ½, 1 for β > ½ and p/(p + 2m) for β = ½: near the edge p = 1 K is
  // {d >= |z|^(1/(1−β))}, its curvature infinite, 0 or 2.
  void spectrum_in_plane(const V* w, V* lambda) const {
    const V zero(0.0), one(1.0);
    const Mask first = w[0] > zero, second = w[1] > zero;
    lambda[0] = select(first, one, zero);
    lambda[1] = select(second, one, zero);
    const V p = max(max(w[0], w[1]), zero), m = max(max(-w[0], -w[1]), zero);
    const V balanced = p / select(p > zero, fma(V(2.0), m, p), one);
    const V on_first(alpha < 0.5 ? 0.0 : 1.0), on_second(alpha > 0.5 ? 0.0 : 1.0);
    const V steep = select(first, on_first, on_second);
    lambda[2] = alpha == 0.5 ? balanced : steep;
  }
};

}  // namespace lanes
