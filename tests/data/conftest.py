"""A small dataset on disk."""

import pytest

from jaxlm.data.testing import random_documents, write_dataset


@pytest.fixture
def dataset(tmp_path):
  """(directory, its ids): 60 documents in several shards."""
  ids = write_dataset(tmp_path / "set", random_documents(0, 60))
  return tmp_path / "set", ids
