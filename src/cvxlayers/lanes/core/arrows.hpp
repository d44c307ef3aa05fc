// Refinement of the rows of σ and τ of expanded second-order cones, whose right-hand sides are zero.
//
// Near the boundary of a cone u and v are large, and what rounding leaves in these two rows comes
// into the other rows multiplied by them, where refinement of those rows alone cannot take it away.
#pragma once

#include <array>
#include <vector>

#include "ldl.hpp"
#include "products.hpp"

namespace lanes {

// Rounds of it, and what is left, relative, that needs none.
inline constexpr int kArrowRounds = 2;
inline constexpr double kArrowAccuracy = 1e-10;

template <class V>
class ArrowRefinement {
 public:
  explicit ArrowRefinement(const Structure& structure)
      : s_(structure),
        amplified_(2 * structure.arrows.size()),
        left_over_(2 * structure.arrows.size()) {
    if (structure.arrows.size() == 1) columns_.resize(2 * structure.size());
    if (structure.arrows.size() > 1) errors_.resize(2 * structure.size());
  }

  // K has been factored, X and D⁻¹, with these values of H. All three are referred to by `refine`.
  void set(const V* H, const V* X, const V* D_inverse) {
    if (s_.arrows.empty()) return;
    H_ = H;
    X_ = X;
    D_inverse_ = D_inverse;
    for (std::size_t k = 0; k < s_.arrows.size(); ++k) {
      for (int side = 0; side < 2; ++side) {
        const Arrow& arrow = s_.arrows[k];
        amplified_[2 * k + side] = largest(column(arrow, side), arrow.size) / abs(end(arrow, side));
      }
    }
    if (columns_.empty()) return;
    // One cone has few columns: they take the place of several solves.
    for (V& value : columns_) value = V(0.0);
    for (int side = 0; side < 2; ++side) {
      columns_[side * s_.size() + s_.arrows[0].center[side]] = V(1.0);
    }
    lanes::solve<2>(s_.symbolic, X_, D_inverse_, columns_.data(), s_.first_arrow);
  }

  // y, R solutions in the order of elimination.
  template <int R>
  void refine(V* y) {
    if (s_.arrows.empty()) return;
    const int size = s_.size();
    V bound[R];
    for (int q = 0; q < R; ++q) bound[q] = V(kArrowAccuracy) * largest(y + q * size, size);
    for (int round = 0; round < kArrowRounds; ++round) {
      MaskOf<V> needed[R];
      for (int q = 0; q < R; ++q) needed[q] = !(V(0.0) <= V(0.0));
      for (std::size_t k = 0; k < left_over_.size(); ++k) {
        const Arrow& arrow = s_.arrows[k / 2];
        const int side = static_cast<int>(k % 2);
        const V *u = column(arrow, side), last = end(arrow, side);
        for (int q = 0; q < R; ++q) {
          V error = last * y[q * size + arrow.center[side]];
          for (int i = 0; i < arrow.size; ++i) {
            error = fma(u[i], y[q * size + arrow.rows[i]], error);
          }
          left_over_[k][q] = error;
          needed[q] = needed[q] | (abs(error) * amplified_[k] > bound[q]);
        }
      }
      bool some = false;
      for (int q = 0; q < R; ++q) some = some || any(needed[q]);
      if (!some) return;
      correct<R>(needed, y);
    }
  }

 private:
  const V* column(const Arrow& arrow, int side) const {
    return H_ + arrow.h + (1 + side) * arrow.size;
  }
  V end(const Arrow& arrow, int side) const { return H_[arrow.h + 3 * arrow.size + side]; }

  // y += K⁻¹ of what is left over. K has its negative in these rows.
  template <int R>
  void correct(const MaskOf<V> (&needed)[R], V* y) {
    const int size = s_.size();
    if (!columns_.empty()) {
      const V *of_sigma = columns_.data(), *of_tau = of_sigma + size;
      for (int q = 0; q < R; ++q) {
        const V a = select(needed[q], left_over_[0][q], V(0.0));
        const V b = select(needed[q], left_over_[1][q], V(0.0));
        V* line = y + q * size;
        for (int i = 0; i < size; ++i) line[i] = fma(a, of_sigma[i], fma(b, of_tau[i], line[i]));
      }
      return;
    }
    for (V& error : errors_) error = V(0.0);
    for (std::size_t k = 0; k < left_over_.size(); ++k) {
      const int center = s_.arrows[k / 2].center[k % 2];
      for (int q = 0; q < R; ++q) errors_[q * size + center] = left_over_[k][q];
    }
    lanes::solve<R>(s_.symbolic, X_, D_inverse_, errors_.data(), s_.first_arrow);
    for (int q = 0; q < R; ++q) {
      for (int i = q * size; i < (q + 1) * size; ++i) {
        y[i] = select(needed[q], y[i] + errors_[i], y[i]);
      }
    }
  }

  const Structure& s_;
  std::vector<V> amplified_;                 // by how much what is left over is, in the other rows
  std::vector<std::array<V, 2>> left_over_;  // in the rows of σ and τ of each cone
  std::vector<V> columns_;                   // of K⁻¹ for σ and τ, of a single cone
  std::vector<V> errors_;
  const V *H_ = nullptr, *X_ = nullptr, *D_inverse_ = nullptr;
};

}  // namespace lanes
