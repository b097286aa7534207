"""For those who train the embedded model: its judge, and a comparison of autoencoders."""
