// What all instances share: patterns, cones, and the pattern of
//
//   K = [ P   Aᵀ ]      H block diagonal: one number for a nonnegative row, zero for a row of the
//       [ A  −H  ]      zero cone, a dense triangle for a curved cone, or what `SecondOrder` says.
#pragma once

#include <stdexcept>
#include <utility>
#include <vector>

#include "symbolic.hpp"

namespace lanes {

// Entries of a sparse matrix by column, or by row. `value` is where an entry's number is stored.
struct Pattern {
  std::vector<int> start, index, value;

  int lines() const { return static_cast<int>(start.size()) - 1; }
};

struct Entry {
  int row, column, value;
};

// A by columns without the entries of bounds, which are `loose` where they are the last of a column:
// columns of a dense block under bounds are alike then. `first` is where the entries of a column
// begin in A, and `length` their number. `alike` is 8, 4, 2 or 1: a column and so many minus one
// after it have the same rows, and are taken together.
struct Columns {
  std::vector<int> first, length, alike;
  std::vector<Entry> loose;
};

enum class Kind { kSecondOrder, kPsd, kExponential, kPower };

// A curved cone: its rows, and where it keeps its numbers in arrays that all blocks share.
struct Block {
  Kind kind;
  int size;      // rows of a second-order cone, order of a PSD cone, else 3
  double alpha;  // exponent of a power cone
  int row = 0, rows = 0;
  int h = 0;           // in H
  int scaling = 0;     // in what `scale` keeps
  int projection = 0;  // in what `linearize` keeps
};

// An equality a y + L x = b that alone defines the variable y, which P has at most a diagonal entry
// p for: both are eliminated before K is factored (see elimination.py).
struct Pivot {
  int row, variable;
  int a, p;  // where A and P store them; p may be −1
};

// A nonnegative row with a single entry a, a bound: eliminated, too, v = (a u − r)/h.
struct Bound {
  int row, variable;
  int a, h;  // where A and H store them
};

// M[place] += p/a² L[left] L[right] of one pivot; left and right are where A stores the entries.
struct Product {
  int place, pivot, left, right;
};

// Which value of an array goes where in the store of panels.
struct Scatter {
  std::vector<int> value, place;
};

// An expanded second-order cone: where H has its numbers, and where its rows, σ and τ are in the
// order of elimination.
struct Arrow {
  int h, size;
  int center[2];
  std::vector<int> rows;
};

// Raised where the factor would be too large.
struct TooLarge : std::overflow_error {
  TooLarge() : std::overflow_error("the factor has more entries than allowed") {}
};

struct Structure {
  int n = 0, m = 0, zero = 0, nonneg = 0;
  std::vector<Block> blocks;
  Pattern P;       // upper triangle by columns
  Pattern P_full;  // both triangles
  Pattern A, A_rows;
  bool symmetric = true;  // no exponential or power cone
  int degree = 0;         // of the barrier of all cones
  int h_size = 0, scaling_size = 0, projection_size = 0, scratch_size = 0;

  std::vector<Pivot> pivots;
  std::vector<Bound> bounds;
  Columns A_columns;
  Pattern L;                              // of the pivots' rows without a, by columns; by pivot number
  std::vector<int> L_alike;               // as in `Columns`
  std::vector<std::pair<int, int>> M;     // entries that the elimination adds to P
  std::vector<Product> products;          // that M is summed from; empty where it is given
  // What is factored: n + m without pivots and bounds, and two for every expanded second-order cone.
  std::vector<int> unknowns;              // among n + m; beyond, those of cones
  std::vector<double> sign;               // of D
  std::vector<std::pair<int, int>> entries;  // of K

  // Places in the store of panels.
  Symbolic symbolic;
  std::vector<int> diagonal;  // of every unknown
  std::vector<int> bounded;   // of the variable of every bound
  Scatter of_P, of_A, of_H, of_M;
  std::vector<double> pivot_sign;  // sign, in the order of elimination
  std::vector<Arrow> arrows;
  int first_arrow = 0;  // the first panel with a σ or τ

  Structure(int n, int m, int zero, int nonneg, std::vector<Block> blocks, std::vector<int> P_start,
            std::vector<int> P_index, std::vector<int> A_start, std::vector<int> A_index,
            std::vector<Pivot> pivots, std::vector<std::pair<int, int>> M,
            std::vector<Product> products, int most);

  int size() const { return static_cast<int>(unknowns.size()); }
  int P_entries() const { return static_cast<int>(P.index.size()); }
  int A_entries() const { return static_cast<int>(A.index.size()); }
  int M_entries() const { return static_cast<int>(M.size()); }
  // Whether M comes with the program.
  bool M_is_given() const { return products.empty(); }

 private:
  std::vector<int> number_;  // of n + m and of cones among the unknowns, −1 for what is gone

  // Throws std::invalid_argument unless sizes and indices fit together.
  void check() const;

  // Those of K that an array's values go to: `pairs`, in numbers of n + m and of cones.
  void add_entries(Scatter& from, const std::vector<int>& number,
                   const std::vector<std::pair<int, int>>& pairs);
  // The factorisation in an order that leaves at most `most` entries.
  void analyze_factor(int most);
};

}  // namespace lanes
