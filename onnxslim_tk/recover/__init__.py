"""Recovery: what makes up for a layer's compression, from samples without labels."""
