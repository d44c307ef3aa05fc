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
    for (int k = 0; k < s_.L.lines(); k += s_.L_alike[k]) {
      with_alike(s_.L_alike[k], [&](auto alike) __attribute__((always_inline)) {
        eliminate_lines<alike.value, R>(k, right);
      });
    }
  }

  // y = (r_E − L u)/a, v = (r_y − p y)/a; of bounds, v = (a u − r)/h.
  template <int R>
  void substitute(const V* const (&right)[R], V* const (&left)[R]) const {
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      const Bound& bound = s_.bounds[k];
      const int i = s_.n + bound.row;
      const V a = A_[bound.a];
      for (int q = 0; q < R; ++q) {
        left[q][i] = fma(a, left[q][bound.variable], -right[q][i]) * over_h_[k];
      }
    }
    for (int k = 0; k < s_.L.lines(); k += s_.L_alike[k]) {
      with_alike(s_.L_alike[k], [&](auto alike) __attribute__((always_inline)) {
        substitute_lines<alike.value, R>(k, right, left);
      });
    }
  }

 private:
  V p_of(const Pivot& pivot) const { return pivot.p < 0 ? V(0.0) : P_[pivot.p]; }

  // The part of G pivots whose rows L have the same columns, from number k on.
  template <int G, int R>
  void eliminate_lines(int k, const V* const (&right)[R]) {
    V t[R][G];
    for (int g = 0; g < G; ++g) {
      const Pivot& pivot = s_.pivots[k + g];
      const V over = over_a_[k + g], weight = p_of(pivot) * over;
      for (int q = 0; q < R; ++q) {
        t[q][g] = over * fnma(weight, right[q][s_.n + pivot.row], right[q][pivot.variable]);
      }
    }
    const int length = s_.L.start[k + 1] - s_.L.start[k], first = s_.L.start[k];
    for (int p = 0; p < length; ++p) {
      const int j = s_.L.index[first + p];
      V value[G];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) value[g] = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
      for (int q = 0; q < R; ++q) {
        V sum = right_[q][j];
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) sum = fnma(value[g], t[q][g], sum);
        right_[q][j] = sum;
      }
    }
  }

  template <int G, int R>
  void substitute_lines(int k, const V* const (&right)[R], V* const (&left)[R]) const {
    V rest[R][G];
    for (int g = 0; g < G; ++g) {
      for (int q = 0; q < R; ++q) rest[q][g] = right[q][s_.n + s_.pivots[k + g].row];
    }
    const int length = s_.L.start[k + 1] - s_.L.start[k], first = s_.L.start[k];
    for (int p = 0; p < length; ++p) {
      const int j = s_.L.index[first + p];
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        const V value = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
        for (int q = 0; q < R; ++q) rest[q][g] = fnma(value, left[q][j], rest[q][g]);
      }
    }
    for (int g = 0; g < G; ++g) {
      const Pivot& pivot = s_.pivots[k + g];
      for (int q = 0; q < R; ++q) {
        const V y = rest[q][g] * over_a_[k + g];
        left[q][pivot.variable] = y;
        left[q][s_.n + pivot.row] = fnma(p_of(pivot), y, right[q][pivot.variable]) * over_a_[k + g];
      }
    }
  }

  const Structure& s_;
  std::vector<V> over_h_, right_[2];
  std::vector<T> over_a_;
  const V* P_ = nullptr;
  const T* A_ = nullptr;
};

}  // namespace lanes
