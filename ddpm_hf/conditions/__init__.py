"""What a network is told beside x_t and t: class labels, and whatever else is a `Condition`."""
