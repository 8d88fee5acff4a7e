"""The demo: two small TensorFlow models, the names they judge, and where to find them."""
