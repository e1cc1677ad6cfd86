// The Python module dllama_gpu.cpu._native. Memory belongs to NumPy arrays that dllama_gpu/cpu/program.py keeps alive;
// what is checked here are the sizes that a mistake there would turn into a stray pointer.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bandwidth.hpp"
#include "bus_error.hpp"
#include "cpu_features.hpp"
#include "ops.hpp"
#include "packing.hpp"
#include "program.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace dllama {

namespace {

using Bytes = py::array_t<uint8_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Ints = py::array_t<int32_t, py::array::c_style>;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

const KernelTable& kernels_named(const std::string& name) {
  for (const KernelTable* table : usable_kernels())
    if (name == table->name) return *table;
  throw std::invalid_argument("this processor cannot run the kernels '" + name + "'");
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const KernelTable* table : usable_kernels()) names.emplace_back(table->name);
  return names;
}

// `between` bytes from the end of a group to the start of the next.
PackedWeight make_packed_weight(const Bytes& data, WeightType type, int n_rows, int n_columns, size_t between) {
  require(n_rows > 0 && n_columns > 0 && row_bytes(type, n_columns) > 0, "a weight needs whole blocks of columns");
  require(between % 64 == 0, "groups must begin at cache lines");
  PackedWeight weight = packed_layout(type, n_rows, n_columns);
  weight.group_stride += between;
  require(static_cast<size_t>(data.nbytes()) >= packed_bytes(weight) - between,
          "the array is too small for the packed weight");
  weight.data = data.data();
  return weight;
}

PackedExperts make_packed_experts(const Bytes& data, WeightType type, int n_experts, int n_rows, int n_columns) {
  require(n_experts > 0, "there must be an expert");
  PackedExperts experts;
  experts.first = make_packed_weight(data, type, n_rows, n_columns, 0);
  experts.n = n_experts;
  experts.stride = packed_bytes(experts.first);
  require(static_cast<size_t>(data.nbytes()) / experts.stride >= static_cast<size_t>(n_experts),
          "the array is too small for the packed experts");
  return experts;
}

RowSource make_row_source(const py::array& rows, WeightType type, int n_columns) {
  require(rows.ndim() == 2 && rows.itemsize() == 1 && rows.strides(1) == 1, "rows must be bytes [n_rows, row_bytes]");
  require(static_cast<size_t>(rows.shape(1)) == row_bytes(type, n_columns), "rows have the wrong number of bytes");
  RowSource source;
  source.weight = {type, static_cast<int>(rows.shape(0)), n_columns, nullptr, 0};
  source.row_major = static_cast<const uint8_t*>(rows.data());
  source.row_stride = static_cast<size_t>(rows.strides(0));
  return source;
}

// pack_rows with the GIL released, the groups of 16 rows shared out among the pool's threads.
int pack(ThreadPool& pool, Bytes data, WeightType type, int n_rows, int n_columns, const py::array& source,
         int first_row, size_t between) {
  const PackedWeight weight = make_packed_weight(data, type, n_rows, n_columns, between);
  const RowSource rows = make_row_source(source, type, n_columns);
  const int count = rows.weight.n_rows;
  require(first_row >= 0 && first_row + count <= n_rows, "rows do not fit the packed weight");
  uint8_t* to = data.mutable_data();
  py::gil_scoped_release unlocked;
  std::atomic<int> next{0}, first_bad{count};
  constexpr int kStep = 4 * kGroupRows;
  pool.run([&](int) {
    for (int row; (row = next.fetch_add(kStep)) < count;) {
      const int n = count - row < kStep ? count - row : kStep;
      const uint8_t* from = rows.row_major + row * rows.row_stride;
      const int bad = pack_rows(weight, to, from, rows.row_stride, first_row + row, n);
      int lowest = first_bad.load();
      while (bad >= 0 && row + bad < lowest && !first_bad.compare_exchange_weak(lowest, row + bad)) {
      }
    }
  });
  return first_bad < count ? first_bad.load() : -1;
}

double read_rate_of(ThreadPool& pool, const py::array_t<uint64_t, py::array::c_style>& words) {
  require(words.size() > 0, "there is nothing to read");
  const uint64_t* data = words.data();
  const auto n_words = static_cast<size_t>(words.size());
  py::gil_scoped_release unlocked;
  return read_rate(pool, data, n_words);
}

// Bytes of a Q80 buffer: quants, then three 4-byte numbers a block.
size_t q80_bytes(int rows, int width) {
  const size_t blocks = static_cast<size_t>(rows) * (width / kBlock);
  return blocks * (kBlock + 3 * 4);
}

ActivationBuffer f32_buffer(Floats array, bool logit_rows_only) {
  require(array.ndim() == 2, "an f32 buffer is [rows, width]");
  ActivationBuffer buffer;
  buffer.width = static_cast<int>(array.shape(1));
  buffer.logit_rows_only = logit_rows_only;
  buffer.f32 = array.mutable_data();
  return buffer;
}

ActivationBuffer i32_buffer(Ints array, bool logit_rows_only) {
  require(array.ndim() == 2, "an i32 buffer is [rows, width]");
  ActivationBuffer buffer;
  buffer.width = static_cast<int>(array.shape(1));
  buffer.logit_rows_only = logit_rows_only;
  buffer.i32 = array.mutable_data();
  return buffer;
}

ActivationBuffer q80_buffer(Bytes array, int max_rows, int width, bool logit_rows_only) {
  require(width > 0 && width % kBlock == 0, "a Q80 buffer's width must be a multiple of 32");
  require(static_cast<size_t>(array.nbytes()) >= q80_bytes(max_rows, width), "the array is too small for the buffer");
  const size_t elements = static_cast<size_t>(max_rows) * width, blocks = elements / kBlock;
  uint8_t* data = array.mutable_data();
  ActivationBuffer buffer;
  buffer.width = width;
  buffer.logit_rows_only = logit_rows_only;
  buffer.q80.width = width;
  buffer.q80.quants = reinterpret_cast<int8_t*>(data);
  buffer.q80.scales = reinterpret_cast<float*>(data + elements);
  buffer.q80.sums_times_minus8 = reinterpret_cast<int32_t*>(data + elements + 4 * blocks);
  buffer.q80.scaled_sums = reinterpret_cast<float*>(data + elements + 8 * blocks);
  return buffer;
}

// The first n_rows rows of a Q80 buffer that was written by a step of that many rows, as f32 [n_rows, width].
Floats read_q80(const ActivationBuffer& buffer, int n_rows) {
  require(buffer.q80.quants != nullptr, "not a Q80 buffer");
  Floats out({n_rows, buffer.width});
  auto rows = out.mutable_unchecked<2>();
  for (int r = 0; r < n_rows; r++)
    for (int k = 0; k < buffer.width; k++) {
      const size_t index = q80_index(buffer.q80, r, k / kBlock, n_rows);
      rows(r, k) = static_cast<float>(buffer.q80.quants[index * kBlock + k % kBlock]) * buffer.q80.scales[index];
    }
  return out;
}

// Bytes of keys (or of values): elements, then the scales of Q80.
size_t kv_cache_bytes(const KvCache& cache) {
  const size_t scales = cache.type == CacheType::Q80 ? cache.elements() / kBlock * sizeof(float) : 0;
  return cache.elements() * cache.element_bytes() + scales;
}

KvCache describe_kv_cache(CacheType type, int n_slots, int n_kv_heads, int seq_len, int head_dim) {
  require(n_slots > 0 && n_kv_heads > 0 && seq_len > 0 && seq_len % 16 == 0, "seq_len must be a multiple of 16");
  require(head_dim > 0 && head_dim % 2 == 0 && head_dim <= kMaxHeadDim, "head_dim must be even and at most 512");
  require(type != CacheType::Q80 || head_dim % kBlock == 0, "the head_dim of a Q80 cache must be a multiple of 32");
  KvCache cache;
  cache.type = type;
  cache.n_slots = n_slots;
  cache.n_kv_heads = n_kv_heads;
  cache.seq_len = seq_len;
  cache.head_dim = head_dim;
  cache.padded_head_dim = (head_dim + 15) / 16 * 16;
  return cache;
}

KvCache make_kv_cache(Bytes keys, Bytes values, CacheType type, int n_slots, int n_kv_heads, int seq_len,
                      int head_dim) {
  KvCache cache = describe_kv_cache(type, n_slots, n_kv_heads, seq_len, head_dim);
  const size_t bytes = kv_cache_bytes(cache), elements = cache.elements() * cache.element_bytes();
  require(static_cast<size_t>(keys.nbytes()) >= bytes && static_cast<size_t>(values.nbytes()) >= bytes,
          "the arrays are too small for the cache");
  cache.keys = keys.mutable_data();
  cache.values = values.mutable_data();
  cache.key_scales = reinterpret_cast<float*>(cache.keys + elements);
  cache.value_scales = reinterpret_cast<float*>(cache.values + elements);
  return cache;
}

struct StepArrays {
  Ints tokens, slots, positions, logit_rows;
  Floats temperatures;
  const Program* program;  // that has found it sound

  Step step_of(const Program& asking) const {
    require(program == &asking, "the step was made for another program");
    return step();
  }
  Step step() const {
    Step step;
    step.n_rows = static_cast<int>(tokens.size());
    step.n_logit_rows = static_cast<int>(logit_rows.size());
    step.tokens = tokens.data();
    step.slots = slots.data();
    step.positions = positions.data();
    step.logit_rows = logit_rows.data();
    step.temperatures = temperatures.data();
    return step;
  }
};

StepArrays make_step(const Program& program, Ints tokens, Ints slots, Ints positions, Ints logit_rows,
                     Floats temperatures) {
  StepArrays arrays{std::move(tokens),     std::move(slots),        std::move(positions),
                    std::move(logit_rows), std::move(temperatures), &program};
  const auto n_rows = arrays.tokens.size();
  require(arrays.slots.size() == n_rows && arrays.positions.size() == n_rows &&
              arrays.temperatures.size() == arrays.logit_rows.size() && is_sound(arrays.step(), program.sizes()),
          "the step's rows do not fit the program");
  return arrays;
}

void run(Program& program, const StepArrays& arrays, size_t begin, size_t end) {
  const Step step = arrays.step_of(program);
  require(begin <= end && end <= program.n_ops(), "ops out of range");
  py::gil_scoped_release unlocked;
  program.run(step, begin, end);
}

void run_timed(Program& program, const StepArrays& arrays, size_t begin, size_t end,
               py::array_t<double, py::array::c_style> seconds) {
  const Step step = arrays.step_of(program);
  require(begin <= end && end <= program.n_ops(), "ops out of range");
  require(static_cast<size_t>(seconds.size()) == program.n_ops(), "one number an op");
  double* to = seconds.mutable_data();
  py::gil_scoped_release unlocked;
  program.run_timed(step, begin, end, to);
}

void add_rms_norm(Program& program, const ActivationBuffer& x, const ActivationBuffer* add, const Floats& weight,
                  const ActivationBuffer& out, float epsilon) {
  require(x.f32 && x.width == out.width && weight.size() == x.width, "widths of an RMS norm differ");
  require(!add || (add->f32 && add->width == x.width), "widths of an RMS norm differ");
  program.add(make_rms_norm(program.kernels(), x, add ? *add : ActivationBuffer{}, weight.data(), out, epsilon));
}

std::unique_ptr<Op> matmul_of(const Program& program, const ActivationBuffer& x, const PackedWeight& weight,
                              const ActivationBuffer& out, int out_column) {
  require(x.width == weight.n_columns && out.f32 && out_column >= 0 && out_column + weight.n_rows <= out.width,
          "shapes of a matmul differ");
  return make_matmul(program.kernels(), x, weight, out, out_column);
}

void add_matmul(Program& program, const ActivationBuffer& x, const PackedWeight& weight, const ActivationBuffer& out,
                int out_column) {
  program.add(matmul_of(program, x, weight, out, out_column));
}

void add_gated_matmul(Program& program, const ActivationBuffer& x, const PackedWeight& gate, const PackedWeight& up,
                      const ActivationBuffer& out, bool gelu) {
  require(x.width == gate.n_columns && x.width == up.n_columns && gate.n_rows == up.n_rows && out.width == gate.n_rows,
          "shapes of a gated matmul differ");
  program.add(make_gated_matmul(program.kernels(), x, gate, up, out, gelu, program.sizes().max_rows));
}

// The `i`-th of some vectors, of `size` elements, or null where there are none.
const float* vector_at(const std::vector<Floats>& vectors, size_t i, int size) {
  if (vectors.empty()) return nullptr;
  require(i < vectors.size() && vectors[i].size() == size, "a bias or norm has the wrong size");
  return vectors[i].data();
}

void add_rope_store(Program& program, const ActivationBuffer& qkv, const ActivationBuffer* angles,
                    const KvCache& cache, int n_heads, bool half_split, const std::vector<Floats>& biases,
                    const std::vector<Floats>& norms, float epsilon) {
  require(qkv.f32 && qkv.width == (n_heads + 2 * cache.n_kv_heads) * cache.head_dim &&
              (!angles || (angles->f32 && angles->width == cache.head_dim)),
          "shapes of a rotation differ");
  const int q_width = n_heads * cache.head_dim, kv_width = cache.n_kv_heads * cache.head_dim;
  const HeadPreparation preparation{vector_at(biases, 0, q_width),       vector_at(biases, 1, kv_width),
                                    vector_at(biases, 2, kv_width),      vector_at(norms, 0, cache.head_dim),
                                    vector_at(norms, 1, cache.head_dim), epsilon};
  const ActivationBuffer none{};
  program.add(
      make_rope_store(program.kernels(), qkv, angles ? *angles : none, cache, n_heads, half_split, preparation));
}

// AttentionWork is known to its own file only.
struct AttentionWorkHandle {
  std::shared_ptr<AttentionWork> work;
};

void add_attention(Program& program, const ActivationBuffer& qkv, const KvCache& cache, const ActivationBuffer& out,
                   int n_heads, int group, int first_head, int window, float scale,
                   const AttentionWorkHandle& handle) {
  const std::shared_ptr<AttentionWork>& work = handle.work;
  require(qkv.f32 && group > 0 && group <= 256 && first_head >= 0 && window >= 0 &&
              (first_head + n_heads - 1) / group < cache.n_kv_heads && out.width == n_heads * cache.head_dim,
          "shapes of an attention differ");
  const QueryHeads heads{n_heads, group, first_head, window};
  program.add(make_attention_chunks(program.kernels(), qkv, cache, out, heads, scale, work));
  program.add(make_attention_join(program.kernels(), cache, heads, out, work));
}

// ExpertWork is known to its own file only.
struct ExpertWorkHandle {
  std::shared_ptr<ExpertWork> work;
  int k, first_expert, n_experts;
};

void add_top_experts(Program& program, const ActivationBuffer& logits, const ActivationBuffer& ids,
                     const ActivationBuffer& weights, bool normalize) {
  require(logits.f32 && ids.i32 && weights.f32 && ids.width == weights.width && ids.width <= logits.width,
          "shapes of a choice of experts differ");
  program.add(make_top_experts(program.kernels(), logits, ids, weights, normalize));
}

void add_expert_sort(Program& program, const ActivationBuffer& ids, const ExpertWorkHandle& handle) {
  require(ids.i32 && ids.width == handle.k, "shapes of a choice of experts differ");
  program.add(make_expert_sort(ids, handle.work));
}

void add_expert_gated_matmul(Program& program, const ActivationBuffer& x, const PackedExperts& gate,
                             const PackedExperts& up, const ActivationBuffer& out, bool gelu,
                             const ExpertWorkHandle& handle) {
  require(x.width == gate.first.n_columns && x.width == up.first.n_columns && gate.n == handle.n_experts &&
              up.n == gate.n && gate.first.n_rows == up.first.n_rows && out.width == handle.k * gate.first.n_rows &&
              (out.f32 || gate.first.n_rows % kBlock == 0),
          "shapes of the experts' gated matmul differ");
  if (program.sizes().max_rows > 1) program.add(make_expert_inputs(x, handle.work));
  program.add(make_expert_gated_matmul(program.kernels(), x, gate, up, out, gelu, handle.work));
}

void add_expert_matmul(Program& program, const ActivationBuffer& x, const ActivationBuffer& weights,
                       const PackedExperts& down, const ActivationBuffer& out, const ExpertWorkHandle& handle) {
  require(x.width == handle.k * down.first.n_columns && down.n == handle.n_experts && weights.f32 &&
              weights.width == handle.k && out.f32 && out.width == down.first.n_rows,
          "shapes of the experts' matmul differ");
  program.add(make_expert_matmul(program.kernels(), x, down, handle.work));
  program.add(make_expert_sum(weights, out, handle.work));
}

void add_top_candidates(Program& program, const ActivationBuffer& logits, const ActivationBuffer& values,
                        const ActivationBuffer& ids, const ActivationBuffer& log_sum_exp, int first_id,
                        const ActivationBuffer* x, const PackedWeight* head) {
  require(logits.f32 && values.f32 && ids.i32 && log_sum_exp.f32 && values.width == ids.width &&
              values.width <= logits.width && log_sum_exp.width == 1 && logits.logit_rows_only,
          "shapes of a candidate search differ");
  require((x == nullptr) == (head == nullptr) && (!head || head->n_rows == logits.width),
          "a survey that makes the logits needs what they are made of");
  auto work = make_candidate_work(program.sizes().max_logit_rows, logits.width);
  auto matmul = head ? matmul_of(program, *x, *head, logits, 0) : nullptr;
  program.add(make_candidate_survey(program.kernels(), logits, work, std::move(matmul)));
  program.add(make_candidate_search(program.kernels(), logits, values, ids, log_sum_exp, first_id, work));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native kernels, thread pool and op list of the CPU device.";
  m.def("kernel_names", &kernel_names, "Kernel tables this processor can run, best first.");
  m.def("explain_bus_error", &explain_bus_error, "sentence"_a, "What to say before SIGBUS ends the process.");
  m.def("cpu_features", &cpu_features, "Instruction set extensions found.");
  m.def("q80_bytes", &q80_bytes, "rows"_a, "width"_a, "Bytes of a Q80 buffer.");

  py::enum_<WeightType>(m, "WeightType")
      .value("F32", WeightType::F32)
      .value("F16", WeightType::F16)
      .value("BF16", WeightType::BF16)
      .value("Q40", WeightType::Q40)
      .value("Q41", WeightType::Q41)
      .value("Q80", WeightType::Q80);

  py::class_<ThreadPool, std::shared_ptr<ThreadPool>>(m, "ThreadPool")
      .def(py::init<int, bool>(), "n_threads"_a, "pin"_a, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("n_threads", &ThreadPool::n_threads);

  m.def("read_rate", &read_rate_of, "pool"_a, "words"_a, "Bytes per second of one pass that reads a uint64 array.");

  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init(&make_packed_weight), "data"_a.noconvert(), "type"_a, "n_rows"_a, "n_columns"_a, "between"_a = 0);
  py::class_<PackedExperts>(m, "PackedExperts")
      .def(py::init(&make_packed_experts), "data"_a.noconvert(), "type"_a, "n_experts"_a, "n_rows"_a, "n_columns"_a);
  py::class_<RowSource>(m, "RowSource")
      .def(py::init(&make_row_source), "rows"_a, "type"_a, "n_columns"_a)
      .def(py::init([](const PackedWeight& weight) { return RowSource{weight, nullptr, 0}; }), "weight"_a);
  m.def(
      "packed_bytes",
      [](WeightType type, int n_rows, int n_columns) { return packed_bytes(packed_layout(type, n_rows, n_columns)); },
      "type"_a, "n_rows"_a, "n_columns"_a, "Bytes of a packed weight.");
  m.def("pack", &pack, "pool"_a, "data"_a.noconvert(), "type"_a, "n_rows"_a, "n_columns"_a, "source"_a, "first_row"_a,
        "between"_a = 0,
        "Packs row-major rows [n, row_bytes] into rows first_row.. of a packed weight whose memory was zero. Returns the "
        "first row that holds NaN or infinity, or -1.");

  py::class_<ActivationBuffer>(m, "ActivationBuffer").def_readonly("width", &ActivationBuffer::width);
  m.def("f32_buffer", &f32_buffer, "array"_a.noconvert(), "logit_rows_only"_a);
  m.def("i32_buffer", &i32_buffer, "array"_a.noconvert(), "logit_rows_only"_a);
  m.def("q80_buffer", &q80_buffer, "array"_a.noconvert(), "max_rows"_a, "width"_a, "logit_rows_only"_a);
  m.def("read_q80", &read_q80, "buffer"_a, "n_rows"_a, "Rows of a Q80 buffer as f32 [n_rows, width].");
  py::enum_<CacheType>(m, "CacheType")
      .value("F16", CacheType::F16)
      .value("Q80", CacheType::Q80)
      .value("F32", CacheType::F32);
  m.def(
      "kv_cache_bytes",
      [](CacheType type, int n_slots, int n_kv_heads, int seq_len, int head_dim) {
        return kv_cache_bytes(describe_kv_cache(type, n_slots, n_kv_heads, seq_len, head_dim));
      },
      "type"_a, "n_slots"_a, "n_kv_heads"_a, "seq_len"_a, "head_dim"_a, "Bytes of the keys, or values, of a cache.");
  py::class_<KvCache>(m, "KvCache")
      .def(py::init(&make_kv_cache), "keys"_a.noconvert(), "values"_a.noconvert(), "type"_a, "n_slots"_a,
           "n_kv_heads"_a, "seq_len"_a, "head_dim"_a);
  py::class_<ExpertWorkHandle>(m, "ExpertWork")
      .def(py::init([](int max_rows, int k, int first_expert, int n_experts) {
             require(max_rows > 0 && k > 0 && n_experts > 0, "an expert work needs sizes above 0");
             return ExpertWorkHandle{make_expert_work(max_rows, k, first_expert, n_experts), k, first_expert,
                                     n_experts};
           }),
           "max_rows"_a, "k"_a, "first_expert"_a, "n_experts"_a);
  py::class_<AttentionWorkHandle>(m, "AttentionWork")
      .def(py::init([](int max_rows, int n_heads, int padded_head_dim, int seq_len) {
             return AttentionWorkHandle{make_attention_work(max_rows, n_heads, padded_head_dim, seq_len)};
           }),
           "max_rows"_a, "n_heads"_a, "padded_head_dim"_a, "seq_len"_a);

  py::class_<StepArrays>(m, "Step");

  py::class_<Program>(m, "Program")
      .def(py::init([](std::shared_ptr<ThreadPool> pool, const std::string& kernels, int max_rows, int max_logit_rows,
                       int vocab_size, int n_slots, int seq_len) {
             return std::make_unique<Program>(std::move(pool), kernels_named(kernels),
                                              Sizes{max_rows, max_logit_rows, vocab_size, n_slots, seq_len});
           }),
           "pool"_a, "kernels"_a, "max_rows"_a, "max_logit_rows"_a, "vocab_size"_a, "n_slots"_a, "seq_len"_a)
      .def("step", &make_step, "tokens"_a.noconvert(), "slots"_a.noconvert(), "positions"_a.noconvert(),
           "logit_rows"_a.noconvert(), "temperatures"_a.noconvert(),
           "Rows of one step, held against the program's sizes: ValueError when they do not fit. For this program only.")
      .def("add_embed",
           [](Program& program, const RowSource& weight, const ActivationBuffer& out, float scale) {
             require(out.f32 && out.width == weight.weight.n_columns, "shapes of an embedding differ");
             program.add(make_embed(weight, out, scale));
           },
           "weight"_a, "out"_a, "scale"_a)
      .def("add_rope_angles",
           [](Program& program, std::vector<double> frequencies, const ActivationBuffer& out, double scale) {
             require(out.f32 && static_cast<size_t>(out.width) == 2 * frequencies.size(), "shapes of angles differ");
             program.add(make_rope_angles(std::move(frequencies), out, scale));
           },
           "frequencies"_a, "out"_a, "scale"_a)
      .def("add_rms_norm", &add_rms_norm, "x"_a, "add"_a.none(true), "weight"_a.noconvert(), "out"_a, "epsilon"_a)
      .def("add_matmul", &add_matmul, "x"_a, "weight"_a, "out"_a, "out_column"_a)
      .def("add_gated_matmul", &add_gated_matmul, "x"_a, "gate"_a, "up"_a, "out"_a, "gelu"_a)
      .def("add_rope_store", &add_rope_store, "qkv"_a, "angles"_a.none(true), "cache"_a, "n_heads"_a, "half_split"_a,
           "biases"_a, "norms"_a, "epsilon"_a)
      .def("add_attention", &add_attention, "qkv"_a, "cache"_a, "out"_a, "n_heads"_a, "group"_a, "first_head"_a,
           "window"_a, "scale"_a, "work"_a)
      .def("add_top_experts", &add_top_experts, "logits"_a, "ids"_a, "weights"_a, "normalize"_a)
      .def("add_expert_sort", &add_expert_sort, "ids"_a, "work"_a)
      .def("add_expert_gated_matmul", &add_expert_gated_matmul, "x"_a, "gate"_a, "up"_a, "out"_a, "gelu"_a, "work"_a)
      .def("add_expert_matmul", &add_expert_matmul, "x"_a, "weights"_a, "down"_a, "out"_a, "work"_a)
      .def("add_top_candidates", &add_top_candidates, "logits"_a, "values"_a, "ids"_a, "log_sum_exp"_a, "first_id"_a,
           "x"_a = nullptr, "head"_a = nullptr, "`x` and `head`: of the matmul that makes the logits; None: they are there.")
      .def_property_readonly("n_ops", &Program::n_ops)
      .def("streams_weights", &Program::streams_weights, "op"_a)
      .def("run", &run, "step"_a, "begin"_a, "end"_a)
      .def("run_timed", &run_timed, "step"_a, "begin"_a, "end"_a, "seconds"_a.noconvert());
}

}  // namespace dllama
