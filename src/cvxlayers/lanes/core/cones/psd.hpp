// The cone of positive semidefinite matrices of order k, by svec: the upper triangle by columns,
// √2 off the diagonal, so that ⟨svec X, svec Y⟩ = tr XY.
#pragma once

#include "jacobi.hpp"

namespace lanes {

inline constexpr double kRoot2 = 1.41421356237309504880;

// A matrix to be read: (i, j) is `down` i + `across` j after its first entry.
template <class V>
struct Matrix {
  const V* entries;
  int down, across;

  const V& operator()(int i, int j) const { return entries[down * i + across * j]; }
  Matrix transposed() const { return {entries, across, down}; }
};

// store(i, j, Σ_l A(l, i) B(l, j)) for i < rows, j < columns and, if `upper`, i <= j.
//
// Four sums at a time, so that each number read serves two of them.
template <class V, class Store>
inline void inner_products(int rows, int columns, int length, Matrix<V> A, Matrix<V> B, bool upper,
                           Store store) {
  for (int j = 0; j < columns; j += 2) {
    const int last = upper && j + 2 < rows ? j + 2 : rows;
    const int next_j = j + 1 < columns ? j + 1 : j;
    for (int i = 0; i < last; i += 2) {
      const int next_i = i + 1 < rows ? i + 1 : i;
      V sum(0.0), right(0.0), below(0.0), across(0.0);
      for (int l = 0; l < length; ++l) {
        const V &a = A(l, i), &next_a = A(l, next_i), &b = B(l, j), &next_b = B(l, next_j);
        sum = fma(a, b, sum);
        right = fma(a, next_b, right);
        below = fma(next_a, b, below);
        across = fma(next_a, next_b, across);
      }
      store(i, j, sum);
      if (next_j > j) store(i, next_j, right);
      if (next_i > i && !(upper && next_i > j)) store(next_i, j, below);
      if (next_i > i && next_j > j) store(next_i, next_j, across);
    }
  }
}

template <class V>
struct Psd {
  using Mask = MaskOf<V>;

  int order;

  int rows() const { return triangle_size(order); }
  int block_size() const { return triangle_size(rows()); }
  int degree() const { return order; }
  int scaling_size() const { return 3 * order * order + order; }
  int projection_size() const { return order * order + rows(); }
  // What members need at their last argument, `scratch`.
  int scratch_size() const { return 4 * order * order + order * (rows() + 2); }

  void unit(double* s, double* z) const {
    for (int j = 0; j < order; ++j) {
      for (int i = 0; i <= j; ++i) s[triangle(i, j)] = z[triangle(i, j)] = i == j;
    }
  }

  // R with Rᵀ Z R = R⁻¹ S R⁻ᵀ = diag(λ), and H: X -> G X G with G = R Rᵀ.
  //
  // With S = L_s L_sᵀ, Z = L_z L_zᵀ and L_zᵀ L_s = U diag(λ) Vᵀ:
  //
  //     R = L_s V diag(λ)^-½,   R⁻ᵀ = L_z U diag(λ)^-½.
  //
  // For the unit vectors svec(E_ab) of the coordinates a <= b and c <= d,
  // ⟨E_ab, G E_cd G⟩ = G_ac G_bd + G_ad G_bc, times √½ for a = b and for c = d.
  //
  // NaN where s or z is not inside the cone.
  //
  // L. Vandenberghe, The CVXOPT linear and quadratic cone program solvers (2010).
  void scale(const V* s, const V* z, const V&, const Mask&, V* scaling, V* H, V* scratch) const {
    const int k = order;
    V *L = scratch, *M = L + k * k, *T = M + k * k, *squares = T + k * k;
    cholesky(s, T);
    cholesky(z, L);
    for (int j = 0; j < k; ++j) {
      for (int i = 0; i < k; ++i) {
        const int l = i > j ? i : j;
        M[k * j + i] = dot(L + k * i + l, T + k * j + l, k - l);
      }
    }
    orthogonalize(k, M, T, squares);

    const Scaling<V*> to = parts(scaling);
    for (int j = 0; j < k; ++j) {
      const V square = dot(M + k * j, M + k * j, k);
      const V lambda = sqrt(square);
      const V inverse_root = V(1.0) / sqrt(lambda);
      const V quotient = inverse_root / lambda;
      to.lambda[j] = lambda;
      for (int i = 0; i < k; ++i) {
        to.R[k * j + i] = T[k * j + i] * inverse_root;
        V sum(0.0);
        for (int l = 0; l <= i; ++l) sum = fma(L[k * l + i], M[k * j + l], sum);
        to.inverse[k * j + i] = sum * quotient;
      }
    }
    const Matrix<V> rows_of_R = square_matrix(to.R).transposed();
    inner_products(k, k, k, rows_of_R, rows_of_R, true, both_sides(to.G));
    fill_block(to.G, H);
  }

  // y = svec(G X G).
  void multiply(const V* scaling, const V* x, V* y, V* scratch) const {
    V *X = scratch, *work = X + order * order;
    unpack(x, both_sides(X));
    congruence(square_matrix(parts(scaling).G), X, work, packed(y));
  }

  // s + R C Rᵀ, (λᵢ + λⱼ) Cᵢⱼ = second (AB + BA)ᵢⱼ − 2 σμ [i = j], A = R⁻¹ dS R⁻ᵀ, B = Rᵀ dZ R.
  //
  // This is Wᵀ(λ \ (λ∘λ + second (W⁻ᵀ ds)∘(W dz) − σμ e)), where X∘Y = ½(XY + YX), λ \ divides by
  // ½(λᵢ + λⱼ), W dz = Rᵀ dZ R and W⁻ᵀ ds = R⁻¹ dS R⁻ᵀ.
  void shift(const V* s, const V*, const V* ds, const V* dz, const V& sigma_mu, const V& second,
             const V* scaling, V* out, V* scratch) const {
    const int k = order;
    const Scaling<const V*> from = parts(scaling);
    V *X = scratch, *work = X + k * k, *A = work + k * k, *B = A + k * k;
    unpack(ds, both_sides(X));
    congruence(square_matrix(from.inverse), X, work, both_sides(A));
    unpack(dz, both_sides(X));
    congruence(square_matrix(from.R), X, work, both_sides(B));

    const V twice = sigma_mu + sigma_mu;
    const auto put = both_sides(X);
    inner_products(k, k, k, square_matrix(A), square_matrix(B), false,
                   [&](int i, int j, const V& sum) { work[k * j + i] = sum; });
    for (int j = 0; j < k; ++j) {
      for (int i = 0; i <= j; ++i) {
        const V product = second * (work[k * j + i] + work[k * i + j]);
        const V numerator = i == j ? product - twice : product;
        put(i, j, numerator / (from.lambda[i] + from.lambda[j]));
      }
    }
    congruence(square_matrix(from.R).transposed(), X, work,
               [&](int i, int j, const V& sum) {
                 const int row = triangle(i, j);
                 out[row] = fma(sum, V(i == j ? 1.0 : kRoot2), s[row]);
               });
  }

  // S + α dS is semidefinite while I + α Λ^-½ R⁻¹ dS R⁻ᵀ Λ^-½ is, and Z + α dZ likewise.
  V step(const V*, const V*, const V* ds, const V* dz, const V& alpha, const Mask& live,
         const V* scaling, V* scratch) const {
    const Scaling<const V*> from = parts(scaling);
    const V for_s = relative_step(from.inverse, from.lambda, ds, alpha, live, scratch);
    return relative_step(from.R, from.lambda, dz, for_s, live, scratch);
  }

  V margin(const V* v, V* scratch) const {
    unpack(v, upper(scratch));
    return least_eigenvalue(order, scratch, scratch + rows());
  }

  V positive(const V* v, V* scratch) const {
    unpack(v, upper(scratch));
    diagonalize(order, scratch, static_cast<V*>(nullptr));
    V sum(0.0);
    for (int i = 0; i < order; ++i) {
      const V a = scratch[triangle(i, i)];
      sum += select(a < V(0.0), V(0.0), a);  // NaN stays
    }
    return sum;
  }

  void add_identity(V* v, const V& t) const {
    for (int i = 0; i < order; ++i) v[triangle(i, i)] += t;
  }

  // Q diag(max(l, 0)) Qᵀ for W = Q diag(l) Qᵀ.
  //
  // N. J. Higham, Linear Algebra Appl. 103 (1988), Theorem 2.1.
  void project(const V* w, const V*, V* s, V* scratch) const {
    const int k = order;
    V *A = scratch, *Q = A + rows(), *scaled = Q + k * k;
    unpack(w, upper(A));
    diagonalize(k, A, Q);
    for (int j = 0; j < k; ++j) {
      const V a = max(A[triangle(j, j)], V(0.0));
      for (int i = 0; i < k; ++i) scaled[k * j + i] = Q[k * j + i] * a;
    }
    inner_products(k, k, k, square_matrix(Q).transposed(), square_matrix(scaled).transposed(),
                   true, packed(s));
  }

  // D: V -> Q (B ∘ (Qᵀ V Q)) Qᵀ with Bᵢⱼ = (lᵢ⁺ + lⱼ⁺)/(|lᵢ| + |lⱼ|), 0 where both are 0: exactly 1
  // for two positive eigenvalues and exactly 0 for two that are not.
  //
  // J. Malick, H. S. Sendov, Set-Valued Anal. 14 (2006) 273-293.
  void linearize(const V* w, const V*, V* state, V* scratch) const {
    V *A = scratch, *B = state + order * order;
    const V zero(0.0);
    unpack(w, upper(A));
    diagonalize(order, A, state);
    for (int j = 0; j < order; ++j) {
      for (int i = 0; i <= j; ++i) {
        const V a = A[triangle(i, i)], b = A[triangle(j, j)];
        const V total = abs(a) + abs(b);
        B[triangle(i, j)] =
            (max(a, zero) + max(b, zero)) / select(total > zero, total, V(1.0));
      }
    }
  }

  void derivative(const V* state, const V* v, V* y, V* scratch) const {
    const int k = order;
    const V* B = state + k * k;
    V *X = scratch, *work = X + k * k, *turned = work + k * k;
    const auto put = both_sides(turned);
    unpack(v, both_sides(X));
    congruence(square_matrix(state), X, work, [&](int i, int j, const V& sum) {
      put(i, j, sum * B[triangle(i, j)]);
    });
    congruence(square_matrix(state).transposed(), turned, work, packed(y));
  }

  // The matrix of X -> Q (μ ∘ (Qᵀ X Q)) Qᵀ, μ = B/(1 − B).
  //
  // With N_ac = (Q_ai Q_ci)_i and F(ac, bd) = N_acᵀ μ N_bd, the number ⟨e_a e_bᵀ, · e_c e_dᵀ⟩, the
  // entry of the coordinates (a, b) and (c, d) is F(ac, bd) + F(ad, bc), times √½ for a = b and for
  // c = d. H first takes F.
  void block(const V* state, double delta, V* H, V* scratch) const {
    const int k = order, d = rows();
    const V* B = state + k * k;
    V *mu = scratch, *columns = mu + k * k, *N = columns + 2 * k;
    const auto put = both_sides(mu);
    for (int j = 0; j < k; ++j) {
      for (int i = 0; i <= j; ++i) {
        const V b = min(B[triangle(i, j)], V(1.0 - delta));
        put(i, j, b / (V(1.0) - b));
        V* products = N + k * triangle(i, j);
        for (int l = 0; l < k; ++l) products[l] = state[k * l + i] * state[k * l + j];
      }
    }
    for (int J = 0; J < d; J += 2) {
      const int count = J + 1 < d ? 2 : 1;
      inner_products(k, count, k, square_matrix(mu), square_matrix(N + k * J), false,
                     [&](int i, int j, const V& sum) { columns[k * j + i] = sum; });
      inner_products(J + count, count, k, square_matrix(N), square_matrix(columns), false,
                     [&](int i, int j, const V& sum) {
                       if (i <= J + j) H[triangle(i, J + j)] = sum;
                     });
    }
    combine_pairs(H);
  }

 private:
  // The parts of `scaling`: R, R⁻ᵀ and G by columns, and λ.
  template <class Pointer>
  struct Scaling {
    Pointer R, inverse, G, lambda;
  };
  template <class Pointer>
  Scaling<Pointer> parts(Pointer scaling) const {
    const int size = order * order;
    return {scaling, scaling + size, scaling + 2 * size, scaling + 3 * size};
  }

  Matrix<V> square_matrix(const V* entries) const { return {entries, 1, order}; }

  static V weight(int i, int j) { return V(i == j ? kRootHalf : 1.0); }

  // What a symmetric matrix may be stored with: the whole of it, its triangle, or its svec.
  auto both_sides(V* X) const {
    return [X, k = order](int i, int j, const V& value) { X[k * j + i] = X[k * i + j] = value; };
  }
  auto upper(V* X) const {
    return [X](int i, int j, const V& value) { X[triangle(i, j)] = value; };
  }
  auto packed(V* x) const {
    return [x](int i, int j, const V& value) {
      x[triangle(i, j)] = i == j ? value : value * V(kRoot2);
    };
  }

  // store(i, j, Xᵢⱼ), i <= j, from x = svec X.
  template <class Store>
  void unpack(const V* x, Store store) const {
    for (int j = 0; j < order; ++j) {
      for (int i = 0; i < j; ++i) store(i, j, x[triangle(i, j)] * V(kRootHalf));
      store(j, j, x[triangle(j, j)]);
    }
  }

  // store(i, j, (Fᵀ X F)ᵢⱼ), i <= j, for a symmetric X.
  template <class Store>
  void congruence(Matrix<V> F, const V* X, V* work, Store store) const {
    inner_products(order, order, order, square_matrix(X), F, false,
                   [work, k = order](int i, int j, const V& sum) { work[k * j + i] = sum; });
    inner_products(order, order, order, F, square_matrix(work), true, store);
  }

  // X = L Lᵀ, L by columns with zeros above its diagonal.
  void cholesky(const V* x, V* L) const {
    const int k = order;
    unpack(x, [L, k](int i, int j, const V& value) {
      L[k * j + i] = V(0.0);
      L[k * i + j] = value;
    });
    for (int j = 0; j < k; ++j) {
      V inverse(0.0);
      for (int i = j; i < k; ++i) {
        V sum = L[k * j + i];
        for (int l = 0; l < j; ++l) sum = fnma(L[k * l + i], L[k * l + j], sum);
        if (i == j) {
          L[k * j + j] = sqrt(sum);
          inverse = V(1.0) / L[k * j + j];
        } else {
          L[k * j + i] = sum * inverse;
        }
      }
    }
  }

  // The matrix of X -> G X G.
  void fill_block(const V* G, V* H) const {
    const int k = order;
    for (int d = 0; d < k; ++d) {
      for (int c = 0; c <= d; ++c) {
        const V *Gc = G + k * c, *Gd = G + k * d;
        V* column = H + triangle(0, triangle(c, d));
        for (int b = 0; b <= d; ++b) {
          const int last = b == d ? c : b;  // (a, b) comes no later than (c, d)
          for (int a = 0; a <= last; ++a) {
            const V sum = fma(Gc[a], Gd[b], Gd[a] * Gc[b]);
            column[triangle(a, b)] = sum * (weight(a, b) * weight(c, d));
          }
        }
      }
    }
  }

  // From F(I, J) for pairs I and J to the block, in place. Four indices a <= b <= c <= d make three
  // pairs of pairs, and these take part in no other entries.
  void combine_pairs(V* H) const {
    const auto at = [H](int I, int J) -> V& {
      return H[I <= J ? triangle(I, J) : triangle(J, I)];
    };
    for (int d = 0; d < order; ++d) {
      for (int c = 0; c <= d; ++c) {
        for (int b = 0; b <= c; ++b) {
          for (int a = 0; a <= b; ++a) {
            V& ab_cd = at(triangle(a, b), triangle(c, d));
            V& ac_bd = at(triangle(a, c), triangle(b, d));
            V& ad_bc = at(triangle(a, d), triangle(b, c));
            const V x = ab_cd, y = ac_bd, z = ad_bc;
            ab_cd = (y + z) * (weight(a, b) * weight(c, d));
            ac_bd = (x + z) * (weight(a, c) * weight(b, d));
            ad_bc = (x + y) * (weight(a, d) * weight(b, c));
          }
        }
      }
    }
  }

  V relative_step(const V* F, const V* lambda, const V* direction, const V& alpha,
                  const Mask& live, V* scratch) const {
    const int k = order;
    V *X = scratch, *work = X + k * k, *A = work + k * k, *roots = A + rows();
    for (int i = 0; i < k; ++i) roots[i] = V(1.0) / sqrt(lambda[i]);
    unpack(direction, both_sides(X));
    congruence(square_matrix(F), X, work, [&](int i, int j, const V& sum) {
      A[triangle(i, j)] = select(live, sum * (roots[i] * roots[j]), V(0.0));
    });
    const V slope = least_eigenvalue(k, A, roots);
    return select(slope * alpha < V(-1.0), V(-1.0) / slope, alpha);
  }
};

}  // namespace lanes
