// Small random models for tests of bundle, engine and server: valid by ValidateModel, the same on
// every machine for the same options, and calibrated by hand so that activations neither vanish nor
// saturate and logits follow the tokens.
#pragma once

#include <cstdint>
#include <string>

#include "bundle/bundle.h"
#include "bundle/model.h"
#include "text/tokenizer_spec.h"

namespace fixpoint {

// Which sites are int16; the others are int8.
enum TestWideSites : uint32_t {
  kWideAttnNorm = 1,
  kWideAttnOut = 2,
  kWideMlpNorm = 4,
  kWideDownIn = 8,
  kWideFinalNorm = 16,
  kWideAll = 31,
};

struct TestModelOptions {
  uint64_t seed = 1;
  int32_t layers = 2;
  int32_t hidden = 64;
  int32_t heads = 4;
  int32_t kv_heads = 2;
  int32_t head_dim = 16;
  int32_t intermediate = 128;
  int32_t vocab = 300;  // at least 258: 256 bytes and two control tokens; merges fill the rest
  int32_t context = 512;
  int32_t prefix_tokens = 0;          // 0 .. 16
  uint32_t wide_sites = 0;            // TestWideSites
  uint32_t odd_layer_wide_sites = 0;  // more of them, in layers 1, 3, ... only
  bool qkv_bias = false;
  bool qk_hadamard = false;
  int32_t down_hadamard_block = 1;
};

IntegerModel MakeTestModel(const TestModelOptions& options = {});

// Byte-level BPE (GPT-2 splitting): ids 0 .. 255 are the bytes, then merges of frequent English
// pairs (as many as fit, the rest unused tokens), <|im_start|> = vocab - 2 and <|im_end|> = vocab -
// 1, which ends generation.
TokenizerSpec MakeTestTokenizer(int32_t vocab = 300);

// Both, with a chat template, sites and provenance. digest and golden_digest are empty.
Bundle MakeTestBundle(const TestModelOptions& options = {});

}  // namespace fixpoint
