//! What stands in the way of who reads or changes a blob, as far as its properties tell.

use std::time::SystemTime;

use http::HeaderMap;

/// What a request for the content meets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Availability {
    /// The content is there.
    #[default]
    Online,
    /// It is in the archive, and out of reach.
    Archived,
    /// It is on its way out of the archive, which takes hours.
    Rehydrating,
}

/// See the module. A container's policies and what the requester's credential allows are not told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Protection {
    /// Where the content is.
    pub availability: Availability,
    /// Somebody holds a lease: only who has its id changes the blob.
    pub leased: bool,
    /// A legal hold keeps the blob as it is.
    pub legal_hold: bool,
    /// A retention policy does, until then.
    pub immutable_until: Option<SystemTime>,
}

impl Protection {
    /// Out of the headers of Get Blob Properties.
    pub(crate) fn of_answer(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let mut protection = Self::read(
            text("x-ms-access-tier"),
            text("x-ms-archive-status"),
            text("x-ms-lease-status"),
        );
        // Where versions are kept a write leaves the protected one as it is, and makes another beside it.
        if text("x-ms-version-id").is_none() {
            protection.legal_hold = text("x-ms-legal-hold").is_some_and(is_true);
            protection.immutable_until = text("x-ms-immutability-policy-until-date")
                .and_then(|until| httpdate::parse_http_date(until).ok());
        }
        protection
    }

    /// Out of the properties of a listing's entry, which says nothing of policies unless it is asked.
    pub(crate) fn of_listing<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self::read(text("AccessTier"), text("ArchiveStatus"), text("LeaseStatus"))
    }

    fn read(tier: Option<&str>, archive_status: Option<&str>, lease_status: Option<&str>) -> Self {
        let archived = tier.is_some_and(|tier| tier.eq_ignore_ascii_case("Archive"));
        let rehydrating = archive_status.is_some_and(|status| status.starts_with("rehydrate-pending"));
        Self {
            availability: match (archived, rehydrating) {
                (_, true) => Availability::Rehydrating,
                (true, false) => Availability::Archived,
                (false, false) => Availability::Online,
            },
            leased: lease_status.is_some_and(|status| status.eq_ignore_ascii_case("locked")),
            ..Self::default()
        }
    }
}

fn is_true(text: &str) -> bool {
    text.eq_ignore_ascii_case("true")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn answer(headers: &[(&'static str, &'static str)]) -> Protection {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        Protection::of_answer(&headers.iter().map(header).collect())
    }

    #[test]
    fn what_properties_say_is_understood() {
        assert_eq!(
            answer(&[("x-ms-access-tier", "Hot"), ("x-ms-lease-status", "unlocked")]),
            Protection::default()
        );
        assert!(answer(&[("x-ms-lease-status", "locked")]).leased);
        let archived = answer(&[("x-ms-access-tier", "Archive")]);
        assert_eq!(archived.availability, Availability::Archived);
        let leaving = [
            ("x-ms-access-tier", "Archive"),
            ("x-ms-archive-status", "rehydrate-pending-to-hot"),
        ];
        assert_eq!(answer(&leaving).availability, Availability::Rehydrating);
        assert!(answer(&[("x-ms-legal-hold", "true")]).legal_hold);
        let until = (
            "x-ms-immutability-policy-until-date",
            "Thu, 01 Jan 1970 00:01:00 GMT",
        );
        assert_eq!(
            answer(&[until]).immutable_until,
            Some(UNIX_EPOCH + Duration::from_secs(60))
        );
        let listed = |name: &str| match name {
            "AccessTier" => Some("Archive"),
            "LeaseStatus" => Some("locked"),
            _ => None,
        };
        let listed = Protection::of_listing(listed);
        assert_eq!(
            (listed.availability, listed.leased),
            (Availability::Archived, true)
        );
    }

    #[test]
    fn a_write_to_a_blob_whose_versions_are_kept_leaves_the_protected_one() {
        let versioned = answer(&[
            ("x-ms-version-id", "2026-01-01T00:00:00.0000000Z"),
            ("x-ms-legal-hold", "true"),
            (
                "x-ms-immutability-policy-until-date",
                "Thu, 01 Jan 2099 00:00:00 GMT",
            ),
        ]);
        assert_eq!(versioned, Protection::default());
    }
}
