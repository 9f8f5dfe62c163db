//! The single table from what went wrong to a gRPC code, a stable reason and what to do about it.
//!
//! The reason (CamelCase) is part of the interface: Events, metrics and docs/troubleshooting.md use the same
//! word. Codes follow the error tables of the CSI specification; `status.details` stays empty as it demands.

use std::fmt;

use tonic::{Code, Status};

/// An error of an RPC: which row of the table, and the sentence that names the field, path or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Row of the table.
    pub reason: Reason,
    /// What happened, naming the field and its value where that is no secret.
    pub message: String,
}

/// Result of a step of an RPC.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this row.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: shortened(message.into()),
        }
    }
}

/// Longest message, in bytes: an Event holds a kilobyte, an answer some headers.
const LONGEST: usize = 1000;

/// A message without its middle, where it tells a value that is too long to be told.
fn shortened(message: String) -> String {
    if message.len() <= LONGEST {
        return message;
    }
    let letters = || message.char_indices().map(|(at, _)| at);
    let begin = letters().take_while(|at| *at <= LONGEST / 2).last().unwrap_or(0);
    let late = |at: &usize| *at >= message.len() - LONGEST / 4;
    let end = letters().rev().take_while(late).last().unwrap_or(message.len());
    let left_out = end - begin;
    format!(
        "{} ... ({left_out} bytes) ... {}",
        &message[..begin],
        &message[end..]
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message.trim_end_matches('.');
        let stop = if message.ends_with('?') { "" } else { "." };
        write!(f, "{message}{stop} {} [{}]", self.reason.hint(), self.reason)
    }
}

impl std::error::Error for Error {}

/// Header that carries the reason from a service to the layer that counts calls, which takes it out again.
pub(crate) const REASON: &str = "x-vsc-blob-reason";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut status = Status::new(error.reason.code(), error.to_string());
        // Always CamelCase, so always a valid header.
        if let Ok(reason) = error.reason.to_string().parse() {
            status.metadata_mut().insert(REASON, reason);
        }
        status
    }
}

/// Writes the enum, the list of all rows and the lookups from one table.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $code:ident, $hint:literal;)+) => {
        /// Why an RPC failed. The name is stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $name,)+ }

        impl Reason {
            /// Every row.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The gRPC code.
            pub fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)+ }
            }

            /// What to do, one sentence.
            pub fn hint(self) -> &'static str {
                match self { $(Self::$name => $hint,)+ }
            }
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => stringify!($name),)+ })
            }
        }
    };
}

reasons! {
    /// A required field of the request, or a required key, is missing.
    MissingField => InvalidArgument, "Set the field named above";
    /// A key of volumeAttributes or of the StorageClass is not known.
    UnknownKey => InvalidArgument, "Correct or remove the key in the PersistentVolume, pod or StorageClass";
    /// Two keys differ only in case.
    DuplicateKey => InvalidArgument, "Keep one spelling of the key";
    /// A value does not parse or is out of its range.
    InvalidValue => InvalidArgument, "Correct the value of the field named above";
    /// Two fields contradict each other.
    ConflictingFields => InvalidArgument, "Keep one of the two, or make them agree";
    /// A mount option this file system does not know.
    UnknownMountOption => InvalidArgument, "Remove it from mountOptions";
    /// A documented setting that this release does not implement.
    NotSupportedYet => InvalidArgument, "Leave the setting out until a release supports it";
    /// NFS was asked for.
    ProtocolNotSupported => InvalidArgument,
        "Use protocol: fuse (or leave it out), or blob.csi.azure.com for NFS";
    /// No credential of the demanded kind came with the request.
    MissingCredentials => InvalidArgument,
        "Name a Secret with the key in nodeStageSecretRef (StorageClass: \
        csi.storage.k8s.io/node-stage-secret-name), or set AzureStorageAuthType";
    /// The Secret that secretName names is not there.
    SecretNotFound => FailedPrecondition, "Create the Secret, or correct secretName and secretNamespace";
    /// The driver's service account may not read the Secret.
    SecretAccessDenied => PermissionDenied,
        "Add the namespace to secretNamespaces of the chart, or make the Role and its binding by hand";
    /// A volume of a pod names a Secret that the pod's author may not use.
    SecretNamespaceRefused => PermissionDenied,
        "Leave secretNamespace out: an inline volume uses Secrets of the pod's own namespace only";
    /// An identity of the node or the driver was asked for by whom, or for where, it is not lent.
    IdentityRefused => PermissionDenied,
        "In an inline volume use a Secret of the pod's namespace, Anonymous or the pod's own token \
        (mountWithWorkloadIdentityToken), or use a PersistentVolume; hosts outside of Azure's clouds are \
        allowed by allowedEndpoints of the chart (--allowed-endpoints)";
    /// The API server is needed and cannot be asked.
    ClusterUnavailable => Unavailable,
        "Check that the driver reaches the API server, or hand the Secret over with the call \
        (nodeStageSecretRef, nodePublishSecretRef)";
    /// A block volume was asked for at creation.
    BlockNotSupported => InvalidArgument, "Use volumeMode: Filesystem";
    /// A volume was to be made from a snapshot or another volume.
    SourceNotSupported => InvalidArgument, "Create the volume empty and copy the data";
    /// The target path exists and is no directory.
    TargetNotDirectory => InvalidArgument,
        "Remove the file at the target path; the driver creates a directory there";
    /// The prefix is the name of a file.
    PrefixNotDirectory => InvalidArgument, "Name a folder in prefix, or leave it out for the whole container";
    /// required_bytes is above limit_bytes, or negative.
    CapacityOutOfRange => OutOfRange, "Ask for a size within the limit; containers themselves have no quota";
    /// The node serves as many volumes as its budget allows.
    TooManyVolumes => ResourceExhausted,
        "Wait until other pods of the node have ended, or raise --budget (and --max-volumes) of the node \
        plugin";
    /// The volume id names nothing here.
    VolumeNotFound => NotFound, "Check the volume id (volumeHandle)";
    /// The container does not exist.
    ContainerNotFound => NotFound, "Create the container, or correct containerName";
    /// Nothing is below the prefix of a read-only volume.
    PrefixNotFound => NotFound, "Correct prefix, or put something there first";
    /// The path of a request is not a mount of the volume.
    PathNotFound => NotFound, "Check that the volume is published at this path";
    /// The service did not accept the key, SAS or token.
    AuthenticationFailed => Unauthenticated,
        "Check azurestorageaccountkey or azurestorageaccountsastoken in the Secret (rotated key, expired \
        SAS, wrong account) and the node's clock";
    /// No token could be had.
    TokenUnavailable => Unauthenticated,
        "Check the identity named in the volume and that the token endpoint can be reached from the node";
    /// The credential is valid and lacks a right, or the account's firewall refuses the node.
    AccessDenied => PermissionDenied,
        "Grant the identity Storage Blob Data Contributor (SAS: read, write, list, delete, create), and \
        check the account's network rules";
    /// Another call for the same volume is at work.
    OperationPending => Aborted, "Wait for the other call; the orchestrator retries by itself";
    /// Staged at this path with other arguments.
    StagedDifferently => AlreadyExists, "Unstage the volume first, or repeat the first call's arguments";
    /// Published at this path with other arguments.
    PublishedDifferently => AlreadyExists, "Unpublish the target first, or repeat the first call's arguments";
    /// A volume of this name exists with other arguments.
    VolumeExistsDifferently => AlreadyExists,
        "Use another name, or the parameters and size it was created with";
    /// The container or prefix exists and belongs to somebody else.
    NameTaken => AlreadyExists,
        "Use a name of its own per volume, for instance with ${pvc.metadata.name}, or onDelete: retain to \
        use what exists";
    /// The staging path is not set or does not exist.
    StagingPathMissing => FailedPrecondition, "Call NodeStageVolume with an existing directory first";
    /// Published before it was staged.
    NotStaged => FailedPrecondition, "Call NodeStageVolume first and publish from its staging path";
    /// The mount's process has ended (restart of the node plugin).
    MountDead => FailedPrecondition,
        "The driver makes it anew by itself as soon as it may; or delete the pods of this volume on this \
        node: the next stage mounts it afresh";
    /// The pod wants the volume in another way than it is mounted on this node.
    StagedForOthers => FailedPrecondition,
        "Give all pods that use the volume on this node the same fsGroup; after a change of mountOptions or \
        accessModes end them, and start them again";
    /// Block access, or another capability that a container cannot offer.
    CapabilityExceeded => FailedPrecondition,
        "Ask ValidateVolumeCapabilities what the volume can do; only file system access is offered";
    /// A volume for one writer is published at another path already.
    PublishedElsewhere => FailedPrecondition, "Use ReadWriteMany, or end the pod that has the volume";
    /// `transport: require` and no usable channel.
    ChannelRequired => FailedPrecondition,
        "Set transport: prefer to fall back to HTTPS, or see `vsc-blob-csi doctor` on the node";
    /// The plugin cannot work on this node.
    NotReady => FailedPrecondition, "See `vsc-blob-csi doctor` on the node";
    /// onDelete asks to delete what this driver did not create.
    NotCreatedHere => FailedPrecondition, "Delete it by hand, or set the reclaim policy to Retain";
    /// Another created volume is inside the one that is to be deleted.
    HoldsAnotherVolume => FailedPrecondition,
        "Delete the volume inside it first, or set the reclaim policy to Retain";
    /// Somebody else holds leases on blobs of the volume that is to be deleted.
    BlobsLeased => FailedPrecondition,
        "End or break these leases, or wait for their end; the deletion is repeated by itself";
    /// The path still holds something after the unmount.
    TargetInUse => FailedPrecondition,
        "Look what is left at the path; the driver never deletes files of the node";
    /// A pod's directory holds files of the node's disk.
    FilesOnNodeDisk => FailedPrecondition,
        "Save the files from that directory of the node, empty it, and the volume is mounted";
    /// The endpoint does not answer.
    EndpointUnreachable => Unavailable,
        "Check server / storageEndpointSuffix, DNS and the network from the node to the storage account";
    /// The service throttles or has a bad moment.
    ServiceBusy => Unavailable, "Wait; the orchestrator retries by itself";
    /// The mount is served and does not answer for now.
    MountSilent => Unavailable,
        "See the log of the node plugin for what the service answers; the mount stays, and the orchestrator \
        retries by itself";
    /// Unmounted, with changes that are still on their way to the service.
    CommitPending => Unavailable,
        "Wait; the orchestrator retries by itself, and the log of the node plugin says what the service \
        answers";
    /// No answer within the deadline.
    ServiceTimeout => DeadlineExceeded, "Check the network from the node to the storage account";
    /// The file system was mounted and does not answer.
    FileSystemSilent => DeadlineExceeded, "See the log of the node plugin; the mount was taken down again";
    /// The service answered something else.
    ServiceError => Internal, "Look up the service's code; the request id helps the service's support";
    /// A mount system call failed.
    MountFailed => Internal, "See `vsc-blob-csi doctor` on the node and the kernel's log";
    /// An unmount failed.
    UnmountFailed => Internal, "Look which process holds the mount (fuser -m PATH)";
    /// Anything else on the node.
    NodeError => Internal, "See the log of the node plugin";
}

/// What an Event tells without a call that failed. The names are stable, as those of [`Reason`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Requests of the node take HTTPS from now on.
    ChannelLost,
    /// Requests of the node take the channel again.
    ChannelRestored,
    /// Files of a volume were closed, and the service has not taken them for a while.
    DataNotStored,
    /// It has taken them all.
    DataStored,
    /// Data of closed files was given up: somebody else has stored another version, or removed the name.
    DataLost,
    /// What a volume is reached with ends soon.
    CredentialExpiring,
    /// It has ended.
    CredentialExpired,
    /// A mounted volume is reached with newer credentials from now on.
    CredentialReplaced,
    /// Newer credentials of a mounted volume are not accepted.
    CredentialRefused,
}

impl Change {
    /// Every row.
    pub const ALL: &'static [Change] = &[
        Change::ChannelLost,
        Change::ChannelRestored,
        Change::DataNotStored,
        Change::DataStored,
        Change::DataLost,
        Change::CredentialExpiring,
        Change::CredentialExpired,
        Change::CredentialReplaced,
        Change::CredentialRefused,
    ];

    /// Whether the Event is of type Warning; else it is Normal.
    pub fn is_warning(self) -> bool {
        !matches!(
            self,
            Self::ChannelRestored | Self::DataStored | Self::CredentialReplaced
        )
    }

    /// What happened, one sentence.
    pub fn message(self) -> &'static str {
        match self {
            Self::ChannelLost => "requests of this node go over HTTPS",
            Self::ChannelRestored => "requests of this node use the accelerated channel",
            Self::DataNotStored => "the service does not take what was written to files that are closed",
            Self::DataStored => "everything that was written to closed files is stored",
            Self::DataLost => {
                "what was written to files that were closed is not stored: somebody else has stored another \
                 version meanwhile, or removed them"
            }
            Self::CredentialExpiring => {
                "what the volume is reached with ends soon: put a newer one in its Secret"
            }
            Self::CredentialExpired => {
                "what the volume is reached with has ended: put a newer one in its Secret"
            }
            Self::CredentialReplaced => "the volume is reached with its newer credentials from now on",
            Self::CredentialRefused => {
                "the volume's newer credentials are not used, and its mount goes on with what it has"
            }
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChannelLost => "ChannelLost",
            Self::ChannelRestored => "ChannelRestored",
            Self::DataNotStored => "DataNotStored",
            Self::DataStored => "DataStored",
            Self::DataLost => "DataLost",
            Self::CredentialExpiring => "CredentialExpiring",
            Self::CredentialExpired => "CredentialExpired",
            Self::CredentialReplaced => "CredentialReplaced",
            Self::CredentialRefused => "CredentialRefused",
        })
    }
}

impl From<blob_client::Error> for Error {
    fn from(error: blob_client::Error) -> Self {
        use blob_client::Error as E;
        let reason = match &error {
            E::ContainerNotFound { .. } => Reason::ContainerNotFound,
            E::BlobNotFound { .. } => Reason::VolumeNotFound,
            E::AlreadyExists { .. } => Reason::NameTaken,
            E::ConditionNotMet { .. } | E::NotModified { .. } | E::LeaseConflict { .. } => {
                Reason::ServiceError
            }
            E::Denied { code, .. } => denied(code),
            E::Token { .. } => Reason::TokenUnavailable,
            E::Service {
                status: 429 | 500 | 503,
                ..
            } => Reason::ServiceBusy,
            E::Service { .. } | E::Malformed { .. } => Reason::ServiceError,
            E::Unreachable { .. } => Reason::EndpointUnreachable,
            E::DeadlineExceeded { .. } | E::EarlierRequest { .. } => Reason::ServiceTimeout,
            E::ChannelRequired { .. } => Reason::ChannelRequired,
            E::Argument { .. } => Reason::InvalidValue,
            E::Io { .. } => Reason::NodeError,
            _ => Reason::ServiceError,
        };
        Self::new(reason, error.to_string())
    }
}

/// Not authenticated, or authenticated without the right (REST: "Common REST API error codes").
fn denied(code: &str) -> Reason {
    match code {
        "AuthenticationFailed" | "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => {
            Reason::AuthenticationFailed
        }
        _ => Reason::AccessDenied,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_message_tells_no_value_of_megabytes() {
        for letter in ["x", "é", "😀"] {
            let value = letter.repeat(1 << 20);
            let error = Error::new(Reason::InvalidValue, format!("prefix: {value} is not a path"));
            assert!(error.message.len() < 1000, "{}", error.message.len());
            assert!(error.message.starts_with("prefix: ") && error.message.ends_with(" is not a path"));
            assert!(error.message.contains(" bytes) ... "));
        }
        assert_eq!(
            Error::new(Reason::InvalidValue, "prefix: no").message,
            "prefix: no"
        );
    }

    /// Every row has a usable hint, a name of its own and a code that is an error. Its entry for people:
    /// tests/docs.rs.
    #[test]
    fn every_reason_is_complete() {
        let mut names = BTreeSet::new();
        for &reason in Reason::ALL {
            let name = reason.to_string();
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric()),
                "{name} is not CamelCase"
            );
            assert!(
                reason.hint().len() > 10 && !reason.hint().ends_with('.'),
                "hint of {name}"
            );
            assert_ne!(reason.code(), Code::Ok);
            assert_ne!(
                reason.code(),
                Code::Unknown,
                "{name}: the specification asks for a known code"
            );
            assert!(names.insert(name), "two rows of one name");
        }
        for change in Change::ALL {
            assert!(names.insert(change.to_string()), "{change}: two rows of one name");
        }
    }

    #[test]
    fn a_status_carries_message_hint_and_reason_and_no_details() {
        let status: Status = Error::new(Reason::UnknownKey, "volumeAttributes: unknown key \"x\".").into();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(
            status
                .message()
                .starts_with("volumeAttributes: unknown key \"x\". Correct"),
            "{}",
            status.message()
        );
        assert!(status.message().ends_with("[UnknownKey]"), "{}", status.message());
        assert!(status.details().is_empty());
    }

    #[test]
    fn a_question_needs_no_full_stop() {
        let error = Error::new(Reason::UnknownKey, "unknown key \"x\"; did you mean \"y\"?");
        assert!(error.to_string().contains("\"y\"? Correct"), "{error}");
    }

    #[test]
    fn service_errors_get_the_specifications_codes() {
        let denied = |code: &str| blob_client::Error::Denied {
            code: code.into(),
            hint: "h".into(),
        };
        let cases = [
            (denied("AuthenticationFailed"), Code::Unauthenticated),
            (denied("AuthorizationPermissionMismatch"), Code::PermissionDenied),
            (
                blob_client::Error::ContainerNotFound { name: "c".into() },
                Code::NotFound,
            ),
            (
                blob_client::Error::Unreachable {
                    endpoint: "http://x".into(),
                    message: "refused".into(),
                },
                Code::Unavailable,
            ),
            (
                blob_client::Error::Service {
                    status: 503,
                    code: "ServerBusy".into(),
                    message: String::new(),
                    request_id: String::new(),
                },
                Code::Unavailable,
            ),
        ];
        for (error, code) in cases {
            let text = error.to_string();
            assert_eq!(Error::from(error).reason.code(), code, "{text}");
        }
    }
}
