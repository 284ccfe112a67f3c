"""Our TensorFlow Datasets builders, and what it takes to build them without TensorFlow."""
