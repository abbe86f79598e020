"""What users do with containers and SSH keys, and the JSON that it takes and gives."""
