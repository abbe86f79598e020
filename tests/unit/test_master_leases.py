"""Leases, counted by hand."""

from __future__ import annotations

from gfs.master.tables.leases import LeaseTable, wants_new_grant


def test_a_lease_ends_by_itself() -> None:
    leases = LeaseTable(60, 5)
    assert leases.current(1, 0.0) is None
    lease = leases.granted(1, 7, (2, 0, 1), inode=9, sent=100.0)
    assert (lease.primary, lease.version, lease.ends) == (2, 7, 160.0)
    assert leases.current(1, 159.9) == lease
    assert leases.current(1, 160.0) is None
    assert len(leases) == 0


def test_the_primary_counts_less_than_the_master() -> None:
    leases = LeaseTable(60, 5)
    lease = leases.granted(1, 1, (0,), 9, sent=100.0)
    assert leases.lease_ms == 55_000
    assert leases.remaining_ms(lease, 100.0) == 55_000
    assert leases.remaining_ms(lease, 130.0) == 25_000
    assert leases.remaining_ms(lease, 159.0) == 1


def test_only_the_primary_extends() -> None:
    leases = LeaseTable(60, 5)
    leases.granted(1, 1, (0, 1), 9, sent=0.0)
    assert not leases.extend(1, 1, 10.0)
    assert leases.extend(1, 0, 10.0)
    assert leases.current(1, 69.9) is not None
    assert not leases.extend(1, 0, 70.0)
    assert not leases.extend(2, 0, 0.0)


def test_expired_and_dropped_leases_are_forgotten() -> None:
    leases = LeaseTable(60, 5)
    for handle in range(10):
        leases.granted(handle, 1, (0,), 9, sent=float(handle))
    leases.expire(65.0)
    assert len(leases) == 4
    leases.drop(9)
    leases.drop(9)
    assert leases.current(9, 65.0) is None


def test_the_primary_can_use_it_for_less_than_the_master_counts() -> None:
    leases = LeaseTable(60, 5)
    lease = leases.granted(1, 1, (0,), 9, sent=100.0)
    assert leases.is_usable(lease, 154.9)
    assert not leases.is_usable(lease, 155.0)
    assert leases.current(1, 155.0) == lease


def test_who_gets_a_new_version() -> None:
    lease = LeaseTable(60, 5).granted(1, 4, (0, 1), 9, sent=0.0)
    assert wants_new_grant(None, 0)
    assert not wants_new_grant(lease, 0)
    assert wants_new_grant(lease, 4)
    # The chain that broke is the one before.
    assert not wants_new_grant(lease, 3)
