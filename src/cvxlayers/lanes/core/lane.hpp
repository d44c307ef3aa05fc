// One number of L instances: what every kernel computes with.
//
// A kernel is a template over its number type V, either double or Lane<L>, and treats each lane
// alike, in the same order of operations. So the result for an instance does not depend on which
// instances are beside it, nor on L. Two things secure that: products and sums are fused where
// `fma` and `fnma` say so and nowhere else (the compiler is told not to contract any others), and a
// choice between lanes is a `select`, never a branch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lanes {

// Numbers in one register.
#if defined(__AVX512F__)
inline constexpr int kRegister = 8;
#elif defined(__AVX2__)
inline constexpr int kRegister = 4;
#else
inline constexpr int kRegister = 2;
#endif

typedef double Register __attribute__((vector_size(8 * kRegister)));
typedef std::int64_t Bits __attribute__((vector_size(8 * kRegister)));

// a b + c in one rounding where the machine can, in two elsewhere.
inline Register fused(Register a, Register b, Register c) {
#if defined(__AVX512F__)
  return (Register)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (Register)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (Register)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

inline Register root(Register a) {
#if defined(__AVX512F__)
  // Not _mm512_sqrt_pd: GCC warns of its own header then (its bug 105593).
  return (Register)_mm512_maskz_sqrt_pd(0xFF, (__m512d)a);
#elif defined(__AVX2__)
  return (Register)_mm256_sqrt_pd((__m256d)a);
#elif defined(__aarch64__)
  return (Register)vsqrtq_f64((float64x2_t)a);
#else
  for (int i = 0; i < kRegister; ++i) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

// Which lanes a condition holds in.
template <int L>
struct Mask {
  Bits bits[L / kRegister];
};

template <int L>
struct Lane {
  static_assert(L % kRegister == 0, "a lane fills whole registers");
  static constexpr int kRegisters = L / kRegister;
  Register part[kRegisters];

  Lane() = default;
  // Register by register: GCC copies a class of several as one block of memory.
  Lane(const Lane& other) { copy(other); }
  Lane& operator=(const Lane& other) {
    copy(other);
    return *this;
  }
  Lane(double value) {  // NOLINT: numbers are lanes
    for (auto& r : part) r = Register{} + value;
  }

 private:
  void copy(const Lane& other) {
    _Pragma("GCC unroll 8") for (int i = 0; i < kRegisters; ++i) part[i] = other.part[i];
  }
};

#define CVXLAYERS_LANES_EACH(L) \
  _Pragma("GCC unroll 8") for (int i = 0; i < (L) / kRegister; ++i)

#define CVXLAYERS_LANES_OPERATOR(op)                              \
  template <int L>                                                \
  inline Lane<L> operator op(const Lane<L>& a, const Lane<L>& b) { \
    Lane<L> c;                                                    \
    CVXLAYERS_LANES_EACH(L) c.part[i] = a.part[i] op b.part[i];   \
    return c;                                                     \
  }                                                               \
  template <int L>                                                \
  inline Lane<L> operator op(const Lane<L>& a, double b) {        \
    return a op Lane<L>(b);                                       \
  }                                                               \
  template <int L>                                                \
  inline Lane<L> operator op(double a, const Lane<L>& b) {        \
    return Lane<L>(a) op b;                                       \
  }                                                               \
  template <int L>                                                \
  inline Lane<L>& operator op##=(Lane<L>& a, const Lane<L>& b) {  \
    return a = a op b;                                            \
  }
CVXLAYERS_LANES_OPERATOR(+)
CVXLAYERS_LANES_OPERATOR(-)
CVXLAYERS_LANES_OPERATOR(*)
CVXLAYERS_LANES_OPERATOR(/)
#undef CVXLAYERS_LANES_OPERATOR

#define CVXLAYERS_LANES_COMPARISON(op)                                  \
  template <int L>                                                      \
  inline Mask<L> operator op(const Lane<L>& a, const Lane<L>& b) {      \
    Mask<L> m;                                                          \
    CVXLAYERS_LANES_EACH(L) m.bits[i] = (Bits)(a.part[i] op b.part[i]); \
    return m;                                                           \
  }                                                                     \
  template <int L>                                                      \
  inline Mask<L> operator op(const Lane<L>& a, double b) {              \
    return a op Lane<L>(b);                                             \
  }
CVXLAYERS_LANES_COMPARISON(<)
CVXLAYERS_LANES_COMPARISON(<=)
CVXLAYERS_LANES_COMPARISON(>)
CVXLAYERS_LANES_COMPARISON(>=)
#undef CVXLAYERS_LANES_COMPARISON

template <int L>
inline Mask<L> operator&(const Mask<L>& a, const Mask<L>& b) {
  Mask<L> m;
  CVXLAYERS_LANES_EACH(L) m.bits[i] = a.bits[i] & b.bits[i];
  return m;
}
template <int L>
inline Mask<L> operator|(const Mask<L>& a, const Mask<L>& b) {
  Mask<L> m;
  CVXLAYERS_LANES_EACH(L) m.bits[i] = a.bits[i] | b.bits[i];
  return m;
}
template <int L>
inline Mask<L> operator!(const Mask<L>& a) {
  Mask<L> m;
  CVXLAYERS_LANES_EACH(L) m.bits[i] = ~a.bits[i];
  return m;
}
template <int L>
inline bool any(const Mask<L>& m) {
#if defined(__AVX512F__)
  bool found = false;
  CVXLAYERS_LANES_EACH(L) found |= _mm512_test_epi64_mask((__m512i)m.bits[i], (__m512i)m.bits[i]) != 0;
  return found;
#else
  std::int64_t found = 0;
  CVXLAYERS_LANES_EACH(L) for (int k = 0; k < kRegister; ++k) found |= m.bits[i][k];
  return found != 0;
#endif
}
template <int L>
inline bool all(const Mask<L>& m) {
  return !any(!m);
}

template <int L>
inline Lane<L> operator-(const Lane<L>& a) {
  Lane<L> c;
  CVXLAYERS_LANES_EACH(L) c.part[i] = -a.part[i];
  return c;
}
// a b + c.
template <int L>
inline Lane<L> fma(const Lane<L>& a, const Lane<L>& b, const Lane<L>& c) {
  Lane<L> d;
  CVXLAYERS_LANES_EACH(L) d.part[i] = fused(a.part[i], b.part[i], c.part[i]);
  return d;
}
// c − a b.
template <int L>
inline Lane<L> fnma(const Lane<L>& a, const Lane<L>& b, const Lane<L>& c) {
  Lane<L> d;
  CVXLAYERS_LANES_EACH(L) d.part[i] = fused(-a.part[i], b.part[i], c.part[i]);
  return d;
}
template <int L>
inline Lane<L> sqrt(const Lane<L>& a) {
  Lane<L> c;
  CVXLAYERS_LANES_EACH(L) c.part[i] = root(a.part[i]);
  return c;
}
template <int L>
inline Lane<L> abs(const Lane<L>& a) {
  Lane<L> c;
  CVXLAYERS_LANES_EACH(L) c.part[i] = (Register)((Bits)a.part[i] & INT64_MAX);
  return c;
}
// m ? a : b.
template <int L>
inline Lane<L> select(const Mask<L>& m, const Lane<L>& a, const Lane<L>& b) {
  Lane<L> c;
  CVXLAYERS_LANES_EACH(L) c.part[i] =
      (Register)((m.bits[i] & (Bits)a.part[i]) | (~m.bits[i] & (Bits)b.part[i]));
  return c;
}
template <int L>
inline Lane<L> select(const Mask<L>& m, double a, const Lane<L>& b) { return select(m, Lane<L>(a), b); }
template <int L>
inline Lane<L> select(const Mask<L>& m, const Lane<L>& a, double b) { return select(m, a, Lane<L>(b)); }
template <int L>
inline Lane<L> select(const Mask<L>& m, double a, double b) { return select(m, Lane<L>(a), Lane<L>(b)); }
// The smaller, the larger; b where one of them is NaN.
template <int L>
inline Lane<L> min(const Lane<L>& a, const Lane<L>& b) { return select(a < b, a, b); }
template <int L>
inline Lane<L> max(const Lane<L>& a, const Lane<L>& b) { return select(a > b, a, b); }

// x = m 2^e with m in [0.5, 1), for normal positive x.
template <int L>
inline void split(const Lane<L>& x, Lane<L>& m, Lane<L>& e) {
  CVXLAYERS_LANES_EACH(L) {
    const Bits bits = (Bits)x.part[i];
    m.part[i] = (Register)((bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000);
    e.part[i] = __builtin_convertvector(((bits >> 52) & 0x7FF) - 1022, Register);
  }
}
// 2^e for a lane of integers from −1022 to 1023.
template <int L>
inline Lane<L> power_of_two(const Lane<L>& e) {
  Lane<L> c;
  CVXLAYERS_LANES_EACH(L) c.part[i] =
      (Register)((__builtin_convertvector(e.part[i], Bits) + 1023) << 52);
  return c;
}
// The nearest integer.
template <int L>
inline Lane<L> round(const Lane<L>& a) {
  // Adding 1.5·2^52 leaves no digits behind the point; valid for |a| < 2^51.
  const Lane<L> shift(6755399441055744.0);
  return (a + shift) - shift;
}

template <int L>
inline double get(const Lane<L>& a, int lane) {
  double value;
  std::memcpy(&value, reinterpret_cast<const char*>(&a) + 8 * lane, 8);
  return value;
}
template <int L>
inline void set(Lane<L>& a, int lane, double value) {
  std::memcpy(reinterpret_cast<char*>(&a) + 8 * lane, &value, 8);
}
template <int L>
inline bool get(const Mask<L>& a, int lane) {
  std::int64_t value;
  std::memcpy(&value, reinterpret_cast<const char*>(&a) + 8 * lane, 8);
  return value != 0;
}
template <int L>
inline void set(Mask<L>& a, int lane, bool value) {
  const std::int64_t bits = value ? -1 : 0;
  std::memcpy(reinterpret_cast<char*>(&a) + 8 * lane, &bits, 8);
}

#undef CVXLAYERS_LANES_EACH

// The same for a single instance.
inline double fma(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}
inline double fnma(double a, double b, double c) { return fma(-a, b, c); }
inline double sqrt(double a) { return std::sqrt(a); }
inline double abs(double a) { return std::fabs(a); }
inline double select(bool m, double a, double b) { return m ? a : b; }
inline double min(double a, double b) { return a < b ? a : b; }
inline double max(double a, double b) { return a > b ? a : b; }
inline bool any(bool m) { return m; }
inline bool all(bool m) { return m; }
inline void split(double x, double& m, double& e) {
  std::int64_t bits;
  std::memcpy(&bits, &x, 8);
  e = static_cast<double>(((bits >> 52) & 0x7FF) - 1022);
  bits = (bits & 0x000FFFFFFFFFFFFF) | 0x3FE0000000000000;
  std::memcpy(&m, &bits, 8);
}
inline double power_of_two(double e) {
  const std::int64_t bits = (static_cast<std::int64_t>(e) + 1023) << 52;
  double value;
  std::memcpy(&value, &bits, 8);
  return value;
}
inline double round(double a) {
  const double shift = 6755399441055744.0;
  return (a + shift) - shift;
}
inline double get(double a, int) { return a; }
inline void set(double& a, int, double value) { a = value; }
inline bool get(bool a, int) { return a; }
inline void set(bool& a, int, bool value) { a = value; }

// How many instances a number type holds, and its masks.
template <class V>
struct Traits;
template <>
struct Traits<double> {
  static constexpr int lanes = 1;
  using Mask = bool;
};
template <int L>
struct Traits<Lane<L>> {
  static constexpr int lanes = L;
  using Mask = lanes::Mask<L>;
};
template <class V>
using MaskOf = typename Traits<V>::Mask;
template <class V>
inline constexpr int kLanes = Traits<V>::lanes;

}  // namespace lanes
