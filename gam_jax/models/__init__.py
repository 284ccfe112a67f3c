"""Models: what a training run trains. Any class that `Model` describes can take part."""
