"""Files of tokenizers that do not give every text back, made of a few words."""

import io
import json

import sentencepiece

from jaxlm.interop.tokenizer_files import bos_processor, sentencepiece_json

TEXTS = ["the cat sat on the mat", "a cat, a hat and a mat.", "Under the HAT"] * 20


def wordpiece():
  """BERT's: lower case, no accents, words and their ##parts."""
  import tokenizers

  one = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
  one.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  one.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  one.decoder = tokenizers.decoders.WordPiece()
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  one.train_from_iterator(
    TEXTS, tokenizers.trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
  )
  one.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  return {
    "tokenizer.json": one.to_str().encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
  }


def dummy_prefix(*, model_alone=False, add_dummy_prefix=True):
  """Llama 2's: SentencePiece BPE with byte fallback that puts a space before every text."""
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_writer=out,
    model_type="bpe",
    vocab_size=290,
    byte_fallback=True,
    add_dummy_prefix=add_dummy_prefix,
    remove_extra_whitespaces=False,
    normalization_rule_name="identity",
    bos_id=1,
    eos_id=2,
    minloglevel=2,
  )
  if model_alone:
    return {"tokenizer.model": out.getvalue()}
  values = json.loads(sentencepiece_json(out.getvalue()))
  values["post_processor"] = bos_processor("<s>", 1)
  return {
    "tokenizer.model": out.getvalue(),
    "tokenizer.json": json.dumps(values).encode(),
    "tokenizer_config.json": json.dumps({"bos_token": "<s>", "eos_token": "</s>"}).encode(),
  }
