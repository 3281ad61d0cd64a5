#include "server/client/library/resumable_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/client/library/answer.h"
#include "server/client/library/fake_servers.h"

namespace fixpoint::client {
namespace {

using testing::HasSubstr;

StreamEnd Lost(absl::StatusCode code = absl::StatusCode::kUnavailable) {
  return {absl::Status(code, "Socket closed")};
}

v1::GenerateRequest Ask(const std::string& prompt, uint32_t max_tokens = 40) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text(prompt);
  request.mutable_stopping()->set_max_tokens(max_tokens);
  return request;
}

// A prompt whose answer has max_tokens tokens and held-back text at its end, or the like.
std::string PromptWhere(const std::function<bool(const FakeAnswer&)>& wanted,
                        uint32_t max_tokens = 40) {
  for (int i = 0;; ++i) {
    const std::string prompt = absl::StrCat("prompt ", i);
    if (wanted(TrueAnswer(prompt, 0, max_tokens))) return prompt;
  }
}
std::string LongPrompt() {
  return PromptWhere([](const FakeAnswer& answer) { return answer.ids.size() == 40; });
}

struct Result {
  absl::Status status;
  CallReport report;
  AnswerCollector collected;
  std::vector<v1::GenerateResponse> messages;
  std::vector<Break> breaks;
};

class ResumableCallTest : public testing::Test {
 protected:
  Result Run(FakeTransport& transport, const v1::GenerateRequest& request, RetryOptions retry = {},
             CallOptions options = {}, OnMessage also = nullptr) {
    TargetPool pool(transport.num_targets(), TargetOrder::kListed, {});
    Result result;
    options.on_break = [&](const Break& b) { result.breaks.push_back(b); };
    ResumableCall call(&transport, &pool, &clock_, retry, request, options,
                       [&](const v1::GenerateResponse& message) {
                         result.messages.push_back(message);
                         result.collected.Add(message);
                         return also ? also(message) : true;
                       });
    result.status = call.Run();
    result.report = call.report();
    return result;
  }

  FakeClock clock_;
};

// started, deltas, finished: each choice in order, nothing twice; prompt parts where they belong.
void ExpectOrder(const Result& result, uint32_t n) {
  std::map<uint32_t, int> stage;  // of a choice: 0, 1 started, 2 a delta came, 3 finished
  for (const v1::GenerateResponse& message : result.messages) {
    switch (message.event_case()) {
      case v1::GenerateResponse::kStarted:
        EXPECT_EQ(stage[message.started().choice()]++, 0);
        break;
      case v1::GenerateResponse::kDelta:
        EXPECT_GE(stage[message.delta().choice()], 1);
        EXPECT_LE(stage[message.delta().choice()], 2);
        stage[message.delta().choice()] = 2;
        break;
      case v1::GenerateResponse::kFinished:
        EXPECT_GE(stage[message.finished().choice()], 1);
        EXPECT_LE(stage[message.finished().choice()], 2);
        stage[message.finished().choice()] = 3;
        break;
      default:
        EXPECT_EQ(stage[message.prompt_part().prompt() * n], 1);
        break;
    }
  }
  for (const auto& [choice, reached] : stage) EXPECT_EQ(reached, 3) << "choice " << choice;
}

void ExpectUndisturbed(const Result& result, const v1::GenerateRequest& request) {
  ASSERT_TRUE(result.status.ok()) << result.status;
  std::vector<std::string> prompts = {request.prompt().text()};
  for (const auto& prompt : request.more_prompts()) prompts.push_back(prompt.text());
  const uint32_t n = request.has_n() ? request.n() : 1;
  ExpectOrder(result, n);
  ASSERT_EQ(result.collected.answers().size(), prompts.size() * n);
  const size_t resumed = static_cast<size_t>(request.resume_token_ids_size());
  for (const auto& [choice, answer] : result.collected.answers()) {
    const FakeAnswer expected =
        TrueAnswer(prompts[choice / n], request.sampling().seed() + choice % n,
                   request.stopping().max_tokens());
    std::string text;
    for (size_t i = resumed; i < expected.texts.size(); ++i) text += expected.texts[i];
    EXPECT_EQ(answer.text, text + expected.tail);
    EXPECT_EQ(answer.token_ids,
              std::vector<uint32_t>(expected.ids.begin() + static_cast<int64_t>(resumed),
                                    expected.ids.end()));
    ASSERT_EQ(answer.logprobs.size(), answer.token_ids.size());
    for (size_t i = 0; i < answer.logprobs.size(); ++i) {
      EXPECT_EQ(answer.logprobs[i].chosen().token_id(), answer.token_ids[i]);
    }
    EXPECT_EQ(answer.finished.reason(), expected.finished.reason());
    EXPECT_EQ(answer.finished.seed(), expected.finished.seed());
    EXPECT_EQ(answer.finished.choice(), choice);
    EXPECT_EQ(answer.finished.usage().completion_tokens(), expected.ids.size());
  }
  for (size_t p = 0; p < prompts.size(); ++p) {
    if (request.output().echo() && resumed == 0) {
      EXPECT_EQ(result.collected.prompts().at(static_cast<uint32_t>(p)).text, prompts[p]);
    }
    if (request.output().has_prompt_logprobs()) {
      const auto& ids = result.collected.prompts().at(static_cast<uint32_t>(p)).token_ids;
      EXPECT_EQ(std::string(ids.begin(), ids.end()), prompts[p].substr(1));
    }
  }
}

v1::GenerateRequest RandomRequest(std::mt19937_64& random) {
  v1::GenerateRequest request =
      Ask(absl::StrCat("prompt ", random() % 1000), static_cast<uint32_t>(1 + random() % 30));
  if (random() % 2) request.mutable_sampling()->set_seed(random());
  if (random() % 3 == 0) request.mutable_output()->set_echo(true);
  if (random() % 3 == 0) {
    request.set_n(static_cast<uint32_t>(1 + random() % 4));
    for (uint64_t more = random() % 3; more > 0; --more) {
      request.add_more_prompts()->set_text(absl::StrCat("more ", random() % 1000));
    }
  } else if (random() % 3 == 0) {
    const FakeAnswer answer = TrueAnswer(request.prompt().text(), request.sampling().seed(),
                                         request.stopping().max_tokens());
    for (size_t i = 0; i < answer.ids.size() / 2; ++i) request.add_resume_token_ids(answer.ids[i]);
  }
  if (request.resume_token_ids_size() == 0 && random() % 3 == 0) {
    request.mutable_output()->set_prompt_logprobs(0);
  }
  return request;
}

TEST_F(ResumableCallTest, RandomBreaksAnywhereChangeNothing) {
  const absl::StatusCode codes[] = {
      absl::StatusCode::kUnavailable, absl::StatusCode::kAborted,
      absl::StatusCode::kUnknown,     absl::StatusCode::kInternal,
      absl::StatusCode::kCancelled,   absl::StatusCode::kOk};  // OK: the stream just ends
  int64_t breaks = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    std::mt19937_64 random(seed);
    const v1::GenerateRequest request = RandomRequest(random);
    const uint64_t reach = 1 + random() % 12;
    absl::Mutex mutex;  // choices that go on apart ask from several threads
    FakeTransport transport(static_cast<int>(1 + random() % 3), &clock_, seed, [&](int, int) {
      absl::MutexLock lock(&mutex);
      Fault fault;
      if (random() % 8 == 0) return fault;
      fault.after_messages = static_cast<int>(random() % (reach + 1));
      fault.flushes = random() % 3 == 0;
      if (random() % 8 > 0) fault.end = Lost(codes[random() % 6]);
      return fault;
    });
    const Result result =
        Run(transport, request, {.retries = 1000, .first_message_timeout = absl::Minutes(10)});
    ExpectUndisturbed(result, request);
    EXPECT_EQ(result.report.attempts, static_cast<int>(transport.attempts().size()));
    EXPECT_EQ(result.report.breaks, static_cast<int>(result.breaks.size()));
    breaks += result.report.breaks;
    if (HasFailure()) FAIL() << "seed " << seed << ", request " << request.DebugString();
  }
  EXPECT_GT(breaks, 10000);
}

// Every single place where a stream can break, the end of the text and the last message included.
TEST_F(ResumableCallTest, EachBreakingPointAlone) {
  const std::string prompt =
      PromptWhere([](const FakeAnswer& a) { return a.ids.size() > 10 && !a.tail.empty(); });
  v1::GenerateRequest request = Ask(prompt);
  request.mutable_output()->set_echo(true);
  request.mutable_output()->set_prompt_logprobs(0);
  for (int at = 0; at < 45; ++at) {
    FakeTransport transport(2, &clock_, 7, [&](int, int attempt) {
      Fault fault;
      if (attempt == 0) {
        fault.after_messages = at;
        fault.end = Lost();
      }
      return fault;
    });
    const Result result = Run(transport, request);
    ExpectUndisturbed(result, request);
    if (result.report.breaks > 0) {
      EXPECT_EQ(transport.attempts()[1].target, 1);
    }
  }
}

TEST_F(ResumableCallTest, UndisturbedCallIsOneAttemptOfTheRequestItself) {
  v1::GenerateRequest request = Ask("x");
  request.set_n(3);
  request.add_more_prompts()->set_text("y");
  FakeTransport transport(2, &clock_, 1, [](int, int) { return Fault(); });
  const Result result = Run(transport, request);
  ExpectUndisturbed(result, request);
  ASSERT_EQ(transport.attempts().size(), 1u);
  EXPECT_EQ(transport.attempts()[0].request.SerializeAsString(), request.SerializeAsString());
  EXPECT_EQ(result.report.target, "host0:1");
}

TEST_F(ResumableCallTest, ContinuationCarriesAllTokens) {
  v1::GenerateRequest request = Ask(LongPrompt());
  request.add_resume_token_ids(TrueAnswer(request.prompt().text(), 0, 40).ids[0]);
  FakeTransport transport(2, &clock_, 1, [](int, int attempt) {
    return attempt < 2 ? Fault{.after_messages = 3, .end = Lost()} : Fault();
  });
  const Result result = Run(transport, request);
  ExpectUndisturbed(result, request);
  const auto attempts = transport.attempts();
  ASSERT_EQ(attempts.size(), 3u);
  EXPECT_EQ(attempts[1].request.resume_token_ids_size(), 1 + result.breaks[0].tokens);
  EXPECT_EQ(attempts[2].request.resume_token_ids_size(), 1 + result.breaks[1].tokens);
  EXPECT_GT(result.breaks[1].tokens, result.breaks[0].tokens);
}

TEST_F(ResumableCallTest, ChoicesGoOnAloneWithTheirOwnSeed) {
  v1::GenerateRequest request = Ask("abc", 30);
  request.set_n(2);
  request.mutable_sampling()->set_seed(~uint64_t{0});  // the second choice's seed is 0
  request.add_more_prompts()->set_text("def");
  FakeTransport transport(1, &clock_, 3, [](int, int attempt) {
    return attempt == 0 ? Fault{.after_messages = 6, .end = Lost()} : Fault();
  });
  const Result result = Run(transport, request);
  ExpectUndisturbed(result, request);
  const auto attempts = transport.attempts();
  ASSERT_EQ(attempts.size(), 5u);
  std::map<std::string, int> seen;
  for (size_t i = 1; i < attempts.size(); ++i) {
    const v1::GenerateRequest& one = attempts[i].request;
    EXPECT_FALSE(one.has_n());
    EXPECT_EQ(one.more_prompts_size(), 0);
    ++seen[absl::StrCat(one.prompt().text(), one.sampling().seed())];
  }
  EXPECT_EQ(seen, (std::map<std::string, int>{{"abc0", 1},
                                              {"abc18446744073709551615", 1},
                                              {"def0", 1},
                                              {"def18446744073709551615", 1}}));
}

TEST_F(ResumableCallTest, StallIsABreak) {
  FakeTransport transport(2, &clock_, 1, [](int target, int) {
    return target == 0 ? Fault{.after_messages = 4} : Fault();
  });
  const v1::GenerateRequest request = Ask(LongPrompt());
  const absl::Time start = clock_.Now();
  const Result result = Run(transport, request, {.stall_timeout = absl::Seconds(7)});
  ExpectUndisturbed(result, request);
  ASSERT_EQ(result.breaks.size(), 1u);
  EXPECT_THAT(std::string(result.breaks[0].status.message()), HasSubstr("no message for 7 s"));
  EXPECT_GE(transport.attempts()[1].when - start, absl::Seconds(7));
  EXPECT_LT(transport.attempts()[1].when - start, absl::Seconds(8));
}

TEST_F(ResumableCallTest, WaitingInAQueueIsNoStall) {
  FakeTransport transport(2, &clock_, 1, [](int target, int) {
    return target == 0 ? Fault{.after_messages = 0} : Fault();
  });
  const absl::Time start = clock_.Now();
  const Result result =
      Run(transport, Ask(LongPrompt()),
          {.first_message_timeout = absl::Seconds(500), .stall_timeout = absl::Seconds(7)});
  EXPECT_TRUE(result.status.ok());
  EXPECT_GE(transport.attempts()[1].when - start, absl::Seconds(500));
}

TEST_F(ResumableCallTest, OtherFingerprintNeverContinues) {
  FakeTransport transport(3, &clock_, 1, [](int target, int attempt) {
    Fault fault{.fingerprint = target == 1 ? "fp-2" : "fp-1"};
    if (attempt == 0) {
      fault.after_messages = 4;
      fault.end = Lost();
    }
    return fault;
  });
  const v1::GenerateRequest request = Ask(LongPrompt());
  const Result result = Run(transport, request);  // 0 breaks, 1 is another model, 2 goes on
  ExpectUndisturbed(result, request);
  EXPECT_EQ(transport.attempts().back().target, 2);
}

TEST_F(ResumableCallTest, OnlyOtherFingerprintsLeftIsAClearError) {
  FakeTransport transport(2, &clock_, 1, [](int target, int) {
    return target == 0 ? Fault{.after_messages = 4, .end = Lost()} : Fault{.fingerprint = "fp-2"};
  });
  const Result result = Run(transport, Ask(LongPrompt()), {.retries = 0});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("it serves fp-2"));
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("began on fp-1"));
  const FakeAnswer expected = TrueAnswer(LongPrompt(), 0, 40);
  const Answer& got = result.collected.answers().at(0);
  EXPECT_LT(got.token_ids.size(), expected.ids.size());
  EXPECT_TRUE(std::equal(got.token_ids.begin(), got.token_ids.end(), expected.ids.begin()));
}

TEST_F(ResumableCallTest, ExpectedFingerprintHoldsFromTheStart) {
  FakeTransport transport(1, &clock_, 1, [](int, int) { return Fault(); });
  const Result result = Run(transport, Ask("x"), {}, {.expected_fingerprint = "fp-9"});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("asked for is fp-9"));
  EXPECT_TRUE(result.messages.empty());
}

TEST_F(ResumableCallTest, AllTargetsDownIsAClearErrorInBoundedTime) {
  FakeTransport transport(2, &clock_, 1, [](int target, int) {
    return Fault{.after_messages = 0,
                 .end = StreamEnd{absl::UnavailableError(absl::StrCat("refused ", target))}};
  });
  const absl::Time start = clock_.Now();
  const Result result = Run(transport, Ask("x"), {.retries = 3});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("host0:1: UNAVAILABLE: refused 0"));
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("host1:1: UNAVAILABLE: refused 1"));
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("8 attempts"));
  EXPECT_EQ(transport.attempts().size(), 8u);  // each target once, and 3 times again
  // Rests of 100, 200 and 400 ms, each stretched by a quarter at most.
  EXPECT_GE(clock_.Now() - start, absl::Milliseconds(700));
  EXPECT_LE(clock_.Now() - start, absl::Milliseconds(950));
}

TEST_F(ResumableCallTest, NoRetriesMeansOneAttemptOfEachTarget) {
  FakeTransport transport(1, &clock_, 1, [](int, int) {
    return Fault{.after_messages = 5, .end = Lost(absl::StatusCode::kAborted)};
  });
  const Result result = Run(transport, Ask(LongPrompt()), {.retries = 0});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("the answer broke behind"));
  EXPECT_EQ(transport.attempts().size(), 1u);
}

TEST_F(ResumableCallTest, PushbackIsWaitedFor) {
  FakeTransport transport(1, &clock_, 1, [](int, int attempt) {
    if (attempt > 0) return Fault();
    return Fault{.after_messages = 0,
                 .end = StreamEnd{absl::ResourceExhaustedError("full"), absl::Milliseconds(3000)}};
  });
  const Result result = Run(transport, Ask("x"));
  EXPECT_TRUE(result.status.ok());
  const auto attempts = transport.attempts();
  ASSERT_EQ(attempts.size(), 2u);
  EXPECT_GE(attempts[1].when - attempts[0].when, absl::Milliseconds(3000));
  EXPECT_LE(attempts[1].when - attempts[0].when, absl::Milliseconds(3760));
}

TEST_F(ResumableCallTest, AServerThatWantsNoRetryGetsNone) {
  FakeTransport transport(2, &clock_, 1, [](int, int) {
    return Fault{.after_messages = 0,
                 .end = StreamEnd{absl::ResourceExhaustedError("full"), std::nullopt, true}};
  });
  const Result result = Run(transport, Ask("x"));
  EXPECT_EQ(result.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(transport.attempts().size(), 1u);
}

TEST_F(ResumableCallTest, RefusalsAreNotTriedAgain) {
  for (const auto code : {absl::StatusCode::kInvalidArgument, absl::StatusCode::kFailedPrecondition,
                          absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kUnimplemented,
                          absl::StatusCode::kPermissionDenied}) {
    FakeTransport transport(3, &clock_, 1, [&](int, int) {
      return Fault{.after_messages = 0, .end = StreamEnd{absl::Status(code, "sampling.top_p: 7")}};
    });
    const Result result = Run(transport, Ask("x"));
    EXPECT_EQ(result.status, absl::Status(code, "sampling.top_p: 7"));
    EXPECT_EQ(transport.attempts().size(), 1u);
  }
}

TEST_F(ResumableCallTest, RefusedContinuationSaysWhere) {
  FakeTransport transport(2, &clock_, 1, [&](int target, int) {
    if (target == 0) return Fault{.after_messages = 3, .end = Lost()};
    return Fault{.after_messages = 0,
                 .end = StreamEnd{absl::InvalidArgumentError("unknown field 8")}};
  });
  const Result result = Run(transport, Ask(LongPrompt()));
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("going on behind"));
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("host1:1: unknown field 8"));
}

TEST_F(ResumableCallTest, DeadlineEndsTheWaiting) {
  FakeTransport transport(1, &clock_, 1,
                          [](int, int) { return Fault{.after_messages = 0, .end = Lost()}; });
  const absl::Time start = clock_.Now();
  const Result result =
      Run(transport, Ask("x"), {.retries = 1000}, {.deadline = clock_.Now() + absl::Seconds(20)});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("Socket closed"));
  EXPECT_LE(clock_.Now() - start, absl::Seconds(20));
}

TEST_F(ResumableCallTest, TheCallerMayLeave) {
  FakeTransport transport(2, &clock_, 1, [](int, int) { return Fault(); });
  int tokens = 0;
  const Result result =
      Run(transport, Ask(LongPrompt()), {}, {}, [&](const v1::GenerateResponse& message) {
        tokens += message.delta().token_ids_size();
        return tokens < 5;
      });
  EXPECT_EQ(result.status.code(), absl::StatusCode::kCancelled);
  EXPECT_GE(tokens, 5);
  EXPECT_LE(tokens, 7);
  EXPECT_EQ(transport.attempts().size(), 1u);
}

TEST_F(ResumableCallTest, CancellationEndsTheCallFromOutside) {
  FakeTransport transport(1, &clock_, 1,
                          [](int, int) { return Fault{.after_messages = 0, .end = Lost()}; });
  Cancellation cancellation;
  cancellation.Cancel();
  const Result before = Run(transport, Ask("x"), {}, {.cancellation = &cancellation});
  EXPECT_EQ(before.status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(transport.attempts().empty());
}

TEST_F(ResumableCallTest, OneChoiceThatFailsEndsTheCall) {
  v1::GenerateRequest request = Ask(LongPrompt());
  request.set_n(4);
  FakeTransport transport(1, &clock_, 3, [](int, int attempt) {
    if (attempt == 0) return Fault{.after_messages = 9, .end = Lost()};
    if (attempt == 2) {
      return Fault{.after_messages = 0, .end = StreamEnd{absl::InvalidArgumentError("no")}};
    }
    return Fault{};
  });
  const Result result = Run(transport, request);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ResumableCallTest, BrokenContractsAreErrorsNotTokens) {
  const std::vector<std::pair<const char*, std::function<void(v1::GenerateResponse*)>>> spoilers = {
      {"begins at token",
       [](v1::GenerateResponse* m) {
         if (m->has_delta()) m->mutable_delta()->set_index(m->delta().index() + 1);
       }},
      {"choice 1 of a request for one",
       [](v1::GenerateResponse* m) {
         if (m->has_delta()) m->mutable_delta()->set_choice(1);
       }},
      {"`started` twice",
       [](v1::GenerateResponse* m) {
         if (m->has_delta()) m->mutable_started()->set_system_fingerprint("fp-1");
       }},
      {"in front of `started`",
       [](v1::GenerateResponse* m) {
         if (m->has_started()) m->Clear();
       }},
  };
  for (const auto& [sentence, spoil] : spoilers) {
    FakeTransport transport(1, &clock_, 1, [&](int, int) { return Fault{.spoil = spoil}; });
    const Result result = Run(transport, Ask(LongPrompt()));
    EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(result.status.message()), HasSubstr(sentence));
    EXPECT_TRUE(result.collected.answers().empty() ||
                result.collected.answers().at(0).token_ids.empty());
  }
}

TEST_F(ResumableCallTest, TheEndOfTheTextCountsWithFinishedOnly) {
  const std::string prompt =
      PromptWhere([](const FakeAnswer& a) { return a.ids.size() > 2 && !a.tail.empty(); });
  FakeTransport transport(1, &clock_, 1, [&](int, int attempt) {
    Fault fault;
    if (attempt == 0) {
      // It gives the end of the text, a wrong one, but not `finished`.
      fault.spoil = [](v1::GenerateResponse* m) {
        if (m->has_finished()) m->Clear();  // an event of a newer server, as far as we know
        if (m->has_delta() && m->delta().token_ids().empty()) m->mutable_delta()->set_text("no");
      };
    }
    return fault;
  });
  const Result result = Run(transport, Ask(prompt));
  EXPECT_EQ(result.report.attempts, 2);
  EXPECT_EQ(result.collected.answers().at(0).text.find("no"), std::string::npos);
  EXPECT_FALSE(TrueAnswer(prompt, 0, 40).tail.empty());
  EXPECT_TRUE(
      absl::EndsWith(result.collected.answers().at(0).text, TrueAnswer(prompt, 0, 40).tail));
}

TEST(CancellationTest, HooksRunOnceAndNotBehindTheirScope) {
  Cancellation cancellation;
  int calls = 0;
  {
    const Cancellation::Scope scope(&cancellation, [&] { ++calls; });
  }
  const Cancellation::Scope scope(&cancellation, [&] { calls += 10; });
  cancellation.Cancel();
  cancellation.Cancel();
  EXPECT_EQ(calls, 10);
  const Cancellation::Scope late(&cancellation, [&] { calls += 100; });
  EXPECT_EQ(calls, 110);
}

TEST(CancellationTest, WakesAWait) {
  Cancellation cancellation;
  std::thread thread([&] { cancellation.WaitUntil(absl::InfiniteFuture()); });
  cancellation.Cancel();
  thread.join();
  EXPECT_TRUE(cancellation.cancelled());
}

}  // namespace
}  // namespace fixpoint::client
