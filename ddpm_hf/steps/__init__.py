"""What one step of sampling is made of: the network as it is called, guidance, the sampler, pixels that are given."""
