// The data of L instances and a point of each, as the derivative takes them: in scaled data,
//
//   P̂ = c D P D,  Â = E A D,  q̂ = c D q,  b̂ = E b,   x̂ = D⁻¹x,  ŝ = E s,  ẑ = c E⁻¹z.
//
// Scales are powers of two and round nothing. Those of a curved cone bring s and z to one size:
// w = s − z would lose the smaller.
#pragma once

#include <algorithm>
#include <vector>

#include "data.hpp"
#include "equilibrate.hpp"

namespace lanes {

inline constexpr int kScalingRounds = 2;
// A slack or dual this small beside those of the other rows is at the apex, or inactive.
inline constexpr double kVanishing = 1e-6;
inline constexpr double kLeft = 1e-7;

struct Points {
  Rows x, z, s;
};

template <class V>
struct DerivativeData {
  std::vector<V> P, A, M, q, b, d, e, x, z, s;
  V c{1.0}, unit{1.0};

  explicit DerivativeData(const Structure& structure)
      : P(structure.P_entries()),
        A(structure.A_entries()),
        M(structure.M_entries()),
        q(structure.n),
        b(structure.m),
        d(structure.n),
        e(structure.m),
        x(structure.n),
        z(structure.m),
        s(structure.m),
        s_(structure),
        P_equilibrated_(structure.P_entries()),
        A_base_(structure.A_entries()),
        e_base_(structure.m),
        row_(structure.m) {}

  // P, A and M; D, E and c for them alone.
  void load_matrices(const Program& program, const std::int64_t* instances) {
    load(program.P, instances, P.data());
    load(program.A, instances, A_base_.data());
    if (s_.M_is_given()) load(program.M, instances, M.data());
    P_equilibrated_ = P;
    A = A_base_;
    equilibrate(s_, kScalingRounds, P_equilibrated_.data(), A.data(), d.data(), e_base_.data());
    for (V& v : d) v = nearest_power(v);
    for (V& v : e_base_) v = nearest_power(v);
    const V mean = mean_of_columns(s_, P_equilibrated_.data());
    c = nearest_power(select(mean > V(0.0), V(1.0) / mean, V(1.0)));
    scale_matrices(s_, c, d.data(), e_base_.data(), P.data(), A_base_.data());
    make_products(s_, P.data(), A_base_.data(), d.data(), M.data());
    if (s_.M_is_given()) {
      for (V& v : M) v *= c;
    }
    A = A_base_;
    e = e_base_;
  }

  // x, z and s, and with them E and A in the rows of curved cones.
  void load_points(const Points& points, const std::int64_t* instances) {
    load(points.x, instances, x.data());
    load(points.z, instances, z.data());
    load(points.s, instances, s.data());
    if (!s_.blocks.empty()) balance();
    for (int j = 0; j < s_.n; ++j) x[j] /= d[j];
    for (int i = 0; i < s_.m; ++i) {
      s[i] *= e[i];
      z[i] *= c / e[i];
    }
  }

  // q and b, everything in units of their size where they are small.
  void load_vectors(const Program& program, const std::int64_t* instances) {
    load(program.q, instances, q.data());
    load(program.b, instances, b.data());
    const V size = max(largest(q.data(), s_.n), largest(b.data(), s_.m));
    unit = nearest_power(select(is_tiny(size), size, V(1.0)));
    const V over = V(1.0) / unit;
    for (int j = 0; j < s_.n; ++j) {
      q[j] *= c * d[j] * over;
      x[j] *= over;
    }
    for (int i = 0; i < s_.m; ++i) {
      b[i] *= e[i] * over;
      z[i] *= over;
      s[i] *= over;
    }
  }

 private:
  // Rows of curved cones in a scale in which s and z are of one size.
  void balance() {
    const V tiny(1e-150);
    const V size_s = largest(s.data(), s_.m), size_z = largest(z.data(), s_.m);
    // What the solver leaves of the product of a slack and a dual that is zero, beside xᵀP x, P
    // being of size one.
    V size_x(0.0);
    for (int j = 0; j < s_.n; ++j) size_x = max(abs(x[j]) / d[j], size_x);
    const V left = V(kLeft) * size_x * size_x;
    const V least_s = max(V(kVanishing) * size_s, tiny);
    const V least_z = max(V(kVanishing) * size_z, tiny);
    for (int i = 0; i < s_.m; ++i) row_[i] = V(1.0);
    for (const Block& block : s_.blocks) {
      const V of_s = largest(s.data() + block.row, block.rows);
      const V of_z = largest(z.data() + block.row, block.rows);
      const auto known = (of_s > least_s) & (of_z > least_z) & (c * of_s * of_z > left);
      const V wanted = nearest_power(sqrt(c * max(of_z, tiny) / max(of_s, tiny)));
      const V base = e_base_[block.row], scale = select(known, wanted, base);
      for (int i = block.row; i < block.row + block.rows; ++i) {
        row_[i] = scale / base;
        e[i] = scale;
      }
    }
    for (int j = 0; j < s_.n; ++j) {
      for (int p = s_.A.start[j]; p < s_.A.start[j + 1]; ++p) {
        A[p] = A_base_[p] * row_[s_.A.index[p]];
      }
    }
  }

  const Structure& s_;
  // A and E before curved cones have their scale.
  std::vector<V> P_equilibrated_, A_base_, e_base_, row_;
};

}  // namespace lanes
