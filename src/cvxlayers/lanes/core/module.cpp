// The Python face of one variant. See cvxlayers/lanes/engine.py for what the arguments are.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "engine.hpp"
#include "ordering.hpp"
#include "outer.hpp"

namespace nb = nanobind;

namespace lanes {
namespace {

using Values = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// Outputs are never converted: what is written to a converted copy would be lost (`noconvert` below).
using Output = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<std::int8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

Rows rows_of(const Values& matrix, int width, std::int64_t batch) {
  const auto count = static_cast<std::int64_t>(matrix.shape(0));
  require(static_cast<int>(matrix.shape(1)) == width, "an array has the wrong width");
  require(count == 1 || count == batch, "an array has the wrong number of rows");
  return {matrix.data(), count, width};
}

double* output_of(Output& output, int width, std::int64_t batch) {
  require(static_cast<std::int64_t>(output.shape(0)) == batch &&
              static_cast<int>(output.shape(1)) == width,
          "an output has the wrong shape");
  return output.data();
}

template <class Array>
auto* output_of(Array& output, std::int64_t batch) {
  require(static_cast<std::int64_t>(output.shape(0)) == batch, "an output has the wrong length");
  return output.data();
}

// What the eliminated rows add to P, if that is not found from P and A.
Rows products_of(const Structure& s, const Values& M, std::int64_t batch) {
  return s.M_is_given() ? rows_of(M, s.M_entries(), batch) : Rows{};
}

Program program_of(const Structure& s, const Values& P, const Values& q, const Values& A,
                   const Values& b, const Values& M, std::int64_t batch) {
  return {rows_of(P, s.P_entries(), batch), rows_of(q, s.n, batch),
          rows_of(A, s.A_entries(), batch), rows_of(b, s.m, batch),
          products_of(s, M, batch), batch};
}

// Whether a signal was received whose handler raised, such as Ctrl-C.
bool interrupted() {
  const nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

// Call f(queue) without the GIL; raise what a signal handler raised meanwhile.
template <class F>
void without_gil(std::int64_t batch, double seconds, F&& f) {
  Queue queue;
  queue.count = batch;
  queue.interrupted = interrupted;
  if (seconds >= 0.0) {
    queue.has_deadline = true;
    // Beyond a year it would overflow the clock.
    queue.deadline = Queue::Clock::now() + std::chrono::duration_cast<Queue::Clock::duration>(
                                               std::chrono::duration<double>(std::min(seconds, 3e7)));
  }
  if (queue.count > 0) {
    const nb::gil_scoped_release release;
    f(queue);
  }
  if (PyErr_Occurred()) throw nb::python_error();
}

std::vector<Block> blocks_of(const std::vector<int>& soc, const std::vector<int>& psd, int exp,
                             const std::vector<double>& pow) {
  std::vector<Block> blocks;
  for (int size : soc) blocks.push_back({Kind::kSecondOrder, size, 0.0});
  for (int order : psd) blocks.push_back({Kind::kPsd, order, 0.0});
  for (int k = 0; k < exp; ++k) blocks.push_back({Kind::kExponential, 3, 0.0});
  for (double alpha : pow) blocks.push_back({Kind::kPower, 3, alpha});
  return blocks;
}

std::vector<std::string> supported() {
  std::vector<std::string> names = {"baseline"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    names.emplace_back("avx2");
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      names.emplace_back("avx512");
    }
  }
#endif
  return names;
}

std::vector<std::pair<int, int>> entries_of(int size, const std::vector<int>& i,
                                            const std::vector<int>& j) {
  require(i.size() == j.size(), "i, j: not of one length");
  std::vector<std::pair<int, int>> entries;
  for (std::size_t k = 0; k < i.size(); ++k) {
    require(i[k] >= 0 && i[k] < size && j[k] >= 0 && j[k] < size, "i, j: out of range");
    entries.emplace_back(i[k], j[k]);
  }
  return entries;
}

// K⁻¹ of a right-hand side, for the tests of the factorisation: entries (i, j) of one triangle, the
// diagonal's signs, and one row of values and of right-hand sides for each instance.
void factor_and_solve(const std::vector<int>& i, const std::vector<int>& j,
                      const std::vector<int>& order, const std::vector<double>& sign, Values values,
                      Values right, Output left, bool wide) {
  const int size = static_cast<int>(order.size());
  const Symbolic symbolic = analyze(size, entries_of(size, i, j), order);
  std::vector<double> pivots;
  for (int k : symbolic.order) pivots.push_back(sign[k]);
  const auto batch = static_cast<std::int64_t>(values.shape(0));
  const Rows of_values = rows_of(values, static_cast<int>(i.size()), batch);
  const Rows of_right = rows_of(right, size, batch);
  double* out = output_of(left, size, batch);
  const auto run = [&](auto number) {
    using V = decltype(number);
    for (std::int64_t first = 0; first < batch; first += kLanes<V>) {
      std::int64_t instances[kLanes<V>];
      for (int l = 0; l < kLanes<V>; ++l) instances[l] = std::min(first + l, batch - 1);
      std::vector<V> K(i.size()), b(size), X(symbolic.store, V(0.0)), D(size), D_inverse(size);
      std::vector<V> work(symbolic.work), y(2 * size);
      load(of_values, instances, K.data());
      load(of_right, instances, b.data());
      for (std::size_t k = 0; k < i.size(); ++k) X[symbolic.place(i[k], j[k])] += K[k];
      factor(symbolic, pivots.data(), 1e-300, 1e-300, X.data(), D.data(), D_inverse.data(),
             work.data());
      // Twice, so that both forms of the solve are seen.
      for (int k = 0; k < size; ++k) y[k] = y[size + k] = b[symbolic.order[k]];
      solve<2>(symbolic, X.data(), D_inverse.data(), y.data());
      std::vector<V> once(y.begin() + size, y.end());
      for (int k = 0; k < size; ++k) y[k] = b[symbolic.order[k]];
      solve<1>(symbolic, X.data(), D_inverse.data(), y.data());
      std::vector<V> found(size);
      for (int k = 0; k < size; ++k) {
        found[symbolic.order[k]] = select(abs(y[k] - once[k]) <= V(0.0), y[k], V(NAN));
      }
      for (int l = 0; l < kLanes<V> && first + l < batch; ++l) {
        store(found.data(), l, size, out + (first + l) * size);
      }
    }
  };
  wide ? run(Lane<kWidth>()) : run(double());
}

}  // namespace
}  // namespace lanes

NB_MODULE(CVXLAYERS_MODULE, module) {
  using namespace lanes;
  nb::set_leak_warnings(false);
  module.attr("width") = kWidth;
  module.def("supported", &supported);
  module.def("minimum_degree",
             [](int size, const std::vector<int>& i, const std::vector<int>& j, std::int64_t most) {
               return minimum_degree(size, entries_of(size, i, j), most);
             });
  module.def("factor_and_solve", &factor_and_solve, nb::arg("i"), nb::arg("j"), nb::arg("order"),
             nb::arg("sign"), nb::arg("values"), nb::arg("right"), nb::arg("left").noconvert(),
             nb::arg("wide"));

  nb::class_<Outer>(module, "Outer")
      .def("__init__",
           [](Outer* self, std::vector<int> i, std::vector<int> j, std::vector<double> weight) {
             require(j.size() == i.size() && weight.size() == i.size(),
                     "i, j, weight: not of one length");
             new (self) Outer{std::move(i), std::move(j), std::move(weight)};
           })
      .def("__call__", [](const Outer& self, Values a, Values b, Values c, Values d, Output out,
                          int threads) {
        const auto batch = static_cast<std::int64_t>(a.shape(0));
        const bool total = static_cast<std::int64_t>(out.shape(0)) != batch;
        const Rows of_a = rows_of(a, static_cast<int>(a.shape(1)), batch);
        const Rows of_b = rows_of(b, static_cast<int>(b.shape(1)), batch);
        const Rows of_c = rows_of(c, of_a.width, batch), of_d = rows_of(d, of_b.width, batch);
        const auto fits = [](const std::vector<int>& index, int size) {
          return std::all_of(index.begin(), index.end(),
                             [size](int k) { return k >= 0 && k < size; });
        };
        require(fits(self.i, of_a.width) && fits(self.j, of_b.width), "i, j: out of range");
        double* to = output_of(out, static_cast<int>(self.i.size()), total ? 1 : batch);
        const nb::gil_scoped_release release;
        self.apply(of_a, of_b, of_c, of_d, batch, total, to, threads);
      },
           nb::arg("a"), nb::arg("b"), nb::arg("c"), nb::arg("d"), nb::arg("out").noconvert(),
           nb::arg("threads"));

  nb::class_<Engine>(module, "Engine")
      .def("__init__",
           [](Engine* self, int n, int m, int zero, int nonneg, const std::vector<int>& soc,
              const std::vector<int>& psd, int exp, const std::vector<double>& pow,
              std::vector<int> P_start, std::vector<int> P_index, std::vector<int> A_start,
              std::vector<int> A_index, const std::vector<std::vector<int>>& pivots,
              const std::vector<std::vector<int>>& sums,
              const std::vector<std::vector<int>>& terms, int most) {
             require(pivots.size() == 4 && sums.size() == 2 && terms.size() == 4,
                     "pivots, sums, terms: not 4, 2 and 4");
             std::vector<Pivot> eliminated;
             for (std::size_t k = 0; k < pivots[0].size(); ++k) {
               eliminated.push_back({pivots[0][k], pivots[1][k], pivots[2][k], pivots[3][k]});
             }
             std::vector<std::pair<int, int>> M;
             for (std::size_t k = 0; k < sums[0].size(); ++k) M.emplace_back(sums[0][k], sums[1][k]);
             std::vector<Product> products;
             for (std::size_t k = 0; k < terms[0].size(); ++k) {
               products.push_back({terms[0][k], terms[1][k], terms[2][k], terms[3][k]});
             }
             const nb::gil_scoped_release release;
             new (self) Engine(Structure(n, m, zero, nonneg, blocks_of(soc, psd, exp, pow),
                                         std::move(P_start), std::move(P_index),
                                         std::move(A_start), std::move(A_index),
                                         std::move(eliminated), std::move(M), std::move(products),
                                         most));
           })
      .def_prop_ro("store", [](const Engine& self) { return self.structure.symbolic.store; })
      .def("solve",
           [](Engine& self, Values P, Values q, Values A, Values b, Values M, Output x, Output z,
              Output s, Numbers seconds, Bytes outcome, Integers iterations,
              const std::vector<double>& tolerances, int limit, double time, int threads) {
             const Structure& s_ = self.structure;
             const auto batch = static_cast<std::int64_t>(x.shape(0));
             const Program program = program_of(s_, P, q, A, b, M, batch);
             const Answers answers{output_of(x, s_.n, batch),   output_of(z, s_.m, batch),
                                   output_of(s, s_.m, batch),   output_of(seconds, batch),
                                   output_of(outcome, batch),   output_of(iterations, batch)};
             require(tolerances.size() == 3, "tolerances: not three");
             const Settings settings{tolerances[0], tolerances[1], tolerances[2], limit};
             without_gil(batch, time, [&](Queue& queue) {
               self.solve(program, settings, answers, queue, threads);
             });
           },
           nb::arg("P"), nb::arg("q"), nb::arg("A"), nb::arg("b"), nb::arg("M"),
           nb::arg("x").noconvert(), nb::arg("z").noconvert(), nb::arg("s").noconvert(),
           nb::arg("seconds").noconvert(), nb::arg("outcome").noconvert(),
           nb::arg("iterations").noconvert(), nb::arg("tolerances"), nb::arg("limit"),
           nb::arg("time"), nb::arg("threads"))
      .def("polish",
           [](Engine& self, Values P, Values q, Values A, Values b, Values M, Output x, Output z,
              Output s, Numbers residual, int threads) {
             const Structure& s_ = self.structure;
             const auto batch = static_cast<std::int64_t>(x.shape(0));
             const Program program = program_of(s_, P, q, A, b, M, batch);
             double *of_x = output_of(x, s_.n, batch), *of_z = output_of(z, s_.m, batch),
                    *of_s = output_of(s, s_.m, batch), *of_residual = output_of(residual, batch);
             without_gil(batch, -1.0, [&](Queue& queue) {
               self.polish(program, of_x, of_z, of_s, of_residual, queue, threads);
             });
           },
           nb::arg("P"), nb::arg("q"), nb::arg("A"), nb::arg("b"), nb::arg("M"),
           nb::arg("x").noconvert(), nb::arg("z").noconvert(), nb::arg("s").noconvert(),
           nb::arg("residual").noconvert(), nb::arg("threads"))
      .def("newton",
           [](Engine& self, Values P, Values A, Values M, Values x, Values z, Values s, Values r1,
              std::optional<Values> r2, Output u, Output v, Numbers residual,
              int threads) {
             const Structure& s_ = self.structure;
             const auto batch = static_cast<std::int64_t>(u.shape(0));
             Program program;
             program.P = rows_of(P, s_.P_entries(), batch);
             program.A = rows_of(A, s_.A_entries(), batch);
             program.M = products_of(s_, M, batch);
             program.batch = batch;
             const Points points{rows_of(x, s_.n, batch), rows_of(z, s_.m, batch),
                                 rows_of(s, s_.m, batch)};
             const Rows of_r1 = rows_of(r1, s_.n, batch);
             const Rows of_r2 = r2 ? rows_of(*r2, s_.m, batch) : Rows{};
             double *of_u = output_of(u, s_.n, batch), *of_v = output_of(v, s_.m, batch),
                    *of_residual = output_of(residual, batch);
             without_gil(batch, -1.0, [&](Queue& queue) {
               self.newton(program, points, of_r1, of_r2, of_u, of_v, of_residual, queue, threads);
             });
           },
           nb::arg("P"), nb::arg("A"), nb::arg("M"), nb::arg("x"), nb::arg("z"),
           nb::arg("s"), nb::arg("r1"), nb::arg("r2").none(), nb::arg("u").noconvert(),
           nb::arg("v").noconvert(), nb::arg("residual").noconvert(), nb::arg("threads"));
}
