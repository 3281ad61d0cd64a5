#!/usr/bin/env python3
"""One engine's speed in the cells of compare.py, as one line of JSON: {cell: tokens/s}. Runs in a process of its own, with the Python of
the environment that the engine is installed in.

    peer.py llama.cpp   MODEL.Q8_0.gguf CELL... [--steps 64]
    peer.py openvino    MODEL.Q8_0.gguf CELL...
    peer.py ctranslate2 DIR CELL...          made by prepare_ctranslate2.py

A cell is "prefill N" (one prompt of N tokens until its first token is there) or "decode B" (B sequences with short prompts, --steps tokens
each: tokens a second of all together, the prompts' time taken off).
"""
import argparse
import json
import statistics
import sys
import time

THREADS = 2
SHORT_PROMPT = 16
REPEATS = 3
VOCABULARY = 31000  # ids that every model here has, where the engine does not tell


def prompt(length, vocabulary, salt=0):
    return [(i * 7919 + salt * 104729 + 13) % vocabulary for i in range(length)]


def median_seconds(run):
    run()  # warm-up
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class LlamaCpp:
    """The C API of llama-cpp-python: its Python wrapper copies every row of logits."""

    def __init__(self, path, steps):
        import llama_cpp
        self.c, self.steps = llama_cpp, steps
        self.model = llama_cpp.Llama(path, n_ctx=64, n_threads=THREADS, verbose=False)
        self.vocabulary = self.model.n_vocab()

    def context(self, tokens, sequences):
        c = self.c
        params = c.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = params.n_ubatch = max(512, tokens if sequences == 1 else 512)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = THREADS
        params.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_ENABLED
        if hasattr(params, "kv_unified"):
            params.kv_unified = False
        return c.llama_init_from_model(self.model._model.model, params)

    def decode(self, context, batch):
        if self.c.llama_decode(context, batch) != 0:
            sys.exit("llama_decode failed")
        self.c.llama_get_logits_ith(context, -1)  # waits for the result

    def fill(self, batch, tokens):
        """tokens: (id, position, sequence, wants logits)"""
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
            batch.seq_id[i][0] = sequence

    def prefill(self, length):
        context = self.context(length + 64, 1)
        batch = self.c.llama_batch_init(length, 0, 1)
        ids = prompt(length, self.vocabulary)

        def run():
            self.c.llama_memory_clear(self.c.llama_get_memory(context), True)
            self.fill(batch, [(token, i, 0, i == length - 1) for i, token in enumerate(ids)])
            self.decode(context, batch)
        return length / median_seconds(run)

    def batch(self, count):
        context = self.context(count * (SHORT_PROMPT + self.steps + 16), count)
        batch = self.c.llama_batch_init(count * SHORT_PROMPT, 0, 1)
        rates = []
        for _ in range(REPEATS + 1):
            self.c.llama_memory_clear(self.c.llama_get_memory(context), True)
            self.fill(batch, [(token, i, s, i == SHORT_PROMPT - 1) for s in range(count)
                              for i, token in enumerate(prompt(SHORT_PROMPT, self.vocabulary, s))])
            self.decode(context, batch)
            start = time.perf_counter()
            for step in range(self.steps):
                self.fill(batch, [((step * 31 + s) % self.vocabulary, SHORT_PROMPT + step, s, True) for s in range(count)])
                self.decode(context, batch)
            rates.append(count * self.steps / (time.perf_counter() - start))
        return statistics.median(rates[1:])


class Generating:
    """Engines that only generate: a decode step's time is what more tokens take longer. Prompts are new each time, because OpenVINO
    keeps those that it has seen."""

    salt = 0

    def fresh(self, length, count=1):
        self.salt += count
        return [prompt(length, self.vocabulary, self.salt + s) for s in range(count)]

    def prefill(self, length):
        return length / median_seconds(lambda: self.generate(self.fresh(length), 1))

    def batch(self, count):
        long = median_seconds(lambda: self.generate(self.fresh(SHORT_PROMPT, count), 1 + self.steps))
        return count * self.steps / (long - median_seconds(lambda: self.generate(self.fresh(SHORT_PROMPT, count), 1)))


class OpenVino(Generating):
    vocabulary = VOCABULARY

    def __init__(self, path, steps):
        import numpy
        import openvino
        import openvino_genai
        self.numpy, self.ov, self.genai = numpy, openvino, openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=THREADS)
        self.steps = steps

    def generate(self, ids, tokens):
        array = self.numpy.array(ids, dtype=self.numpy.int64)
        inputs = self.genai.TokenizedInputs(self.ov.Tensor(array), self.ov.Tensor(self.numpy.ones_like(array)))
        config = self.genai.GenerationConfig()
        config.max_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        result = self.pipeline.generate(inputs, config)
        if any(len(answer) != tokens for answer in result.tokens):
            sys.exit(f"openvino gave {[len(answer) for answer in result.tokens]} tokens instead of {tokens}")


class CTranslate2(Generating):
    vocabulary = VOCABULARY

    def __init__(self, path, steps):
        import ctranslate2
        self.generator = ctranslate2.Generator(path, device="cpu", compute_type="int8", intra_threads=THREADS, inter_threads=1)
        with open(f"{path}/vocabulary.json", encoding="utf-8") as file:
            self.words = json.load(file)
        self.steps = steps

    def generate(self, ids, tokens):
        result = self.generator.generate_batch([[self.words[i] for i in row] for row in ids], max_length=tokens, min_length=tokens,
                                               include_prompt_in_result=False, sampling_topk=1, beam_size=1, max_batch_size=len(ids))
        if any(len(answer.sequences_ids[0]) != tokens for answer in result):
            sys.exit(f"ctranslate2 gave {[len(answer.sequences_ids[0]) for answer in result]} tokens instead of {tokens}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["llama.cpp", "openvino", "ctranslate2"])
    parser.add_argument("model")
    parser.add_argument("cells", nargs="+")
    parser.add_argument("--steps", type=int, default=64)
    a = parser.parse_args()
    engine = {"llama.cpp": LlamaCpp, "openvino": OpenVino, "ctranslate2": CTranslate2}[a.engine](a.model, a.steps)
    rates = {}
    for cell in a.cells:
        kind, number = cell.split()
        rates[cell] = engine.prefill(int(number)) if kind == "prefill" else engine.batch(int(number))
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
