"""Which replicas this server has, on which disk, open or not, and how durable they are."""
