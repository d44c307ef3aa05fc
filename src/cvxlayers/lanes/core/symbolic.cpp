#include "symbolic.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace lanes {
namespace {

using Rows = std::vector<std::vector<int>>;

// A panel wider than this has no more reuse in registers.
constexpr int kWidest = 8;
// Neighbouring supernodes are joined if at most this share of the joint panel is then zeros.
constexpr double kZeros = 0.25;
constexpr int kFewZeros = 4;

std::vector<int> inverse(const std::vector<int>& order) {
  std::vector<int> position(order.size());
  for (std::size_t i = 0; i < order.size(); ++i) position[order[i]] = static_cast<int>(i);
  return position;
}

// The rows below the diagonal of every column of K, in the given order.
Rows lower_columns(int size, const std::vector<std::pair<int, int>>& entries,
                   const std::vector<int>& position) {
  Rows columns(size);
  for (const auto& [i, j] : entries) {
    const int a = position[i], b = position[j];
    if (a != b) columns[std::min(a, b)].push_back(std::max(a, b));
  }
  return columns;
}

// The elimination tree, and the rows below the diagonal of every column of L: those of K, and those
// of its children without itself.
void eliminate(const Rows& columns, std::vector<int>& parent, Rows& structure) {
  const int size = static_cast<int>(columns.size());
  parent.assign(size, -1);
  structure.assign(size, {});
  Rows children(size);
  std::vector<int> seen(size, -1);
  for (int j = 0; j < size; ++j) {
    auto& rows = structure[j];
    const auto add = [&](const std::vector<int>& more) {
      for (int i : more) {
        if (i > j && seen[i] != j) {
          seen[i] = j;
          rows.push_back(i);
        }
      }
    };
    add(columns[j]);
    for (int child : children[j]) add(structure[child]);
    std::sort(rows.begin(), rows.end());
    if (!rows.empty()) {
      parent[j] = rows.front();
      children[parent[j]].push_back(j);
    }
  }
}

// The columns in an order in which every subtree is contiguous, children with few rows first.
std::vector<int> postorder(const std::vector<int>& parent, const Rows& structure) {
  const int size = static_cast<int>(parent.size());
  Rows children(size);
  std::vector<int> stack, order;
  for (int j = size - 1; j >= 0; --j) {
    if (parent[j] >= 0) children[parent[j]].push_back(j);
    else stack.push_back(j);
  }
  for (auto& list : children) {
    std::stable_sort(list.begin(), list.end(), [&](int a, int b) {
      return structure[a].size() > structure[b].size();
    });
  }
  // Taken from the stack before its children; reversed, that is after them.
  while (!stack.empty()) {
    const int j = stack.back();
    stack.pop_back();
    order.push_back(j);
    auto& list = children[j];
    stack.insert(stack.end(), list.rbegin(), list.rend());
  }
  std::reverse(order.begin(), order.end());
  return order;
}

struct Supernode {
  int first, last;
  std::vector<int> below;  // rows below the last column
  int zeros;

  int width() const { return last - first + 1; }
};

std::vector<Supernode> fundamental(const Rows& structure) {
  std::vector<Supernode> nodes;
  for (int j = 0; j < static_cast<int>(structure.size()); ++j) {
    const bool extends = j > 0 && !structure[j - 1].empty() && structure[j - 1].front() == j &&
                         structure[j - 1].size() == structure[j].size() + 1;
    if (extends) {
      nodes.back().last = j;
      nodes.back().below = structure[j];
    } else {
      nodes.push_back({j, j, structure[j], 0});
    }
  }
  return nodes;
}

// Join a supernode with the one before it where that is its child and few zeros come in.
std::vector<Supernode> relax(std::vector<Supernode> nodes) {
  for (bool changed = true; changed;) {
    changed = false;
    std::vector<Supernode> joined;
    for (auto& node : nodes) {
      if (!joined.empty()) {
        auto& child = joined.back();
        const bool related = !child.below.empty() && child.below.front() >= node.first &&
                             child.below.front() <= node.last;
        if (related && child.width() + node.width() <= kWidest) {
          const int height = static_cast<int>(node.below.size()) + node.width();
          const int extra = child.width() * (height - static_cast<int>(child.below.size()));
          const int zeros = child.zeros + node.zeros + extra;
          const double total = static_cast<double>(child.width() + node.width()) * height;
          if (zeros <= kZeros * total || zeros <= kFewZeros) {
            child = {child.first, node.last, std::move(node.below), zeros};
            changed = true;
            continue;
          }
        }
      }
      joined.push_back(std::move(node));
    }
    nodes = std::move(joined);
  }
  return nodes;
}

// Panels of a bounded width.
void cut(const std::vector<Supernode>& nodes, Symbolic& symbolic) {
  symbolic.row_offset.push_back(0);
  for (const auto& node : nodes) {
    const int pieces = (node.width() + kWidest - 1) / kWidest;
    int width = (node.width() + pieces - 1) / pieces;
    // Whole register tiles.
    if (pieces > 1) width = std::min(kWidest, (width + 3) / 4 * 4);
    for (int first = node.first; first <= node.last; first += width) {
      const int columns = std::min(width, node.last - first + 1);
      symbolic.column.push_back(first);
      symbolic.width.push_back(columns);
      for (int i = first; i <= node.last; ++i) symbolic.rows.push_back(i);
      symbolic.rows.insert(symbolic.rows.end(), node.below.begin(), node.below.end());
      symbolic.row_offset.push_back(static_cast<int>(symbolic.rows.size()));
    }
  }
}

void find_updates(Symbolic& s) {
  const int panels = s.panels();
  s.panel_of.resize(s.size);
  for (int J = 0; J < panels; ++J) {
    for (int c = 0; c < s.width[J]; ++c) s.panel_of[s.column[J] + c] = J;
    s.height.push_back(s.row_offset[J + 1] - s.row_offset[J]);
    s.offset.push_back(s.store);
    s.store += s.height[J] * s.width[J];
  }
  std::vector<std::vector<Update>> of(panels);
  for (int K = 0; K < panels; ++K) {
    const int* rows = &s.rows[s.row_offset[K]];
    for (int first = s.width[K]; first < s.height[K];) {
      const int J = s.panel_of[rows[first]];
      int last = first;
      while (last < s.height[K] && s.panel_of[rows[last]] == J) ++last;
      of[J].push_back({K, first, last, 0});
      first = last;
    }
  }
  std::vector<int> place(s.size);
  s.update_offset.push_back(0);
  int tallest = 1;
  for (int J = 0; J < panels; ++J) {
    const int* rows = &s.rows[s.row_offset[J]];
    for (int r = 0; r < s.height[J]; ++r) place[rows[r]] = r;
    for (Update update : of[J]) {
      const int K = update.source;
      update.relative = static_cast<int>(s.relative.size());
      for (int r = update.first; r < s.height[K]; ++r) {
        s.relative.push_back(place[s.rows[s.row_offset[K] + r]]);
      }
      tallest = std::max(tallest, update.last - update.first);
      s.updates.push_back(update);
    }
    s.update_offset.push_back(static_cast<int>(s.updates.size()));
  }
  s.work = (tallest + 4) * (kWidest + 4);
}

}  // namespace

int Symbolic::place(int i, int j) const {
  int row = position[i], col = position[j];
  if (row < col) std::swap(row, col);
  const int J = panel_of[col];
  const auto begin = rows.begin() + row_offset[J], end = rows.begin() + row_offset[J + 1];
  const auto found = std::lower_bound(begin, end, row);
  if (found == end || *found != row) throw std::logic_error("an entry outside the pattern");
  return offset[J] + static_cast<int>(found - begin) * width[J] + col - column[J];
}

Symbolic analyze(int size, const std::vector<std::pair<int, int>>& entries,
                 std::vector<int> order) {
  std::vector<int> parent;
  Rows structure;
  eliminate(lower_columns(size, entries, inverse(order)), parent, structure);
  const std::vector<int> post = postorder(parent, structure);
  std::vector<int> reordered(size);
  for (int i = 0; i < size; ++i) reordered[i] = order[post[i]];

  Symbolic symbolic;
  symbolic.size = size;
  symbolic.order = std::move(reordered);
  symbolic.position = inverse(symbolic.order);
  eliminate(lower_columns(size, entries, symbolic.position), parent, structure);
  cut(relax(fundamental(structure)), symbolic);
  find_updates(symbolic);
  return symbolic;
}

}  // namespace lanes
