"""Models in forms that other engines open, and those engines behind the interface of our own."""
