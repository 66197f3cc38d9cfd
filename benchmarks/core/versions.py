"""Versions of what the caches and results hold. Each is part of a key: raise it with any change to
what comes out, rounding included, and what was made before is made again. Only what changes a score
by less than 1e-12 of it needs none.
"""

DATA = 6  # how images become splits of pixels
LATENTS = 2  # how pixels become whitened latents and tokens
AUTOENCODER = 3  # how an autoencoder is trained on a data set's own images
CODEBOOK = 2  # how a codebook is fitted on latents
TRAINING = 8  # the models, their training and their sampling
# of a network that has changed alone, by its class: trainings of others stay
NETWORKS = {"models.uvit.UViT": 3}
# How settings of sampling are chosen. No key has it: each trial is kept by its own settings. The
# reference results say by which they were made.
SEARCH = 2
# Since 8 the floors of a model with a codebook of its own are its own's: its records say so by
# `floors_of`, and older ones are measured again.
SCORING = 8  # the feature extractors, distances and whatever else a record says of samples
