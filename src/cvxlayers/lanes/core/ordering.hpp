// An order of elimination that leaves few entries in the factor.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace lanes {

// order[i] is which unknown is eliminated as number i. `entries` are those of one triangle of K, off
// the diagonal or on it, in any number. Nothing where the factor would have more than `most`
// entries: that is told as soon as they are counted, long before the rest of the order would be
// found.
std::optional<std::vector<int>> minimum_degree(int size,
                                               const std::vector<std::pair<int, int>>& entries,
                                               std::int64_t most);

}  // namespace lanes
