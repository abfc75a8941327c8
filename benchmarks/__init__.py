"""How fast and how large widened blocks and models are beside their dense parents."""
