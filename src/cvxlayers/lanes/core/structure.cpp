#include "structure.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cones/all.hpp"
#include "ordering.hpp"

namespace lanes {
namespace {

Pattern by_columns(std::vector<int> start, std::vector<int> index) {
  Pattern pattern{std::move(start), std::move(index), {}};
  pattern.value.resize(pattern.index.size());
  std::iota(pattern.value.begin(), pattern.value.end(), 0);
  return pattern;
}

// The lines of another pattern, from (line, index, value) in any order.
Pattern gathered(int lines, const std::vector<std::pair<int, int>>& entries,
                 const std::vector<int>& values) {
  Pattern pattern;
  pattern.start.assign(lines + 1, 0);
  for (const auto& entry : entries) ++pattern.start[entry.first + 1];
  std::partial_sum(pattern.start.begin(), pattern.start.end(), pattern.start.begin());
  std::vector<int> next(pattern.start.begin(), pattern.start.end() - 1);
  pattern.index.resize(entries.size());
  pattern.value.resize(entries.size());
  for (std::size_t k = 0; k < entries.size(); ++k) {
    const int place = next[entries[k].first]++;
    pattern.index[place] = entries[k].second;
    pattern.value[place] = values[k];
  }
  return pattern;
}

Pattern both_triangles(const Pattern& upper) {
  std::vector<std::pair<int, int>> entries;
  std::vector<int> values;
  for (int j = 0; j < upper.lines(); ++j) {
    for (int p = upper.start[j]; p < upper.start[j + 1]; ++p) {
      entries.emplace_back(j, upper.index[p]);
      values.push_back(p);
      if (upper.index[p] != j) {
        entries.emplace_back(upper.index[p], j);
        values.push_back(p);
      }
    }
  }
  return gathered(upper.lines(), entries, values);
}

Pattern by_rows(const Pattern& columns, int rows) {
  std::vector<std::pair<int, int>> entries;
  for (int j = 0; j < columns.lines(); ++j) {
    for (int p = columns.start[j]; p < columns.start[j + 1]; ++p) {
      entries.emplace_back(columns.index[p], j);
    }
  }
  return gathered(rows, entries, columns.value);
}

// How many lines from each on are taken together, where the line i has the indices
// index[first[i]] … index[first[i] + length[i] − 1].
std::vector<int> find_alike(const std::vector<int>& index, const std::vector<int>& first,
                            const std::vector<int>& length) {
  const int lines = static_cast<int>(length.size());
  std::vector<int> alike(lines, 1);
  const auto same = [&](int i, int j) {
    const auto begin = index.begin() + first[i];
    return length[i] == length[j] &&
           std::equal(begin, begin + length[i], index.begin() + first[j]);
  };
  for (int i = 0; i < lines; i += alike[i]) {
    int run = 1;
    while (run < 8 && i + run < lines && same(i, i + run)) ++run;
    while (alike[i] * 2 <= run) alike[i] *= 2;
  }
  return alike;
}

std::vector<int> lengths(const Pattern& pattern) {
  std::vector<int> length;
  for (int i = 0; i < pattern.lines(); ++i) length.push_back(pattern.start[i + 1] - pattern.start[i]);
  return length;
}

// See `Columns`.
Columns without_bounds(const Pattern& A, const std::vector<Bound>& bounds) {
  std::vector<char> is_bound(A.index.size(), 0);
  for (const Bound& bound : bounds) is_bound[bound.a] = 1;
  Columns columns{A.start, lengths(A), {}, {}};
  columns.first.pop_back();
  for (int j = 0; j < A.lines(); ++j) {
    int& length = columns.length[j];
    for (int p; length > 0 && is_bound[p = columns.first[j] + length - 1]; --length) {
      columns.loose.push_back({A.index[p], j, p});
    }
  }
  columns.alike = find_alike(A.index, columns.first, columns.length);
  return columns;
}

}  // namespace


Structure::Structure(int n, int m, int zero, int nonneg, std::vector<Block> cones,
                     std::vector<int> P_start, std::vector<int> P_index, std::vector<int> A_start,
                     std::vector<int> A_index, std::vector<Pivot> eliminated,
                     std::vector<std::pair<int, int>> sums, std::vector<Product> terms, int most)
    : n(n),
      m(m),
      zero(zero),
      nonneg(nonneg),
      blocks(std::move(cones)),
      pivots(std::move(eliminated)),
      M(std::move(sums)),
      products(std::move(terms)) {
  P = by_columns(std::move(P_start), std::move(P_index));
  A = by_columns(std::move(A_start), std::move(A_index));
  check();
  P_full = both_triangles(P);
  A_rows = by_rows(A, m);
  degree = nonneg;
  h_size = nonneg;

  std::vector<char> gone(n + m, 0);
  std::vector<std::pair<int, int>> of_L;
  std::vector<int> values_of_L;
  for (std::size_t k = 0; k < pivots.size(); ++k) {
    const Pivot& pivot = pivots[k];
    gone[pivot.variable] = gone[n + pivot.row] = 1;
    for (int p = A_rows.start[pivot.row]; p < A_rows.start[pivot.row + 1]; ++p) {
      if (A_rows.value[p] == pivot.a) continue;
      of_L.emplace_back(A_rows.index[p], static_cast<int>(k));
      values_of_L.push_back(A_rows.value[p]);
    }
  }
  L = gathered(n, of_L, values_of_L);
  L_alike = find_alike(L.index, L.start, lengths(L));
  for (int k = 0; k < nonneg; ++k) {
    const int row = zero + k, p = A_rows.start[row];
    if (A_rows.start[row + 1] - p != 1) continue;
    gone[n + row] = 1;
    bounds.push_back({row, A_rows.index[p], A_rows.value[p], k});
  }
  A_columns = without_bounds(A, bounds);
  // Numbers among the unknowns, −1 for those that are gone.
  std::vector<int>& number = number_;
  number.assign(n + m, -1);
  for (int i = 0; i < n + m; ++i) {
    if (gone[i]) continue;
    number[i] = size();
    unknowns.push_back(i);
    sign.push_back(i < n ? 1.0 : -1.0);
  }

  std::vector<std::pair<int, int>> pairs;
  for (int j = 0; j < n; ++j) {
    for (int p = P.start[j]; p < P.start[j + 1]; ++p) pairs.emplace_back(P.index[p], j);
  }
  add_entries(of_P, number, pairs);
  pairs.clear();
  for (int j = 0; j < n; ++j) {
    for (int p = A.start[j]; p < A.start[j + 1]; ++p) pairs.emplace_back(j, n + A.index[p]);
  }
  add_entries(of_A, number, pairs);
  add_entries(of_M, number, M);
  pairs.clear();
  for (int i = 0; i < nonneg; ++i) pairs.emplace_back(n + zero + i, n + zero + i);

  int row = zero + nonneg;
  for (Block& block : blocks) {
    const int first = n + row;
    block.row = row;
    block.h = h_size;
    block.scaling = scaling_size;
    block.projection = projection_size;
    with_cone<double>(block, [&](auto cone) {
      block.rows = cone.rows();
      degree += cone.degree();
      scaling_size += cone.scaling_size();
      projection_size += cone.projection_size();
      scratch_size = std::max(scratch_size, cone.scratch_size());
      h_size += cone.block_size();
    });
    symmetric = symmetric && is_symmetric(block);
    if (block.kind == Kind::kSecondOrder && SecondOrder<double>{block.size}.expanded()) {
      const int sigma = static_cast<int>(number.size()), tau = sigma + 1;
      for (const double expected : {-1.0, 1.0}) {
        number.push_back(size());
        unknowns.push_back(n + m);
        sign.push_back(expected);
      }
      for (int i = 0; i < block.rows; ++i) pairs.emplace_back(first + i, first + i);
      for (int i = 0; i < block.rows; ++i) pairs.emplace_back(first + i, sigma);
      for (int i = 0; i < block.rows; ++i) pairs.emplace_back(first + i, tau);
      pairs.emplace_back(sigma, sigma);
      pairs.emplace_back(tau, tau);
      arrows.push_back({block.h, block.rows, {number[sigma], number[tau]}, {}});
      for (int i = 0; i < block.rows; ++i) arrows.back().rows.push_back(number[first + i]);
    } else {
      for (int j = 0; j < block.rows; ++j) {
        for (int i = 0; i <= j; ++i) pairs.emplace_back(first + i, first + j);
      }
    }
    row += block.rows;
  }
  add_entries(of_H, number, pairs);
  analyze_factor(most);
}

void Structure::check() const {
  const auto require = [](bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(what);
  };
  for (const auto* pattern : {&P, &A}) {
    const int rows = pattern == &P ? n : m;
    require(pattern->lines() == n && pattern->start.front() == 0 &&
                pattern->start.back() == static_cast<int>(pattern->index.size()) &&
                std::is_sorted(pattern->start.begin(), pattern->start.end()),
            "P or A: columns do not start where they should");
    require(std::all_of(pattern->index.begin(), pattern->index.end(),
                        [&](int i) { return i >= 0 && i < rows; }),
            "P or A: a row is out of range");
  }
  int rows = zero + nonneg;
  require(n >= 0 && zero >= 0 && nonneg >= 0, "a negative size");
  for (const Block& block : blocks) {
    require(block.kind != Kind::kSecondOrder || block.size >= 1, "a second-order cone of no rows");
    require(block.kind != Kind::kPsd || (block.size >= 0 && block.size <= kLargestOrder),
            "a semidefinite cone is too large");
    require(block.kind != Kind::kPower || (block.alpha > 0.0 && block.alpha < 1.0),
            "an exponent that is not between 0 and 1");
    with_cone<double>(block, [&](auto cone) { rows += cone.rows(); });
  }
  require(rows == m, "the cones do not have the rows of A");
}

void Structure::add_entries(Scatter& from, const std::vector<int>& number,
                            const std::vector<std::pair<int, int>>& pairs) {
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    const int i = number[pairs[k].first], j = number[pairs[k].second];
    if (i < 0 || j < 0) continue;
    from.value.push_back(static_cast<int>(k));
    entries.emplace_back(i, j);
  }
}

void Structure::analyze_factor(int most) {
  auto order = minimum_degree(size(), entries, most);
  if (!order) throw TooLarge();
  symbolic = analyze(size(), entries, std::move(*order));
  if (symbolic.store > most) throw TooLarge();
  auto entry = entries.begin();
  for (Scatter* source : {&of_P, &of_A, &of_M, &of_H}) {
    for (std::size_t k = 0; k < source->value.size(); ++k, ++entry) {
      source->place.push_back(symbolic.place(entry->first, entry->second));
    }
  }
  first_arrow = symbolic.panels();
  for (Arrow& arrow : arrows) {
    for (int& i : arrow.center) {
      i = symbolic.position[i];
      first_arrow = std::min(first_arrow, symbolic.panel_of[i]);
    }
    for (int& i : arrow.rows) i = symbolic.position[i];
  }
  for (int i = 0; i < size(); ++i) {
    diagonal.push_back(symbolic.place(i, i));
    pivot_sign.push_back(sign[symbolic.order[i]]);
  }
  for (const Bound& bound : bounds) bounded.push_back(diagonal[number_[bound.variable]]);
}

}  // namespace lanes
