//! What a volume holds that its file system does not show, or that something left half done: found by listing
//! it, for people who look after it.

use std::fmt;

use blob_client::{Condition, ETag, Error, ListItem, ListOptions, Metadata, Properties, Result};

use super::attrs::{self, Kind, kind_of};
use super::hidden::{self, Cleared};
use super::names;
use crate::store::Store;

/// Something to know about a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A blob whose name is no path of the file system: nobody sees it, and its folder is never empty.
    Unshown {
        /// The blob.
        blob: String,
    },
    /// A file of the same name as a folder, which is shown instead.
    Covered {
        /// The blob.
        blob: String,
    },
    /// A folder is being moved, or its move was cut off: the same rename finishes it.
    HalfMoved {
        /// The folder's old place.
        from: String,
        /// Its new place, as far as it got.
        to: String,
    },
    /// A marker with the note of a move whose folder is at no other place any more.
    StrayNote {
        /// The marker.
        marker: String,
        /// Its version.
        etag: ETag,
    },
    /// One of two files that were being exchanged, under the name it had meanwhile.
    Exchanged {
        /// The blob.
        blob: String,
    },
    /// What had to be deleted so that a blob of another type could have its name; somebody may still hold it.
    Replaced {
        /// The blob.
        blob: String,
        /// The name that it gets back, if nothing has it.
        name: String,
    },
    /// The content of a file that was deleted while open; somebody may still hold it.
    Deleted {
        /// The blob.
        blob: String,
        /// Its version.
        etag: ETag,
    },
}

impl Finding {
    /// The blob it is about.
    pub fn blob(&self) -> &str {
        match self {
            Self::Unshown { blob }
            | Self::Covered { blob }
            | Self::Exchanged { blob }
            | Self::Replaced { blob, .. }
            | Self::Deleted { blob, .. } => blob,
            Self::HalfMoved { to, .. } => to,
            Self::StrayNote { marker, .. } => marker,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshown { blob } => write!(f, "{blob:?}: the name is no path; no mount shows it"),
            Self::Covered { blob } => write!(f, "{blob:?}: a folder has the same name and is shown instead"),
            Self::HalfMoved { from, to } => {
                write!(f, "{from:?} is half moved to {to:?}; the same rename finishes it")
            }
            Self::StrayNote { marker, .. } => {
                write!(f, "{marker:?} carries the note of a move that is over")
            }
            Self::Exchanged { blob } => write!(
                f,
                "{blob:?}: one of two files whose exchange was cut off; rename it to where it belongs"
            ),
            Self::Replaced { blob, name } => write!(
                f,
                "{blob:?}: what {name:?} was before a rename onto it; it is put back if nothing has the name"
            ),
            Self::Deleted { blob, .. } => write!(f, "{blob:?}: what a file held that was deleted while open"),
        }
    }
}

/// Whether a blob is the marker of a folder.
pub fn is_folder(properties: &Properties) -> bool {
    kind_of(properties) == Kind::Directory
}

/// Whether a blob of the volume below `prefix` is what a mount keeps of a file that was deleted while it was
/// open. The mount holds a lease on it until the file is closed.
pub fn is_hidden(prefix: &str, blob: &str, properties: &Properties) -> bool {
    let name = blob.strip_prefix(names::below(prefix).as_str());
    name.is_some_and(names::is_hidden) && properties.metadata.contains_key(hidden::MARK)
}

/// Looks at the blobs of a volume one after the other, in the order in which the service lists them.
#[derive(Debug, Clone)]
pub struct Scan {
    /// What the names of the volume's blobs begin with.
    below: String,
    /// Files that blobs still to come may be below of: each is the beginning of the next.
    files: Vec<(String, bool)>,
}

impl Scan {
    /// A scan of the volume below `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self {
            below: names::below(prefix),
            files: Vec::new(),
        }
    }

    /// The blob that this one lets know of and that the file system does not show: itself, or a file of the
    /// name of a folder above it. Each is told once.
    pub fn unshown(&mut self, blob: &str, metadata: &Metadata) -> Option<Finding> {
        let own = blob.strip_prefix(&self.below)?;
        // The marker of the volume itself, in one of its two spellings.
        if own.is_empty() {
            return None;
        }
        let path = own.strip_suffix('/').unwrap_or(own);
        let reserved = !path.contains('/') && names::is_reserved(path);
        if reserved && metadata.contains_key(hidden::MARK) {
            return None;
        }
        let shown = path
            .split('/')
            .enumerate()
            .all(|(depth, component)| names::shown(component, depth == 0).is_some());
        if !shown {
            return Some(Finding::Unshown {
                blob: blob.to_owned(),
            });
        }
        while self
            .files
            .last()
            .is_some_and(|(file, _)| !blob.starts_with(file.as_str()))
        {
            self.files.pop();
        }
        let below = |file: &str| blob.strip_prefix(file).is_some_and(|rest| rest.starts_with('/'));
        let covered = self.files.iter_mut().find(|(file, said)| !said && below(file));
        let finding = covered.map(|(file, said)| {
            *said = true;
            Finding::Covered { blob: file.clone() }
        });
        if !own.ends_with('/') && !attrs::is_folder(metadata) {
            self.files.push((blob.to_owned(), false));
        }
        finding
    }
}

/// Everything there is to know about the volume below `prefix`. One List for each 5,000 blobs, and as many
/// again where a folder was left half moved.
///
/// # Errors
/// What the service answers to a List.
pub async fn inspect(store: &dyn Store, prefix: &str) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut scan = Scan::new(prefix);
    let mut notes = Vec::new();
    each(store, prefix, |blob, properties| {
        let metadata = &properties.metadata;
        found.extend(scan.unshown(blob, metadata));
        let own = blob.strip_prefix(&scan.below).unwrap_or(blob);
        if !own.contains('/') && names::is_reserved(own) && metadata.contains_key(hidden::MARK) {
            found.push(match hidden::replaced(metadata) {
                Some(name) => Finding::Replaced {
                    blob: blob.to_owned(),
                    name,
                },
                None => Finding::Deleted {
                    blob: blob.to_owned(),
                    etag: properties.etag.clone(),
                },
            });
        } else if !own.contains('/') && names::is_exchange(own) {
            found.push(Finding::Exchanged {
                blob: blob.to_owned(),
            });
        }
        if let (true, Some(note)) = (is_folder(properties), metadata.get(attrs::MOVED_FROM)) {
            notes.push((blob.to_owned(), properties.etag.clone(), note.clone()));
        }
    })
    .await?;
    if notes.is_empty() {
        return Ok(found);
    }
    // The version that a note names says which folder is being moved.
    let mut sources = vec![None; notes.len()];
    each(store, prefix, |blob, properties| {
        for ((marker, _, note), source) in notes.iter().zip(&mut sources) {
            if *note == properties.etag.0 && marker != blob && is_folder(properties) {
                *source = Some(blob.to_owned());
            }
        }
    })
    .await?;
    found.extend(
        notes
            .into_iter()
            .zip(sources)
            .map(|((to, etag, _), from)| match from {
                Some(from) => Finding::HalfMoved { from, to },
                None => Finding::StrayNote { marker: to, etag },
            }),
    );
    Ok(found)
}

/// Calls `see` with each blob of a volume.
async fn each(store: &dyn Store, prefix: &str, mut see: impl FnMut(&str, &Properties)) -> Result<()> {
    let mut options = ListOptions {
        prefix: names::below(prefix),
        metadata: true,
        ..ListOptions::default()
    };
    loop {
        let page = store.list(&options).await?;
        for item in &page.items {
            if let ListItem::Blob { name, properties } = item {
                see(name, properties);
            }
        }
        options.marker = page.next_marker;
        if options.marker.is_none() {
            return Ok(());
        }
    }
}

/// Takes away what a finding leaves behind, where that is a matter of one blob: the note of a move that is
/// over, what a deleted file held, and what had to make room for a rename, unless somebody holds it. True
/// when it is gone.
///
/// # Errors
/// What the service answers; a blob that has changed since it was found is left alone.
pub(crate) async fn clear(store: &dyn Store, prefix: &str, finding: &Finding) -> Result<bool> {
    let cleared = match finding {
        Finding::Replaced { blob, .. } => match store.head(blob, &Condition::none()).await {
            Ok(now) => {
                let cleared = hidden::clear(store, prefix, blob, &now).await?;
                if let Cleared::PutBack(blob) = &cleared {
                    tracing::warn!(
                        blob,
                        "put back what had to be deleted for a rename that did not come about"
                    );
                }
                return Ok(cleared != Cleared::Held);
            }
            Err(error) => Err(error),
        },
        Finding::Deleted { blob, etag } => store.delete(blob, &Condition::matches(etag)).await,
        Finding::StrayNote { marker, etag } => {
            let condition = Condition::matches(etag);
            match store.head(marker, &condition).await {
                Ok(properties) => {
                    let metadata = attrs::without_note(properties.metadata);
                    store.set_metadata(marker, &metadata, &condition).await.map(drop)
                }
                Err(error) => Err(error),
            }
        }
        _ => return Ok(false),
    };
    match cleared {
        Ok(()) => Ok(true),
        // Held, gone, or something else by now.
        Err(Error::LeaseConflict { .. } | Error::BlobNotFound { .. } | Error::ConditionNotMet { .. }) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::FakeStore;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        pairs.collect()
    }

    async fn blobs(store: &FakeStore, prefix: &str) -> Vec<String> {
        let found = inspect(store, prefix).await.unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn names_that_are_no_paths_and_files_beside_folders_are_found() {
        let store = FakeStore::new();
        let none = Metadata::new();
        let folder = metadata(&[(attrs::IS_FOLDER, "true")]);
        for shown in [
            "v/a",
            "v/a-b",
            "v/d/f",
            "v/m/",
            "v/.vsc-blob-exchanged",
            "v/d/.vsc-blob-hidden.1",
        ] {
            store.foreign_put(shown, "x", none.clone());
        }
        store.foreign_put("v/d", "", folder.clone());
        store.foreign_put("v", "", folder);
        assert_eq!(inspect(&store, "v").await.unwrap(), []);
        // `a` and `a/b` are a file and its folder; `a-b` sorts between them, and `c/d/e` is below one of two.
        let long = format!("v/{}", "x".repeat(256));
        let unshown = ["v/d//f", "v/d/../f", "v/dot./f", "v/t\u{1}", long.as_str()];
        for blob in unshown
            .iter()
            .chain(&["v/a/b", "v/a/c", "v/c", "v/c/d", "v/c/d/e", "w//x"])
        {
            store.foreign_put(blob, "x", none.clone());
        }
        let found = inspect(&store, "v").await.unwrap();
        let mut expected: Vec<Finding> = unshown
            .iter()
            .map(|blob| Finding::Unshown {
                blob: (*blob).to_owned(),
            })
            .chain(["v/a", "v/c", "v/c/d"].map(|blob| Finding::Covered {
                blob: blob.to_owned(),
            }))
            .collect();
        let name = |finding: &Finding| finding.to_string();
        expected.sort_by_key(name);
        let mut sorted = found.clone();
        sorted.sort_by_key(name);
        assert_eq!(sorted, expected);
    }

    #[tokio::test]
    async fn what_was_left_half_done_is_found_and_cleared() {
        let store = FakeStore::new();
        let folder = metadata(&[(attrs::IS_FOLDER, "true")]);
        let noted = |etag: &ETag| {
            let mut metadata = folder.clone();
            metadata.insert(attrs::MOVED_FROM.to_owned(), etag.0.clone());
            metadata
        };
        let old = store.foreign_put("old", "", folder.clone());
        store.foreign_put("new", "", noted(&old.etag));
        store.foreign_put("late", "", noted(&ETag("\"0x8\"".into())));
        store.foreign_put(".vsc-blob-exchange.1", "x", Metadata::new());
        store.foreign_put(".vsc-blob-hidden.1", "x", metadata(&[(hidden::MARK, "true")]));
        store.foreign_put(".vsc-blob-hidden.2", "x", Metadata::new());
        let held = hidden_and_held(&store).await;
        let found = inspect(&store, "").await.unwrap();
        let text = blobs(&store, "").await.join("\n");
        for part in [
            "\"old\" is half moved to \"new\"",
            "\"late\" carries the note",
            ".vsc-blob-exchange.1\": one of two files",
            ".vsc-blob-hidden.1\": what a file held",
            ".vsc-blob-hidden.2\": the name is no path",
            held,
        ] {
            assert!(text.contains(part), "no {part} in\n{text}");
        }
        assert_eq!(found.len(), 6, "{text}");
        let mut cleared = 0;
        for finding in &found {
            cleared += usize::from(clear(&store, "", finding).await.unwrap());
        }
        assert_eq!(cleared, 2, "the stray note and the blob that nobody holds");
        assert_eq!(store.properties("late").unwrap().metadata, folder);
        assert!(store.properties(".vsc-blob-hidden.1").is_none());
        assert!(store.properties(held).is_some(), "somebody has it open");
        assert_eq!(inspect(&store, "").await.unwrap().len(), 4);
    }

    /// A deleted file that a mount still has open.
    async fn hidden_and_held(store: &FakeStore) -> &'static str {
        let blob = ".vsc-blob-hidden.3";
        store.foreign_put(blob, "x", metadata(&[(hidden::MARK, "true")]));
        store.acquire_lease(blob, 60).await.unwrap();
        blob
    }
}
