"""Configs of `python -m jaxlm.prepare`: where text comes from, its tokenizer, its splits."""

import abc
import dataclasses
import enum
import typing

from jaxlm.errors import UserError
from jaxlm.tokenizers.config import Accelerator

if typing.TYPE_CHECKING:  # built lazily: this module stays importable in milliseconds
  from jaxlm.data.prep.documents import Corpus


class TokenizerKind(enum.Enum):
  """Of the tokenizer that is trained.

  SENTENCEPIECE: pieces of characters with byte fallback. HUGGINGFACE: pieces of bytes, a
  tokenizer.json. BYTE: 256 bytes and EOS, no training.
  """

  SENTENCEPIECE = "sentencepiece"
  HUGGINGFACE = "huggingface"
  BYTE = "byte"


class TokenizerModel(enum.Enum):
  """BPE: pairs merged by frequency (Sennrich et al. 2016). UNIGRAM: pieces pruned by likelihood
  (Kudo 2018); slower to train, seldom better for language models."""

  BPE = "bpe"
  UNIGRAM = "unigram"


@dataclasses.dataclass(kw_only=True)
class CorpusConfig(abc.ABC):
  """Where documents come from. A new source is a subclass with `build`, in a file of its own.

  max_bytes: stop after so many bytes of text (None: all).
  min_doc_bytes: shorter documents are skipped (and counted); empty ones always are.
  """

  max_bytes: int | None = None
  min_doc_bytes: int = 1

  @abc.abstractmethod
  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    """The documents. strict: undecodable text is an error. exclude: a directory never read."""

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    _at_least(path, "max_bytes", self.max_bytes, 1)
    _at_least(path, "min_doc_bytes", self.min_doc_bytes, 0)


@dataclasses.dataclass(kw_only=True)
class TextSourceConfig(CorpusConfig):
  """Files and folders: plain text and code, .jsonl, .parquet, also compressed (.gz .zst .xz .bz2).

  paths: files or folders (read with all folders below them). A file named here is read as text
    whatever its extension; in a folder, files of unknown extensions are skipped and counted.
  extra_extensions: more extensions to read as text in folders, e.g. ("log", "srt").
  text_field: the field of a .jsonl record, or the column of a .parquet file, that holds the text.
  document_separator: where plain text files hold many documents, the text between two of them,
    e.g. "<|endoftext|>". None: one file is one document.
  max_doc_bytes: longer plain text is cut at line ends into documents of at most so many bytes.
  """

  paths: tuple[str, ...] = ()
  extra_extensions: tuple[str, ...] = ()
  text_field: str = "text"
  document_separator: str | None = None
  max_doc_bytes: int = 2**20

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.prep.read import TextCorpus

    return TextCorpus(self, strict=strict, exclude=exclude)

  def validate(self, path: str) -> None:
    super().validate(path)
    if not self.paths:
      raise UserError(f"{path}.paths=(): name a file or a folder, e.g. --{path}.paths=my_texts")
    for name in self.paths:
      if not name:
        raise UserError(f"{path}.paths={self.paths!r}: holds an empty path; remove it")
    if not self.text_field:
      raise UserError(f"{path}.text_field='': name the field or column that holds the text")
    if self.document_separator == "":
      raise UserError(f"{path}.document_separator='': give a text, or None for one file = one doc")
    _at_least(path, "max_doc_bytes", self.max_doc_bytes, 64)
    if self.min_doc_bytes > self.max_doc_bytes:
      raise UserError(
        f"{path}.min_doc_bytes={self.min_doc_bytes}: must not exceed"
        f" max_doc_bytes={self.max_doc_bytes}"
      )


@dataclasses.dataclass(kw_only=True)
class StdlibSourceConfig(CorpusConfig):
  """Text that every Python installation holds: a corpus that needs no download.

  The language reference in pydoc, the .py files of the standard library (without its tests and
  generated tables), and, with include_packages, the code and texts of the installed packages.
  It differs between Python versions and environments: use it to try things out.
  """

  max_bytes: int | None = 16_000_000
  min_doc_bytes: int = 200
  max_doc_bytes: int = 2**20
  include_packages: bool = True

  def build(self, *, strict: bool, exclude: str) -> "Corpus":
    from jaxlm.data.prep.stdlib import StdlibCorpus

    del strict, exclude  # files of the interpreter; one that can not be decoded is skipped
    return StdlibCorpus(self)

  def validate(self, path: str) -> None:
    super().validate(path)
    _at_least(path, "max_doc_bytes", self.max_doc_bytes, 64)


@dataclasses.dataclass(kw_only=True)
class TokenizerTrainConfig:
  """The tokenizer.

  path: a tokenizer to use as it is: a directory (DATASET/tokenizer), or a published tokenizer's
    file or folder. Datasets that are mixed in one run must share one. What concerns training is
    ignored then.
  eos: of a published tokenizer, the symbol that ends documents, where its files do not tell.
  vocab_size: shrunk with a message where the text is too small for it. Sizes up to 65,536 take two
    bytes an id on disk.
  sweep: vocabulary sizes to train and compare (the verb train_tokenizer), in place of vocab_size.
    Which one is used: `choose`, or by rule the largest one at which doubling the vocabulary still
    saves min_gain of the tokens.
  max_train_bytes: of the training split, sampled over documents.
  weights: share of each source in the sample; {}: as the sources are. Sources that are not named
    are left out.
  control_symbols: symbols beside EOS (padding, fill-in-the-middle, roles) that no text can spell.
  pattern: of HUGGINGFACE, the regular expression that cuts text before merging; None: words with
    the blank before them, up to three digits, punctuation, white space.
  heldout_bytes: of each source, measured in the sweep and never trained on.
  """

  kind: TokenizerKind = TokenizerKind.SENTENCEPIECE
  path: str | None = None
  eos: str | None = None
  model: TokenizerModel = TokenizerModel.BPE
  vocab_size: int = 8192
  sweep: tuple[int, ...] = ()
  choose: int | None = None
  min_gain: float = 0.02
  max_train_bytes: int = 16_000_000
  weights: dict[str, float] = dataclasses.field(default_factory=dict)
  control_symbols: tuple[str, ...] = ()
  pattern: str | None = None
  heldout_bytes: int = 1_000_000
  accelerator: Accelerator = Accelerator.AUTO

  def sizes(self) -> list[int]:
    """Vocabulary sizes to train, in order."""
    return sorted(set(self.sweep) or {self.vocab_size})

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    for key, sizes in (("vocab_size", (self.vocab_size,)), ("sweep", self.sweep)):
      for size in sizes:
        _at_least(path, key, size, 300)
        if size > 2**20:
          raise UserError(f"{path}.{key}={size}: must be at most {2**20}")
    _at_least(path, "max_train_bytes", self.max_train_bytes, 1)
    _at_least(path, "heldout_bytes", self.heldout_bytes, 1)
    if self.choose is not None and self.choose not in self.sweep:
      raise UserError(f"{path}.choose={self.choose}: must be one of sweep={self.sweep}")
    if not 0 < self.min_gain < 1:
      raise UserError(f"{path}.min_gain={self.min_gain}: must be above 0 and below 1")
    if any(not weight >= 0 for weight in self.weights.values()) or (
      self.weights and not sum(self.weights.values()) > 0
    ):
      raise UserError(f"{path}.weights={self.weights}: none may be negative, one must be above 0")
    symbols = self.control_symbols
    if len(set(symbols)) != len(symbols) or not all(symbols):
      raise UserError(f"{path}.control_symbols={symbols}: must be distinct and not empty")
    if self.path == "":
      raise UserError(f"{path}.path='': name a directory such as data/stdlib/tokenizer, or None")


@dataclasses.dataclass(kw_only=True)
class TokenizeConfig:
  """How documents become shards.

  shard_tokens: tokens of a full shard file.
  bucket_bytes: text of a bucket of the shuffle: each worker's memory is that of one bucket and of
    one run of the same size, whatever the corpus.
  split_by_source: a dataset for each source, below the output, so that training can weigh them;
    otherwise one, all sources shuffled together.
  heldout_fraction, heldout_max_bytes: held out for evaluation, in whole documents, of each dataset.
  baselines: compress the held-out documents with gzip and xz, for comparison.
  """

  shard_tokens: int = 2**28
  bucket_bytes: int = 2**27
  split_by_source: bool = False
  heldout_fraction: float = 0.005
  heldout_max_bytes: int = 4_000_000
  baselines: bool = True

  def validate(self, path: str) -> None:
    """UserError with the dotted path for a value that can not work."""
    _at_least(path, "shard_tokens", self.shard_tokens, 1)
    _at_least(path, "bucket_bytes", self.bucket_bytes, 1)
    _at_least(path, "heldout_max_bytes", self.heldout_max_bytes, 1)
    if not 0 < self.heldout_fraction <= 0.5:
      raise UserError(
        f"{path}.heldout_fraction={self.heldout_fraction}: must be above 0 and at most 0.5"
      )


@dataclasses.dataclass(kw_only=True)
class PrepareConfig:
  """A dataset: `prepare(config)` makes the directory `output` from the text of `source`.

  name: of the dataset, in its manifest. output: the directory to make.
  heldout_fraction: share of the bytes that is held out for evaluation, in whole documents.
  heldout_max_bytes: bound on it.
  shard_tokens: tokens of a full shard file.
  seed: of the choice of held-out documents and the order of training documents.
  workers: processes that encode; 1: this one, with threads where the tokenizer has them.
  strict: a file that is not valid UTF-8 is an error; otherwise it is skipped, counted and named.
  overwrite: replace an existing dataset in `output` that has another config or source.
  """

  name: str
  output: str
  source: CorpusConfig
  tokenizer: TokenizerTrainConfig = dataclasses.field(default_factory=TokenizerTrainConfig)
  heldout_fraction: float = 0.02
  heldout_max_bytes: int = 4_000_000
  shard_tokens: int = 2**28
  seed: int = 0
  workers: int = 1
  strict: bool = False
  overwrite: bool = False

  def validate(self, path: str = "config") -> None:
    """UserError with the dotted path, the value and the remedy."""
    if not self.name:
      raise UserError(f"{path}.name='': give the dataset a name")
    if not self.output:
      raise UserError(f"{path}.output='': name a directory, e.g. --{path}.output=data/mine")
    if not 0 < self.heldout_fraction <= 0.5:
      raise UserError(
        f"{path}.heldout_fraction={self.heldout_fraction}: must be above 0 and at most 0.5"
      )
    _at_least(path, "heldout_max_bytes", self.heldout_max_bytes, 1)
    _at_least(path, "shard_tokens", self.shard_tokens, 1)
    _at_least(path, "seed", self.seed, 0)
    _at_least(path, "workers", self.workers, 1)
    self.source.validate(f"{path}.source")
    self.tokenizer.validate(f"{path}.tokenizer")


def _at_least(path: str, key: str, value: int | None, bound: int) -> None:
  if value is not None and value < bound:
    raise UserError(f"{path}.{key}={value}: must be at least {bound}")
