"""One disk: its directory and state, every call that is made to it, the identity that it
carries (``server.json``), and how its replicas are read at the start. All disks of a server
together, and the operator's orders for them: :mod:`gfs.chunkserver.node.disk_manager`."""
