"""M3IT as webdataset shards: their format, and how they are made."""
