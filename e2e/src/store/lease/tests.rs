//! Leases: states over time, against the table of the reference.

use super::*;
use http::{HeaderName, HeaderValue};

const A: &str = "11111111-1111-1111-1111-111111111111";
const B: &str = "22222222-2222-2222-2222-222222222222";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap()))
        .collect()
}
fn acquire(lease: &mut Lease, id: &str, seconds: &str, now: Instant) -> Result<u16, String> {
    act(
        lease,
        &[
            ("x-ms-lease-action", "acquire"),
            ("x-ms-lease-duration", seconds),
            ("x-ms-proposed-lease-id", id),
        ],
        now,
    )
}
fn act(lease: &mut Lease, pairs: &[(&'static str, &str)], now: Instant) -> Result<u16, String> {
    lease
        .act(&headers(pairs), now)
        .map(|o| o.status)
        .map_err(|e| e.code.into_owned())
}
fn check(lease: &mut Lease, id: Option<&str>, now: Instant) -> Result<(), String> {
    lease
        .check(id, true, Resource::Blob, now)
        .map_err(|e| e.code.into_owned())
}

#[test]
fn a_fixed_lease_locks_expires_and_is_renewed() {
    let start = Instant::now();
    let later = |s| start + Duration::from_secs(s);
    let mut lease = Lease::default();
    assert_eq!(
        acquire(&mut lease, A, "14", start),
        Err("InvalidHeaderValue".into())
    );
    assert_eq!(acquire(&mut lease, A, "15", start), Ok(201));
    assert_eq!(
        acquire(&mut lease, B, "15", later(1)),
        Err("LeaseAlreadyPresent".into())
    );
    assert_eq!(check(&mut lease, None, later(1)), Err("LeaseIdMissing".into()));
    assert_eq!(
        check(&mut lease, Some(B), later(1)),
        Err("LeaseIdMismatchWithBlobOperation".into())
    );
    assert_eq!(check(&mut lease, Some(A), later(1)), Ok(()));
    assert_eq!(lease.shown(later(14)).state, "leased");
    assert_eq!(lease.shown(later(15)).state, "expired");
    assert_eq!(check(&mut lease, Some(A), later(15)), Err("LeaseLost".into()));
    assert_eq!(
        check(&mut lease, Some(B), later(15)),
        Err("LeaseNotPresentWithBlobOperation".into())
    );
    // A write by somebody else ends it for good.
    let mut written = lease.clone();
    assert_eq!(check(&mut written, None, later(15)), Ok(()));
    assert_eq!(written.shown(later(15)).state, "available");
    let renew = [("x-ms-lease-action", "renew"), ("x-ms-lease-id", A)];
    assert_eq!(act(&mut lease, &renew, later(20)), Ok(200));
    assert_eq!(lease.shown(later(34)).state, "leased");
    assert_eq!(acquire(&mut lease, B, "-1", later(40)), Ok(201));
    assert_eq!(
        act(&mut lease, &renew, later(41)),
        Err("LeaseIdMismatchWithLeaseOperation".into())
    );
    assert_eq!(lease.shown(later(4000)).duration, Some("infinite"));
}

#[test]
fn break_counts_down_and_frees() {
    let start = Instant::now();
    let later = |s| start + Duration::from_secs(s);
    let mut lease = Lease::default();
    let broken = [("x-ms-lease-action", "break")];
    assert_eq!(
        act(&mut lease, &broken, start),
        Err("LeaseNotPresentWithLeaseOperation".into())
    );
    acquire(&mut lease, A, "60", start).unwrap();
    let outcome = lease
        .act(
            &headers(&[("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "10")]),
            later(5),
        )
        .unwrap();
    assert_eq!((outcome.status, outcome.time), (202, Some(10)));
    assert_eq!(lease.shown(later(6)).state, "breaking");
    assert_eq!(check(&mut lease, None, later(6)), Err("LeaseIdMissing".into()));
    assert_eq!(
        acquire(&mut lease, A, "60", later(6)),
        Err("LeaseIsBreakingAndCannotBeAcquired".into())
    );
    let change = [
        ("x-ms-lease-action", "change"),
        ("x-ms-lease-id", A),
        ("x-ms-proposed-lease-id", B),
    ];
    assert_eq!(
        act(&mut lease, &change, later(6)),
        Err("LeaseIsBreakingAndCannotBeChanged".into())
    );
    assert_eq!(lease.shown(later(15)).state, "broken");
    assert_eq!(check(&mut lease.clone(), None, later(15)), Ok(()));
    assert_eq!(
        act(
            &mut lease,
            &[("x-ms-lease-action", "renew"), ("x-ms-lease-id", A)],
            later(15)
        ),
        Err("LeaseIsBrokenAndCannotBeRenewed".into())
    );
    assert_eq!(acquire(&mut lease, B, "60", later(16)), Ok(201));
    assert_eq!(
        act(
            &mut lease,
            &[("x-ms-lease-action", "release"), ("x-ms-lease-id", B)],
            later(17)
        ),
        Ok(200)
    );
    assert_eq!(lease.shown(later(17)).state, "available");
}
