// K (x, z) = r of the interior-point method: factored with a regularisation, which refinement
// against K itself takes away.
#pragma once

#include <vector>

#include "cone_product.hpp"
#include "kkt.hpp"
#include "scaled_data.hpp"

namespace lanes {

inline constexpr double kRegularisation = 1e-8;
// A system is solved once its residual is at this level.
inline constexpr double kSystemRelative = 1e-12, kSystemAbsolute = 1e-12;

template <class V, class T>
class StepSystem {
 public:
  StepSystem(const Structure& structure, const ScaledData<V, T>& data, ConeScaling<V>& cones)
      : s_(structure),
        data_(data),
        cones_(cones),
        kkt_(structure),
        error_(structure.n + structure.m),
        change_(structure.n + structure.m),
        Hz_(structure.m) {}

  // K of the data and of H as they are now.
  void factor() {
    kkt_.factor(data_.P.data(), data_.A.data(), data_.M.data(), cones_.H(), kRegularisation);
  }

  // Without refinement.
  template <int R>
  void solve(const V* const (&right)[R], V* const (&left)[R]) {
    kkt_.template solve<R>(right, left);
  }

  // Refinement of K (left) = right in the lanes `wanted`, where that helps: one round on the way,
  // and as many as it takes where the first step is the last, because there is no inequality.
  void refine(const V* right, V* left, const MaskOf<V>& wanted) {
    const int size = s_.n + s_.m;
    V *error = error_.data(), *change = change_.data();
    const bool last = s_.degree == 0;
    const V accepted =
        last ? V(0.0) : fma(V(kSystemRelative), largest(right, size), V(kSystemAbsolute));
    V height = residual(right, left, error);
    for (int rounds = last ? 10 : 1; rounds > 0; --rounds) {
      const MaskOf<V> pending = (!(height <= accepted)) & wanted;
      if (!any(pending)) return;
      const V* errors[1] = {error};
      V* changes[1] = {change};
      kkt_.template solve<1>(errors, changes);
      for (int i = 0; i < size; ++i) change[i] += left[i];
      const V again = residual(right, change, error);
      const MaskOf<V> better = pending & (again < height);
      for (int i = 0; i < size; ++i) left[i] = select(better, change[i], left[i]);
      if (rounds == 1 || !any(better)) return;
      height = residual(right, left, error);
    }
  }

 private:
  // error = right − K left; its largest entry.
  V residual(const V* right, const V* left, V* error) {
    const int n = s_.n, m = s_.m;
    cones_.multiply(left + n, Hz_.data());
    for (int j = 0; j < n; ++j) error[j] = right[j];
    for (int i = 0; i < m; ++i) error[n + i] = right[n + i] + Hz_[i];
    const V *x[1] = {left}, *z[1] = {left + n};
    V *above[1] = {error}, *below[1] = {error + n};
    subtract_product<1>(s_.P_full, data_.P.data(), x, above);
    subtract_both<1>(s_, data_.A.data(), x, z, above, below);
    return largest(error, n + m);
  }

  const Structure& s_;
  const ScaledData<V, T>& data_;
  ConeScaling<V>& cones_;
  Kkt<V, T> kkt_;
  std::vector<V> error_, change_, Hz_;
};

}  // namespace lanes
