"""The wire: frames, messages, the handshake and the two kinds of connection."""
