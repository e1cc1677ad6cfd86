#include "link.hpp"

#include <algorithm>

namespace dllama::net {

namespace {

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

// What is left of `parts` after their first `done` bytes; returns how many parts.
template <class Part>
size_t rest_of(const Part* parts, size_t n_parts, size_t done, Part* rest) {
  size_t n_rest = 0;
  for (size_t i = 0; i < n_parts; i++) {
    const size_t skipped = std::min(done, parts[i].size);
    done -= skipped;
    if (skipped < parts[i].size) rest[n_rest++] = {parts[i].data + skipped, parts[i].size - skipped};
  }
  return n_rest;
}

}  // namespace

Link::Link(int rank, Socket socket, std::optional<LinkKeys> keys) : rank_(rank), socket_(socket), keys_(keys) {
  suppress_broken_pipe_signal(socket);
}

void Link::start_send(FrameHeader header, const uint8_t* payload, size_t size, Clock::time_point now) {
  header.authenticated = keys_.has_value();
  header.payload_bytes = static_cast<uint32_t>(size);
  out_header_ = write_header(header);
  out_payload_ = payload;
  out_size_ = size;
  n_sent_ = 0;
  if (keys_) out_mac_ = mac_of(keys_->send, out_header_, payload, size);
  sending_ = true;
  started_ = last_moved_ = now;
}

void Link::start_receive(FrameHeader due, bool exact, Clock::time_point now) {
  due_ = due;
  exact_ = exact;
  n_received_ = 0;
  receiving_ = true;
  started_ = first_byte_ = last_moved_ = now;
}

bool Link::progress(Clock::time_point now, std::optional<Failure>& failure) {
  bool moved = false;
  if (sending_ && send(failure)) {
    moved = true;
    if (!sending_) stats_.sending_seconds += seconds(now - started_);
  }
  if (receiving_ && !failure) {
    const bool first = n_received_ == 0;
    if (receive(failure)) {
      moved = true;
      if (first) {
        first_byte_ = now;
        stats_.waiting_seconds += seconds(now - started_);
      }
      if (!receiving_) stats_.receiving_seconds += seconds(now - first_byte_);
    }
  }
  if (moved) last_moved_ = now;
  return moved;
}

bool Link::send(std::optional<Failure>& failure) {
  const OutPart parts[kMaxParts] = {
      {out_header_.data(), kHeaderBytes}, {out_payload_, out_size_}, {out_mac_.data(), mac_bytes()}};
  OutPart rest[kMaxParts] = {};
  const IoResult result = send_some(socket_, rest, rest_of(parts, kMaxParts, n_sent_, rest));
  if (result.status != IoStatus::Moved) {
    failure = explain(result);
    return false;
  }
  n_sent_ += result.n_bytes;
  stats_.bytes_sent += result.n_bytes;
  sending_ = n_sent_ < kHeaderBytes + out_size_ + mac_bytes();
  return true;
}

bool Link::receive(std::optional<Failure>& failure) {
  // Never past the end of this frame: behind it may stand the next one. So the header is read alone.
  const bool in_header = n_received_ < kHeaderBytes;
  const InPart parts[kMaxParts] = {{in_header_.data(), kHeaderBytes},
                                   {payload_.get(), in_header ? 0 : received_.payload_bytes},
                                   {in_mac_.data(), in_header ? 0 : mac_bytes()}};
  InPart rest[kMaxParts] = {};
  const IoResult result = receive_some(socket_, rest, rest_of(parts, kMaxParts, n_received_, rest));
  if (result.status != IoStatus::Moved) {
    failure = explain(result);
    return false;
  }
  n_received_ += result.n_bytes;
  stats_.bytes_received += result.n_bytes;
  if (in_header && (n_received_ < kHeaderBytes || !accept_header(failure))) return true;
  if (n_received_ < kHeaderBytes + received_.payload_bytes + mac_bytes()) return true;
  receiving_ = false;
  if (keys_ && !equal(in_mac_, mac_of(keys_->receive, in_header_, payload_.get(), received_.payload_bytes)))
    failure = Failure{rank_, Reason::WrongAuthentication, "its authentication code is wrong"};
  return true;
}

// Decides whether the frame that begins is the one that is due, and makes room for its payload.
bool Link::accept_header(std::optional<Failure>& failure) {
  const bool is_frame = read_header(in_header_, received_);
  const size_t size = received_.payload_bytes;
  if (!is_frame)
    failure = Failure{rank_, Reason::OutOfStep, "what it sent is no frame"};
  else if (received_.authenticated != keys_.has_value())
    failure = Failure{rank_, Reason::WrongAuthentication,
                      keys_ ? "its frames are not authenticated" : "its frames are authenticated, but no key was given here"};
  else if (!in_step(received_, due_))
    failure = Failure{rank_, Reason::OutOfStep, describe(received_) + " came where " + describe(due_) + " was due"};
  else if (size > due_.payload_bytes)
    failure = Failure{rank_, Reason::FrameTooLong,
                      std::to_string(size) + " bytes were sent where at most " + std::to_string(due_.payload_bytes) +
                          " are allowed"};
  else if (exact_ && size != 0 && size != due_.payload_bytes)
    failure = Failure{rank_, Reason::OutOfStep,
                      std::to_string(size) + " bytes were sent where " + std::to_string(due_.payload_bytes) + " were due"};
  if (failure) return false;
  if (size > capacity_) {
    payload_.reset();
    capacity_ = 0;
    payload_ = std::make_unique<uint8_t[]>(size);
    capacity_ = size;
  }
  return true;
}

std::optional<Failure> Link::explain(const IoResult& result) const {
  if (result.status == IoStatus::WouldBlock) return std::nullopt;
  if (result.status == IoStatus::Closed) return Failure{rank_, Reason::Closed, ""};
  if (is_reset(result.error)) return Failure{rank_, Reason::Reset, ""};
  return Failure{rank_, Reason::Lost, error_text(result.error)};
}

Mac Link::mac_of(const MacKey& key, const HeaderBytes& header, const uint8_t* payload, size_t size) const {
  SipHash hash(key);
  hash.update(header.data(), header.size());
  hash.update(payload, size);
  return hash.finish();
}

}  // namespace dllama::net
