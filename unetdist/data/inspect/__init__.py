"""Looks at shards that are written: are they whole, what do they hold, what do the samples look like."""
