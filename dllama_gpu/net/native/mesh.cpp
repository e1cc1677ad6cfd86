#include "mesh.hpp"

#include <algorithm>
#include <cstring>

namespace dllama::net {

struct Mesh::Shape {
  Wire wire;
  size_t n_rows;
  size_t width;

  size_t bytes(Columns columns) const { return n_rows * wire_row_bytes(wire, columns.end - columns.begin); }
  Columns all() const { return {0, width}; }
};

Mesh::Mesh(int rank, const std::map<int, Peer>& peers, double timeout_seconds)
    : rank_(rank),
      timeout_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(timeout_seconds))) {
  for (const auto& [peer_rank, peer] : peers) {
    links_.push_back(std::make_unique<Link>(peer_rank, peer.socket, peer.keys));
    all_links_.push_back(links_.back().get());
  }
}

std::map<int, LinkStats> Mesh::stats() const {
  std::map<int, LinkStats> stats;
  for (const auto& link : links_) stats[link->rank()] = link->stats();
  return stats;
}

// Runs one collective; whatever ends it early (an exception too) makes the mesh unusable.
template <class Body>
std::optional<Failure> Mesh::exchange(Body body) {
  if (failure_) return failure_;
  if (unfinished_ || stopped_) return Failure{-1, Reason::Stopped, ""};
  unfinished_ = true;
  const auto started = Clock::now();
  failure_ = body();
  if (failure_) return failure_;
  totals_.seconds += std::chrono::duration<double>(Clock::now() - started).count();
  totals_.n_exchanges = ++n_exchanges_;
  unfinished_ = false;
  return std::nullopt;
}

std::optional<Failure> Mesh::pump_all(const Interrupted& interrupted) {
  const auto started = Clock::now();
  std::vector<Link*> awaited;
  for (Link* link : all_links_)
    if (link->receiving()) awaited.push_back(link);
  const auto failure = pump(all_links_, timeout_, stopped_, interrupted);
  Clock::duration waited{};
  for (const Link* link : awaited) waited = std::max(waited, link->first_byte() - started);
  totals_.waiting_seconds += std::chrono::duration<double>(waited).count();
  return failure;
}

FrameHeader Mesh::header(FrameKind kind, int sender, const Shape& shape, int phase) const {
  FrameHeader header;
  header.kind = kind;
  header.wire = shape.wire;
  header.sender = static_cast<uint16_t>(sender);
  header.sequence = 2 * n_exchanges_ + static_cast<uint64_t>(phase);
  header.n_rows = static_cast<uint32_t>(shape.n_rows);
  header.width = static_cast<uint32_t>(shape.width);
  return header;
}

void Mesh::receive(Link& link, FrameKind kind, const Shape& shape, int phase, size_t size, bool exact) {
  FrameHeader due = header(kind, link.rank(), shape, phase);
  due.payload_bytes = static_cast<uint32_t>(size);
  link.start_receive(due, exact, Clock::now());
}

uint8_t* Mesh::scratch(size_t n_bytes) {
  if (scratch_.size() < n_bytes) scratch_.resize(n_bytes);
  return scratch_.data();
}

// The columns whose sums a rank makes: whole blocks, as evenly as they go.
Columns Mesh::span(int rank, size_t width) const {
  const size_t n_blocks = (width + kBlock - 1) / kBlock, n = static_cast<size_t>(n_nodes());
  const auto begin = [&](size_t r) { return std::min(r * n_blocks / n * kBlock, width); };
  return {begin(static_cast<size_t>(rank)), begin(static_cast<size_t>(rank) + 1)};
}

void Mesh::add_in_rank_order(const Shape& shape, float* rows, Columns columns, const uint8_t* own) {
  const auto add = [&](const uint8_t* from) { add_encoded(shape.wire, from, rows, shape.n_rows, shape.width, columns); };
  for (size_t r = 0; r < shape.n_rows; r++)
    std::fill(rows + r * shape.width + columns.begin, rows + r * shape.width + columns.end, 0.0f);
  bool own_added = own == nullptr;
  for (const Link* link : all_links_) {
    if (!own_added && link->rank() > rank_) {
      add(own);
      own_added = true;
    }
    if (link->received_bytes() > 0) add(link->received());
  }
  if (!own_added) add(own);
}

std::optional<Failure> Mesh::all_reduce(float* rows, size_t n_rows, size_t width, bool contributes, Wire wire,
                                        Algorithm algorithm, const Interrupted& interrupted) {
  const Shape shape{wire, n_rows, width};
  return exchange([&] {
    return algorithm == Algorithm::Direct ? direct(shape, rows, contributes, interrupted)
                                          : scatter_gather(shape, rows, contributes, interrupted);
  });
}

std::optional<Failure> Mesh::direct(const Shape& shape, float* rows, bool contributes, const Interrupted& interrupted) {
  const size_t size = shape.bytes(shape.all());
  uint8_t* own = scratch(size);
  if (contributes) encode(shape.wire, rows, shape.n_rows, shape.width, shape.all(), own);
  for (Link* link : all_links_) {
    const FrameHeader out = header(FrameKind::Partial, rank_, shape, 0);
    link->start_send(out, own, contributes ? size : 0, Clock::now());
    receive(*link, FrameKind::Partial, shape, 0, size, true);
  }
  if (auto failure = pump_all(interrupted)) return failure;
  add_in_rank_order(shape, rows, shape.all(), contributes ? own : nullptr);
  return std::nullopt;
}

// A node whose span is empty makes no sums: nobody sends it partial sums, and it sends nobody sums.
std::optional<Failure> Mesh::scatter_gather(const Shape& shape, float* rows, bool contributes,
                                            const Interrupted& interrupted) {
  const Columns mine = span(rank_, shape.width);
  const size_t my_bytes = shape.bytes(mine);
  // Spans lie one behind the other in rank order, so each begins where those before it end.
  uint8_t* out = scratch(shape.bytes(shape.all()));
  const auto place = [&](Columns columns) { return out + shape.bytes({0, columns.begin}); };
  if (contributes)
    for (int rank = 0; rank < n_nodes(); rank++) {
      const Columns columns = span(rank, shape.width);
      encode(shape.wire, rows, shape.n_rows, shape.width, columns, place(columns));
    }
  for (Link* link : all_links_) {
    const Columns theirs = span(link->rank(), shape.width);
    const size_t size = shape.bytes(theirs);
    if (size > 0)
      link->start_send(header(FrameKind::PartialSpan, rank_, shape, 0), place(theirs), contributes ? size : 0,
                       Clock::now());
    if (my_bytes > 0) receive(*link, FrameKind::PartialSpan, shape, 0, my_bytes, true);
  }
  if (auto failure = pump_all(interrupted)) return failure;

  if (my_bytes > 0) {
    add_in_rank_order(shape, rows, mine, contributes ? place(mine) : nullptr);
    encode(shape.wire, rows, shape.n_rows, shape.width, mine, place(mine));
  }
  for (Link* link : all_links_) {
    const size_t size = shape.bytes(span(link->rank(), shape.width));
    if (my_bytes > 0)
      link->start_send(header(FrameKind::SumSpan, rank_, shape, 1), place(mine), my_bytes, Clock::now());
    if (size > 0) receive(*link, FrameKind::SumSpan, shape, 1, size, true);
  }
  if (auto failure = pump_all(interrupted)) return failure;

  // The rounded sums count, also where they were made.
  std::fill(rows, rows + shape.n_rows * shape.width, 0.0f);
  if (my_bytes > 0) add_encoded(shape.wire, place(mine), rows, shape.n_rows, shape.width, mine);
  for (const Link* link : all_links_) {
    const Columns theirs = span(link->rank(), shape.width);
    if (shape.bytes(theirs) == 0) continue;
    if (link->received_bytes() == 0)
      return Failure{link->rank(), Reason::OutOfStep, "it sent no sums of its span"};
    add_encoded(shape.wire, link->received(), rows, shape.n_rows, shape.width, theirs);
  }
  return std::nullopt;
}

std::optional<Failure> Mesh::broadcast(float* rows, size_t n_rows, size_t width, const Interrupted& interrupted) {
  const Shape shape{Wire::F32, n_rows, width};
  const size_t size = shape.bytes(shape.all());
  return exchange([&]() -> std::optional<Failure> {
    if (rank_ == 0) {
      uint8_t* out = scratch(size);
      encode(Wire::F32, rows, n_rows, width, shape.all(), out);
      for (Link* link : all_links_)
        link->start_send(header(FrameKind::Broadcast, 0, shape, 0), out, size, Clock::now());
      return pump_all(interrupted);
    }
    Link& root = *links_.front();
    receive(root, FrameKind::Broadcast, shape, 0, size, true);
    if (auto failure = pump_all(interrupted)) return failure;
    if (root.received_bytes() == 0) return Failure{0, Reason::OutOfStep, "it broadcast nothing"};
    std::memcpy(rows, root.received(), size);
    return std::nullopt;
  });
}

std::optional<Failure> Mesh::gather(const uint8_t* payload, size_t size, size_t max_bytes,
                                    std::vector<OutPart>& gathered, const Interrupted& interrupted) {
  const Shape shape{Wire::F32, 0, 0};
  return exchange([&]() -> std::optional<Failure> {
    if (rank_ != 0) {
      links_.front()->start_send(header(FrameKind::Gather, rank_, shape, 0), payload, size, Clock::now());
      return pump_all(interrupted);
    }
    for (Link* link : all_links_) receive(*link, FrameKind::Gather, shape, 0, max_bytes, false);
    if (auto failure = pump_all(interrupted)) return failure;
    gathered.push_back({payload, size});
    for (const Link* link : all_links_) gathered.push_back({link->received(), link->received_bytes()});
    return std::nullopt;
  });
}

}  // namespace dllama::net
