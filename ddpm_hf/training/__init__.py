"""Learning: the loop, its moving averages, previews and scores."""
