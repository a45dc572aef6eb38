"""genrec.embeddings."""
