"""From a source to batches: sources, rows, views, batches, and the data module over them."""
