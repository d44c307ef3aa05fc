// K of `structure.hpp` for L instances: assembled, factored, solved.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "ldl.hpp"
#include "structure.hpp"

namespace lanes {

// Products go over a matrix once, whatever they are for: with an instance in each lane its values
// are more than the caches hold. T is V, or double where all instances share the values.

// y_q −= P x_q for R vectors, P by its lines.
template <int R, class V, class T>
inline void subtract_product(const Pattern& lines, const T* values, const V* const (&x)[R],
                             V* const (&y)[R]) {
  for (int i = 0; i < lines.lines(); ++i) {
    V sum[R];
    for (int q = 0; q < R; ++q) sum[q] = y[q][i];
    for (int p = lines.start[i]; p < lines.start[i + 1]; ++p) {
      const V value = values[lines.value[p]];
      for (int q = 0; q < R; ++q) sum[q] = fnma(value, x[q][lines.index[p]], sum[q]);
    }
    for (int q = 0; q < R; ++q) y[q][i] = sum[q];
  }
}

// Call f with how many lines are taken together, as a constant.
template <class F>
inline void with_alike(int alike, F&& f) {
  switch (alike) {
    case 4: return f(std::integral_constant<int, 4>());
    case 2: return f(std::integral_constant<int, 2>());
    default: return f(std::integral_constant<int, 1>());
  }
}

// (f_q, g_q) −= (Aᵀz_q, A x_q) for G columns of A with the same rows, from the column j on.
template <int G, int R, class V, class T>
inline void subtract_columns(const Pattern& columns, int j, const T* values, const V* const (&x)[R],
                             const V* const (&z)[R], V* const (&f)[R], V* const (&g)[R]) {
  V sum[R][G], at[R][G];
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) {
      sum[q][k] = f[q][j + k];
      at[q][k] = x[q][j + k];
    }
  }
  const int length = columns.start[j + 1] - columns.start[j];
  const int* index = columns.index.data() + columns.start[j];
  const T* first = values + columns.start[j];
  for (int p = 0; p < length; ++p) {
    const int i = index[p];
    V value[G];
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) value[k] = first[k * length + p];
#pragma GCC unroll 2
    for (int q = 0; q < R; ++q) {
      const V of_z = z[q][i];
      V of_g = g[q][i];
#pragma GCC unroll 4
      for (int k = 0; k < G; ++k) {
        sum[q][k] = fnma(value[k], of_z, sum[q][k]);
        of_g = fnma(value[k], at[q][k], of_g);
      }
      g[q][i] = of_g;
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 4
    for (int k = 0; k < G; ++k) f[q][j + k] = sum[q][k];
  }
}

// (f_q, g_q) −= (Aᵀz_q, A x_q), A by columns as it is stored.
template <int R, class V, class T>
inline void subtract_both(const Pattern& columns, const T* values, const V* const (&x)[R],
                          const V* const (&z)[R], V* const (&f)[R], V* const (&g)[R]) {
  for (int j = 0; j < columns.lines(); j += columns.alike[j]) {
    with_alike(columns.alike[j], [&](auto alike) __attribute__((always_inline)) {
      subtract_columns<alike.value, R>(columns, j, values, x, z, f, g);
    });
  }
}

template <class V>
inline V largest(const V* values, int count) {
  V found(0.0);
  for (int i = 0; i < count; ++i) found = max(abs(values[i]), found);
  return found;
}

// The smallest pivot that is not replaced, and by what it is.
inline constexpr double kLeastPivot = 1e-13, kReplacedPivot = 2e-7;
// Rounds of refinement of a system with expanded cones, and what is left, relative, that needs none.
inline constexpr int kArrowRounds = 2;
inline constexpr double kArrowAccuracy = 1e-10;

template <class V, class T>
class Kkt {
 public:
  explicit Kkt(const Structure& structure)
      : s_(structure),
        X_(structure.symbolic.store),
        D_(structure.size()),
        D_inverse_(structure.size()),
        work_(structure.symbolic.work),
        y_(2 * structure.size()),
        over_h_(structure.bounds.size()),
        over_a_(structure.pivots.size()) {
    for (auto& right : right_) right.resize(structure.n);
    if (!structure.arrows.empty()) errors_.resize(2 * structure.size());
  }

  // Factor [P Aᵀ; A −H] + regularisation diag(±1), where M is what the eliminated rows add to P.
  // P and A are referred to by `solve`.
  void factor(const V* P, const T* A, const V* M, const V* H, double regularisation) {
    P_ = P;
    A_ = A;
    for (V& x : X_) x = V(0.0);
    for (int i = 0; i < s_.size(); ++i) X_[s_.diagonal[i]] = V(regularisation * s_.sign[i]);
    add(s_.of_P, P);
    add(s_.of_A, A);
    add(s_.of_M, M);
    const Scatter& of_H = s_.of_H;
    for (std::size_t k = 0; k < of_H.place.size(); ++k) X_[of_H.place[k]] -= H[of_H.value[k]];
    H_ = H;
    for (std::size_t k = 0; k < s_.bounds.size(); ++k) {
      const V a = A[s_.bounds[k].a];
      over_h_[k] = V(1.0) / (H[s_.bounds[k].h] + V(regularisation));
      X_[s_.bounded[k]] = fma(a * over_h_[k], a, X_[s_.bounded[k]]);
    }
    lanes::factor(s_.symbolic, s_.pivot_sign.data(), kLeastPivot, kReplacedPivot, X_.data(),
                  D_.data(), D_inverse_.data(), work_.data());
    for (std::size_t k = 0; k < s_.pivots.size(); ++k) over_a_[k] = T(1.0) / A[s_.pivots[k].a];
  }

  // K⁻¹ of R right-hand sides (r₁, r₂) of n + m numbers; those of the cones' unknowns are zero.
  template <int R>
  void solve(const V* const (&right)[R], V* const (&left)[R]) {
    const int size = s_.size(), n = s_.n, coupled = n + s_.m;
    const std::vector<int>& order = s_.symbolic.order;
    const V* top[R];
    eliminate<R>(right, top);
    for (int i = 0; i < size; ++i) {
      const int k = s_.unknowns[order[i]];
      for (int q = 0; q < R; ++q) {
        y_[q * size + i] = k < n ? top[q][k] : k < coupled ? right[q][k] : V(0.0);
      }
    }
    lanes::solve<R>(s_.symbolic, X_.data(), D_inverse_.data(), y_.data());
    if (!s_.arrows.empty()) refine<R>();
    for (int i = 0; i < size; ++i) {
      const int k = s_.unknowns[order[i]];
      if (k >= coupled) continue;
      for (int q = 0; q < R; ++q) left[q][k] = y_[q * size + i];
    }
    substitute<R>(right, left);
  }

 private:
  template <class U>
  void add(const Scatter& scatter, const U* values) {
    for (std::size_t k = 0; k < scatter.place.size(); ++k) {
      X_[scatter.place[k]] += V(values[scatter.value[k]]);
    }
  }

  // Refinement of the rows of σ and τ, whose right-hand sides are zero. Near the boundary of the cone
  // u and v are large, and what rounding leaves here comes into the other rows multiplied by them,
  // where refinement of those rows alone cannot take it away.
  template <int R>
  void refine() {
    const int size = s_.size();
    V bound[R];
    for (int q = 0; q < R; ++q) bound[q] = largest(y_.data() + q * size, size);
    for (int round = 0; round < kArrowRounds; ++round) {
      for (V& error : errors_) error = V(0.0);
      MaskOf<V> needed[R];
      for (int q = 0; q < R; ++q) needed[q] = !(V(0.0) <= V(0.0));
      bool some = false;
      for (const Arrow& arrow : s_.arrows) {
        for (int side = 0; side < 2; ++side) {
          const V *column = H_ + arrow.h + (1 + side) * arrow.size, diagonal = column_end(arrow, side);
          const int center = arrow.center[side];
          const V amplified = largest(column, arrow.size) / abs(diagonal);
          for (int q = 0; q < R; ++q) {
            const V* x = y_.data() + q * size;
            V error = diagonal * x[center];
            for (int i = 0; i < arrow.size; ++i) error = fma(column[i], x[arrow.rows[i]], error);
            errors_[q * size + center] = error;
            needed[q] = needed[q] | (abs(error) * amplified > V(kArrowAccuracy) * bound[q]);
          }
        }
      }
      for (int q = 0; q < R; ++q) some = some || any(needed[q]);
      if (!some) return;
      lanes::solve<R>(s_.symbolic, X_.data(), D_inverse_.data(), errors_.data(), s_.first_arrow);
      for (int q = 0; q < R; ++q) {
        for (int i = q * size; i < (q + 1) * size; ++i) {
          y_[i] = select(needed[q], y_[i] + errors_[i], y_[i]);
        }
      }
    }
  }

  V column_end(const Arrow& arrow, int side) const { return H_[arrow.h + 3 * arrow.size + side]; }

  V p_of(const Pivot& pivot) const { return pivot.p < 0 ? V(0.0) : P_[pivot.p]; }

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
        V& top = right_[q][bound.variable];
        top = fma(factor, right[q][s_.n + bound.row], top);
      }
    }
    for (int k = 0; k < s_.L.lines(); k += s_.L.alike[k]) {
      with_alike(s_.L.alike[k], [&](auto alike) __attribute__((always_inline)) {
        eliminate_lines<alike.value, R>(k, right);
      });
    }
  }

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
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) value[g] = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
      for (int q = 0; q < R; ++q) {
        V sum = right_[q][j];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) sum = fnma(value[g], t[q][g], sum);
        right_[q][j] = sum;
      }
    }
  }

  // u_y = (r_E − L u)/a, v = (r_y − p u_y)/a; of bounds, v = (a u − r)/h.
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
    for (int k = 0; k < s_.L.lines(); k += s_.L.alike[k]) {
      with_alike(s_.L.alike[k], [&](auto alike) __attribute__((always_inline)) {
        substitute_lines<alike.value, R>(k, right, left);
      });
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
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const V value = A_[s_.L.value[first + g * length + p]];
#pragma GCC unroll 2
        for (int q = 0; q < R; ++q) rest[q][g] = fnma(value, left[q][j], rest[q][g]);
      }
    }
    for (int g = 0; g < G; ++g) {
      const Pivot& pivot = s_.pivots[k + g];
      for (int q = 0; q < R; ++q) {
        const V u = rest[q][g] * over_a_[k + g];
        left[q][pivot.variable] = u;
        left[q][s_.n + pivot.row] = fnma(p_of(pivot), u, right[q][pivot.variable]) * over_a_[k + g];
      }
    }
  }

  const Structure& s_;
  std::vector<V> X_, D_, D_inverse_, work_, y_, right_[2];
  std::vector<V> errors_;
  std::vector<V> over_h_;
  std::vector<T> over_a_;
  const V *P_ = nullptr, *H_ = nullptr;
  const T* A_ = nullptr;
};

}  // namespace lanes
