"""Models behind the search: backbones built from settings, their scorers, the recommender and its bundle."""
