// K = L D Lᵀ in the panels of `Symbolic`, with unit diagonal of L, and D ±: K is quasi-definite
// (Vanderbei, Symmetric quasidefinite matrices, 1995), so that any order will do, and the sign of
// every entry of D is known.
//
// Left-looking: the panel J gets, from every earlier panel K with rows among its columns,
//   X_J −= L_K[rows] (L_K[cols] D_K)ᵀ
// in register tiles, and is then factored in itself.
#pragma once

#include <algorithm>
#include <type_traits>

#include "lane.hpp"
#include "symbolic.hpp"

namespace lanes {

// A tile of rows × columns sums stays in registers, with a row of factors and one more.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 5, kTileColumns = 4;
#elif defined(__aarch64__)
inline constexpr int kTileRows = 3, kTileColumns = 3;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 3, kTileColumns = 3;
#else
inline constexpr int kTileRows = 2, kTileColumns = 2;
#endif

// Of a single instance the columns of a tile are what fills a register.
template <class V>
inline constexpr int kRowsOf = kLanes<V> == 1 ? 4 : kTileRows;
template <class V>
inline constexpr int kColumnsOf = kLanes<V> == 1 ? 8 : kTileColumns;

// `tile` for a single instance, with the columns in registers; the operations are the same.
template <int R, int C>
inline void tile_of_one(const double* left, const double* right, int width, int across,
                        double* target, int stride, const int* row, const int* column) {
  constexpr int kParts = C / kRegister;
  Register sum[R][kParts];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < kParts; ++c) sum[r][c] = Register{};
  }
  for (int k = 0; k < width; ++k) {
    Register b[kParts];
    std::memcpy(b, right + k * across, sizeof b);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Register a = Register{} + left[r * width + k];
#pragma GCC unroll 8
      for (int c = 0; c < kParts; ++c) sum[r][c] = fused(a, b[c], sum[r][c]);
    }
  }
  if (column[C - 1] - column[0] == C - 1) {
    for (int r = 0; r < R; ++r) {
      double* line = target + static_cast<std::ptrdiff_t>(row[r]) * stride + column[0];
      Register old[kParts];
      std::memcpy(old, line, sizeof old);
#pragma GCC unroll 8
      for (int c = 0; c < kParts; ++c) old[c] -= sum[r][c];
      std::memcpy(line, old, sizeof old);
    }
    return;
  }
  double sums[R][C];
  std::memcpy(sums, sum, sizeof sums);
  for (int r = 0; r < R; ++r) {
    double* line = target + static_cast<std::ptrdiff_t>(row[r]) * stride;
    for (int c = 0; c < C; ++c) line[column[c]] -= sums[r][c];
  }
}

// The sums of one tile, subtracted from the target panel.
//   left: R rows of L_K, `width` wide;  right: C columns of (L_K D_K)ᵀ, whose rows are `across` wide
//   target: the panel J, whose rows are `stride` wide; row and column numbers in it follow
template <int R, int C, class V>
inline void tile(const V* left, const V* right, int width, int across, V* target, int stride,
                 const int* row, const int* column) {
  if constexpr (kLanes<V> == 1 && C % kRegister == 0) {
    return tile_of_one<R, C>(left, right, width, across, target, stride, row, column);
  }
  V sum[R][C];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) sum[r][c] = V(0.0);
  }
  for (int k = 0; k < width; ++k) {
    V b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) b[c] = right[k * across + c];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V a = left[r * width + k];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sum[r][c] = fma(a, b[c], sum[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    V* line = target + static_cast<std::ptrdiff_t>(row[r]) * stride;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) line[column[c]] -= sum[r][c];
  }
}

// One strip of C columns, from row j of the update on: what is above is the other triangle.
template <int C, class V>
inline void strip(const V* left, const V* right, int width, int across, V* target, int stride,
                  const int* relative, int j, int rows) {
  int i = j;
  for (; i + kRowsOf<V> <= rows; i += kRowsOf<V>) {
    tile<kRowsOf<V>, C>(left + i * width, right + j, width, across, target, stride, relative + i,
                        relative + j);
  }
  for (; i < rows; ++i) {
    tile<1, C>(left + i * width, right + j, width, across, target, stride, relative + i,
               relative + j);
  }
}

template <class V>
void update_panel(const Symbolic& s, const Update& update, const V* D, V* X, int J, V* work) {
  const int K = update.source, width = s.width[K];
  const V* left = X + s.offset[K] + update.first * width;
  const int columns = update.last - update.first, rows = s.height[K] - update.first;
  for (int c = 0; c < columns; ++c) {
    for (int k = 0; k < width; ++k) work[k * columns + c] = left[c * width + k] * D[s.column[K] + k];
  }
  V* target = X + s.offset[J];
  const int* relative = &s.relative[update.relative];
  int j = 0;
  for (; j + kColumnsOf<V> <= columns; j += kColumnsOf<V>) {
    strip<kColumnsOf<V>>(left, work, width, columns, target, s.width[J], relative, j, rows);
  }
  for (; j + 2 <= columns; j += 2) {
    strip<2>(left, work, width, columns, target, s.width[J], relative, j, rows);
  }
  if (j < columns) strip<1>(left, work, width, columns, target, s.width[J], relative, j, rows);
}

// The panel itself, dense: D_c = X_cc − Σ L_ck² D_k, L_rc = (X_rc − Σ L_rk L_ck D_k) / D_c.
// A pivot that is not of the known sign, or too small, is replaced.
template <class V>
void factor_panel(const Symbolic& s, int J, const double* sign, double least, double instead, V* X,
                  V* D, V* work) {
  const int width = s.width[J], height = s.height[J], first = s.column[J];
  V* panel = X + s.offset[J];
  for (int c = 0; c < width; ++c) {
    const V* pivot = panel + c * width;
    V d = pivot[c];
    for (int k = 0; k < c; ++k) {
      work[k] = pivot[k] * D[first + k];
      d = fnma(pivot[k], work[k], d);
    }
    const double expected = sign[first + c];
    d = select(d * V(expected) > V(least), d, V(expected * instead));
    D[first + c] = d;
    const V inverse = V(1.0) / d;
    int r = c + 1;
    for (; r + 4 <= height; r += 4) {
      V* line = panel + r * width;
      V a[4];
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) a[q] = line[q * width + c];
      for (int k = 0; k < c; ++k) {
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) a[q] = fnma(work[k], line[q * width + k], a[q]);
      }
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) line[q * width + c] = a[q] * inverse;
    }
    for (; r < height; ++r) {
      V* line = panel + r * width;
      V a = line[c];
      for (int k = 0; k < c; ++k) a = fnma(work[k], line[k], a);
      line[c] = a * inverse;
    }
  }
}

// X holds K on entry, L on return; D and its inverse follow. `sign` is that of every D, in the order
// of elimination; a pivot below `least` becomes `instead`.
template <class V>
void factor(const Symbolic& s, const double* sign, double least, double instead, V* X, V* D,
            V* D_inverse, V* work) {
  for (int J = 0; J < s.panels(); ++J) {
    for (int u = s.update_offset[J]; u < s.update_offset[J + 1]; ++u) {
      update_panel(s, s.updates[u], D, X, J, work);
    }
    factor_panel(s, J, sign, least, instead, X, D, work);
  }
  for (int i = 0; i < s.size; ++i) D_inverse[i] = V(1.0) / D[i];
}

// Of the panel J, W wide: L y = b, whose columns are known once those before are.
template <int W, int R, class V>
inline void solve_lower(const V* panel, int height, const int* rows, int size, V* y, int first) {
  V top[R][W];
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 8
    for (int c = 0; c < W; ++c) {
      V sum = y[q * size + first + c];
#pragma GCC unroll 8
      for (int k = 0; k < c; ++k) sum = fnma(panel[c * W + k], top[q][k], sum);
      top[q][c] = sum;
      y[q * size + first + c] = sum;
    }
  }
  for (int r = W; r < height; ++r) {
    const V* line = panel + r * W;
    V sum[R];
#pragma GCC unroll 2
    for (int q = 0; q < R; ++q) sum[q] = y[q * size + rows[r]];
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k) {
      const V value = line[k];
#pragma GCC unroll 2
      for (int q = 0; q < R; ++q) sum[q] = fnma(value, top[q][k], sum[q]);
    }
#pragma GCC unroll 2
    for (int q = 0; q < R; ++q) y[q * size + rows[r]] = sum[q];
  }
}

// Of the panel J: D Lᵀ x = y, whose columns are known once those after are.
template <int W, int R, class V>
inline void solve_upper(const V* panel, int height, const int* rows, int size, V* y, int first,
                 const V* D_inverse) {
  V sum[R][W];
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 8
    for (int c = 0; c < W; ++c) sum[q][c] = y[q * size + first + c] * D_inverse[first + c];
  }
  for (int r = W; r < height; ++r) {
    const V* line = panel + r * W;
    V below[R];
#pragma GCC unroll 2
    for (int q = 0; q < R; ++q) below[q] = y[q * size + rows[r]];
#pragma GCC unroll 8
    for (int c = 0; c < W; ++c) {
      const V value = line[c];
#pragma GCC unroll 2
      for (int q = 0; q < R; ++q) sum[q][c] = fnma(value, below[q], sum[q][c]);
    }
  }
#pragma GCC unroll 2
  for (int q = 0; q < R; ++q) {
#pragma GCC unroll 8
    for (int c = W - 1; c >= 0; --c) {
#pragma GCC unroll 8
      for (int k = c + 1; k < W; ++k) sum[q][c] = fnma(panel[k * W + c], sum[q][k], sum[q][c]);
      y[q * size + first + c] = sum[q][c];
    }
  }
}

// Call f with a panel's width as a constant, so that its columns stay in registers.
template <class F>
inline void with_width(int width, F&& f) {
  switch (width) {
    case 1: return f(std::integral_constant<int, 1>());
    case 2: return f(std::integral_constant<int, 2>());
    case 3: return f(std::integral_constant<int, 3>());
    case 4: return f(std::integral_constant<int, 4>());
    case 5: return f(std::integral_constant<int, 5>());
    case 6: return f(std::integral_constant<int, 6>());
    case 7: return f(std::integral_constant<int, 7>());
    default: return f(std::integral_constant<int, 8>());
  }
}

// y ← K⁻¹ y for R right-hand sides in the order of elimination, `size` apart: L is read once. What is
// before the panel `from` is zero.
template <int R, class V>
void solve(const Symbolic& s, const V* X, const V* D_inverse, V* y, int from = 0) {
  for (int J = from; J < s.panels(); ++J) {
    with_width(s.width[J], [&](auto width) __attribute__((always_inline)) {
      solve_lower<width.value, R>(X + s.offset[J], s.height[J], &s.rows[s.row_offset[J]], s.size, y,
                                  s.column[J]);
    });
  }
  for (int J = s.panels() - 1; J >= 0; --J) {
    with_width(s.width[J], [&](auto width) __attribute__((always_inline)) {
      solve_upper<width.value, R>(X + s.offset[J], s.height[J], &s.rows[s.row_offset[J]], s.size, y,
                                  s.column[J], D_inverse);
    });
  }
}

}  // namespace lanes
