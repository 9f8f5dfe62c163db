//! Which REST operation a request is.

use http::{HeaderMap, Method};

use super::address::Target;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A REST operation; counters and faults are kept per operation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Operation { $($(#[$doc])* $name,)* }

        impl Operation {
            /// All of them.
            pub const ALL: &[Operation] = &[$(Operation::$name,)*];
            /// Name, as written in the REST reference without spaces.
            pub fn name(self) -> &'static str {
                match self { $(Operation::$name => stringify!($name),)* }
            }
        }
    };
}

operations! {
    /// List Containers.
    ListContainers,
    /// Get Blob Service Properties.
    GetServiceProperties,
    /// Get Account Information (on the account, a container or a blob).
    GetAccountInformation,
    /// Create Container.
    CreateContainer,
    /// Get Container Properties and Get Container Metadata.
    GetContainerProperties,
    /// Set Container Metadata.
    SetContainerMetadata,
    /// Get Container ACL.
    GetContainerAcl,
    /// Set Container ACL: only the public access level is kept.
    SetContainerAcl,
    /// Delete Container.
    DeleteContainer,
    /// Lease Container.
    LeaseContainer,
    /// List Blobs.
    ListBlobs,
    /// Put Blob.
    PutBlob,
    /// Put Blob From URL.
    PutBlobFromUrl,
    /// Put Block.
    PutBlock,
    /// Put Block From URL.
    PutBlockFromUrl,
    /// Put Block List.
    PutBlockList,
    /// Get Block List.
    GetBlockList,
    /// Get Blob.
    GetBlob,
    /// Get Blob Properties.
    GetBlobProperties,
    /// Get Blob Metadata.
    GetBlobMetadata,
    /// Set Blob Metadata.
    SetBlobMetadata,
    /// Set Blob Properties (HTTP headers).
    SetBlobProperties,
    /// Set Blob Tier.
    SetBlobTier,
    /// Delete Blob.
    DeleteBlob,
    /// Snapshot Blob.
    SnapshotBlob,
    /// Undelete Blob.
    UndeleteBlob,
    /// Get Blob Tags.
    GetBlobTags,
    /// Set Blob Tags.
    SetBlobTags,
    /// Set Blob Immutability Policy.
    SetImmutabilityPolicy,
    /// Delete Blob Immutability Policy.
    DeleteImmutabilityPolicy,
    /// Set Blob Legal Hold.
    SetLegalHold,
    /// Copy Blob and Copy Blob From URL.
    CopyBlob,
    /// Abort Copy Blob.
    AbortCopyBlob,
    /// Lease Blob.
    LeaseBlob,
    /// Blob Batch (deletions; on the account or a container).
    BlobBatch,
    /// Append Block.
    AppendBlock,
    /// Put Page.
    PutPage,
    /// Anything else: answered with 501.
    Unsupported,
}

impl Operation {
    /// Reads the operation out of method, URL and headers.
    pub(super) fn of(method: &Method, target: &Target, headers: &HeaderMap) -> Self {
        let comp = target.query.get("comp").map(str::to_ascii_lowercase);
        let comp = comp.as_deref().unwrap_or_default();
        let restype = target.query.get("restype").unwrap_or_default();
        let read = *method == Method::GET || *method == Method::HEAD;
        let put = *method == Method::PUT;
        if *method == Method::POST && comp == "batch" && target.blob.is_none() {
            return Self::BlobBatch;
        }
        if restype.eq_ignore_ascii_case("account") && comp == "properties" && read {
            return Self::GetAccountInformation;
        }
        match (&target.container, &target.blob) {
            (None, _) => match comp {
                "list" if read => Self::ListContainers,
                "properties" if read && restype.eq_ignore_ascii_case("service") => Self::GetServiceProperties,
                _ => Self::Unsupported,
            },
            (Some(_), None) => match comp {
                "" if put => Self::CreateContainer,
                "" if *method == Method::DELETE => Self::DeleteContainer,
                "" | "metadata" if read => Self::GetContainerProperties,
                "metadata" if put => Self::SetContainerMetadata,
                "acl" if read => Self::GetContainerAcl,
                "acl" if put => Self::SetContainerAcl,
                "lease" if put => Self::LeaseContainer,
                "list" if read => Self::ListBlobs,
                _ => Self::Unsupported,
            },
            (Some(_), Some(_)) => Self::of_blob(method, comp, headers),
        }
    }

    fn of_blob(method: &Method, comp: &str, headers: &HeaderMap) -> Self {
        let from_url = headers.contains_key("x-ms-copy-source");
        match (method.as_str(), comp) {
            ("PUT", "") if from_url && headers.contains_key("x-ms-blob-type") => Self::PutBlobFromUrl,
            ("PUT", "") if from_url => Self::CopyBlob,
            ("PUT", "") => Self::PutBlob,
            ("PUT", "block") if from_url => Self::PutBlockFromUrl,
            ("PUT", "block") => Self::PutBlock,
            ("PUT", "blocklist") => Self::PutBlockList,
            ("PUT", "metadata") => Self::SetBlobMetadata,
            ("PUT", "properties") => Self::SetBlobProperties,
            ("PUT", "tier") => Self::SetBlobTier,
            ("PUT", "snapshot") => Self::SnapshotBlob,
            ("PUT", "undelete") => Self::UndeleteBlob,
            ("PUT", "tags") => Self::SetBlobTags,
            ("GET", "tags") => Self::GetBlobTags,
            ("PUT", "immutabilitypolicies") => Self::SetImmutabilityPolicy,
            ("DELETE", "immutabilitypolicies") => Self::DeleteImmutabilityPolicy,
            ("PUT", "legalhold") => Self::SetLegalHold,
            ("PUT", "copy") => Self::AbortCopyBlob,
            ("PUT", "lease") => Self::LeaseBlob,
            ("PUT", "appendblock") if !from_url => Self::AppendBlock,
            ("PUT", "page") if !from_url => Self::PutPage,
            ("GET" | "HEAD", "metadata") => Self::GetBlobMetadata,
            ("GET", "blocklist") => Self::GetBlockList,
            ("GET", "") => Self::GetBlob,
            ("HEAD", "") => Self::GetBlobProperties,
            ("DELETE", "") => Self::DeleteBlob,
            _ => Self::Unsupported,
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
