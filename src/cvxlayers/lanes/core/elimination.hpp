// The equalities and bounds that `Structure` names are not factored: what they say of their
// unknowns is put into the other rows of K (u, v) = r before, and their unknowns follow
// from the others afterwards.
//
// A pivot, the row a y + L u = r_E with the column p y + a v = r_y, by y and v:
//
//   y = (r_E − L u)/a,   v = (r_y − p y)/a,   r₁ ← r₁ − Lᵀ(r_y/a − p r_E/a²),   P ← P + M
//
// with M = Lᵀ(p/a²) L, see `make_products`. A bound, the row a u − h v = r, by v:
//
//   v = (a u − r)/h,   r₁ ← r₁ + a r/h,   P ← P + a²/h   at the variable u.
#pragma once

#include <algorithm>
#include <vector>

#include "products.hpp"

namespace lanes {

template <class V, class T>
class Elimination {
 public:
  explicit Elimination(const Structure& structure)
      : s_(structure), over_h_(structure.bounds.size()), over_a_(structure.pivots.size()) {
    for (auto& right : right_) right.resize(structure.n);
    for (auto& rest : rest_) rest.resize(structure.pivots.size());
  }

  // The values of K from now on, to which `regularisation` is added in the rows of bounds. P and A
  // are referred to by the other members.
  void set(const V* P, const T* A, const V* H, double regularisation) {
    P_ = P;
    A_ = A;
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      over_h_[k] = V(1.0) / (H[s_.bounds[k].h] + V(regularisation));
    }
    for (std::size_t k = 0; k < s_.pivots.size(); ++k) over_a_[k] = T(1.0) / A[s_.pivots[k].a];
  }

  // diagonal + a²/h, of the variable of bound k.
  V add_bound(std::size_t k, const V& diagonal) const {
    const V a = A_[s_.bounds[k].a];
    return fma(a * over_h_[k], a, diagonal);
  }

  // top = r₁ − Lᵀ(r_y/a − p r_E/a²) + Σ a r/h.
  template <int R>
  void eliminate(const V* const (&right)[R], const V* (&top)[R]) {
    for (int q = 0; q < R; ++q) top[q] = right[q];
    if (s_.pivots.empty() && s_.bounds.empty()) return;
    for (int q = 0; q < R; ++q) {
      std::copy(right[q], right[q] + s_.n, right_[q].begin());
      top[q] = right_[q].data();
    }
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      const Bound& bound = s_.bounds[k];
      const V factor = V(A_[bound.a]) * over_h_[k];
      for (int q = 0; q < R; ++q) {
        V& sum = right_[q][bound.variable];
        sum = fma(factor, right[q][s_.n + bound.row], sum);
      }
    }
    for (std::size_t k = 0; k < s_.pivots.size(); ++k) {
      const Pivot& pivot = s_.pivots[k];
      const V over = over_a_[k], weight = p_of(pivot) * over;
      for (int q = 0; q < R; ++q) {
        rest_[q][k] = over * fnma(weight, right[q][s_.n + pivot.row], right[q][pivot.variable]);
      }
    }
    for (int j = 0; j < s_.n; j += s_.L_alike[j]) {
      with_alike(s_.L_alike[j], [&](auto alike) __attribute__((always_inline)) {
        eliminate_columns<alike.value, R>(j);
      });
    }
  }

  // y = (r_E − L u)/a, v = (r_y − p y)/a; of bounds, v = (a u − r)/h.
  template <int R>
  void substitute(const V* const (&right)[R], V* const (&left)[R]) {
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      const Bound& bound = s_.bounds[k];
      const int i = s_.n + bound.row;
      const V a = A_[bound.a];
      for (int q = 0; q < R; ++q) {
        left[q][i] = fma(a, left[q][bound.variable], -right[q][i]) * over_h_[k];
      }
    }
    for (std::size_t k = 0; k < s_.pivots.size(); ++k) {
      for (int q = 0; q < R; ++q) rest_[q][k] = right[q][s_.n + s_.pivots[k].row];
    }
    for (int j = 0; j < s_.n; j += s_.L_alike[j]) {
      with_alike(s_.L_alike[j], [&](auto alike) __attribute__((always_inline)) {
        substitute_columns<alike.value, R>(j, left);
      });
    }
    for (std::size_t k = 0; k < s_.pivots.size(); ++k) {
      const Pivot& pivot = s_.pivots[k];
      for (int q = 0; q < R; ++q) {
        const V y = rest_[q][k] * over_a_[k];
        left[q][pivot.variable] = y;
        left[q][s_.n + pivot.row] = fnma(p_of(pivot), y, right[q][pivot.variable]) * over_a_[k];
      }
    }
  }

 private:
  V p_of(const Pivot& pivot) const { return pivot.p < 0 ? V(0.0) : P_[pivot.p]; }

  // top −= Lᵀ rest for G columns of L with the same rows, from the column j on.
  template <int G, int R>
  void eliminate_columns(int j) {
    const int length = s_.L.start[j + 1] - s_.L.start[j], first = s_.L.start[j];
    V sum[R][G];
    for (int q = 0; q < R; ++q) {
      for (int g = 0; g < G; ++g) sum[q][g] = right_[q][j + g];
    }
    for (int p = 0; p < length; ++p) {
      const int k = s_.L.index[first + p];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const V value = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
        for (int q = 0; q < R; ++q) sum[q][g] = fnma(value, rest_[q][k], sum[q][g]);
      }
    }
    for (int q = 0; q < R; ++q) {
      for (int g = 0; g < G; ++g) right_[q][j + g] = sum[q][g];
    }
  }

  // rest −= L u for these columns.
  template <int G, int R>
  void substitute_columns(int j, V* const (&left)[R]) {
    const int length = s_.L.start[j + 1] - s_.L.start[j], first = s_.L.start[j];
    V u[R][G];
    for (int q = 0; q < R; ++q) {
      for (int g = 0; g < G; ++g) u[q][g] = left[q][j + g];
    }
    for (int p = 0; p < length; ++p) {
      const int k = s_.L.index[first + p];
      V sum[R];
      for (int q = 0; q < R; ++q) sum[q] = rest_[q][k];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const V value = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
        for (int q = 0; q < R; ++q) sum[q] = fnma(value, u[q][g], sum[q]);
      }
      for (int q = 0; q < R; ++q) rest_[q][k] = sum[q];
    }
  }

  const Structure& s_;
  std::vector<V> over_h_, right_[2], rest_[2];
  std::vector<T> over_a_;
  const V* P_ = nullptr;
  const T* A_ = nullptr;
};

}  // namespace lanes
