#include "ordering.hpp"

#include <algorithm>

// Approximate minimum degree: Amestoy, Davis & Duff, An approximate minimum degree ordering
// algorithm, SIAM J. Matrix Anal. Appl. 17(4), 1996.
//
// The graph of what is not yet eliminated is kept as a quotient graph. An unknown i has variables
// A_i, its neighbours from K, and elements E_i, eliminated unknowns whose remaining neighbours L_e
// are all neighbours of each other. Its neighbours are A_i ∪ ⋃ L_e over e in E_i. Eliminating p
// makes the element
//
//   L_p = (A_p ∪ ⋃ L_e over e in E_p) − p,
//
// which takes in the elements of E_p, and 1 + |L_p| is the number of entries in p's column of the
// factor. The degree of an i in L_p is then bounded by
//
//   |A_i − L_p| + |L_p − i| + Σ |L_e − L_p| over e in E_i − p.

namespace lanes {
namespace {

class Quotient {
 public:
  Quotient(int size, const std::vector<std::pair<int, int>>& entries)
      : size_(size),
        variables_(size),
        elements_(size),
        members_(size),
        degree_(size),
        gone_(size, 0),
        outside_(size, 0),
        outside_at_(size, -1),
        mark_(size, -1),
        first_(size, -1),
        next_(size, -1),
        before_(size, -1) {
    for (const auto& [i, j] : entries) {
      if (i == j) continue;
      variables_[i].push_back(j);
      variables_[j].push_back(i);
    }
    for (int i = size - 1; i >= 0; --i) {
      auto& list = variables_[i];
      std::sort(list.begin(), list.end());
      list.erase(std::unique(list.begin(), list.end()), list.end());
      degree_[i] = static_cast<int>(list.size());
      insert(i);
    }
  }

  std::optional<std::vector<int>> order(std::int64_t most) {
    std::vector<int> order;
    order.reserve(size_);
    std::int64_t total = 0;
    for (int step = 0; step < size_; ++step) {
      const int p = least();
      remove(p);
      form_element(p);
      order.push_back(p);
      gone_[p] = 1;
      total += 1 + static_cast<std::int64_t>(members_[p].size());
      if (total > most) return std::nullopt;
      measure_others(p);
      for (int i : members_[p]) update(p, i, size_ - step - 2);
    }
    return order;
  }

 private:
  // ---- unknowns by degree: a doubly linked list for each ----

  void insert(int i) {
    const int d = degree_[i];
    before_[i] = -1;
    next_[i] = first_[d];
    if (first_[d] >= 0) before_[first_[d]] = i;
    first_[d] = i;
    lowest_ = std::min(lowest_, d);
  }

  void remove(int i) {
    if (before_[i] >= 0) next_[before_[i]] = next_[i];
    else first_[degree_[i]] = next_[i];
    if (next_[i] >= 0) before_[next_[i]] = before_[i];
  }

  int least() {
    while (first_[lowest_] < 0) ++lowest_;
    return first_[lowest_];
  }

  // ---- elimination ----

  // L_p; the elements that it takes in have no members any more.
  void form_element(int p) {
    auto& members = members_[p];
    mark_[p] = p;
    const auto add = [&](const std::vector<int>& list) {
      for (int i : list) {
        if (mark_[i] == p || gone_[i]) continue;
        mark_[i] = p;
        members.push_back(i);
      }
    };
    add(variables_[p]);
    for (int e : elements_[p]) {
      add(members_[e]);
      std::vector<int>().swap(members_[e]);
    }
    std::vector<int>().swap(variables_[p]);
    std::vector<int>().swap(elements_[p]);
  }

  // outside_[e] = |L_e − L_p| of every other element of a member of L_p.
  void measure_others(int p) {
    for (int i : members_[p]) {
      for (int e : elements_[i]) {
        if (members_[e].empty()) continue;
        if (outside_at_[e] != p) {
          outside_at_[e] = p;
          outside_[e] = static_cast<int>(members_[e].size());
        }
        --outside_[e];
      }
    }
  }

  // What is left of A_i and E_i, p among it, and i's degree, at most `rest`.
  void update(int p, int i, int rest) {
    remove(i);
    auto& variables = variables_[i];
    variables.erase(std::remove_if(variables.begin(), variables.end(),
                                   [&](int j) { return mark_[j] == p || gone_[j]; }),
                    variables.end());
    const int others = static_cast<int>(members_[p].size()) - 1;
    std::int64_t bound = static_cast<std::int64_t>(variables.size()) + others;
    auto& elements = elements_[i];
    std::size_t kept = 0;
    for (int e : elements) {
      // An element without members of its own says nothing that p does not say.
      if (members_[e].empty() || outside_[e] == 0) continue;
      elements[kept++] = e;
      bound += outside_[e];
    }
    elements.resize(kept);
    elements.push_back(p);
    degree_[i] = static_cast<int>(
        std::min<std::int64_t>({rest, static_cast<std::int64_t>(degree_[i]) + others, bound}));
    insert(i);
  }

  int size_, lowest_ = 0;
  std::vector<std::vector<int>> variables_, elements_, members_;
  std::vector<int> degree_;
  std::vector<char> gone_;
  std::vector<int> outside_, outside_at_, mark_;
  std::vector<int> first_, next_, before_;
};

}  // namespace

std::optional<std::vector<int>> minimum_degree(int size,
                                               const std::vector<std::pair<int, int>>& entries,
                                               std::int64_t most) {
  return Quotient(size, entries).order(most);
}

}  // namespace lanes
