// Products of matrices with vectors of L instances.
//
// They go over a matrix once, whatever they are for: with an instance in each lane its values are
// more than the caches hold. T is V, or double where all instances share the values.
#pragma once

#include <type_traits>

#include "lane.hpp"
#include "structure.hpp"

namespace lanes {

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
    case 8: return f(std::integral_constant<int, 8>());
    case 4: return f(std::integral_constant<int, 4>());
    case 2: return f(std::integral_constant<int, 2>());
    default: return f(std::integral_constant<int, 1>());
  }
}

// (f_q, g_q) −= (Aᵀz_q, A x_q) for G columns of A, each of so many entries from `first` on and with
// the same rows `index`, from the column j on.
template <int G, int R, class V, class T>
inline void subtract_columns(const int* index, int length, const int* start, int j, const T* values, const V* const (&x)[R],
                             const V* const (&z)[R], V* const (&f)[R], V* const (&g)[R]) {
  V sum[R][G], at[R][G];
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 8
    for (int k = 0; k < G; ++k) {
      sum[q][k] = f[q][j + k];
      at[q][k] = x[q][j + k];
    }
  }
  const T* first[G];
  for (int k = 0; k < G; ++k) first[k] = values + start[k];
  for (int p = 0; p < length; ++p) {
    const int i = index[p];
    V value[G];
#pragma GCC unroll 8
    for (int k = 0; k < G; ++k) value[k] = first[k][p];
#pragma GCC unroll 2
    for (int q = 0; q < R; ++q) {
      const V of_z = z[q][i];
      V of_g = g[q][i];
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        sum[q][k] = fnma(value[k], of_z, sum[q][k]);
        of_g = fnma(value[k], at[q][k], of_g);
      }
      g[q][i] = of_g;
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 8
    for (int k = 0; k < G; ++k) f[q][j + k] = sum[q][k];
  }
}

// (f_q, g_q) −= (Aᵀz_q, A x_q).
template <int R, class V, class T>
inline void subtract_both(const Structure& s, const T* values, const V* const (&x)[R],
                          const V* const (&z)[R], V* const (&f)[R], V* const (&g)[R]) {
  const Columns& columns = s.A_columns;
  for (int j = 0; j < s.n; j += columns.alike[j]) {
    with_alike(columns.alike[j], [&](auto alike) __attribute__((always_inline)) {
      const int* start = &columns.first[j];
      subtract_columns<alike.value, R>(s.A.index.data() + *start, columns.length[j], start, j, values,
                                       x, z, f, g);
    });
  }
  for (const Entry& entry : columns.loose) {
    const V value = values[entry.value];
    for (int q = 0; q < R; ++q) {
      f[q][entry.column] = fnma(value, z[q][entry.row], f[q][entry.column]);
      g[q][entry.row] = fnma(value, x[q][entry.column], g[q][entry.row]);
    }
  }
}

template <class V>
inline V largest(const V* values, int count) {
  V found(0.0);
  for (int i = 0; i < count; ++i) found = max(abs(values[i]), found);
  return found;
}

}  // namespace lanes
