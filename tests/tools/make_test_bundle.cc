// make_test_bundle OUT [VOCAB [CONTEXT [LAYERS]]]: writes a tiny random bundle
// (bundle/test_model.h) for tests of the server. The same arguments give the same bundle on every
// machine.
#include <cstdlib>
#include <iostream>

#include "absl/strings/numbers.h"
#include "bundle/bundle.h"
#include "bundle/test_model.h"

int main(int argc, char** argv) {
  fixpoint::TestModelOptions options;
  options.context = 512;
  options.prefix_tokens = 1;
  bool good = argc >= 2 && argc <= 5;
  if (good && argc > 2) good = absl::SimpleAtoi(argv[2], &options.vocab);
  if (good && argc > 3) good = absl::SimpleAtoi(argv[3], &options.context);
  if (good && argc > 4) good = absl::SimpleAtoi(argv[4], &options.layers);
  if (!good) {
    std::cerr << "usage: make_test_bundle OUT [VOCAB [CONTEXT [LAYERS]]]" << std::endl;
    return 2;
  }
  const auto digest = fixpoint::WriteBundle(fixpoint::MakeTestBundle(options), argv[1]);
  if (!digest.ok()) {
    std::cerr << "make_test_bundle: " << digest.status().message() << std::endl;
    return 1;
  }
  std::cout << *digest << std::endl;
  return 0;
}
