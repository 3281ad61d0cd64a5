#!/usr/bin/env python3
"""A CTranslate2 model in int8 from a GGUF file, through transformers. Needs PyPI's ctranslate2, transformers, torch, gguf.

    prepare_ctranslate2.py MODEL.gguf DIR
"""
import pathlib
import sys
import tempfile


def main():
    import ctranslate2
    import transformers
    source, target = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype="float32")
        config = model.config  # a model read from GGUF counts as quantized and cannot be saved
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = transformers.AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        ctranslate2.converters.TransformersConverter(folder).convert(target, quantization="int8", force=True)


if __name__ == "__main__":
    main()
