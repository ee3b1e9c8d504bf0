"""`python -m common.data`: makes or fetches the folders of token shards that the trainers read."""
