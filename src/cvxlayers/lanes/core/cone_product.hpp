// What `cones/cone.hpp` asks of a curved cone, of the product of all cones: m rows of L instances,
// those of the zero cone first, then the nonnegative ones, then the blocks.
#pragma once

#include <algorithm>
#include <vector>

#include "cones/all.hpp"

namespace lanes {

// For the interior-point method.
template <class V>
class ConeScaling {
 public:
  explicit ConeScaling(const Structure& structure)
      : s_(structure),
        H_(structure.h_size),
        scaling_(structure.scaling_size),
        scratch_(structure.scratch_size) {}

  const V* H() const { return H_.data(); }

  // The point that the method starts from if a cone is not symmetric; s and z are zero elsewhere.
  void unit(double* s, double* z) const {
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) s[i] = z[i] = 1.0;
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) { cone.unit(s + block.row, z + block.row); });
    }
  }

  // v + t e with t such that its least eigenvalue is at least a tenth of the mean of the positive
  // ones, and one; for symmetric cones.
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

  // H at (s, z): s/z of a nonnegative row.
  void scale(const V* s, const V* z, const V& mu, const MaskOf<V>& dual) {
    for (int k = 0; k < s_.nonneg; ++k) H_[k] = s[s_.zero + k] / z[s_.zero + k];
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.scale(s + block.row, z + block.row, mu, dual, scaling_.data() + block.scaling,
                   H_.data() + block.h, scratch_.data());
      });
    }
  }

  // y = H x.
  void multiply(const V* x, V* y) {
    for (int i = 0; i < s_.zero; ++i) y[i] = V(0.0);
    for (int k = 0; k < s_.nonneg; ++k) y[s_.zero + k] = H_[k] * x[s_.zero + k];
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.multiply(scaling_.data() + block.scaling, x + block.row, y + block.row,
                      scratch_.data());
      });
    }
  }

  // The shift of the combined step: (s z + second ds dz − σμ)/z of a nonnegative row.
  void shift(const V* s, const V* z, const V* ds, const V* dz, const V& sigma_mu, const V& second,
             V* out) {
    for (int i = 0; i < s_.zero; ++i) out[i] = V(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      out[i] = (fma(s[i], z[i], second * ds[i] * dz[i]) - sigma_mu) / z[i];
    }
    for (const Block& block : s_.blocks) {
      const int r = block.row;
      with_cone<V>(block, [&](auto cone) {
        cone.shift(s + r, z + r, ds + r, dz + r, sigma_mu, second,
                   scaling_.data() + block.scaling, out + r, scratch_.data());
      });
    }
  }

  // The largest step up to alpha that stays in the cones.
  V step(const V* s, const V* z, const V* ds, const V* dz, V alpha, const MaskOf<V>& live) {
    V fastest(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      fastest = max(-ds[i] / s[i], fastest);
      fastest = max(-dz[i] / z[i], fastest);
    }
    alpha = select(fastest > V(0.0), min(V(1.0) / fastest, alpha), alpha);
    // Symmetric cones tell how far it is; the others try, and so come last.
    for (const bool symmetric : {true, false}) {
      for (const Block& block : s_.blocks) {
        const int r = block.row;
        if (is_symmetric(block) != symmetric) continue;
        with_cone<V>(block, [&](auto cone) {
          alpha = cone.step(s + r, z + r, ds + r, dz + r, alpha, live,
                            scaling_.data() + block.scaling, scratch_.data());
        });
      }
    }
    return alpha;
  }

 private:
  const Structure& s_;
  std::vector<V> H_, scaling_, scratch_;
};

// Eigenvalues of D in the factored H = D (I − D)⁻¹ are at most one minus this. In a block there are
// others beside them that are zero, which rounding must not make negative by more than the
// regularisation.
inline constexpr double kMargin = 1e-8, kBlockMargin = 1e-7;

// For the derivative: s = Π(w), D = DΠ(w).
template <class V>
class ConeProjection {
 public:
  explicit ConeProjection(const Structure& structure)
      : s_(structure),
        H_(structure.h_size),
        lambda_(structure.zero + structure.nonneg),
        state_(structure.projection_size),
        divided_(structure.m),
        scratch_(structure.scratch_size) {}

  const V* H() const { return H_.data(); }

  // s = Π(w), near a guess of it.
  void project(const V* w, const V* near, V* s) {
    for (int i = 0; i < s_.zero; ++i) s[i] = V(0.0);
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) s[i] = max(w[i], V(0.0));
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.project(w + block.row, near + block.row, s + block.row, scratch_.data());
      });
    }
  }

  // D and H at w, where s = Π(w).
  void linearize(const V* w, const V* s) {
    for (int i = 0; i < s_.zero; ++i) lambda_[i] = V(0.0);
    for (int k = 0; k < s_.nonneg; ++k) {
      const auto inactive = w[s_.zero + k] > V(0.0);
      lambda_[s_.zero + k] = select(inactive, V(1.0), V(0.0));
      H_[k] = select(inactive, V((1.0 - kMargin) / kMargin), V(0.0));
    }
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        V* state = state_.data() + block.projection;
        cone.linearize(w + block.row, s + block.row, state, scratch_.data());
        cone.block(state, kBlockMargin, H_.data() + block.h, scratch_.data());
      });
    }
  }

  // y = D v.
  void derivative(const V* v, V* y) {
    for (int i = 0; i < s_.zero + s_.nonneg; ++i) y[i] = lambda_[i] * v[i];
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        cone.derivative(state_.data() + block.projection, v + block.row, y + block.row,
                        scratch_.data());
      });
    }
  }

  // v ← (I − D)⁻¹ v, as in H.
  void divide(V* v) {
    for (int i = s_.zero; i < s_.zero + s_.nonneg; ++i) {
      v[i] = select(lambda_[i] > V(0.5), v[i] * V(1.0 / kMargin), v[i]);
    }
    for (const Block& block : s_.blocks) {
      with_cone<V>(block, [&](auto cone) {
        lanes::divide(cone, state_.data() + block.projection, kBlockMargin, H_.data() + block.h,
                      v + block.row, divided_.data() + block.row);
      });
      for (int i = block.row; i < block.row + block.rows; ++i) v[i] = divided_[i];
    }
  }

 private:
  const Structure& s_;
  std::vector<V> H_, lambda_, state_, divided_, scratch_;
};

}  // namespace lanes
