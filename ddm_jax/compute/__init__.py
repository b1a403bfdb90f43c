"""What runs where, and in how large pieces: nothing here knows the method."""
