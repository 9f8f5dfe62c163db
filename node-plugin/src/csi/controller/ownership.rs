//! What a created volume remembers about its creation, in metadata of the container or of the directory's
//! marker.
//!
//! The mark makes CreateVolume idempotent without a database, and keeps DeleteVolume away from what users
//! made.

use std::collections::{BTreeMap, HashMap};

use blob_client::Metadata;
use blob_client::crypto::digest;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// CSI name of the volume, percent-encoded (metadata values are ASCII).
const NAME: &str = "vsccsi_name";
/// Bytes promised.
const CAPACITY: &str = "vsccsi_capacity";
/// Digest of the parameters.
const PARAMETERS: &str = "vsccsi_parameters";

/// The arguments of a CreateVolume that a second one must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) name: String,
    pub(super) capacity: i64,
    pub(super) parameters: String,
}

impl Mark {
    /// The mark of a request.
    pub(super) fn new(name: &str, capacity: i64, parameters: &HashMap<String, String>) -> Self {
        Self {
            name: name.to_owned(),
            capacity,
            parameters: Self::digest(parameters),
        }
    }

    /// Digest of parameters; keys that the provisioner adds per claim do not count.
    pub(super) fn digest(parameters: &HashMap<String, String>) -> String {
        let stable: BTreeMap<String, &String> = parameters
            .iter()
            .map(|(key, value)| (key.to_ascii_lowercase(), value))
            .filter(|(key, _)| !key.starts_with("csi.storage.k8s.io/"))
            .collect();
        let mut text = String::new();
        for (key, value) in stable {
            // Lengths keep `a=bc` and `ab=c` apart.
            text.push_str(&format!("{}:{key}{}:{value}", key.len(), value.len()));
        }
        short_digest(&text)
    }

    /// Reads a mark; `None` for what this driver did not create.
    pub(super) fn read(metadata: &Metadata) -> Option<Self> {
        Some(Self {
            name: percent_decode_str(metadata.get(NAME)?)
                .decode_utf8()
                .ok()?
                .into_owned(),
            capacity: metadata.get(CAPACITY)?.parse().ok()?,
            parameters: metadata.get(PARAMETERS)?.clone(),
        })
    }

    /// The mark as metadata.
    pub(super) fn metadata(&self) -> Metadata {
        Metadata::from([
            (
                NAME.to_owned(),
                utf8_percent_encode(&self.name, NON_ALPHANUMERIC).to_string(),
            ),
            (CAPACITY.to_owned(), self.capacity.to_string()),
            (PARAMETERS.to_owned(), self.parameters.clone()),
        ])
    }
}

/// The first 20 hex digits of the SHA-256: enough to tell the arguments of one name apart.
pub(super) fn short_digest(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref()[..10]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What a volume id says of the volume's CSI name: two claims that use one place after each other are told
/// apart by it, and the id stays within the 128 bytes that CSI gives a string.
pub(super) fn name_digest(name: &str) -> String {
    let mut digest = short_digest(name);
    digest.truncate(10);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn marks_read_back() {
        let mark = Mark::new("pvc \u{e4}%", 5, &map(&[("transport", "https")]));
        assert_eq!(Mark::read(&mark.metadata()), Some(mark.clone()));
        assert!(mark.metadata().values().all(|v| v.is_ascii()));
        assert_eq!(Mark::read(&Metadata::from([("owner".into(), "me".into())])), None);
    }

    #[test]
    fn only_parameters_of_the_class_count() {
        let of = |pairs| Mark::new("n", 0, &map(pairs)).parameters;
        assert_eq!(
            of(&[("Transport", "https")]),
            of(&[("transport", "https"), ("csi.storage.k8s.io/pvc/name", "x")])
        );
        assert_ne!(of(&[("transport", "https")]), of(&[("transport", "prefer")]));
        assert_ne!(of(&[("a", "bc")]), of(&[("ab", "c")]));
    }
}
