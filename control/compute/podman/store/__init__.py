"""What containers keep and start from: their disks (:mod:`.disks`) and the image
(:mod:`.images`)."""
