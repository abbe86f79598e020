"""What all tasks of one chunkserver share: its parts, its leases, the pace of background
work, the pulse it sends while a disk works, and the manager of its disks."""
