#include "calibrator/train/attention_backward.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <string>

#include "calibrator/random.h"
#include "gtest/gtest.h"

namespace fixpoint {
namespace {

struct Case {
  const char* name;
  int32_t sequences, tokens, heads, kv_heads, head_dim, prefix_tokens;
  bool units;  // integers with units; else float values
};

// Real values of one layer's q, k, v and of the gradient, by (sequence, token, head).
struct Problem {
  explicit Problem(const Case& c)
      : shape{.sequences = c.sequences,
              .tokens = c.tokens,
              .heads = c.heads,
              .kv_heads = c.kv_heads,
              .head_dim = c.head_dim,
              .prefix_tokens = c.prefix_tokens} {
    Random random(7, static_cast<uint64_t>(c.tokens));
    const auto units = [&](int32_t heads) {
      std::vector<float> u(heads, 1.0f);
      // The heads of a group differ.
      for (size_t h = 0; h < u.size() && c.units; ++h)
        u[h] = 0.02f + 0.007f * static_cast<float>(h);
      return u;
    };
    q_units = units(c.heads);
    k_units = units(c.kv_heads);
    v_units = units(c.kv_heads);
    const auto values = [&](int64_t rows, int32_t heads) {
      std::vector<float> x(rows * heads * c.head_dim);
      for (float& v : x) {
        v = c.units
                ? static_cast<float>(std::round(std::clamp(random.Normal() * 40, -127.0, 127.0)))
                : static_cast<float>(random.Normal());
      }
      return x;
    };
    const int64_t rows = int64_t{c.sequences} * c.tokens;
    q = values(rows, c.heads);
    k = values(rows, c.kv_heads);
    v = values(rows, c.kv_heads);
    // In units of k and v but not rounded.
    prefix_k = values(c.prefix_tokens, c.kv_heads);
    prefix_v = values(c.prefix_tokens, c.kv_heads);
    for (float& x : prefix_k) x *= 1.2345f;
    d_out.resize(rows * c.heads * c.head_dim);
    for (float& x : d_out) x = static_cast<float>(random.Normal());
    for (int32_t h = 0; h < c.heads; ++h) {
      score_units.push_back(q_units[h] * k_units[h / shape.group()] /
                            std::sqrt(static_cast<float>(c.head_dim)));
    }
  }

  AttentionShape shape;
  std::vector<float> q_units, k_units, v_units, score_units;
  std::vector<float> q, k, v;             // [rows][heads or kv_heads][head_dim], integers or values
  std::vector<float> prefix_k, prefix_v;  // [kv_heads][prefix_tokens][head_dim]
  std::vector<float> d_out;
};

struct Gradients {
  std::vector<double> out, d_heads, d_prefix_k, d_prefix_v;
};

// The definition, in double, one query after the other.
Gradients Naive(const Problem& p) {
  const AttentionShape& s = p.shape;
  const int64_t d = s.head_dim, width = int64_t{s.heads + 2 * s.kv_heads} * d;
  const int64_t rows = int64_t{s.sequences} * s.tokens;
  Gradients g;
  g.out.resize(rows * s.heads * d);
  g.d_heads.resize(rows * width);
  g.d_prefix_k.resize(int64_t{s.kv_heads} * s.prefix_tokens * d);
  g.d_prefix_v.resize(g.d_prefix_k.size());
  const double root = 1 / std::sqrt(static_cast<double>(d));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t token = row % s.tokens, first_row = row - token;
    for (int32_t h = 0; h < s.heads; ++h) {
      const int32_t kv = h / s.group();
      const float* q = p.q.data() + (row * s.heads + h) * d;
      const int64_t keys = s.prefix_tokens + token + 1;
      const auto key = [&](int64_t j, const std::vector<float>& prefix,
                           const std::vector<float>& x) {
        return j < s.prefix_tokens
                   ? prefix.data() + (int64_t{kv} * s.prefix_tokens + j) * d
                   : x.data() + ((first_row + j - s.prefix_tokens) * s.kv_heads + kv) * d;
      };
      std::vector<double> weight(keys), d_weight(keys);
      double largest = -HUGE_VAL, sum = 0;
      for (int64_t j = 0; j < keys; ++j) {
        double score = 0;
        for (int64_t i = 0; i < d; ++i)
          score +=
              static_cast<double>(q[i]) * p.q_units[h] * key(j, p.prefix_k, p.k)[i] * p.k_units[kv];
        weight[j] = score * root;
        largest = std::max(largest, weight[j]);
      }
      for (double& w : weight) sum += (w = std::exp(w - largest));
      for (double& w : weight) w /= sum;
      double* out = g.out.data() + (row * s.heads + h) * d;
      const float* d_out = p.d_out.data() + (row * s.heads + h) * d;
      double mean = 0;
      for (int64_t j = 0; j < keys; ++j) {
        const float* v = key(j, p.prefix_v, p.v);
        for (int64_t i = 0; i < d; ++i) {
          out[i] += weight[j] * v[i] * p.v_units[kv];
          d_weight[j] += static_cast<double>(d_out[i]) * v[i] * p.v_units[kv];
        }
        mean += weight[j] * d_weight[j];
      }
      double* d_q = g.d_heads.data() + row * width + h * d;
      for (int64_t j = 0; j < keys; ++j) {
        const bool in_prefix = j < s.prefix_tokens;
        const int64_t place = (int64_t{kv} * s.prefix_tokens + j) * d;
        double* at = g.d_heads.data() + (first_row + j - s.prefix_tokens) * width;
        double* d_k = in_prefix ? g.d_prefix_k.data() + place : at + (s.heads + kv) * d;
        double* d_v =
            in_prefix ? g.d_prefix_v.data() + place : at + (s.heads + s.kv_heads + kv) * d;
        const double d_score = weight[j] * (d_weight[j] - mean) * root;
        for (int64_t i = 0; i < d; ++i) {
          d_q[i] += d_score * key(j, p.prefix_k, p.k)[i] * p.k_units[kv];
          d_k[i] += d_score * q[i] * p.q_units[h];
          d_v[i] += weight[j] * d_out[i];
        }
      }
    }
  }
  return g;
}

// Forward and backward on `threads` threads; the prefix gradients start from `before`.
Gradients Compute(const Problem& p, GemmType type, int threads, double before) {
  ThreadPool pool(threads);
  const std::unique_ptr<FloatGemm> gemm = CreateCpuGemm(pool);
  const AttentionShape& s = p.shape;
  const int64_t d = s.head_dim, rows = int64_t{s.sequences} * s.tokens;
  KvBuffer kv(type, 1, s.sequences, s.kv_heads, s.tokens, s.head_dim);
  AlignedBuffer q(rows * s.heads * d * BytesOf(type));
  const auto store = [&](const float* from, void* to) {
    for (int64_t i = 0; i < d; ++i) {
      if (type == GemmType::kBf16)  // exact: the tests' bf16 values are integers up to 127
        static_cast<uint16_t*>(to)[i] =
            static_cast<uint16_t>(std::bit_cast<uint32_t>(from[i]) >> 16);
      else
        static_cast<float*>(to)[i] = from[i];
    }
  };
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t sequence = static_cast<int32_t>(row / s.tokens);
    const int32_t token = static_cast<int32_t>(row % s.tokens);
    for (int32_t h = 0; h < s.heads; ++h) {
      store(p.q.data() + (row * s.heads + h) * d,
            q.data() + s.QOffset(sequence, token, h) * BytesOf(type));
    }
    for (int32_t h = 0; h < s.kv_heads; ++h) {
      store(p.k.data() + (row * s.kv_heads + h) * d, kv.k(0, sequence, h, token));
      store(p.v.data() + (row * s.kv_heads + h) * d, kv.v(0, sequence, h, token));
    }
  }
  std::vector<float> out(rows * s.heads * d), d_heads(rows * (s.heads + 2 * s.kv_heads) * d, NAN);
  AttentionBackwardArgs args;
  args.forward = {.shape = s,
                  .q = q.data(),
                  .kv = &kv,
                  .score_units = p.score_units.data(),
                  .v_units = p.v_units.data(),
                  .prefix_k = p.prefix_k.data(),
                  .prefix_v = p.prefix_v.data(),
                  .out = out.data()};
  FloatAttention(*gemm, pool).Run(args.forward);
  Gradients g;
  g.d_prefix_k.assign(p.prefix_k.size(), before);
  g.d_prefix_v.assign(p.prefix_v.size(), before);
  args.q_units = p.q_units.data();
  args.k_units = p.k_units.data();
  args.out = out.data();
  args.d_out = p.d_out.data();
  args.d_heads = d_heads.data();
  if (s.prefix_tokens > 0) {
    args.d_prefix_k = g.d_prefix_k.data();
    args.d_prefix_v = g.d_prefix_v.data();
  }
  AttentionBackward(*gemm, pool).Run(args);
  g.out.assign(out.begin(), out.end());
  g.d_heads.assign(d_heads.begin(), d_heads.end());
  return g;
}

void ExpectNear(const std::vector<double>& a, const std::vector<double>& b, double offset,
                double tolerance, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  double largest = 0;
  for (const double x : b) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < a.size(); ++i)
    ASSERT_NEAR(a[i] - offset, b[i], tolerance * largest) << what << " " << i;
}

class AttentionBackwardTest : public testing::TestWithParam<Case> {};

// Scores of size up to 10 in float32 give softmax weights good to about 10 * 2^-23 + 2e-7 = 1.4e-6;
// sums over a few hundred terms of random sign add little to it. 1e-5 of the largest element.
TEST_P(AttentionBackwardTest, EqualsTheDefinitionInDouble) {
  const Problem problem(GetParam());
  const Gradients expected = Naive(problem);
  const Gradients result = Compute(problem, GemmType::kFloat32, 2, /*before=*/3);
  ExpectNear(result.out, expected.out, 0, 1e-5, "out");
  ExpectNear(result.d_heads, expected.d_heads, 0, 1e-5, "d_heads");
  ExpectNear(result.d_prefix_k, expected.d_prefix_k, 3, 1e-5, "d_prefix_k");
  ExpectNear(result.d_prefix_v, expected.d_prefix_v, 3, 1e-5, "d_prefix_v");
}

TEST_P(AttentionBackwardTest, ThreadsDoNotChangeABit) {
  const Problem problem(GetParam());
  const Gradients one = Compute(problem, GemmType::kFloat32, 1, 0);
  for (const int threads : {2, 3}) {
    const Gradients other = Compute(problem, GemmType::kFloat32, threads, 0);
    EXPECT_EQ(one.d_heads, other.d_heads) << threads;
    EXPECT_EQ(one.d_prefix_k, other.d_prefix_k) << threads;
    EXPECT_EQ(one.d_prefix_v, other.d_prefix_v) << threads;
  }
}

// Weights, their gradients and d_out are rounded to bf16, 2^-9 relative each; errors of random sign
// in sums of many terms: 1.5 % of the largest element.
TEST_P(AttentionBackwardTest, IntegersInBf16ComeClose) {
  if (!GetParam().units) GTEST_SKIP() << "float values are not exact in bf16";
  ThreadPool pool(1);
  if (!CreateCpuGemm(pool)->fast_bf16()) GTEST_SKIP() << "this CPU has no fast bf16 products";
  const Problem problem(GetParam());
  const Gradients expected = Naive(problem);
  const Gradients result = Compute(problem, GemmType::kBf16, 2, 0);
  ExpectNear(result.d_heads, expected.d_heads, 0, 0.015, "d_heads");
  ExpectNear(result.d_prefix_k, expected.d_prefix_k, 0, 0.015, "d_prefix_k");
  ExpectNear(result.d_prefix_v, expected.d_prefix_v, 0, 0.015, "d_prefix_v");
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionBackwardTest,
                         testing::Values(Case{"Groups", 2, 150, 6, 2, 16, 3, true},
                                         Case{"FloatValues", 2, 70, 4, 2, 16, 2, false},
                                         Case{"NoPrefix", 2, 65, 3, 3, 8, 0, true},
                                         Case{"OneKvHead", 1, 128, 4, 1, 32, 1, true},
                                         Case{"OneToken", 2, 1, 2, 1, 16, 1, true}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace fixpoint
