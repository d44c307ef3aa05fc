// The curved cones by the kind of a block.
#pragma once

#include "../structure.hpp"
#include "exponential.hpp"
#include "power.hpp"
#include "psd.hpp"
#include "second_order.hpp"

namespace lanes {

inline bool is_symmetric(const Block& block) {
  return block.kind == Kind::kSecondOrder || block.kind == Kind::kPsd;
}

// Call f with the cone of a block, if that is symmetric.
template <class V, class F>
inline void with_symmetric_cone(const Block& block, F&& f) {
  if (block.kind == Kind::kSecondOrder) f(SecondOrder<V>{block.size});
  if (block.kind == Kind::kPsd) f(Psd<V>{block.size});
}

// Call f with the cone of a block.
template <class V, class F>
inline void with_cone(const Block& block, F&& f) {
  with_symmetric_cone<V>(block, f);
  if (block.kind == Kind::kExponential) f(Exponential<V>{});
  if (block.kind == Kind::kPower) f(Power<V>{block.alpha});
}

// y = (I − D)⁻¹ v as in `block`, which H is; a second-order cone's is not dense.
template <class Cone, class V>
inline void divide(const Cone& cone, const V*, double, const V* H, const V* v, V* y) {
  multiply_triangle(cone.rows(), H, v, y);
  for (int i = 0; i < cone.rows(); ++i) y[i] += v[i];
}
template <class V>
inline void divide(const SecondOrder<V>& cone, const V* state, double delta, const V*, const V* v,
                   V* y) {
  cone.resolvent(state, delta, v, y);
}

}  // namespace lanes
