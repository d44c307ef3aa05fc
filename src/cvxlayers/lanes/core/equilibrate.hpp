// Scaling of the data: P̂ = c D P D, Â = E A D, q̂ = c D q, b̂ = E b.
#pragma once

#include <algorithm>
#include <vector>

#include "products.hpp"

namespace lanes {

inline constexpr int kEquilibrationRounds = 10;
inline constexpr double kLeastScale = 1e-4, kLargestScale = 1e4;
// Data below the first size are taken in units of their own, because tolerances are absolute below
// one; data below the second are as good as zero.
inline constexpr double kTiny = 1e-2, kNothing = 1e-290;

// P ← c D P D, A ← E A D.
template <class V>
void scale_matrices(const Structure& s, const V& c, const V* d, const V* e, V* P, V* A) {
  for (int j = 0; j < s.n; ++j) {
    const V of_A = d[j], of_P = c * of_A;
    for (int p = s.P.start[j]; p < s.P.start[j + 1]; ++p) P[p] *= of_P * d[s.P.index[p]];
    for (int p = s.A.start[j]; p < s.A.start[j + 1]; ++p) A[p] *= of_A * e[s.A.index[p]];
  }
}

// D and E for [P Aᵀ; A 0] (Ruiz, A scaling algorithm to equilibrate both rows and columns norms in
// matrices, 2001), one number for all rows of a curved cone. P and A are scaled in place.
template <class V>
void equilibrate(const Structure& s, int rounds, V* P, V* A, V* d, V* e) {
  std::vector<V> column(s.n), row(s.m);
  for (int j = 0; j < s.n; ++j) d[j] = V(1.0);
  for (int i = 0; i < s.m; ++i) e[i] = V(1.0);
  const auto apply = [&] { scale_matrices(s, V(1.0), column.data(), row.data(), P, A); };
  const auto correct = [](V size, V scale) {
    const V root = V(1.0) / sqrt(select(size > V(0.0), size, V(1.0)));
    const V product = min(max(scale * root, V(kLeastScale)), V(kLargestScale));
    return product / scale;
  };
  for (int round = 0; round < rounds; ++round) {
    for (V& v : column) v = V(0.0);
    for (V& v : row) v = V(0.0);
    for (int j = 0; j < s.n; ++j) {
      for (int p = s.P.start[j]; p < s.P.start[j + 1]; ++p) {
        const V size = abs(P[p]);
        column[j] = max(size, column[j]);
        column[s.P.index[p]] = max(size, column[s.P.index[p]]);
      }
      for (int p = s.A.start[j]; p < s.A.start[j + 1]; ++p) {
        const V size = abs(A[p]);
        column[j] = max(size, column[j]);
        row[s.A.index[p]] = max(size, row[s.A.index[p]]);
      }
    }
    for (int j = 0; j < s.n; ++j) {
      column[j] = correct(column[j], d[j]);
      d[j] *= column[j];
    }
    for (int i = 0; i < s.m; ++i) {
      row[i] = correct(row[i], e[i]);
      e[i] *= row[i];
    }
    apply();
  }
  if (s.blocks.empty()) return;
  for (V& v : column) v = V(1.0);
  for (V& v : row) v = V(1.0);
  for (const Block& block : s.blocks) {
    V sum(0.0);
    for (int i = block.row; i < block.row + block.rows; ++i) sum += e[i];
    const V mean = sum * V(1.0 / block.rows);
    for (int i = block.row; i < block.row + block.rows; ++i) {
      row[i] = mean / e[i];
      e[i] = mean;
    }
  }
  apply();
}

// M in the scale of P and A: summed from its products, or as it was given, scaled.
template <class V>
void make_products(const Structure& s, const V* P, const V* A, const V* d, V* M) {
  if (s.M_is_given()) {
    for (int k = 0; k < s.M_entries(); ++k) M[k] *= d[s.M[k].first] * d[s.M[k].second];
    return;
  }
  for (int k = 0; k < s.M_entries(); ++k) M[k] = V(0.0);
  int pivot = -1, left = -1;
  V weight(0.0), weighted(0.0);
  for (const Product& product : s.products) {
    if (product.pivot != pivot) {
      pivot = product.pivot;
      const V a = A[s.pivots[pivot].a];
      weight = P[s.pivots[pivot].p] / (a * a);
      left = -1;
    }
    if (product.left != left) {
      left = product.left;
      weighted = weight * A[left];
    }
    M[product.place] = fma(weighted, A[product.right], M[product.place]);
  }
}

// The mean of the largest entries of the columns of P.
template <class V>
V mean_of_columns(const Structure& s, const V* P) {
  V sum(0.0);
  for (int j = 0; j < s.n; ++j) {
    V column(0.0);
    for (int p = s.P_full.start[j]; p < s.P_full.start[j + 1]; ++p) {
      column = max(abs(P[s.P_full.value[p]]), column);
    }
    sum += column;
  }
  return sum * V(1.0 / std::max(1, s.n));
}

// c = 1/max(mean of the largest entries of the columns of P, ‖q‖∞), P and q already in the scale d;
// one where either is zero.
template <class V>
V cost_scale(const Structure& s, const V* P, const V* q) {
  const V mean = mean_of_columns(s, P), height = largest(q, s.n);
  const V bounded = min(max(V(1.0) / max(mean, height), V(kLeastScale)), V(kLargestScale));
  return select((mean > V(0.0)) & (height > V(0.0)), bounded, V(1.0));
}

// Whether data of this size are taken in a unit near it. How that is rounded to a power of two is
// left to the caller.
template <class V>
MaskOf<V> is_tiny(const V& size) {
  return (size < V(kTiny)) & (size > V(kNothing));
}

}  // namespace lanes
