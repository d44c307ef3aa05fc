// The second-order cone {(t, x): ‖x‖ <= t}; J = diag(1, −I), e = (1, 0).
//
// Up to four rows its block of K is dense. A longer one would fill K, and is written with two more
// unknowns instead: H = diag(h) + u uᵀ − v vᵀ up to factors, in rows that are coupled to σ by v and
// to τ by u alone (Goulart & Chen 2024, section 5.3). Order in the store: h, then v, then u, then
// the diagonal entries of σ and τ.
#pragma once

#include "cone.hpp"

namespace lanes {

template <class V>
struct SecondOrder {
  static constexpr int kDense = 4;
  int size;

  int rows() const { return size; }
  static constexpr int scratch_size() { return 0; }
  int degree() const { return 1; }
  bool expanded() const { return size > kDense; }
  int block_size() const { return expanded() ? 3 * size + 2 : triangle_size(size); }

  static V tail(const V* a, const V* b, int size) { return dot(a + 1, b + 1, size - 1); }

  // vᵀJ v, without cancellation.
  V residual(const V* v) const {
    const V r = sqrt(tail(v, v, size));
    return (v[0] - r) * (v[0] + r);
  }

  // ---- the interior-point method ----

  void unit(double* s, double* z) const {
    for (int i = 0; i < size; ++i) s[i] = z[i] = i == 0 ? 1.0 : 0.0;
  }
  V margin(const V* v, V*) const { return v[0] - sqrt(tail(v, v, size)); }
  // Of two eigenvalues, v₀ ± ‖v₁‖, though `degree` is one: what `move_inside` (interior_point.hpp)
  // takes for the mean of all is up to twice that.
  V positive(const V* v, V*) const {
    const V r = sqrt(tail(v, v, size));
    return max(v[0] - r, V(0.0)) + max(v[0] + r, V(0.0));
  }
  void add_identity(V* v, V t) const { v[0] += t; }

  // Kept: w, λ = W z, and η. W = η [w₀ w₁ᵀ; w₁ I + w₁w₁ᵀ/(1 + w₀)] with wᵀJ w = 1, so that
  // H = W² = η² (2 w wᵀ − J).
  int scaling_size() const { return 2 * size + 1; }

  // With s̄ = s/√(sᵀJ s), z̄ likewise, γ = √((1 + s̄ᵀz̄)/2):
  //   w = (s̄ + J z̄)/(2γ),   η⁴ = sᵀJ s / zᵀJ z,
  //   λ = ⁴√(sᵀJ s zᵀJ z) (γ, ((γ + z̄₀) s̄₁ + (γ + s̄₀) z̄₁)/(s̄₀ + z̄₀ + 2γ)).
  void scale(const V* s, const V* z, V, MaskOf<V>, V* scaling, V* H, V*) const {
    const V tiny(1e-300);
    V *w = scaling, *lambda = scaling + size;
    const V size_s = sqrt(max(residual(s), tiny)), size_z = sqrt(max(residual(z), tiny));
    const V over_s = V(1.0) / size_s, over_z = V(1.0) / size_z;
    const V eta_squared = size_s * over_z, root = sqrt(size_s * size_z);
    w[0] = s[0] * over_s + z[0] * over_z;
    for (int i = 1; i < size; ++i) w[i] = s[i] * over_s - z[i] * over_z;
    const V two_gamma = sqrt(max(residual(w), tiny)), over_gamma = V(1.0) / two_gamma;
    for (int i = 1; i < size; ++i) w[i] *= over_gamma;
    const V tail_squared = tail(w, w, size);
    w[0] = sqrt(V(1.0) + tail_squared);

    const V gamma = V(0.5) * two_gamma, s0 = s[0] * over_s, z0 = z[0] * over_z;
    const V common = root / (s0 + z0 + two_gamma);
    const V of_s = (gamma + z0) * over_s * common, of_z = (gamma + s0) * over_z * common;
    lambda[0] = gamma * root;
    for (int i = 1; i < size; ++i) lambda[i] = of_s * s[i] + of_z * z[i];
    scaling[2 * size] = sqrt(eta_squared);
    if (expanded()) {
      write_expanded(w, eta_squared, tail_squared, H);
    } else {
      for (int j = 0; j < size; ++j) {
        for (int i = 0; i <= j; ++i) {
          const V value = V(2.0) * w[i] * w[j];
          H[triangle(i, j)] = eta_squared * (i < j ? value : value + V(i == 0 ? -1.0 : 1.0));
        }
      }
    }
  }

  // 2 w wᵀ − J = diag(d, 1, …) + u uᵀ − v vᵀ with ω = ‖w‖², d = 1/(2ω), u = (u₀, 2 w₀ w₁/u₀),
  // u₀² = ω − d, v = (0, v₁ w₁), v₁² = 2 (2 + 1/ω)/(2ω − 1/ω).
  void write_expanded(const V* w, V eta_squared, V tail_squared, V* H) const {
    const V omega = w[0] * w[0] + tail_squared, over = V(1.0) / omega, d = V(0.5) * over;
    const V u0 = sqrt(omega - d), u1 = (w[0] + w[0]) / u0;
    const V v1 = sqrt(V(2.0) * (V(2.0) + over) / ((omega + omega) - over));
    V *v = H + size, *u = H + 2 * size;
    H[0] = eta_squared * d;
    v[0] = V(0.0);
    u[0] = eta_squared * u0;
    for (int i = 1; i < size; ++i) {
      H[i] = eta_squared;
      v[i] = eta_squared * v1 * w[i];
      u[i] = eta_squared * u1 * w[i];
    }
    H[3 * size] = eta_squared;
    H[3 * size + 1] = -eta_squared;
  }

  void multiply(const V* scaling, const V* x, V* y, V*) const {
    const V *w = scaling, eta = scaling[2 * size], eta_squared = eta * eta;
    const V product = dot(w, x, size), twice = product + product;
    y[0] = eta_squared * (twice * w[0] - x[0]);
    for (int i = 1; i < size; ++i) y[i] = eta_squared * fma(twice, w[i], x[i]);
  }

  // W (λ \ r) with r = λ∘λ + second (W⁻¹ds)∘(W dz) − σμ e. By the inverse of the arrow matrix of λ,
  // and W J λ = η² J W⁻¹λ = η² J z:
  //   W (λ \ r) = (W (0, r₁) + c J z)/λ₀,   c = (λ₀ r₀ − λ₁ᵀr₁)/(zᵀJ z).
  void shift(const V*, const V* z, const V* ds, const V* dz, V sigma_mu, V second,
             const V* scaling, V* out, V*) const {
    const V *w = scaling, *lambda = scaling + size, eta = scaling[2 * size];
    const V over_w = V(1.0) / (V(1.0) + w[0]), over_eta = V(1.0) / eta;
    // a = W dz and b = W⁻¹ds are recomputed entry by entry from what is common to all entries.
    const V wz = tail(w, dz, size), ws = tail(w, ds, size);
    const V a0 = eta * fma(w[0], dz[0], wz), b0 = over_eta * (w[0] * ds[0] - ws);
    const V of_a = fma(wz, over_w, dz[0]), of_b = fma(ws, over_w, -ds[0]);
    V ab = a0 * b0;
    for (int i = 1; i < size; ++i) {
      const V a = eta * fma(of_a, w[i], dz[i]), b = over_eta * fma(of_b, w[i], ds[i]);
      ab = fma(a, b, ab);
      out[i] = fma(second, a0 * b + b0 * a, (lambda[0] + lambda[0]) * lambda[i]);
    }
    const V r0 = fma(second, ab, dot(lambda, lambda, size)) - sigma_mu;
    const V wr = tail(w, out, size), lr = tail(lambda, out, size);
    const V c = (lambda[0] * r0 - lr) / residual(z), over = V(1.0) / lambda[0], along = wr * over_w;
    out[0] = over * fma(c, z[0], eta * wr);
    for (int i = 1; i < size; ++i) out[i] = over * (eta * fma(along, w[i], out[i]) - c * z[i]);
  }

  V step(const V* s, const V* z, const V* ds, const V* dz, V alpha, MaskOf<V>, const V*, V*) const {
    return to_boundary(z, dz, to_boundary(s, ds, alpha));
  }

  // The least positive root of (x + α y)ᵀJ (x + α y) = a α² + b α + c.
  V to_boundary(const V* x, const V* y, V alpha) const {
    const V zero(0.0), never(1e300);
    const V across = sqrt(tail(y, y, size));
    const V a = (y[0] - across) * (y[0] + across);
    const V b = V(2.0) * (x[0] * y[0] - tail(x, y, size));
    const V c = max(residual(x), zero);
    const V apex = select(y[0] < zero, -x[0] / y[0], never);
    const V cap = min(apex, alpha);
    const V square = b * b - V(4.0) * a * c, r = sqrt(max(square, zero));
    const V t = select(b < zero, r - b, -(b + r));
    V first = (c + c) / t, other = t / (a + a);
    first = select(first > V(-1e-300), first, never);
    other = select(other > V(-1e-300), other, never);
    const V root = min(min(first, other), cap);
    // In one row the boundary is the apex, a double root, and the formula loses half of its digits.
    const auto away = ((a > zero) & (b > zero)) | (square < zero) | (V(size) <= V(1.0));
    return select(away, cap, root);
  }

  // ---- the derivative ----
  //
  // With w = (w₀, r n), ‖n‖ = 1, DΠ(w) has the eigenvectors e₋ = (1, −n)/√2, e₊ = (1, n)/√2 and all
  // orthogonal to both, with the eigenvalues 0, 1, (w₀ + r)/(2r) where −r < w₀ <= r; all are 1
  // where w₀ > r, and 0 where w₀ <= −r.

  // Kept: the eigenvalues of e₋, of e₊ and of the others, then n.
  int projection_size() const { return size + 2; }

  void project(const V* w, const V*, V* s, V*) const {
    const V r = sqrt(tail(w, w, size)), half = V(0.5) * (w[0] + r);
    const auto inside = w[0] >= r, outside = w[0] <= -r;
    const V factor = select(outside, V(0.0), half / max(r, V(1e-300)));
    s[0] = select(inside, w[0], select(outside, V(0.0), half));
    for (int i = 1; i < size; ++i) s[i] = select(inside, w[i], factor * w[i]);
  }

  void linearize(const V* w, const V*, V* state, V*) const {
    const V zero(0.0), one(1.0);
    const V r = sqrt(tail(w, w, size)), over = V(1.0) / max(r, V(1e-300));
    const auto inside = w[0] > r, outside = w[0] <= -r;
    state[0] = select(inside, one, zero);
    state[1] = select(outside, zero, one);
    state[2] = select(inside, one, select(outside, zero, V(0.5) * (w[0] + r) * over));
    for (int i = 1; i < size; ++i) state[2 + i] = w[i] * over;
  }

  void derivative(const V* state, const V* v, V* y, V*) const { apply(state, state + 2, v, y); }

  // (I − D)⁻¹ v with the eigenvalues of D at most 1 − delta.
  void resolvent(const V* state, double delta, const V* v, V* y) const {
    V factor[3];
    for (int k = 0; k < 3; ++k) factor[k] = V(1.0) / (V(1.0) - min(state[k], V(1.0 - delta)));
    apply(factor, state + 2, v, y);
  }

  void block(const V* state, double delta, V* H, V*) const {
    const V *n = state + 2, half_root(kRootHalf);
    V mu[3];
    for (int k = 0; k < 3; ++k) {
      const V bounded = min(state[k], V(1.0 - delta));
      mu[k] = bounded / (V(1.0) - bounded);
    }
    if (!expanded()) {
      const V minus = V(0.5) * (mu[0] - mu[2]), plus = V(0.5) * (mu[1] - mu[2]);
      for (int j = 0; j < size; ++j) {
        for (int i = 0; i <= j; ++i) {
          V value = i == 0 && j == 0 ? plus + minus
                    : i == 0         ? (plus - minus) * n[j]
                                     : (plus + minus) * n[i] * n[j];
          H[triangle(i, j)] = i == j ? value + mu[2] : value;
        }
      }
      return;
    }
    // μ₂ I − (μ₂ − μ₀) e₋e₋ᵀ + (μ₁ − μ₂) e₊e₊ᵀ; of the latter the inverse goes into the diagonal of
    // τ, because μ₁ is as large as 1/delta.
    const V less = mu[2] - mu[0], more = mu[1] - mu[2];
    const auto has_less = less > V(0.0), has_more = more > V(0.0);
    const V a = select(has_less, less * half_root, V(0.0)), b = select(has_more, half_root, V(0.0));
    for (int i = 0; i < size; ++i) {
      H[i] = mu[2];
      H[size + i] = i == 0 ? a : -(a * n[i]);
      H[2 * size + i] = i == 0 ? b : b * n[i];
    }
    H[3 * size] = select(has_less, less, V(1.0));
    H[3 * size + 1] = -select(has_more, V(1.0) / max(more, V(1e-300)), V(1.0));
  }

 private:
  // y = M v, M with the eigenvalues μ of e₋, of e₊ and of all orthogonal to both:
  // M = μ₂ I + (μ₀ − μ₂) e₋e₋ᵀ + (μ₁ − μ₂) e₊e₊ᵀ.
  void apply(const V* mu, const V* n, const V* v, V* y) const {
    const V across = tail(n, v, size), other = mu[2];
    const V minus = (mu[0] - other) * V(0.5) * (v[0] - across);
    const V plus = (mu[1] - other) * V(0.5) * (v[0] + across);
    y[0] = fma(other, v[0], plus + minus);
    for (int i = 1; i < size; ++i) y[i] = fma(plus - minus, n[i], other * v[i]);
  }
};

}  // namespace lanes
