"""Two operations modulo a prime on shared weights, and ways to cut one of them out."""
