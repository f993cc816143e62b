"""Scores of a split of a prepared dataset."""

from typing import Any

from jaxlm.config import RunConfig
from jaxlm.data.config import TokenShardsConfig
from jaxlm.data.pipeline import evaluation_batches
from jaxlm.data.task import MaskedConfig
from jaxlm.evals.perplexity import Score, score
from jaxlm.mesh import BATCH_AXES
from jaxlm.models.base import Params
from jaxlm.sharding import Layout


def score_split(
  config: RunConfig,
  path: str,
  scorer: Any,
  params: Params,
  layout: Layout,
  *,
  count_bytes: bool = True,
) -> Score:
  """The score on the split eval.split of the dataset at `path`.

  Args:
    scorer: make_scoring_step's.
    count_bytes: False for a tokenizer whose ids do not stand for all of the text: no bits per byte.
  """
  source = TokenShardsConfig(name="heldout", path=path, split=config.eval.split).build(
    config.data.seq_len
  )
  batch = config.eval.batch_size or config.global_batch_size
  shards = layout.size(*BATCH_AXES)
  shard_index, shard_count = layout.row_shard()
  batches = evaluation_batches(
    source,
    -(-batch // shards) * shards,
    max_rows=config.eval.max_rows,
    shard_index=shard_index,
    shard_count=shard_count,
    attend_across_documents=config.data.attend_across_documents,
    task=config.data.task,
    seed=config.data.seed,
  )
  use_segments = not config.data.attend_across_documents
  return score(
    scorer,
    params,
    batches,
    layout,
    use_segments=use_segments,
    count_bytes=count_bytes and not isinstance(config.data.task, MaskedConfig),
  )


def describe_score(values: Score, *, masked: bool) -> str:
  """The score in a line."""
  what = "masked perplexity" if masked else "perplexity"
  text = f"loss {values.loss:.4f}, {what} {values.perplexity:.2f}"
  bits = values.bits_per_byte
  return text if bits is None else f"{text}, {bits:.4f} bits per byte"
