"""What x_0 is: from a batch of the data to what is diffused, and back to pictures."""
