// Runs single kernels on given inputs, for tests that have no Python on the target (a cross build under an emulator).
//
//   kernel_check                          prints the kernel tables this processor can run, best first
//   kernel_check TABLE REQUESTS RESULTS   answers the requests of one file into another
//
// A request is a line of words, then its inputs as raw little-endian arrays; its results are written raw, one array
// after the other. f16 is passed as its bits; weights (`raw`) as rows of a model file. Guards are elements next to a
// result that the kernel must leave at 12345.
//
//   request line                                   inputs                              results
//   matmul_q80 TYPE n_rows n_columns n_tokens      raw [n_rows], x f32 [n_tokens]      Q80 of x, out [n_tokens]
//                                                    [n_columns]                         [n_rows + 3 guards]
//   matmul_f32 TYPE n_rows n_columns n_tokens      the same                            out
//   rms_norm FORM width n_rows has_add epsilon     x [n_rows][width], add if has_add,  x, out
//                                                    weight [width]
//   store_row FORM width n_rows                    x [n_rows][width]                   out
//   silu_mul n, gelu_mul n                         gate [n], up [n]                    out [n + 1 guard]
//   f32_to_f16 n                                   x [n]                               bits u16 [n + 1 guard]
//   attention CACHE head_dim seq_len n_queries     queries [n_queries][head_dim],      out [n_queries][head_dim]
//                                                    keys, values [seq_len][head_dim],
//                                                    begins, ends i32 [n_queries]
//   top_experts n k normalize                      logits [n]                          ids i32 [k], weights [k]
//   candidates n first_id k scale                  logits [n]                          count i32, values [k], ids i32
//                                                                                        [k], log_sum_exp
//
// CACHE is a number of enum CacheType. FORM is f32, or q80: quants int8 [n_rows][width], then scales, sums times -8 (i32) and scaled sums [n_rows][width/32].

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "cpu_features.hpp"
#include "kernel_table.hpp"
#include "packing.hpp"
#include "program.hpp"

namespace {

using namespace dllama;

constexpr float kGuard = 12345;
constexpr uint16_t kF16Nan = 0x7E00;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "kernel_check: %s\n", message.c_str());
  std::exit(2);
}

class Request {
 public:
  Request(std::istream& in, const std::string& line) : in_(in), line_(line), words_(line) {}

  template <class T>
  T word() {
    T value;
    if (!(words_ >> value)) fail("a word is missing or malformed in: " + line_);
    return value;
  }

  template <class T = float>
  std::vector<T> array(size_t n) {
    std::vector<T> values(n);
    const auto bytes = static_cast<std::streamsize>(n * sizeof(T));
    if (!in_.read(reinterpret_cast<char*>(values.data()), bytes)) fail("the file ends inside the inputs of: " + line_);
    return values;
  }

 private:
  std::istream& in_;
  std::string line_;
  std::istringstream words_;
};

class Results {
 public:
  explicit Results(const std::string& path) : out_(path, std::ios::binary) {}

  template <class T>
  void write(const std::vector<T>& values) {
    out_.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  }
  template <class T>
  void write_one(T value) {
    write(std::vector<T>{value});
  }
  bool close() {
    out_.close();
    return !out_.fail();
  }

 private:
  std::ofstream out_;
};

// Rows of activations with their own memory, in either form.
class Activations {
 public:
  Activations(bool quantized, int n_rows, int width) : n_rows_(n_rows), width_(width), quantized_(quantized) {
    const size_t n = static_cast<size_t>(n_rows) * width;
    if (!quantized) {
      f32_.resize(n);
      return;
    }
    quants_.resize(n);
    scales_.resize(n / kBlock);
    sums_times_minus8_.resize(n / kBlock);
    scaled_sums_.resize(n / kBlock);
  }

  Q80Rows q80() { return {width_, quants_.data(), scales_.data(), sums_times_minus8_.data(), scaled_sums_.data()}; }
  RowOutput output() { return {quantized_ ? nullptr : f32_.data(), q80(), width_, n_rows_}; }

  void write(Results& results) {
    if (!quantized_) return results.write(f32_);
    std::vector<size_t> order;  // of blocks, row by row
    for (int row = 0; row < n_rows_; row++)
      for (int b = 0; b < width_ / kBlock; b++) order.push_back(q80_index(q80(), row, b, n_rows_));
    for (const size_t i : order) results.write(std::vector<int8_t>(&quants_[i * kBlock], &quants_[i * kBlock] + kBlock));
    for (const size_t i : order) results.write_one(scales_[i]);
    for (const size_t i : order) results.write_one(sums_times_minus8_[i]);
    for (const size_t i : order) results.write_one(scaled_sums_[i]);
  }

 private:
  int n_rows_, width_;
  bool quantized_;
  std::vector<float> f32_, scales_, scaled_sums_;
  std::vector<int8_t> quants_;
  std::vector<int32_t> sums_times_minus8_;
};

bool is_q80(const std::string& form) {
  if (form != "f32" && form != "q80") fail("unknown form " + form);
  return form == "q80";
}

WeightType weight_type(const std::string& name) {
  const char* const names[kWeightTypes] = {"f32", "f16", "bf16", "q40", "q41", "q80"};
  for (int i = 0; i < kWeightTypes; i++)
    if (name == names[i]) return static_cast<WeightType>(i);
  fail("unknown weight type " + name);
}

// In two calls, as threads share the work.
void matmul(const KernelTable& kernels, bool quantized, Request& request, Results& results) {
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  const WeightType type = weight_type(request.word<std::string>());
  const int n_rows = request.word<int>(), n_columns = request.word<int>(), n_tokens = request.word<int>();
  const size_t stride = row_bytes(type, n_columns);
  const std::vector<uint8_t> raw = request.array<uint8_t>(n_rows * stride);
  const std::vector<float> x = request.array(static_cast<size_t>(n_tokens) * n_columns);

  PackedWeight weight = packed_layout(type, n_rows, n_columns);
  std::vector<Line> packed(packed_bytes(weight) / sizeof(Line));
  auto* data = reinterpret_cast<uint8_t*>(packed.data());
  pack_rows(weight, data, raw.data(), stride, 0, n_rows);
  weight.data = data;

  Activations quants(quantized, n_tokens, quantized ? n_columns : 0);
  if (quantized) {
    for (int t = 0; t < n_tokens; t++)
      kernels.store_row(&x[static_cast<size_t>(t) * n_columns], n_columns, quants.output(), t, 0);
    quants.write(results);
  }
  const auto kernel = (quantized ? kernels.matmul_q80 : kernels.matmul_f32)[static_cast<int>(type)];
  if (!kernel) fail("the table has no such matmul");
  const size_t out_stride = n_rows + 3;
  std::vector<float> out(n_tokens * out_stride, kGuard);
  const MatmulArgs args{weight,   quantized ? nullptr : x.data(), static_cast<size_t>(n_columns), quants.q80(),
                        n_tokens, out.data(),                     out_stride};
  const int n_groups = (n_rows + kGroupRows - 1) / kGroupRows;
  kernel(args, n_groups / 2, n_groups);
  kernel(args, 0, n_groups / 2);
  results.write(out);
}

void rms_norm(const KernelTable& kernels, Request& request, Results& results) {
  const bool quantized = is_q80(request.word<std::string>());
  const int width = request.word<int>(), n_rows = request.word<int>();
  const bool has_add = request.word<int>() != 0;
  const auto epsilon = request.word<float>();
  const size_t n = static_cast<size_t>(n_rows) * width;
  std::vector<float> x = request.array(n);
  const std::vector<float> add = request.array(has_add ? n : 0), weight = request.array(width);
  Activations out(quantized, n_rows, width);
  for (int row = 0; row < n_rows; row++) {
    const size_t start = static_cast<size_t>(row) * width;
    kernels.rms_norm(&x[start], has_add ? &add[start] : nullptr, weight.data(), epsilon, width, out.output(), row);
  }
  results.write(x);
  out.write(results);
}

// Each row in two pieces, the last row first.
void store_row(const KernelTable& kernels, Request& request, Results& results) {
  const bool quantized = is_q80(request.word<std::string>());
  const int width = request.word<int>(), n_rows = request.word<int>();
  const std::vector<float> x = request.array(static_cast<size_t>(n_rows) * width);
  Activations out(quantized, n_rows, width);
  const int middle = width / 2 / kBlock * kBlock;
  for (int row = n_rows - 1; row >= 0; row--) {
    const float* from = &x[static_cast<size_t>(row) * width];
    kernels.store_row(from + middle, width - middle, out.output(), row, middle);
    kernels.store_row(from, middle, out.output(), row, 0);
  }
  out.write(results);
}

void activation_mul(void (*kernel)(float*, const float*, int), Request& request, Results& results) {
  const int n = request.word<int>();
  std::vector<float> gate = request.array(n);
  const std::vector<float> up = request.array(n);
  gate.push_back(kGuard);
  kernel(gate.data(), up.data(), n);
  results.write(gate);
}

void f32_to_f16(const KernelTable& kernels, Request& request, Results& results) {
  const int n = request.word<int>();
  const std::vector<float> x = request.array(n);
  std::vector<uint16_t> bits(n + 1, static_cast<uint16_t>(kGuard));
  kernels.f32_to_f16(x.data(), bits.data(), n);
  results.write(bits);
}

// The cache of one KV head, filled through KvCache::store. What no query may look at is NaN, as far as it can be.
struct OneHead {
  KvCache cache;
  std::vector<uint8_t> keys, values;
  std::vector<float> key_scales, value_scales;

  OneHead(CacheType type, int seq_len, int head_dim) {
    cache.type = type;
    cache.n_slots = cache.n_kv_heads = 1;
    cache.seq_len = (seq_len + 15) / 16 * 16;
    cache.head_dim = head_dim;
    cache.padded_head_dim = (head_dim + 15) / 16 * 16;
    const size_t n = cache.elements();
    keys.resize(n * cache.element_bytes());
    if (type == CacheType::F16) std::fill_n(reinterpret_cast<uint16_t*>(keys.data()), n, kF16Nan);
    if (type == CacheType::F32) std::fill_n(reinterpret_cast<float*>(keys.data()), n, kNan);
    values = keys;
    key_scales.assign(n / kBlock, kNan);
    value_scales = key_scales;
    cache.keys = keys.data(), cache.values = values.data();
    cache.key_scales = key_scales.data(), cache.value_scales = value_scales.data();
  }

  void store(const KernelTable& kernels, int position, const float* key, const float* value) {
    // Elements between head_dim and the padding are zero in a real cache.
    for (int d = cache.head_dim; d < cache.padded_head_dim; d++) {
      const size_t width = cache.padded_head_dim, size = cache.element_bytes();
      std::memset(&keys[((position / 16 * width + d) * 16 + position % 16) * size], 0, size);
      std::memset(&values[(position * width + d) * size], 0, size);
    }
    cache.store(kernels, 0, 0, position, key, value);
  }
};

// All chunks of all queries, merged and divided.
void attention(const KernelTable& kernels, Request& request, Results& results) {
  const int type = request.word<int>(), head_dim = request.word<int>(), seq_len = request.word<int>();
  const int n_queries = request.word<int>();
  const size_t n = static_cast<size_t>(seq_len) * head_dim;
  const std::vector<float> given = request.array(static_cast<size_t>(n_queries) * head_dim);
  const std::vector<float> keys = request.array(n), values = request.array(n);
  const std::vector<int> begins = request.array<int>(n_queries), ends = request.array<int>(n_queries);

  OneHead head(static_cast<CacheType>(type), seq_len, head_dim);
  for (int p = 0; p < seq_len; p++)
    head.store(kernels, p, &keys[static_cast<size_t>(p) * head_dim], &values[static_cast<size_t>(p) * head_dim]);
  const int width = head.cache.padded_head_dim;
  std::vector<float> queries(static_cast<size_t>(n_queries) * width);
  for (int q = 0; q < n_queries; q++)
    for (int d = 0; d < head_dim; d++) queries[q * width + d] = given[q * head_dim + d];

  std::vector<float> scores(static_cast<size_t>(n_queries) * kAttentionChunk, kNan);
  std::vector<float> merged_out(queries.size(), kNan), chunk_out(queries.size(), kNan);
  std::vector<AttentionPartial> merged(n_queries), chunk(n_queries);
  for (int q = 0; q < n_queries; q++) {
    merged[q] = {kNan, kNan, &merged_out[q * width]};
    chunk[q] = {kNan, kNan, &chunk_out[q * width]};
  }
  const int last = *std::max_element(ends.begin(), ends.end());
  const int first = *std::min_element(begins.begin(), begins.end()) / kAttentionChunk * kAttentionChunk;
  for (int begin = first; begin < last; begin += kAttentionChunk) {
    std::vector<PositionSpan> spans;
    for (int q = 0; q < n_queries; q++) spans.push_back({begins[q], std::min(ends[q], begin + kAttentionChunk)});
    auto& partials = begin == first ? merged : chunk;
    kernels.attention_chunk[type](head.cache.head(0, 0), queries.data(), n_queries, begin, spans.data(), scores.data(),
                                  partials.data());
    for (int q = 0; begin > first && q < n_queries; q++) kernels.attention_merge(merged[q], chunk[q], width);
  }
  for (int q = 0; q < n_queries; q++)
    for (int d = 0; d < head_dim; d++) results.write_one(merged[q].out[d] / merged[q].sum);
}

void top_experts(const KernelTable& kernels, Request& request, Results& results) {
  const int n = request.word<int>(), k = request.word<int>();
  const bool normalize = request.word<int>() != 0;
  const std::vector<float> logits = request.array(n);
  std::vector<int> ids(k);
  std::vector<float> weights(k);
  kernels.top_experts(logits.data(), n, k, normalize, ids.data(), weights.data());
  results.write(ids);
  results.write(weights);
}

void candidates(const KernelTable& kernels, Request& request, Results& results) {
  const int n = request.word<int>(), first_id = request.word<int>(), k = request.word<int>();
  const auto scale = request.word<float>();
  const std::vector<float> logits = request.array(n);
  constexpr int kSurveyed = 160;
  std::vector<LogitSurvey> surveys((n + kSurveyed - 1) / kSurveyed);
  for (int i = 0; i < n; i += 16)
    kernels.survey_logits(&logits[i], std::min(16, n - i), scale, i % kSurveyed == 0, surveys[i / kSurveyed]);
  std::vector<float> values(k);
  std::vector<int> ids(k);
  CandidateHeap best{values.data(), ids.data(), 0, k};
  const float log_sum_exp =
      kernels.search_logits(logits.data(), n, first_id, scale, surveys.data(), kSurveyed, best);
  // A heap's order depends on how it came to be.
  std::vector<std::pair<float, int>> ranked(k, {-std::numeric_limits<float>::infinity(), -1});
  for (int i = 0; i < best.size; i++) ranked[i] = {values[i], ids[i]};
  std::sort(ranked.begin(), ranked.begin() + best.size, [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  });
  for (int i = 0; i < k; i++) values[i] = ranked[i].first, ids[i] = ranked[i].second;
  results.write_one(best.size);
  results.write(values);
  results.write(ids);
  results.write_one(log_sum_exp);
}

void answer(const KernelTable& kernels, const std::string& kernel, Request& request, Results& results) {
  if (kernel == "matmul_q80" || kernel == "matmul_f32")
    matmul(kernels, kernel == "matmul_q80", request, results);
  else if (kernel == "rms_norm")
    rms_norm(kernels, request, results);
  else if (kernel == "store_row")
    store_row(kernels, request, results);
  else if (kernel == "silu_mul")
    activation_mul(kernels.silu_mul, request, results);
  else if (kernel == "gelu_mul")
    activation_mul(kernels.gelu_mul, request, results);
  else if (kernel == "f32_to_f16")
    f32_to_f16(kernels, request, results);
  else if (kernel == "attention")
    attention(kernels, request, results);
  else if (kernel == "top_experts")
    top_experts(kernels, request, results);
  else if (kernel == "candidates")
    candidates(kernels, request, results);
  else
    fail("unknown kernel " + kernel);
}

const KernelTable& find_table(const std::string& name) {
  for (const KernelTable* table : usable_kernels())
    if (name == table->name) return *table;
  fail("this processor cannot run the kernel table " + name);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const KernelTable* table : usable_kernels()) std::printf("%s\n", table->name);
    return 0;
  }
  if (argc != 4) fail("usage: kernel_check [TABLE REQUESTS RESULTS]");
  const KernelTable& kernels = find_table(argv[1]);
  std::ifstream in(argv[2], std::ios::binary);
  if (!in) fail(std::string("cannot read ") + argv[2]);
  Results results(argv[3]);
  for (std::string line; std::getline(in, line);) {
    Request request(in, line);
    answer(kernels, request.word<std::string>(), request, results);
  }
  if (!results.close()) fail(std::string("cannot write ") + argv[3]);
}
