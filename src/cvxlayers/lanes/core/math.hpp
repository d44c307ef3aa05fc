// Elementary functions of a lane, accurate to about one unit in the last place: the logarithm of
// normal positive numbers, the exponential of those from −708 to 709. Of others comes something
// finite, and of NaN as well, so that callers look for NaN in the number itself.
#pragma once

#include "lane.hpp"

namespace lanes {

inline constexpr double kRootHalf = 0.70710678118654752440;     // √½
inline constexpr double kLn2High = 6.93147180369123816490e-01;  // its last 21 bits are zero
inline constexpr double kLn2Low = 1.90821492927058770002e-10;

// The power of two that is nearest to x as a factor, for normal positive x.
template <class V>
inline V nearest_power(const V& x) {
  V m, e;
  split(x, m, e);
  return power_of_two(select(m < V(kRootHalf), e - V(1.0), e));
}

// log x; −1e300 where x is NaN or not positive. A number too small to be normal is taken for one
// between 2^−1023 and 2^−1022, of logarithm −709.1 to −708.4, and infinity for 2^1024, of 709.8.
//
// x = m 2^e with m in [√½, √2); log m = 2 artanh s, s = (m − 1)/(m + 1), by its Taylor series:
// |s| <= 0.1716, so that s^22 / 23 is below rounding.
template <class V>
inline V log(const V& x) {
  V m, e;
  split(x, m, e);
  const auto small = m < V(kRootHalf);
  e = select(small, e - V(1.0), e);
  m = select(small, m + m, m);
  const V f = m - V(1.0);  // exact
  const V s = f / (V(2.0) + f);
  const V q = s * s;
  V p = V(1.0 / 23.0);
  for (int k = 21; k >= 3; k -= 2) p = fma(p, q, V(1.0 / k));
  // 2 artanh s = f − (f²/2 − s (f²/2 + 2 q p)): what is added to f is small, and so is its
  // rounding.
  const V half_square = V(0.5) * f * f;
  const V rest = fma(s, half_square + (q + q) * p, e * V(kLn2Low)) - half_square;
  return select(x > V(0.0), fma(e, V(kLn2High), f + rest), V(-1e300));
}

// exp x; 0 below −708, and the value at 709, 8.2e307, above that and where x is NaN.
//
// x = k log 2 + r, |r| <= 0.35, and 2^k exp r by its Taylor series.
template <class V>
inline V exp(const V& x) {
  const V bounded = max(min(x, V(709.0)), V(-708.0));
  const V k = round(bounded * V(1.4426950408889634));
  const V r = fnma(k, V(kLn2Low), fnma(k, V(kLn2High), bounded));
  constexpr double inverse_factorial[] = {1.0,
                                          1.0,
                                          1.0 / 2.0,
                                          1.0 / 6.0,
                                          1.0 / 24.0,
                                          1.0 / 120.0,
                                          1.0 / 720.0,
                                          1.0 / 5040.0,
                                          1.0 / 40320.0,
                                          1.0 / 362880.0,
                                          1.0 / 3628800.0,
                                          1.0 / 39916800.0,
                                          1.0 / 479001600.0,
                                          1.0 / 6227020800.0};
  V p = V(inverse_factorial[13]);
  for (int i = 12; i >= 0; --i) p = fma(p, r, V(inverse_factorial[i]));
  return select(x < V(-708.0), V(0.0), p * power_of_two(k));
}

}  // namespace lanes
