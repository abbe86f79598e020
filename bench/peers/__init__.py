"""This system, SeaweedFS and MooseFS in turns on one machine: see docs/speed.md.

python -m bench.peers            # make bench-peers: a table, JSON and a picture
python -m bench.peers --quick    # a minute, to see that it runs
"""
