//! What a blob has beside content, headers and metadata: tags, tier, encryption, protection.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::tags::Tags;

/// How long a rehydration takes by the store's clock: the service says up to 15 hours at standard priority.
const REHYDRATION: Duration = Duration::from_secs(15 * 3600);

/// What a blob has beside content, headers and metadata. A write that does not send one of them clears it, as
/// the service does.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Attributes {
    /// Index tags.
    pub(super) tags: Tags,
    /// The tier, when somebody set it; otherwise the account's default is inferred.
    pub(super) tier: Option<String>,
    /// Coming back from the archive.
    pub(super) rehydration: Option<Rehydration>,
    /// Encryption scope or customer key.
    pub(super) encryption: Encryption,
    /// Immutability of this blob.
    pub(super) protection: Protection,
}

/// A tier that an archived blob is on its way to (REST: "Set Blob Tier").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rehydration {
    tier: String,
    done: SystemTime,
}

/// What the blob is encrypted with, apart from the account's key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Encryption {
    /// `x-ms-encryption-scope`.
    pub(super) scope: Option<String>,
    /// `x-ms-encryption-key-sha256` of a key that only the customer has.
    pub(super) key_sha256: Option<String>,
}

/// Immutability of one blob (REST: "Set Blob Immutability Policy", "Set Blob Legal Hold").
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Protection {
    /// `x-ms-immutability-policy-until-date`.
    pub(super) until: Option<SystemTime>,
    /// `x-ms-immutability-policy-mode: locked`.
    pub(super) locked: bool,
    /// `x-ms-legal-hold`.
    pub(super) legal_hold: bool,
}

/// Where a blob is, in the eyes of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Availability {
    Online,
    Archived,
    Rehydrating,
}

impl Attributes {
    /// The tier at this time: one that a rehydration has reached by now.
    pub(super) fn tier_at(&self, now: SystemTime) -> Option<&str> {
        match &self.rehydration {
            Some(rehydration) if now >= rehydration.done => Some(&rehydration.tier),
            _ => self.tier.as_deref(),
        }
    }

    /// Whether content can be had.
    pub(super) fn availability(&self, now: SystemTime) -> Availability {
        match (self.tier_at(now), &self.rehydration) {
            (Some("Archive"), Some(_)) => Availability::Rehydrating,
            (Some("Archive"), None) => Availability::Archived,
            _ => Availability::Online,
        }
    }

    /// `x-ms-archive-status`.
    pub(super) fn archive_status(&self, now: SystemTime) -> Option<String> {
        match (&self.rehydration, self.availability(now)) {
            (Some(rehydration), Availability::Rehydrating) => Some(format!(
                "rehydrate-pending-to-{}",
                rehydration.tier.to_ascii_lowercase()
            )),
            _ => None,
        }
    }

    /// Sets the tier; true when an archived blob has to be rehydrated for it.
    pub(super) fn set_tier(&mut self, tier: String, now: SystemTime) -> bool {
        if self.availability(now) == Availability::Archived && tier != "Archive" {
            self.rehydration = Some(Rehydration {
                tier,
                done: now + REHYDRATION,
            });
            return true;
        }
        self.rehydration = None;
        self.tier = Some(tier);
        false
    }
}

impl Protection {
    /// Whether it forbids to change the blob at this time.
    pub(super) fn holds(&self, now: SystemTime) -> bool {
        self.legal_hold || self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rehydration_is_done_after_its_time() {
        let now = SystemTime::now();
        let mut attributes = Attributes::default();
        assert_eq!(attributes.availability(now), Availability::Online);
        assert!(!attributes.set_tier("Archive".into(), now));
        assert_eq!(attributes.availability(now), Availability::Archived);
        assert!(attributes.set_tier("Cool".into(), now));
        assert_eq!(attributes.availability(now), Availability::Rehydrating);
        assert_eq!(attributes.tier_at(now), Some("Archive"));
        assert_eq!(
            attributes.archive_status(now).as_deref(),
            Some("rehydrate-pending-to-cool")
        );
        let later = now + REHYDRATION;
        assert_eq!(
            (attributes.availability(later), attributes.tier_at(later)),
            (Availability::Online, Some("Cool"))
        );
        assert_eq!(attributes.archive_status(later), None);
    }
}
