// Goal: two ends that share the secret find each other, and nobody else gets in
// by whatever bytes. Method: both ends in one thread, bytes carried by hand.
#include "cfs/net/handshake.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace cfs {
namespace {

using Role = Handshake::Role;

Nonce NonceOf(uint8_t fill) {
  Nonce nonce;
  nonce.fill(fill);
  return nonce;
}

Handshake::Local LocalOf(uint32_t node, uint64_t attachment, uint8_t secret = 7,
                         uint8_t cluster = 9) {
  Handshake::Local local = {.node = NodeId{node}, .attachment = attachment};
  local.cluster.fill(cluster);
  std::fill_n(local.secret.data(), Secret::kBytes, secret);
  return local;
}

struct Ends {
  Handshake initiator{Role::kInitiator, LocalOf(1, 0x1111), NonceOf(0xaa)};
  Handshake acceptor{Role::kAcceptor, LocalOf(2, 0x2222), NonceOf(0xbb)};
};

bool Over(const Handshake& end) { return end.done() || end.refusal() != Refusal::kNone; }

// Carries what the two say until nobody has anything to say.
void Converse(Handshake* initiator, Handshake* acceptor) {
  std::string to_acceptor = initiator->Hello(), to_initiator;
  while (!to_acceptor.empty() || !to_initiator.empty()) {
    if (!to_acceptor.empty() && !Over(*acceptor)) to_initiator = acceptor->Receive(to_acceptor);
    to_acceptor.clear();
    if (!to_initiator.empty() && !Over(*initiator)) to_acceptor = initiator->Receive(to_initiator);
    to_initiator.clear();
  }
}

TEST(HandshakeTest, BothLearnWhoTheOtherIs) {
  Ends ends;
  Converse(&ends.initiator, &ends.acceptor);
  ASSERT_TRUE(ends.initiator.done());
  ASSERT_TRUE(ends.acceptor.done());
  EXPECT_EQ(ends.initiator.peer(), NodeId{2});
  EXPECT_EQ(ends.acceptor.peer(), NodeId{1});
  EXPECT_EQ(ends.initiator.peer_attachment(), 0x2222u);
  EXPECT_EQ(ends.acceptor.peer_attachment(), 0x1111u);
  EXPECT_EQ(ends.initiator.session(), ends.acceptor.session());
}

TEST(HandshakeTest, SessionsDiffer) {
  Ends ends;
  Converse(&ends.initiator, &ends.acceptor);
  Handshake initiator(Role::kInitiator, LocalOf(1, 0x1111), NonceOf(0xab));
  Handshake acceptor(Role::kAcceptor, LocalOf(2, 0x2222), NonceOf(0xbb));
  Converse(&initiator, &acceptor);
  EXPECT_NE(initiator.session(), ends.initiator.session());
}

// Golden: a change here needs a new kProtocolVersion and a decision record.
TEST(HandshakeTest, BytesAreFrozen) {
  Ends ends;
  const std::string hello = ends.initiator.Hello();
  EXPECT_EQ(absl::BytesToHexString(hello),
            "6366734803000100"
            "09090909090909090909090909090909"
            "01000000"
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
  const std::string challenge = ends.acceptor.Receive(hello);
  EXPECT_EQ(absl::BytesToHexString(challenge),
            "6366734803000200"
            "02000000"
            "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
            "2222000000000000"
            "a538128da9747e6e93b3f4fdadd52d3c6301bc603a8f134283ef3a016a9f773c");
  const std::string proof = ends.initiator.Receive(challenge);
  EXPECT_EQ(absl::BytesToHexString(proof),
            "6366734803000300"
            "1111000000000000"
            "c8e0b2576a394150d0ff8edea6b3bcb3e270e504423503d3f586bc0e6e399933");
  EXPECT_EQ(absl::BytesToHexString(ends.acceptor.Receive(proof)), "6366734803000400");
  EXPECT_EQ(ends.acceptor.session(), 16305220426727609976u);
}

TEST(HandshakeTest, AnyPiecesWillDo) {
  Ends ends;
  std::string answer;
  for (const char c : ends.initiator.Hello()) answer += ends.acceptor.Receive({&c, 1});
  std::string proof;
  for (const char c : answer) proof += ends.initiator.Receive({&c, 1});
  for (const char c : proof) answer = ends.acceptor.Receive({&c, 1});
  EXPECT_TRUE(ends.acceptor.done());
  for (const char c : answer) EXPECT_EQ(ends.initiator.Receive({&c, 1}), "");
  EXPECT_TRUE(ends.initiator.done());
}

TEST(HandshakeTest, WrongSecretIsRefusedByBoth) {
  Ends ends;
  Handshake stranger(Role::kAcceptor, LocalOf(2, 0x2222, 8), NonceOf(0xbb));
  Converse(&ends.initiator, &stranger);
  EXPECT_EQ(ends.initiator.refusal(), Refusal::kWrongSecret);
  EXPECT_EQ(stranger.refusal(), Refusal::kWrongSecret);

  // An initiator that does not check the acceptor still has to prove itself.
  Handshake intruder(Role::kInitiator, LocalOf(1, 0x1111, 8), NonceOf(0xcc));
  Handshake accomplice(Role::kAcceptor, LocalOf(2, 0x2222, 8), NonceOf(0xbb));
  const std::string hello = intruder.Hello();
  ends.acceptor.Receive(hello);
  ends.acceptor.Receive(intruder.Receive(accomplice.Receive(hello)));
  EXPECT_EQ(ends.acceptor.refusal(), Refusal::kWrongSecret);
}

TEST(HandshakeTest, OtherClusterIsRefusedByBoth) {
  Ends ends;
  Handshake stranger(Role::kInitiator, LocalOf(1, 0x1111, 7, 10), NonceOf(0xcc));
  Converse(&stranger, &ends.acceptor);
  EXPECT_EQ(ends.acceptor.refusal(), Refusal::kOtherCluster);
  EXPECT_EQ(stranger.refusal(), Refusal::kOtherCluster);
}

TEST(HandshakeTest, OtherProtocolIsRefusedAtItsFirstEightBytes) {
  Ends ends;
  std::string hello = ends.initiator.Hello().substr(0, 8);
  ++hello[4];
  const std::string answer = ends.acceptor.Receive(hello);
  EXPECT_EQ(ends.acceptor.refusal(), Refusal::kOtherProtocol);
  EXPECT_EQ(ends.initiator.Receive(answer), "") << "a refusal has no answer";
  EXPECT_EQ(ends.initiator.refusal(), Refusal::kOtherProtocol);
}

TEST(HandshakeTest, ReplayedProofIsRefused) {
  Ends ends;
  const std::string hello = ends.initiator.Hello();
  const std::string proof = ends.initiator.Receive(ends.acceptor.Receive(hello));
  ends.acceptor.Receive(proof);
  ASSERT_TRUE(ends.acceptor.done());
  Handshake again(Role::kAcceptor, LocalOf(2, 0x2222), NonceOf(0xbc));
  again.Receive(hello);
  again.Receive(proof);
  EXPECT_EQ(again.refusal(), Refusal::kWrongSecret);
}

TEST(HandshakeTest, ReflectedChallengeIsRefused) {
  // One who knows nothing sends our own words back to us.
  Ends ends;
  Handshake self(Role::kAcceptor, LocalOf(1, 0x1111), NonceOf(0xaa));
  const std::string challenge = self.Receive(ends.initiator.Hello());
  Handshake other(Role::kAcceptor, LocalOf(1, 0x1111), NonceOf(0xbb));
  other.Receive(ends.initiator.Hello());
  // The acceptor's MAC in the place of the initiator's.
  std::string proof = challenge.substr(0, 8) + std::string(8, '\0') + challenge.substr(52);
  proof[6] = static_cast<char>(HandshakeType::kProof);
  other.Receive(proof);
  EXPECT_EQ(other.refusal(), Refusal::kWrongSecret);
}

TEST(HandshakeTest, MoreThanAMessageIsGarbage) {
  Ends ends;
  ends.acceptor.Receive(ends.initiator.Hello() + "x");
  EXPECT_EQ(ends.acceptor.refusal(), Refusal::kGarbage);
  Ends big;
  big.acceptor.Receive(std::string(10 << 20, 'G'));
  EXPECT_EQ(big.acceptor.refusal(), Refusal::kGarbage);
}

TEST(HandshakeTest, TruncatedNeverEnds) {
  for (size_t size = 0; size < 60; ++size) {
    Ends ends;
    EXPECT_EQ(ends.acceptor.Receive(ends.initiator.Hello().substr(0, size)), "");
    EXPECT_FALSE(Over(ends.acceptor)) << size;
  }
}

// Every single wrong byte of the whole conversation, at either end.
TEST(HandshakeTest, NoWrongByteGetsThrough) {
  for (int step = 0; step < 3; ++step) {
    for (size_t i = 0;; ++i) {
      Ends ends;
      std::string message = ends.initiator.Hello();
      bool wrong = false;
      for (int s = 0; !message.empty(); ++s) {
        if (s == step) {
          if (i >= message.size()) break;
          message[i] ^= 0x40;
          wrong = true;
        }
        Handshake& receiver = s % 2 == 0 ? ends.acceptor : ends.initiator;
        if (Over(receiver)) break;
        message = receiver.Receive(message);
      }
      if (!wrong) break;
      EXPECT_FALSE(ends.acceptor.done()) << "step " << step << " byte " << i;
      EXPECT_FALSE(ends.initiator.done()) << "step " << step << " byte " << i;
    }
  }
}

TEST(HandshakeTest, GarbageIsNeverAccepted) {
  std::mt19937 random(20260102);
  for (int i = 0; i < 20'000; ++i) {
    Ends ends;
    const std::string hello = ends.initiator.Hello();
    Handshake& end = i % 2 == 0 ? ends.acceptor : ends.initiator;
    if (i % 3 == 0 && i % 2 == 0) end.Receive(hello);
    for (int piece = 0; piece < 8 && !Over(end); ++piece) {
      // Half of it looks like a message at first.
      std::string bytes(random() % 100, '\0');
      for (char& c : bytes) c = static_cast<char>(random());
      if (random() % 2 == 0) bytes = absl::StrCat(hello.substr(0, 6), bytes);
      end.Receive(bytes);
    }
    EXPECT_FALSE(end.done()) << i;
  }
}

// Golden, as above.
TEST(WireFormatTest, HeaderIsFrozen) {
  std::string bytes;
  AppendWireHeader(&bytes, {.session = 0x1122334455667788,
                            .request = 5,
                            .payload_bytes = 70'000,
                            .header_bytes = 3,
                            .method = 0x0102,
                            .type = MessageType::kReply,
                            .code = ReplyCode::kNoRoom,
                            .payload_checksum = 0x99aabbcc});
  EXPECT_EQ(absl::BytesToHexString(bytes),
            "8877665544332211"
            "0500000000000000"
            "70110100"
            "0300"
            "0201"
            "02"
            "02"
            "0000"
            "ccbbaa99");
  bytes += "abc";
  absl::string_view in = bytes;
  WireHeader header;
  ASSERT_TRUE(ConsumeWireHeader(&in, 70'000, &header));
  EXPECT_EQ(in, "abc");
  EXPECT_EQ(header.session, 0x1122334455667788u);
  EXPECT_EQ(header.type, MessageType::kReply);
  EXPECT_EQ(header.payload_checksum, 0x99aabbccu);
  for (size_t size = 0; size < bytes.size(); ++size) {
    in = absl::string_view(bytes).substr(0, size);
    EXPECT_FALSE(ConsumeWireHeader(&in, 70'000, &header)) << size;
  }
  in = bytes;
  EXPECT_FALSE(ConsumeWireHeader(&in, 69'999, &header)) << "another size than announced";
  for (size_t i = 24; i < 28; ++i) {
    std::string wrong = bytes;
    wrong[i] |= 0x40;
    in = wrong;
    EXPECT_FALSE(ConsumeWireHeader(&in, 70'000, &header)) << i;
  }
}

TEST(WireFormatTest, SmallPayloadsHaveNoChecksum) {
  EXPECT_EQ(PayloadChecksum(std::string(4096, 'x')), 0u);
  EXPECT_EQ(PayloadChecksum(std::string(4097, '\0')), Crc32c(std::string(4097, '\0')));
  for (const uint32_t size : {4096u, 4097u}) {
    std::string bytes;
    AppendWireHeader(&bytes,
                     {.payload_bytes = size, .type = MessageType::kRequest, .payload_checksum = 1});
    absl::string_view in = bytes;
    WireHeader header;
    EXPECT_EQ(ConsumeWireHeader(&in, size, &header), size > 4096);
  }
}

}  // namespace
}  // namespace cfs
