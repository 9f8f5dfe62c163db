//! Settings of the account and of containers that no request of the data plane sets: an administrator does.

use std::time::Duration;

/// Settings of the account (in the service: of the resource, by the management plane). All are off at first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountSettings {
    /// "Secure transfer required": plain HTTP is refused with AccountRequiresHttps.
    pub https_only: bool,
    /// The account says that it has a hierarchical namespace (Get Account Information, and List Blobs with
    /// `include=permissions`, which a flat account refuses). Folders are not made real.
    pub hierarchical: bool,
    /// Each Put Blob, Put Block List, Copy Blob and Set Blob Metadata keeps the version before.
    pub versioning: bool,
    /// Deleted (without versioning: and overwritten) blobs can be restored for this long.
    pub soft_delete: Option<Duration>,
    /// How long the name of a deleted container stays taken (ContainerBeingDeleted). The service needs at
    /// least half a minute; here the name is free at once unless a test says otherwise.
    pub container_deletion: Duration,
}

/// Write once, read many: the immutability policy of a container, which covers all its blobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Immutability {
    /// A legal hold instead of a retention period: the code differs.
    pub legal_hold: bool,
    /// Append blobs may be appended to ("allow protected append writes").
    pub appends: bool,
}
