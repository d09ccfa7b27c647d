"""Gets data sets: what is fetched and from where, downloads that resume, archives, packs, and the whole way."""
