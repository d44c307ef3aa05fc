// A point (x, z, s, τ, κ) of L instances in the homogeneous embedding of
//
//   minimize ½ xᵀP x + qᵀx   subject to   A x + s = b,  s ∈ K
//
// (Goulart & Chen 2024, arXiv 2405.12762), with residuals
//
//   r_x = −P x − Aᵀz − q τ,   r_z = A x + s − b τ,   r_τ = qᵀx + bᵀz + κ + xᵀP x/τ
//
// and μ = (sᵀz + τ κ)/(degree + 1).
#pragma once

#include <vector>

#include "judgement.hpp"
#include "scaled_data.hpp"

namespace lanes {

template <class V>
struct Iterate {
  std::vector<V> x, z, s, rx, rz, Px;
  V tau{1.0}, kappa{1.0}, rt{0.0}, mu{1.0};
  Measures<V> measures;

  explicit Iterate(const Structure& structure)
      : x(structure.n, V(0.0)),
        z(structure.m, V(0.0)),
        s(structure.m, V(0.0)),
        rx(structure.n, V(0.0)),
        rz(structure.m, V(0.0)),
        Px(structure.n, V(0.0)),
        minus_x_(structure.n, V(0.0)) {}

  // What follows from the point: residuals, P x, μ, measures.
  template <class T>
  void compute_residuals(const Structure& structure, const ScaledData<V, T>& data) {
    const int n = structure.n, m = structure.m;
    const V zero(0.0);
    const auto add = [](V& sum, const V& value) { sum = fma(value, value, sum); };
    // P x, −Aᵀz and A x + s.
    for (int j = 0; j < n; ++j) {
      Px[j] = rx[j] = zero;
      minus_x_[j] = -x[j];
    }
    for (int i = 0; i < m; ++i) rz[i] = s[i];
    const V *minus[1] = {minus_x_.data()}, *of_z[1] = {z.data()};
    V *product[1] = {Px.data()}, *dual[1] = {rx.data()}, *primal[1] = {rz.data()};
    subtract_product<1>(structure.P_full, data.P.data(), minus, product);
    subtract_both<1>(structure, data.A.data(), minus, of_z, dual, primal);
    V nx = zero, nrx = zero, nAz = zero, nPx = zero;
    for (int j = 0; j < n; ++j) {
      const V over = data.over_d[j], r = rx[j] - Px[j] - tau * data.q[j];
      add(nAz, rx[j] * over);
      add(nPx, Px[j] * over);
      add(nrx, r * over);
      add(nx, x[j] * data.d[j]);
      rx[j] = r;
    }
    V ns = zero, nz = zero, nrz = zero, nAxs = zero;
    for (int i = 0; i < m; ++i) {
      const V over = data.over_e[i], r = rz[i] - tau * data.b[i];
      add(nAxs, rz[i] * over);
      add(nrz, r * over);
      add(ns, s[i] * over);
      add(nz, z[i] * data.e[i]);
      rz[i] = r;
    }
    const V qx = dot(data.q.data(), x.data(), n), bz = dot(data.b.data(), z.data(), m);
    const V xPx = dot(x.data(), Px.data(), n), sz = dot(s.data(), z.data(), m);
    rt = qx + bz + kappa + xPx / tau;
    mu = fma(tau, kappa, sz) * V(1.0 / (structure.degree + 1));
    Measures<V>& f = measures;
    f.tau = tau;
    f.kappa = kappa;
    f.qx = qx;
    f.bz = bz;
    f.xPx = xPx;
    f.x = sqrt(nx);
    f.z = sqrt(nz);
    f.s = sqrt(ns);
    f.residual_x = sqrt(nrx);
    f.residual_z = sqrt(nrz);
    f.Az = sqrt(nAz);
    f.Axs = sqrt(nAxs);
    f.Px = sqrt(nPx);
    f.c = data.c;
    f.q = data.norm_q;
    f.b = data.norm_b;
  }

 private:
  std::vector<V> minus_x_;
};

}  // namespace lanes
