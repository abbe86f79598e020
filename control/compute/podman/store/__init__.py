"""What containers keep and start from: their disks (:mod:`.disks`), the image
(:mod:`.images`), and volumes of older versions that become disks (:mod:`.moves`)."""
