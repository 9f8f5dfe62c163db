//! What can be written about a volume, key by key. What is checked and what docs/volume-reference.md says are
//! of these tables: the comment of a row is its text there, with links as from that page.

use super::{AUTH_TYPES, INDEX_TAGS, ON_DELETE, PROFILES, TRANSPORTS};

/// A key of `volumeAttributes`, or of the parameters of a StorageClass.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its canonical spelling.
    pub name: &'static str,
    /// Where it may stand.
    pub place: Place,
    /// What it takes.
    pub values: Values,
    /// What holds without it, as it would be written; empty: nothing does.
    pub default: &'static str,
    /// What it means, as Markdown.
    pub meaning: &'static str,
}

/// Where a [`Key`] may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// PersistentVolumes, inline volumes and StorageClasses.
    Anywhere,
    /// PersistentVolumes and StorageClasses: not in an inline volume, which lends nobody's identity.
    NotInline,
    /// StorageClasses.
    Class,
}

/// What a [`Key`] takes.
#[derive(Debug, Clone, Copy)]
pub enum Values {
    /// One of these words, case-insensitive.
    OneOf(fn() -> Vec<&'static str>),
    /// `"true"` or `"false"`.
    Boolean,
    /// Something else, in a word or two.
    Text(&'static str),
}

/// A key of a Secret.
#[derive(Debug, Clone, Copy)]
pub struct SecretKey {
    /// Its name.
    pub name: &'static str,
    /// Another one that means the same; empty: none.
    pub alias: &'static str,
    /// What it means, as Markdown.
    pub meaning: &'static str,
}

/// A mount option.
#[derive(Debug, Clone, Copy)]
pub struct MountOption {
    /// Its name.
    pub name: &'static str,
    /// What it takes; empty: nothing, or `true` and `false`.
    pub value: &'static str,
    /// What holds without it.
    pub default: &'static str,
    /// What it means, as Markdown.
    pub meaning: &'static str,
}

/// The rows of a table, each made by a function out of its name, its text (which is its doc comment) and what
/// follows the name.
macro_rules! rows {
    ($row:ident, $($(#[doc = $line:literal])+ $name:literal $($value:expr),*;)+) => {
        &[$($row($name, concat!($($line),+), $($value),*)),+]
    };
}

type Word = &'static str;

const fn key(name: Word, meaning: Word, place: Place, values: Values, default: Word) -> Key {
    Key {
        name,
        place,
        values,
        default,
        meaning,
    }
}

const fn secret(name: Word, meaning: Word, alias: Word) -> SecretKey {
    SecretKey { name, alias, meaning }
}

const fn option(name: Word, meaning: Word, value: Word, default: Word) -> MountOption {
    MountOption {
        name,
        value,
        default,
        meaning,
    }
}

fn words<T>(choices: &'static [(&'static str, T)]) -> Vec<&'static str> {
    choices.iter().map(|(word, _)| *word).collect()
}

use Place::{Anywhere, Class, NotInline};
use Values::{Boolean, OneOf, Text};

/// Keys of volumes and classes, in the order of the reference.
pub const KEYS: &[Key] = rows! {
    key,

    /// The account. It may also come from the Secret or from `server`, and must agree with them.
    "storageAccount" Anywhere, Text("a name"), "";

    /// The container. In a class it may hold [variables](#variables); a class without it makes a container
    /// for each volume ([Created volumes](volumes.md#created-volumes)).
    "containerName" Anywhere, Text("a name"), "";

    /// What the name of a created container begins with.
    "containerNamePrefix" Class, Text("the start of a name"), "";

    /// The volume is this directory of the container. In a class it may hold [variables](#variables): a
    /// directory for each volume.
    "prefix" Anywhere, Text("a path"), "";

    /// The whole endpoint: a host, or a URL. For emulators the account is in the path:
    /// `http://127.0.0.1:10000/ACCOUNT`, `http://NAME.NAMESPACE.svc:PORT/ACCOUNT`,
    /// `http://ANY.HOST.NAME:PORT/ACCOUNT`.
    "server" Anywhere, Text("a host or a URL"), "";

    /// The cloud, for instance `core.chinacloudapi.cn`. Not beside `server`.
    "storageEndpointSuffix" Anywhere, Text("a domain"), "core.windows.net";

    /// `fuse` and `fuse2` are accepted and mean nothing; `nfs` and `aznfs` are refused.
    "protocol" Anywhere, Text("`fuse`, `fuse2`"), "";

    /// The Secret, when none comes with the call: [Secrets](volumes.md#secrets).
    "secretName" Anywhere, Text("a name"), "";

    /// The namespace of `secretName`, and not without it. Which it is when it is not given:
    /// [Secrets](volumes.md#secrets).
    "secretNamespace" Anywhere, Text("a name"), "";

    /// What the account is reached with: [who may use which](volumes.md#identities). Without it `Key`, or
    /// `SAS` when the Secret holds only a SAS.
    "AzureStorageAuthType" Anywhere, OneOf(|| words(AUTH_TYPES)), "";

    /// Which managed identity (`MSI`), by its client id; without one and without the next, the only one of
    /// the node.
    "AzureStorageIdentityClientID" Anywhere, Text("a client id"), "";

    /// The same by its resource id. Only one of the two.
    "AzureStorageIdentityResourceID" Anywhere, Text("a resource id"), "";

    /// Who gives the tokens of the managed identity, when it is not the instance metadata service.
    "MSIEndpoint" NotInline, Text("a URL"), "";

    /// The service principal (`SPN`); it may also come from the Secret.
    "AzureStorageSPNClientID" Anywhere, Text("a client id"), "";

    /// Its tenant; it may also come from the Secret.
    "AzureStorageSPNTenantID" Anywhere, Text("a tenant id"), "";

    /// The login endpoint, of another cloud for instance: `https://`, or `http://` on the same machine only.
    "AzureStorageAADEndpoint" NotInline, Text("a URL"), "";

    /// The application of the workload identity. The pod's own token needs it; for the driver's it is
    /// otherwise the chart's `workloadIdentity.clientID`.
    "ClientID" Anywhere, Text("a client id"), "";

    /// Its tenant; without it the one of the driver's own workload identity.
    "tenantID" Anywhere, Text("a tenant id"), "";

    /// With `"true"` the token is the one of the pod's service account, and not the driver's:
    /// [Identities](volumes.md#identities).
    "mountWithWorkloadIdentityToken" Anywhere, Boolean, "false";

    /// `"false"` only: accounts with a hierarchical namespace are not supported yet, and refused when the
    /// volume is mounted.
    "isHnsEnabled" Anywhere, Boolean, "false";

    /// `prefer`: the channel where the node has it; `require`: refuse without; `https`: never the channel.
    /// `require` is for the nodes: the controller creates and deletes the volume either way.
    "transport" Anywhere, OneOf(|| words(TRANSPORTS)), "prefer";

    /// The content type of new files. `auto`: by the extension; `none`: `application/octet-stream`; or one
    /// type for all, as `text/plain`.
    "contentType" Anywhere, Text("`auto`, `none`, a type"), "auto";

    /// Blobs whose index tags the identity may not read. `keep`: they are not written; `drop`: they are, and
    /// lose the tags.
    "indexTags" Anywhere, OneOf(|| words(INDEX_TAGS)), "keep";

    /// What the mount is tuned for: [Profiles](volumes.md#profiles).
    "profile" Anywhere, OneOf(|| words(PROFILES)), "general";

    /// Taken for manifests of blob.csi.azure.com, and refused: there is no local disk cache yet.
    "cacheSizeMB" Anywhere, Text("none yet"), "";

    /// `none` only: there is no local disk cache yet.
    "cacheMedium" Anywhere, Text("`none`"), "none";

    /// What becomes of the data when the claim is deleted. `retain` also lets a class use what somebody else
    /// made: [Created volumes](volumes.md#created-volumes).
    "onDelete" Class, OneOf(|| words(ON_DELETE)), "delete";
};

/// Keys of a Secret.
pub const SECRET_KEYS: &[SecretKey] = rows! {
    secret,

    /// The account.
    "azurestorageaccountname" "accountname";

    /// Its key, in base64 as Azure shows it (`Key`).
    "azurestorageaccountkey" "accountkey";

    /// A shared access signature of the account or the container (`SAS`); a `?` before it is dropped.
    "azurestorageaccountsastoken" "";

    /// The application of a service principal (`SPN`), where the volume does not say it.
    "azurestoragespnclientid" "";

    /// Its client secret.
    "azurestoragespnclientsecret" "";

    /// Its tenant, where the volume does not say it.
    "azurestoragespntenantid" "";

    /// The secret that the identity endpoint of `MSIEndpoint` asks for (`MSI`).
    "msisecret" "";
};

/// Mount options.
pub const OPTIONS: &[MountOption] = rows! {
    option,

    /// Nothing can be changed. (`read_only` means the same.)
    "ro" "", "off";

    /// Owner of what carries none, and of what pods make: [Whose files are](volumes.md#whose-files-are).
    "uid" "a number", "0";

    /// Group of what carries none, and of what pods make. A pod's `fsGroup` wins.
    "gid" "a number", "0";

    /// Permission bits that nothing has.
    "umask" "octal, at most 777", "0";

    /// Permission bits of files that carry none; what pods make has no others for group and others.
    "file_mode" "octal, at most 777", "0666, with an `fsGroup` 0664";

    /// The same of folders.
    "dir_mode" "octal, at most 777", "0777, with an `fsGroup` 02775";

    /// Always on: pods run as other users than the driver.
    "allow_other" "", "on";

    /// How long the kernel believes attributes.
    "attr_timeout" "seconds, also `0.5`", "1";

    /// How long it believes that a name is there.
    "entry_timeout" "seconds, also `0.5`", "1";

    /// How long it believes that a name is absent.
    "negative_timeout" "seconds, also `0.5`", "1; 0 with the profiles `general` and `streaming`";

    /// Pages stay in memory from one open to the next while the blob has not changed.
    "kernel_cache" "", "on";

    /// Blobs of the largest folder that is renamed; a larger one is copied by who moves it.
    "rename_limit" "a number", "20000";

    /// How long anybody waits for work that makes no progress; then its call fails:
    /// [How long things wait](semantics.md#how-long-things-wait).
    "timeout" "a time from `1s` to `1h`, as `60s`, `1500ms`, `2m`", "60s";
};

/// Options that ask for what every mount is anyway.
pub const ALWAYS: &[&str] = &[
    "rw",
    "noatime",
    "nodiratime",
    "nosuid",
    "nodev",
    "_netdev",
    "default_permissions",
];

/// Options that people try, and what they want instead.
pub const INSTEAD: &[(&str, &str)] = &[
    ("direct_io", "set profile: streaming in the volume's attributes"),
    (
        "context",
        "a FUSE mount takes no SELinux label; see docs/volumes.md, SELinux",
    ),
    (
        "fscontext",
        "a FUSE mount takes no SELinux label; see docs/volumes.md, SELinux",
    ),
    ("noexec", "a pod's securityContext says what it may execute"),
    ("exec", "a pod's securityContext says what it may execute"),
    (
        "sync",
        "what close and fsync have returned for is in the service anyway",
    ),
    (
        "dirsync",
        "what close and fsync have returned for is in the service anyway",
    ),
    (
        "allow_root",
        "every user of a pod may use the mount; permissions decide",
    ),
    ("nonempty", "an empty directory is made for each mount"),
    ("max_read", "there is no reason to set it"),
    ("big_writes", "there is no reason to set it"),
];

/// The variables of [`KEYS`] in a StorageClass.
pub const VARIABLES: [&str; 3] = [
    "${pvc.metadata.name}",
    "${pvc.metadata.namespace}",
    "${pv.metadata.name}",
];

/// What the keys begin with that kubelet and the external provisioner add by themselves.
pub const SYSTEM_PREFIXES: &[&str] = &["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// Every name of a Secret's key.
pub(super) fn secret_names() -> impl Iterator<Item = &'static str> {
    let names = SECRET_KEYS.iter().flat_map(|key| [key.name, key.alias]);
    names.filter(|name| !name.is_empty())
}

/// Every option that does something.
pub(super) fn option_names() -> impl Iterator<Item = &'static str> {
    OPTIONS.iter().map(|option| option.name)
}
