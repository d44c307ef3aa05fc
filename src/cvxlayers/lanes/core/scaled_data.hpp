// The data of L instances as the interior-point method takes them: equilibrated, and q and b in
// units of their size where that is small.
#pragma once

#include <type_traits>
#include <vector>

#include "data.hpp"
#include "equilibrate.hpp"

namespace lanes {

// A bound of this size is none. Clarabel leaves such rows out, and so is who gets the instance.
inline constexpr double kInfinite = 1e20;

// T is the number type of A: double where all instances share P and A.
template <class V, class T>
struct ScaledData {
  static constexpr bool kShared = !std::is_same_v<V, T> || kLanes<V> == 1;

  std::vector<V> P, M, q, b, d, e, over_d, over_e;
  std::vector<T> A;
  V c{1.0}, unit{1.0}, norm_q{0.0}, norm_b{0.0};
  // The sum of v − v over the data, which is zero or NaN.
  T matrices_check{0.0};
  V check{0.0};
  // P and M before they are scaled by c.
  std::vector<V> P_unscaled, M_unscaled;

  explicit ScaledData(const Structure& s)
      : P(s.P_entries()),
        M(s.M_entries()),
        q(s.n),
        b(s.m),
        d(s.n),
        e(s.m),
        over_d(s.n),
        over_e(s.m),
        A(s.A_entries()),
        P_unscaled(s.P_entries()),
        M_unscaled(s.M_entries()) {}

  // In the numbers of A: once for all lanes, or in each of them.
  void load_matrices(const Structure& s, const Program& program, const std::int64_t* instances) {
    std::vector<T> of_P(P.size()), of_M(M.size()), of_d(d.size()), of_e(e.size());
    load(program.P, instances, of_P.data());
    load(program.A, instances, A.data());
    if (s.M_is_given()) load(program.M, instances, of_M.data());
    matrices_check = T(0.0);
    for (const T& v : of_P) matrices_check += v - v;
    for (const T& v : A) matrices_check += v - v;
    equilibrate(s, kEquilibrationRounds, of_P.data(), A.data(), of_d.data(), of_e.data());
    make_products(s, of_P.data(), A.data(), of_d.data(), of_M.data());
    const auto spread = [](const std::vector<T>& from, std::vector<V>& to) {
      for (std::size_t k = 0; k < to.size(); ++k) to[k] = V(from[k]);
    };
    spread(of_P, P_unscaled);
    spread(of_M, M_unscaled);
    spread(of_d, d);
    spread(of_e, e);
    for (std::size_t j = 0; j < d.size(); ++j) over_d[j] = V(1.0) / d[j];
    for (std::size_t i = 0; i < e.size(); ++i) over_e[i] = V(1.0) / e[i];
  }

  // Whether an instance is one to begin with: its data are finite, and its bounds bound.
  bool is_usable(int lane) const {
    return get(check, lane) == 0.0 && get(norm_b, lane) * get(unit, lane) < kInfinite;
  }

  // q and b, in units of their size where they are small (cones are homogeneous), and c.
  void load_vectors(const Structure& s, const Program& program, const std::int64_t* instances) {
    load(program.q, instances, q.data());
    load(program.b, instances, b.data());
    check = V(matrices_check);
    for (const V& v : q) check += v - v;
    for (const V& v : b) check += v - v;
    norm_q = largest(q.data(), s.n);
    norm_b = largest(b.data(), s.m);
    const V size = max(norm_q, norm_b);
    V mantissa, exponent;
    split(size, mantissa, exponent);
    unit = power_of_two(select(is_tiny(size), exponent, V(0.0)));
    const V over = V(1.0) / unit;
    norm_q *= over;
    norm_b *= over;
    for (int j = 0; j < s.n; ++j) q[j] *= d[j] * over;
    for (int i = 0; i < s.m; ++i) b[i] *= e[i] * over;
    c = cost_scale(s, P_unscaled.data(), q.data());
    for (std::size_t p = 0; p < P.size(); ++p) P[p] = P_unscaled[p] * c;
    for (std::size_t p = 0; p < M.size(); ++p) M[p] = M_unscaled[p] * c;
    for (V& v : q) v *= c;
  }

  // What all lanes share of `other`.
  void share(const ScaledData& other) {
    A = other.A;
    d = other.d;
    e = other.e;
    over_d = other.over_d;
    over_e = other.over_e;
  }

  // Take one lane of `other`; not what is shared.
  void take(int lane, const ScaledData& other, int from) {
    const auto copy = [&](auto& to, const auto& source) {
      for (std::size_t k = 0; k < to.size(); ++k) set(to[k], lane, get(source[k], from));
    };
    copy(P, other.P);
    copy(M, other.M);
    copy(q, other.q);
    copy(b, other.b);
    if constexpr (!kShared) {
      copy(A, other.A);
      copy(d, other.d);
      copy(e, other.e);
      copy(over_d, other.over_d);
      copy(over_e, other.over_e);
    }
    for (auto member :
         {&ScaledData::c, &ScaledData::unit, &ScaledData::norm_q, &ScaledData::norm_b}) {
      set(this->*member, lane, get(other.*member, from));
    }
  }
};

}  // namespace lanes
