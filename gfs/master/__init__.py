"""The master: all metadata of the cluster, and the decisions about replicas."""

from gfs.master.service import MasterStarted, run_master

__all__ = ["MasterStarted", "run_master"]
