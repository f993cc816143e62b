"""How much the report shows."""

EXAMPLES = 3  # removed documents shown of each op and reason; and near a threshold
MAX_REASONS = 40  # of an op that are shown with examples
TOP = 20  # rows of a table of languages or domains
