"""Labels, shards, order, augmentation and loaders: everything between files on disk and a `Batch`."""
