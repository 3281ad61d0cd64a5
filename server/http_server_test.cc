#include "server/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fixpoint {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Client {
 public:
  explicit Client(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    timeval patience = {.tv_sec = 10};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;

  void Send(const std::string& text) { (void)send(fd_, text.data(), text.size(), MSG_NOSIGNAL); }

  // Until the server closes.
  std::string ReadAll() {
    std::string all;
    char buffer[4096];
    for (ssize_t got; (got = recv(fd_, buffer, sizeof(buffer), 0)) > 0;) all.append(buffer, got);
    return all;
  }

 private:
  int fd_;
};

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpOptions options = {}) {
    options.port = 0;
    server_.Route("GET", "/hello", [](const HttpRequest&) { return HttpResponse{.body = "hi\n"}; });
    server_.Route("POST", "/echo",
                  [](const HttpRequest& request) { return HttpResponse{.body = request.body}; });
    ASSERT_TRUE(server_.Start(options).ok());
  }
  std::string Ask(const std::string& text) {
    Client client(server_.port());
    client.Send(text);
    return client.ReadAll();
  }
  HttpServer server_;
};

TEST_F(HttpServerTest, AnswersRoutesAndKeepsTheConnection) {
  Start();
  const std::string one = "GET /hello?x=1 HTTP/1.1\r\nHost: x\r\n\r\n";
  const std::string answers =
      Ask(one + "GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answers, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_NE(answers.find("hi\n"), answers.rfind("hi\n"));
}

TEST_F(HttpServerTest, HeadHasTheLengthAndNoBody) {
  Start();
  const std::string answer = Ask("HEAD /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Length: 3\r\n"));
  EXPECT_THAT(answer, testing::EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, PostBodyReachesTheHandler) {
  Start();
  EXPECT_THAT(
      Ask("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4\r\n\r\nabcd"),
      HasSubstr("abcd"));
}

TEST_F(HttpServerTest, ErrorsHaveStatusAndJsonBody) {
  Start();
  EXPECT_THAT(Ask("GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              testing::AllOf(StartsWith("HTTP/1.1 404"), HasSubstr("{\"error\":{\"message\"")));
  EXPECT_THAT(Ask("DELETE /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Ask("nonsense\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpServerTest, BigHeadersAndBodiesAreRefused) {
  Start();
  EXPECT_THAT(Ask("GET /hello HTTP/1.1\r\nX: " + std::string(20 << 10, 'x') + "\r\n\r\n"),
              StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Ask(absl::StrCat("POST /echo HTTP/1.1\r\nContent-Length: ", 2 << 20, "\r\n\r\n")),
              StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpServerTest, SlowRequestIsCutOff) {
  Start({.timeout_seconds = 1});
  EXPECT_EQ(Ask("GET /hello HT"), "");
}

TEST_F(HttpServerTest, ConnectionsBeyondTheLimitAreClosed) {
  Start({.max_connections = 2});
  Client first(server_.port());
  Client second(server_.port());
  EXPECT_EQ(Ask("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"), "");
  first.Send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(first.ReadAll(), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, TakenPortIsAnErrorThatNamesIt) {
  Start();
  HttpServer second;
  const absl::Status status = second.Start({.port = server_.port()});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr(absl::StrCat(server_.port())), HasSubstr("in use")));
}

TEST_F(HttpServerTest, StopClosesOpenConnections) {
  Start({.timeout_seconds = 60});
  Client idle(server_.port());
  idle.Send("GET /hel");
  server_.Stop();
  EXPECT_EQ(idle.ReadAll(), "");
}

}  // namespace
}  // namespace fixpoint
