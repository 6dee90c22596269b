"""The five axes of a method, and the choices on each."""
