"""Where text comes from: files, URLs and the Hub, as shards of rows."""
