"""Users' requests about containers (:mod:`.containers`) and SSH keys (:mod:`.sshkeys`), and
their JSON (:mod:`.shapes`): the routes and the streams use these."""

from control.compute.requests.containers import DELETE_SECONDS, Containers
from control.compute.requests.shapes import (
    AdminContainerInfo,
    AdminListQuery,
    ContainerInfo,
    ContainerList,
    DeletedMessage,
    FirstMessage,
    Gone,
    LogsQuery,
    MountsChanged,
    MountsInfo,
    NewContainer,
    NewRule,
    RuleInfo,
    RuleList,
    SshInfo,
    Status,
    StatusMessage,
    message,
    status_message,
)
from control.compute.requests.sshkeys import SshKeys

__all__ = [
    "DELETE_SECONDS",
    "AdminContainerInfo",
    "AdminListQuery",
    "ContainerInfo",
    "ContainerList",
    "Containers",
    "DeletedMessage",
    "FirstMessage",
    "Gone",
    "LogsQuery",
    "MountsChanged",
    "MountsInfo",
    "NewContainer",
    "NewRule",
    "RuleInfo",
    "RuleList",
    "SshInfo",
    "SshKeys",
    "Status",
    "StatusMessage",
    "message",
    "status_message",
]
