// Eigenvalues and singular values of small matrices: all of them by Jacobi's method, the least
// eigenvalue alone by Laguerre's.
//
// A sweep of Jacobi's method turns every pair of columns by the angle that makes its off-diagonal
// entry zero. The pairs come in rounds of disjoint ones (a round-robin tournament), so that the
// angles of a round, which are chains of a root and a quotient, do not wait for one another.
//
// A lane turns a pair only while the entry is above its tolerance, and by the identity otherwise.
// So further sweeps, which other lanes may need, leave a finished lane as it is, except for the
// sign of zeros, and that is made positive at the end.
//
// G. H. Golub, C. F. Van Loan, Matrix Computations (2013), Sections 8.5 and 8.6.
#pragma once

#include "cone.hpp"

namespace lanes {

inline constexpr int kLargestOrder = 32;
// About 6 are needed at order 8, and 9 at order 32; the bound is for what does not converge.
inline constexpr int kSweeps = 24;
// Of Laguerre's method: enough for half of 32 eigenvalues in one place.
inline constexpr int kRounds = 100;

// (p, q) <- (c p - s q, s p + c q), which takes t from the entry (p, p) to the entry (q, q).
template <class V>
struct Rotation {
  V c, s, t;

  void operator()(V& p, V& q) const {
    const V turned = fnma(s, q, c * p);
    q = fma(s, p, c * q);
    p = turned;
  }
};

// The rotation that makes [a g; g b] diagonal, |angle| <= π/4; the identity where not `active`.
//
// With d = b − a, r = √(d² + 4g²) and h = |d| + r: tan = 2g sgn(d)/h, and as h² + 4g² = 2rh,
// t = tan g = sgn(d) sin² r. One quotient and two roots.
template <class V>
inline Rotation<V> rotation(const V& a, const V& b, const V& g, const MaskOf<V>& active) {
  const V zero(0.0);
  const V d = b - a;
  const V x = g + g;
  const V square = x * x;
  const V r = sqrt(fma(d, d, square));
  const V h = abs(d) + r;
  const V w = V(1.0) / sqrt(fma(h, h, square));
  const V sine = x * w;
  const V transfer = sine * sine * r;
  const auto rising = d >= zero;
  return {select(active, h * w, V(1.0)), select(active, select(rising, sine, -sine), zero),
          select(active, select(rising, transfer, -transfer), zero)};
}

// The disjoint pairs of one round: in as many rounds as `rounds` says, every pair of 0, …, order−1
// comes once.
struct Round {
  int count;
  int idle;  // the index without a partner, or −1
  int first[kLargestOrder / 2], second[kLargestOrder / 2];

  static int rounds(int order) { return order + order % 2 - 1; }

  Round(int order, int round) : count(0), idle(order % 2 ? round : -1) {
    const int others = rounds(order);  // who go round in a circle
    if (idle < 0) add(round, others);
    for (int i = 1; i <= (others - 1) / 2; ++i) {
      const int after = round + i, before = round - i;
      add(after < others ? after : after - others, before < 0 ? before + others : before);
    }
  }

 private:
  void add(int i, int j) {
    first[count] = i < j ? i : j;
    second[count++] = i < j ? j : i;
  }
};

template <class V>
inline void rotate_columns(int rows, const Rotation<V>& rotation, V* p, V* q) {
  for (int i = 0; i < rows; ++i) rotation(p[i], q[i]);
}

// A <- Jᵀ A J for a symmetric A, stored as a triangle, and the rotations J of a round; (p, q) of a
// pair are left out of it, and become zero.
template <class V>
inline void rotate_triangle(const Round& round, const Rotation<V>* rotations, V* A) {
  const auto at = [A](int i, int j) -> V& { return A[i <= j ? triangle(i, j) : triangle(j, i)]; };
  for (int m = 0; m < round.count; ++m) {
    const int p = round.first[m], q = round.second[m];
    const Rotation<V>& J = rotations[m];
    at(p, p) -= J.t;
    at(q, q) += J.t;
    if (round.idle >= 0) J(at(round.idle, p), at(round.idle, q));
    for (int n = 0; n < m; ++n) {
      const int u = round.first[n], v = round.second[n];
      V &pu = at(p, u), &pv = at(p, v), &qu = at(q, u), &qv = at(q, v);
      J(pu, qu);
      J(pv, qv);
      rotations[n](pu, pv);
      rotations[n](qu, qv);
    }
  }
}

template <class V>
inline V frobenius(int order, const V* A) {
  V sum(0.0);
  for (int j = 0; j < order; ++j) {
    const V* column = A + triangle(0, j);
    const V above = dot(column, column, j);
    sum += fma(column[j], column[j], above + above);
  }
  return sqrt(sum);
}

// Eigenvalues of the symmetric matrix A, stored as a triangle, onto its diagonal, and the
// eigenvectors into the columns of Q unless that is null: A = Q diag(·) Qᵀ, to rounding of the norm
// of A. NaN where an entry is not finite.
template <class V>
void diagonalize(int order, V* A, V* Q) {
  const V norm = frobenius(order, A);
  // The constant keeps the squares that the angles are made of from underflow; NaN stays.
  const V tolerance = max(V(1e-140), V(0x1p-53 / order) * norm);
  const V plus_zero = norm - norm;  // NaN where A is not finite

  if (Q) {
    for (int i = 0; i < order * order; ++i) Q[i] = V(i % (order + 1) ? 0.0 : 1.0);
  }
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    V largest(0.0);
    for (int j = 1; j < order; ++j) {
      for (int i = 0; i < j; ++i) largest = max(abs(A[triangle(i, j)]), largest);
    }
    if (!any(largest > tolerance)) break;

    for (int r = 0; r < Round::rounds(order); ++r) {
      const Round round(order, r);
      Rotation<V> rotations[kLargestOrder / 2];
      for (int m = 0; m < round.count; ++m) {
        const int p = round.first[m], q = round.second[m];
        V& g = A[triangle(p, q)];
        const auto active = abs(g) > tolerance;
        rotations[m] = rotation(A[triangle(p, p)], A[triangle(q, q)], g, active);
        g = select(active, V(0.0), g);
      }
      rotate_triangle(round, rotations, A);
      if (!Q) continue;
      for (int m = 0; m < round.count; ++m) {
        const int p = round.first[m], q = round.second[m];
        rotate_columns(order, rotations[m], Q + order * p, Q + order * q);
      }
    }
  }

  for (int j = 0; j < order; ++j) A[triangle(j, j)] += plus_zero;
  if (!Q) return;
  for (int j = 0; j < order; ++j) {
    // Hundreds of rotations, each a rounding away from orthogonal, would add up.
    V* q = Q + order * j;
    const V scale = V(1.0) / sqrt(dot(q, q, order));
    for (int i = 0; i < order; ++i) q[i] = q[i] * scale + plus_zero;
  }
}

// One-sided: M <- M V and T <- T V, V orthogonal such that the columns of M V are orthogonal. With
// M = U diag(λ) Vᵀ, the columns of M V are λᵢ uᵢ, and accurate relative to λᵢ if those of M were.
// `squares` is room for one V a column.
template <class V>
void orthogonalize(int order, V* M, V* T, V* squares) {
  // What rounding leaves of the inner product of two orthogonal unit vectors, twice over, squared.
  const V tolerance(4.0 * 0x1p-104 * order);
  const MaskOf<V> none = V(0.0) > V(0.0);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int j = 0; j < order; ++j) squares[j] = dot(M + order * j, M + order * j, order);
    MaskOf<V> turned = none;

    for (int r = 0; r < Round::rounds(order); ++r) {
      const Round round(order, r);
      V products[kLargestOrder / 2];
      MaskOf<V> active[kLargestOrder / 2], turning = none;
      for (int m = 0; m < round.count; ++m) {
        const int p = round.first[m], q = round.second[m];
        const V g = dot(M + order * p, M + order * q, order);
        products[m] = g;
        active[m] = g * g > fma(tolerance * squares[p], squares[q], V(1e-280));
        turning = turning | active[m];
      }
      if (!any(turning)) continue;
      turned = turned | turning;
      Rotation<V> rotations[kLargestOrder / 2];
      for (int m = 0; m < round.count; ++m) {
        rotations[m] = rotation(squares[round.first[m]], squares[round.second[m]], products[m],
                                active[m]);
      }
      for (int m = 0; m < round.count; ++m) {
        const int p = round.first[m], q = round.second[m];
        rotate_columns(order, rotations[m], M + order * p, M + order * q);
        rotate_columns(order, rotations[m], T + order * p, T + order * q);
        squares[p] -= rotations[m].t;
        squares[q] += rotations[m].t;
      }
    }
    if (!any(turned)) break;
  }
  for (int i = 0; i < order * order; ++i) {
    M[i] += V(0.0);
    T[i] += V(0.0);
  }
}

// Householder reflections that make A, stored as a triangle, tridiagonal: its diagonal into a, and
// the squares of what is beside it into b, b[i] that of the entry (i − 1, i), b[0] = 0.
//
// The reflection I − β v vᵀ of the leading rows takes column m above its diagonal, x, to ∓‖x‖ times
// the last unit vector. With p = β A v and w = p − ½ β (pᵀv) v, A becomes A − v wᵀ − w vᵀ.
// `work` is room for one V a row.
//
// Golub & Van Loan, Section 8.3.1.
template <class V>
void tridiagonalize(int order, V* A, V* a, V* b, V* work) {
  for (int m = order - 1; m >= 0; --m) {
    V* v = A + triangle(0, m);
    a[m] = v[m];
    const V square = dot(v, v, m);
    b[m] = square;
    if (m < 2) continue;

    const V length = sqrt(square), pivot = v[m - 1];
    v[m - 1] = select(pivot >= V(0.0), pivot + length, pivot - length);
    const V beta = select(square > V(1e-280), V(1.0) / fma(abs(pivot), length, square), V(0.0));
    for (int i = 0; i < m; ++i) {
      V sum = dot(A + triangle(0, i), v, i + 1);
      for (int j = i + 1; j < m; ++j) sum = fma(A[triangle(i, j)], v[j], sum);
      work[i] = beta * sum;
    }
    const V along = V(0.5) * beta * dot(work, v, m);
    for (int i = 0; i < m; ++i) work[i] = fnma(along, v[i], work[i]);
    for (int j = 0; j < m; ++j) {
      V* column = A + triangle(0, j);
      for (int i = 0; i <= j; ++i) {
        column[i] = fnma(v[i], work[j], fnma(work[i], v[j], column[i]));
      }
    }
  }
}

// The least eigenvalue of the symmetric matrix A, stored as a triangle, which is overwritten, to
// rounding of its norm. NaN where an entry is not finite. `work` is room for three V a row.
//
// Laguerre's iteration on f(x) = det(T − x I), T tridiagonal, from the left of all n roots: it
// increases to the least, by the third order if that is simple and linearly otherwise. With
// g = −f'/f and h = ½ f''/f:
//
//     x <- x + n / (g + √((n−1) ((n−1) g² − 2n h))).
//
// With fᵢ the leading minors of T − x I and qᵢ = fᵢ/fᵢ₋₁, all positive until x is past a root,
//
//     qᵢ = aᵢ − x − bᵢ/qᵢ₋₁,   qᵢ gᵢ = 1 + (aᵢ − x) gᵢ₋₁ − (bᵢ/qᵢ₋₁) gᵢ₋₂,
//     qᵢ hᵢ = gᵢ₋₁ + (aᵢ − x) hᵢ₋₁ − (bᵢ/qᵢ₋₁) hᵢ₋₂.
//
// B. N. Parlett, Math. Comp. 18 (1964) 464-485.
template <class V>
V least_eigenvalue(int order, V* A, V* work) {
  V *a = work, *b = a + order, *rest = b + order;
  const V norm = max(V(1e-140), frobenius(order, A));  // NaN stays
  const V scale = V(1.0) / norm;
  tridiagonalize(order, A, a, b, rest);
  for (int i = 0; i < order; ++i) {
    a[i] *= scale;
    b[i] *= scale * scale;
  }

  const V n(order), others(order - 1), zero(0.0), one(1.0);
  // Where all roots are close, rounding may make the radicand too small, and the step too long.
  const V spare(0x1p-44 * (order - 1) * (order - 1));
  V x(-1.0);  // −‖T‖
  MaskOf<V> moving = zero <= zero;
  for (int round = 0; round < kRounds && any(moving); ++round) {
    V inverse(0.0), g(0.0), h(0.0), last_g(0.0), last_h(0.0);
    for (int i = 0; i < order; ++i) {
      const V t = a[i] - x;
      const V coupling = b[i] * inverse;
      const V q = t - coupling;
      moving = moving & (q > zero);
      inverse = one / q;
      const V next_g = inverse * fma(t, g, fnma(coupling, last_g, one));
      const V next_h = inverse * fma(t, h, fnma(coupling, last_h, g));
      last_g = g;
      last_h = h;
      g = next_g;
      h = next_h;
    }
    const V radicand = others * fnma(n + n, h, others * g * g);
    const V change = n / (g + sqrt(fma(spare, g * g, max(radicand, zero))));
    x = select(moving, x + change, x);
    moving = moving & (change > V(0x1p-48));
  }
  return x * norm;
}

}  // namespace lanes
