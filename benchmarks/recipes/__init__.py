"""How the networks that every family shares were trained."""
