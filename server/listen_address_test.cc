#include "server/listen_address.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace fixpoint {
namespace {

TEST(ListenAddressTest, ReadsBothFamilies) {
  EXPECT_EQ(ParseListenAddress("127.0.0.1:50051")->ToString(), "127.0.0.1:50051");
  EXPECT_EQ(ParseListenAddress("[::1]:0")->ToString(), "[::1]:0");
  EXPECT_EQ(ParseListenAddress("localhost:80")->ToString(), "127.0.0.1:80");
}

TEST(ListenAddressTest, RefusesEverythingElseByName) {
  for (const char* text :
       {"", "50051", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "::1:80",
        "example.org:80", "[127.0.0.1:80", ":80", "127.0.0.1:80x"}) {
    const auto address = ParseListenAddress(text);
    ASSERT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(address.status().message()),
                testing::HasSubstr(std::string("'") + text + "'"));
  }
}

TEST(ListenAddressTest, DiagnosisTellsATakenPort) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const ListenAddress taken{"127.0.0.1", ntohs(address.sin_port)};
  EXPECT_THAT(std::string(DiagnoseListen(taken).message()), testing::HasSubstr("in use"));
  close(fd);
  EXPECT_TRUE(DiagnoseListen(taken).ok());
}

}  // namespace
}  // namespace fixpoint
