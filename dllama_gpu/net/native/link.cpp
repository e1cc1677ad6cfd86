#include "link.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace dllama::net {

namespace {

constexpr size_t kUsualBytes = 64 << 10;

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
  if (keys_) out_mac_ = mac_of(keys_->send, out_header_.data(), payload, size);
  sending_ = true;
  started_ = last_moved_ = now;
}

void Link::start_receive(FrameHeader due, bool exact, Clock::time_point now) {
  if (accepted_) {  // what lies behind the frame before is the beginning of this one
    const size_t done = frame_bytes();
    n_buffered_ -= done;
    std::memmove(buffer_.get(), buffer_.get() + done, n_buffered_);
  }
  accepted_ = begun_ = false;
  due_ = due;
  exact_ = exact;
  // How long an inexact frame is, its header tells; most are short.
  make_room(kHeaderBytes + (exact ? due.payload_bytes : std::min<size_t>(due.payload_bytes, kUsualBytes)) + mac_bytes());
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
    const bool first = !begun_;
    if (receive(failure)) {
      moved = true;
      if (first) {
        begun_ = true;
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

// True if anything came. The frame may be there already, read together with the one before.
bool Link::receive(std::optional<Failure>& failure) {
  if (!begun_ && n_buffered_ > 0 && take(failure)) return true;
  const InPart part{buffer_.get() + n_buffered_, capacity_ - n_buffered_};
  const IoResult result = receive_some(socket_, &part, 1);
  if (result.status != IoStatus::Moved) {
    failure = explain(result);
    return false;
  }
  n_buffered_ += result.n_bytes;
  take(failure);
  return true;
}

// Looks at what has come; true when it is the whole frame, or not the one that is due.
bool Link::take(std::optional<Failure>& failure) {
  if (!accepted_ && (n_buffered_ < kHeaderBytes || !accept_header(failure))) return failure.has_value();
  accepted_ = true;
  make_room(frame_bytes());
  if (n_buffered_ < frame_bytes()) return false;
  receiving_ = false;
  stats_.bytes_received += frame_bytes();
  if (!keys_) return true;
  const uint8_t* mac = received() + received_.payload_bytes;
  Mac found, right = mac_of(keys_->receive, buffer_.get(), received(), received_.payload_bytes);
  std::copy(mac, mac + found.size(), found.begin());
  if (!equal(found, right)) failure = Failure{rank_, Reason::WrongAuthentication, "its authentication code is wrong"};
  return true;
}

void Link::make_room(size_t n_bytes) {
  if (n_bytes <= capacity_) return;
  auto larger = std::make_unique<uint8_t[]>(n_bytes);
  if (n_buffered_ > 0) std::memcpy(larger.get(), buffer_.get(), n_buffered_);
  buffer_ = std::move(larger);
  capacity_ = n_bytes;
}

// Decides whether the frame that begins is the one that is due.
bool Link::accept_header(std::optional<Failure>& failure) {
  const bool is_frame = read_header(buffer_.get(), received_);
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
  return !failure;
}

std::optional<Failure> Link::explain(const IoResult& result) const {
  if (result.status == IoStatus::WouldBlock) return std::nullopt;
  if (result.status == IoStatus::Closed) return Failure{rank_, Reason::Closed, ""};
  if (is_reset(result.error)) return Failure{rank_, Reason::Reset, ""};
  return Failure{rank_, Reason::Lost, error_text(result.error)};
}

Mac Link::mac_of(const MacKey& key, const uint8_t* header, const uint8_t* payload, size_t size) const {
  SipHash hash(key);
  hash.update(header, kHeaderBytes);
  hash.update(payload, size);
  return hash.finish();
}

}  // namespace dllama::net
