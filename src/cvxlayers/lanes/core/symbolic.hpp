// What the factorisation of one sparsity pattern needs to know, found once.
//
// P K Pᵀ = L D Lᵀ of a symmetric K: columns of L with (nearly) the same rows form a supernode, whose
// columns are stored together as a dense panel. Liu, The role of elimination trees in sparse
// factorization, 1990; Ashcraft & Grimes, The influence of relaxed supernode partitions, 1989.
#pragma once

#include <utility>
#include <vector>

namespace lanes {

// The update of a panel by an earlier one, K: rows first … last − 1 of K are columns of this panel,
// and row r >= first of K is row relative[r − first] of it.
struct Update {
  int source;
  int first;
  int last;
  int relative;
};

struct Symbolic {
  int size = 0;
  std::vector<int> order;     // order[i]: which unknown is eliminated as number i
  std::vector<int> position;  // its inverse
  // A panel: its first column, its number of columns, and of rows (those of its columns first).
  std::vector<int> column, width, height;
  std::vector<int> offset;  // of its numbers, row by row, in the store of all panels
  std::vector<int> row_offset, rows;
  std::vector<int> update_offset;
  std::vector<Update> updates;
  std::vector<int> relative;
  std::vector<int> panel_of;  // the panel of a column
  int store = 0;              // numbers in all panels
  int work = 0;               // numbers of scratch that `factor` needs

  int panels() const { return static_cast<int>(column.size()); }
  // Where entry (i, j) of K is in the store of panels, i and j in the order of the unknowns.
  int place(int i, int j) const;
};

// `entries` are those of one triangle (the diagonal is taken to be full), `order` a fill-reducing
// order of the unknowns.
Symbolic analyze(int size, const std::vector<std::pair<int, int>>& entries,
                 std::vector<int> order);

}  // namespace lanes
