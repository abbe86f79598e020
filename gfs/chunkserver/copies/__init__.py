"""How a replica is made of others, always beside what is here and verified: cloned from
another server (many small ones at once), copied on write, or salvaged from damaged ones."""
