"""From pictures and masks, wherever they are, to a folder of shards."""
