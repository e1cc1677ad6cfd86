// One peer's connection: the frame that goes out, the frame that comes in, and what they cost.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "frame.hpp"
#include "siphash.hpp"
#include "sockets.hpp"

namespace dllama::net {

using Clock = std::chrono::steady_clock;

enum class Reason {
  Closed,
  Reset,
  Lost,  // any other error of the system; `detail` names it
  TimedOut,
  OutOfStep,
  WrongAuthentication,
  FrameTooLong,
  Stopped,  // by this node: Mesh::stop or a signal
};

struct Failure {
  int rank;
  Reason reason;
  std::string detail;
};

struct LinkKeys {
  MacKey send;
  MacKey receive;
};

struct LinkStats {
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
  double waiting_seconds = 0;    // from the start of an exchange to the first byte of the peer's frame
  double receiving_seconds = 0;  // from there to its last byte
  double sending_seconds = 0;    // from the start of an exchange until the system has taken all bytes
};

class Link {
 public:
  Link(int rank, Socket socket, std::optional<LinkKeys> keys);

  // Begin an exchange. `payload` must stay until `sending` is false. Of the frame that is due, `payload_bytes` is the
  // most that it may bring; with `exact`, it brings so many or none.
  void start_send(FrameHeader header, const uint8_t* payload, size_t size, Clock::time_point now);
  void start_receive(FrameHeader due, bool exact, Clock::time_point now);

  // Moves what goes without waiting; true if anything did. A failure is final.
  bool progress(Clock::time_point now, std::optional<Failure>& failure);

  int rank() const { return rank_; }
  Socket socket() const { return socket_; }
  bool sending() const { return sending_; }
  bool receiving() const { return receiving_; }
  Clock::time_point last_sign_of_life() const { return last_moved_; }
  Clock::time_point first_byte() const { return first_byte_; }
  const LinkStats& stats() const { return stats_; }

  // Of the last frame, until the next receive begins.
  const uint8_t* received() const { return buffer_.get() + kHeaderBytes; }
  size_t received_bytes() const { return received_.payload_bytes; }

 private:
  bool send(std::optional<Failure>& failure);
  bool receive(std::optional<Failure>& failure);
  bool take(std::optional<Failure>& failure);
  bool accept_header(std::optional<Failure>& failure);
  void make_room(size_t n_bytes);
  size_t frame_bytes() const { return kHeaderBytes + received_.payload_bytes + mac_bytes(); }
  std::optional<Failure> explain(const IoResult& result) const;
  Mac mac_of(const MacKey& key, const uint8_t* header, const uint8_t* payload, size_t size) const;
  size_t mac_bytes() const { return keys_ ? sizeof(Mac) : 0; }

  int rank_;
  Socket socket_;
  std::optional<LinkKeys> keys_;
  LinkStats stats_;
  Clock::time_point started_, first_byte_, last_moved_;

  bool sending_ = false;
  HeaderBytes out_header_;
  const uint8_t* out_payload_ = nullptr;
  size_t out_size_ = 0, n_sent_ = 0;
  Mac out_mac_;

  // A frame is read in one piece, and with it, rarely, the beginning of the next one.
  bool receiving_ = false, exact_ = false, begun_ = false, accepted_ = false;
  FrameHeader due_, received_;
  std::unique_ptr<uint8_t[]> buffer_;
  size_t capacity_ = 0, n_buffered_ = 0;
};

}  // namespace dllama::net
