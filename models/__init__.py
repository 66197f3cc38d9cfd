"""The three families behind one contract (`generator.py`), and the latent space they share."""
