"""What plugin authors subclass: Algorithm, Backbone, Dataset, and the types that they exchange."""
