// Collectives among nodes that are all directly connected with each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "pump.hpp"
#include "wire_format.hpp"

namespace dllama::net {

enum class Algorithm { Direct, ReduceScatterAllGather };

struct Peer {
  Socket socket;
  std::optional<LinkKeys> keys;
};

struct MeshTotals {
  uint64_t n_exchanges = 0;
  double seconds = 0;          // inside exchanges
  double waiting_seconds = 0;  // of these, until the last of the awaited peers began to send
};

// One thread at a time calls the exchanges; all nodes call the same ones in the same order with the same sizes. After a
// failure the connections are at different places in their streams, so every later exchange fails the same way.
class Mesh {
 public:
  Mesh(int rank, const std::map<int, Peer>& peers, double timeout_seconds);

  // rows (n_rows, width) f32 becomes the sum of the contributing nodes' rows, each rounded to `wire`, added in rank
  // order to 0; zeros if nobody contributes. ReduceScatterAllGather rounds the sums once more. Same bits on all nodes.
  std::optional<Failure> all_reduce(float* rows, size_t n_rows, size_t width, bool contributes, Wire wire,
                                    Algorithm algorithm, const Interrupted& interrupted);

  // rows (n_rows, width) f32 of rank 0, to all other nodes.
  std::optional<Failure> broadcast(float* rows, size_t n_rows, size_t width, const Interrupted& interrupted);

  // Brings `payload` to rank 0, whose `gathered` becomes (data, size) of every rank, valid until the next exchange.
  std::optional<Failure> gather(const uint8_t* payload, size_t size, size_t max_bytes,
                                std::vector<OutPart>& gathered, const Interrupted& interrupted);

  // Ends a running exchange within 100 ms and every later one at once. Any thread.
  void stop() { stopped_ = true; }

  int rank() const { return rank_; }
  int n_nodes() const { return static_cast<int>(links_.size()) + 1; }
  MeshTotals totals() const { return totals_; }
  std::map<int, LinkStats> stats() const;

 private:
  struct Shape;
  template <class Body>
  std::optional<Failure> exchange(Body body);
  std::optional<Failure> pump_all(const Interrupted& interrupted);
  std::optional<Failure> direct(const Shape& shape, float* rows, bool contributes, const Interrupted& interrupted);
  std::optional<Failure> scatter_gather(const Shape& shape, float* rows, bool contributes,
                                        const Interrupted& interrupted);
  // Adds what all ranks sent of `columns`, this node's part being `own` (null if it did not contribute).
  void add_in_rank_order(const Shape& shape, float* rows, Columns columns, const uint8_t* own);
  FrameHeader header(FrameKind kind, int sender, const Shape& shape, int phase) const;
  void receive(Link& link, FrameKind kind, const Shape& shape, int phase, size_t size, bool exact);
  Columns span(int rank, size_t width) const;
  uint8_t* scratch(size_t n_bytes);

  int rank_;
  Clock::duration timeout_;
  std::vector<std::unique_ptr<Link>> links_;  // in rank order
  std::vector<Link*> all_links_;
  std::atomic<bool> stopped_{false};
  std::optional<Failure> failure_;
  bool unfinished_ = false;
  uint64_t n_exchanges_ = 0;
  MeshTotals totals_;
  std::vector<uint8_t> scratch_;  // outgoing payloads
};

}  // namespace dllama::net
