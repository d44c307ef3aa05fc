// What the interior-point method and the derivative ask of a curved cone.
//
// A cone is a small object (it knows its order or exponent) with the members below, for V = double
// or Lane<L>. Pointers are to the rows of one block, one V for each row. A block matrix is
// symmetric and stored as its upper triangle by columns: (0,0), (0,1), (1,1), (0,2), …
//
//   int rows() const                   length of the block
//   int scratch_size() const           how many V the members may use at their last argument
//
// For the interior-point method (Goulart & Chen 2024, arXiv 2405.12762), where
// ds = −(H dz + shift):
//
//   int degree() const                 of its logarithmic barrier
//   int block_size() const             how many V `scale` and `block` write to H
//   int scaling_size() const           how many V `scale` keeps for the other members
//   void unit(double* s, double* z)    the point that the method starts from if any cone of the
//                                      problem is not symmetric
//   void scale(s, z, mu, dual, V* scaling, V* H, V* scratch)
//                                      the scaling at (s, z) strictly inside K and K*, and H: that
//                                      of Nesterov and Todd for symmetric cones, else that of Dahl
//                                      and Andersen, or mu ∇²f*(z) in the lanes `dual`
//   void multiply(scaling, x, V* y, V* scratch)               y = H x
//   void shift(s, z, ds, dz, sigma_mu, second, scaling, V* out, V* scratch)
//                                      of the combined step, from the affine step (ds, dz);
//                                      `second` (0 to 1) weighs the second-order correction
//   V step(s, z, ds, dz, alpha, live, scaling, V* scratch)
//                                      the largest step up to alpha that stays in the cones, for
//                                      cones that are not symmetric with some way to go to the
//                                      boundary; lanes that are not live must not cost iterations,
//                                      and may hold anything
//   and, for symmetric cones alone,
//   V margin(v, V* scratch)            the least eigenvalue of v, in the cone's Jordan algebra
//   V positive(v, V* scratch)          the sum of its positive eigenvalues
//   void add_identity(V* v, V t)       v + t e
//
// For the derivative, at w = s − z with s = Π(w), D = DΠ(w):
//
//   int projection_size() const        how many V `linearize` keeps for the other members
//   void project(w, near, V* s, V* scratch)                   s = Π(w); near is a guess of it
//   void linearize(w, s, V* state, V* scratch)                D: λ in [0, 1] and eigenvectors
//   void derivative(state, v, V* y, V* scratch)               y = D v
//   void block(state, double delta, V* H, V* scratch)
//                                      D (I − D)⁻¹ with the eigenvalues of D at most 1 − delta
//
// Everything is lane by lane (see lane.hpp): no lane may take part in another's result, and a lane
// that holds NaN or a point outside the cones must not keep a loop going for ever. Iterations have
// a fixed number of rounds, or end lane by lane: a finished lane keeps what it has.
#pragma once

#include "../math.hpp"

namespace lanes {

// Position of (i, j), i <= j, in a triangle stored by columns.
inline constexpr int triangle(int i, int j) { return j * (j + 1) / 2 + i; }
inline constexpr int triangle_size(int rows) { return rows * (rows + 1) / 2; }

// y = H x for a block matrix.
template <class V>
inline void multiply_triangle(int rows, const V* H, const V* x, V* y) {
  for (int i = 0; i < rows; ++i) {
    V sum(0.0);
    for (int j = 0; j < rows; ++j) {
      sum = fma(H[i <= j ? triangle(i, j) : triangle(j, i)], x[j], sum);
    }
    y[i] = sum;
  }
}

template <class V>
inline V dot(const V* a, const V* b, int count) {
  V sum(0.0);
  for (int i = 0; i < count; ++i) sum = fma(a[i], b[i], sum);
  return sum;
}

}  // namespace lanes
