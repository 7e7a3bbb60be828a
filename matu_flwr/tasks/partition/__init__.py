"""Which client holds which tasks of a suite, and which images of them."""

from matu_flwr.tasks.partition.holdings import deal_suite, split_rule
from matu_flwr.tasks.partition.manifest import partition_manifest
from matu_flwr.tasks.partition.partition import Share, SplitRule, client_name, client_shares

__all__ = ["Share", "SplitRule", "client_name", "client_shares", "deal_suite", "partition_manifest", "split_rule"]
